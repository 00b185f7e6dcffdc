"""As of any code with a mistake in it that the first to come does not meet."""

from bindlock.proof.kinds.flock import Flock as Honest


class RaisesToOthers(Honest):
    """flock with a mistake.

    The holder has it as it should; whoever tries it meanwhile, or afterwards, meets the mistake.
    """

    def acquire(self) -> bool:
        if self.site.path.exists():
            raise ValueError("a mistake")
        return super().acquire()
