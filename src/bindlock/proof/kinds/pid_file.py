"""The PID file that is checked for a living process."""

import os

from bindlock.proof.kind import Kind


class PidFile(Kind):
    """PID file, kill(pid, 0).

    Read the number; when no such process lives, put our own there: written aside, synced, renamed.
    """

    rule = (
        "A number in a file says nothing about who has it: the kernel gives numbers out again, per PID namespace "
        "(pid_namespaces(7)), and kill(pid, 0) succeeds for zombies, too. Reading and writing are two steps, "
        "between which another may do the same."
    )

    def acquire(self) -> bool:
        try:
            pid = int(self.site.path.read_text())
        except (FileNotFoundError, ValueError):
            pid = 0
        if pid > 0 and pid != os.getpid() and self._lives(pid):
            return False
        aside = self.site.directory / f"lock.{os.getpid()}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, b"%d\n" % os.getpid())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(aside, self.site.path)
        return True

    def release(self) -> None:
        self.site.path.unlink()

    @staticmethod
    def _lives(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
