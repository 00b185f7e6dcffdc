"""The lock that this project is about."""

from bindlock import Lock
from bindlock.proof.kind import Kind, Site


class Bindlock(Kind):
    """bindlock.

    `bindlock.Lock`, as it comes.
    """

    rule = (
        "The kernel takes an abstract address back when the last reference to the open socket goes "
        "(unix_release_sock, net/unix/af_unix.c). bindlock drops it in forked children, and when it is refused by "
        "a holder whose process is gone, it waits 0.25 s for the rest of it to go."
    )
    interval = None

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.lock = Lock(site.name, scope="host" if site.shared else "user")

    def acquire(self) -> bool:
        return self.lock.try_acquire()

    def release(self) -> None:
        self.lock.release()

    def wait(self) -> None:
        self.lock.acquire()

    def fileno(self) -> int:
        return self.lock.fileno()
