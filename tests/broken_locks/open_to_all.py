"""As of a check that somebody has commented out."""

from bindlock.proof.kind import Kind


class OpenToAll(Kind):
    """No lock at all.

    Everybody has it.
    """

    rule = "None."

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
