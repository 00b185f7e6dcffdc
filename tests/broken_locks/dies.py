"""Who tries it is gone: as of a library that crashes. The first to have it is not."""

import os

from bindlock.proof.kinds.flock import Flock


class Dies(Flock):
    """A lock that ends the process that is refused it, or cannot try it."""

    def acquire(self) -> bool:
        try:
            had = super().acquire()
        except OSError:
            had = False
        if not had:
            os._exit(0)
        return had
