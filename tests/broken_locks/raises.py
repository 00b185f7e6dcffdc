"""As of any code with a mistake in it."""

from bindlock.proof.kind import Kind


class Raises(Kind):
    """A lock with a mistake.

    It raises what is no OSError.
    """

    rule = "None."

    def acquire(self) -> bool:
        raise ValueError("a mistake")

    def release(self) -> None:
        pass
