"""As of a lock that a helper process keeps."""

import os
import time

from bindlock.proof.kind import Site
from bindlock.proof.kinds.abstract import Abstract

#: Seconds.
LATENESS = 0.03


class FreesLate(Abstract):
    """Abstract socket, with a helper.

    A helper process has it, too, and notices only a little later that the holder has gone, or has released.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.end = -1

    def acquire(self) -> bool:
        if not super().acquire():
            return False
        start, self.end = os.pipe()
        if not os.fork():
            os.close(self.end)
            os.read(start, 1)
            time.sleep(LATENESS)
            os._exit(0)
        os.close(start)
        return True

    def release(self) -> None:
        super().release()
        os.close(self.end)
