"""The record lock of POSIX."""

import fcntl
import os

from bindlock.proof.kind import Kind


class Lockf(Kind):
    """POSIX record lock (lockf).

    fcntl(2) with F_SETLK on a file that is created when missing, and never removed.
    """

    rule = (
        "A record lock belongs to the process, and to the inode. Children do not have it; it goes when the process "
        "closes any descriptor of that file, also one that other code of it had opened (fcntl(2); locks_remove_posix, "
        "fs/locks.c)."
    )
    interval = None

    def acquire(self) -> bool:
        self.descriptor = self._open()
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
            os.close(self.descriptor)
            return False
        except OSError:
            os.close(self.descriptor)
            raise
        return True

    def wait(self) -> None:
        self.descriptor = self._open()
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        os.close(self.descriptor)

    def _open(self) -> int:
        descriptor = os.open(self.site.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.site.share(descriptor)
        return descriptor
