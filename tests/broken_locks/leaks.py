"""As of a library that opens its file without O_CLOEXEC."""

import fcntl
import os

from bindlock.proof.kinds.flock import Flock as Honest


class Leaks(Honest):
    """flock that leaks its descriptor.

    Programs that the holder starts have the descriptor, too, and so the lock.
    """

    def acquire(self) -> bool:
        had = super().acquire()
        if had:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFD, 0)
            assert os.get_inheritable(self.descriptor)
        return had
