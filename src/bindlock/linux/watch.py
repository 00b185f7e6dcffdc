"""Several sockets as one descriptor, which an event loop can watch.

The kernel's rules (epoll(7); fs/eventpoll.c, net/unix/af_unix.c, Linux 6.12 and 6.18):

* An epoll instance is itself readable while one of the registered files is ready; so it is as soon as a file is
  registered that is ready already, by whatever thread.
* EPOLLHUP and EPOLLERR cannot be declined, and are all that is reported where no event is asked for.
* A registration is one of the open file's, and goes with it, silently. The file is not kept open by it.
* A stream socket that was never connected is hung up (`unix_poll`).

So what an event loop watches is a descriptor of our own, which is closed after the loop has let go of it. Were it the
lock's, and another thread released that, the loop would go on with the number, and take the next file that gets it for
the lock.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_STREAM, socket
from contextlib import suppress
from select import EPOLLIN, epoll

from bindlock.linux.binding import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


def hang_ups(connections: list[socket]) -> epoll:
    """What is readable as soon as the other end of one of `connections` is gone, whatever it sends before."""
    watched = epoll()
    for connection in connections:
        watched.register(connection, 0)
    return watched


class Watch:
    """Is readable as soon as somebody has queued at a listening socket of ours, or `end` was called."""

    __slots__ = ("__weakref__", "_epoll", "_hung_up", "ended")

    def __init__(self, descriptor: int) -> None:
        #: Whether the socket is closed, so that nobody will queue at it.
        self.ended = False
        self._hung_up = socket(AF_UNIX, SOCK_STREAM | FLAGS)
        self._epoll: epoll | None = None
        watched = epoll()
        try:
            watched.register(descriptor, EPOLLIN)
            self._epoll = watched
        finally:
            if self._epoll is None:
                self._hung_up.close()

    def fileno(self) -> int:
        """The descriptor to be watched."""
        assert self._epoll is not None
        return self._epoll.fileno()

    def end(self) -> None:
        """Have it be readable, for the socket was closed. Any thread may call this, also when it is closed itself."""
        self.ended = True
        watched = self._epoll
        if watched is not None:
            with suppress(OSError, ValueError):  # closed just now, or ended already
                watched.register(self._hung_up, 0)

    def close(self) -> None:
        """Give the descriptors back."""
        self._hung_up.close()
        # Not closed by hand: `end` may be about to use its number.
        self._epoll = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
