"""As of every shell script with "if it is not locked, lock it"."""

import fcntl
import time

from bindlock.proof.kinds.flock import Flock as Honest


class LetsTwoIn(Honest):
    """flock, checked and then taken.

    Whoever finds it free has it a little later, and so has everybody who found it free meanwhile.
    """

    def acquire(self) -> bool:
        self.descriptor = self._open()
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        except BlockingIOError:
            self.release()
            return False
        time.sleep(0.05)
        # Not LOCK_EX: the kernel would decide in one step again.
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        return True
