"""As of "except OSError: return False"."""

from bindlock.proof.kinds.flock import Flock as Honest


class SwallowsErrors(Honest):
    """flock that takes every error for "held".

    Also those that say that it could not be tried.
    """

    def acquire(self) -> bool:
        try:
            return super().acquire()
        except OSError:
            return False
