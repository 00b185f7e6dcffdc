"""What flock(1) does."""

import fcntl
import os

from bindlock.proof.kind import Kind


class Flock(Kind):
    """flock(2) on a file.

    As flock(1) does it: the file is created when missing, opened for reading, and never removed.
    """

    rule = (
        "A flock(2) lock belongs to the open file description, and goes with the last descriptor that leads to it "
        "(locks_remove_flock, fs/locks.c): forked children have it, too. It is on the inode, not on the path."
    )
    interval = None

    def acquire(self) -> bool:
        self.descriptor = self._open()
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.descriptor)
            return False
        except OSError:
            os.close(self.descriptor)
            raise
        return True

    def wait(self) -> None:
        self.descriptor = self._open()
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        os.close(self.descriptor)

    def fileno(self) -> int:
        return self.descriptor

    def _open(self) -> int:
        return os.open(self.site.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
