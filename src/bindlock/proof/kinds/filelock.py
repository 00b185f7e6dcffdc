"""The library filelock."""

from bindlock.proof.kind import Kind, Site


class Filelock(Kind):
    """filelock.

    `filelock.FileLock`, as it comes.
    """

    rule = "It is flock(2) on a file, on systems that have it, and looks again every 0.05 s."
    package = "filelock"
    interval = 0.05

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        import filelock

        self.held = filelock.Timeout
        self.lock = filelock.FileLock(site.path, mode=0o666 if site.shared else 0o644)

    def acquire(self) -> bool:
        try:
            self.lock.acquire(blocking=False)
        except self.held:
            return False
        return True

    def wait(self) -> None:
        self.lock.acquire()

    def release(self) -> None:
        self.lock.release()
