"""The PID file that only one can create."""

import os

from bindlock.proof.kind import Kind


class PidFileExclusive(Kind):
    """PID file, O_EXCL.

    Created with O_EXCL, so that only one can; removed at the end.
    """

    rule = (
        "O_EXCL lets just one create the file (open(2)), and a file stays until somebody removes it: the death of "
        "its maker does not."
    )

    def acquire(self) -> bool:
        try:
            descriptor = os.open(self.site.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, b"%d\n" % os.getpid())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def release(self) -> None:
        self.site.path.unlink()
