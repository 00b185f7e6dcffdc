"""bindlock's lock as a kind for the proof that has no patience: the kernel is asked, too, and must say the same."""

from bindlock import Lock
from bindlock.proof.kind import Kind, Site
from tests.actors import bindable


class Strict(Kind):
    """bindlock, and the kernel.

    A bare bind of the very address, and then `bindlock.Lock`: it is had when both say so.
    """

    rule = "What the kernel says this instant; the lock's grace does not count."
    interval = None

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.scope = "host" if site.shared else "user"
        self.lock = Lock(site.name, scope=self.scope)

    def acquire(self) -> bool:
        free = bindable(self.site.name, self.scope)
        had = self.lock.try_acquire()
        # The other way round is lateness: the name became free between the two questions.
        assert had or not free, "the kernel says that the name is free, and the lock that it is held"
        if had and not free:
            self.lock.release()
        return had and free

    def release(self) -> None:
        self.lock.release()

    def wait(self) -> None:
        self.lock.acquire()

    def fileno(self) -> int:
        return self.lock.fileno()
