"""The library portalocker."""

from bindlock.proof.kind import Kind, Site


class Portalocker(Kind):
    """portalocker.

    `portalocker.Lock`, as it comes.
    """

    rule = "It is flock(2) on a file, and looks again every 0.25 s."
    package = "portalocker"
    interval = 0.25

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        import portalocker

        self.held, self.trouble = portalocker.AlreadyLocked, portalocker.LockException
        self.lock = portalocker.Lock(site.path)

    def acquire(self) -> bool:
        try:
            self.file = self.lock.acquire(timeout=0, fail_when_locked=True)
        except self.held:
            return False
        except self.trouble as error:
            raise OSError(str(error)) from error
        self.site.share(self.fileno())
        return True

    def wait(self) -> None:
        self.file = self.lock.acquire(timeout=3600)

    def release(self) -> None:
        self.lock.release()

    def fileno(self) -> int:
        number: int = self.file.fileno()
        return number
