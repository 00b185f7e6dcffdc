"""Passing a descriptor over a connected Unix socket, so that it ends up with one side or the other.

The kernel's rules (unix(7); net/core/scm.c, net/unix/af_unix.c):

* A descriptor sent with SCM_RIGHTS is a reference of its own from sendmsg(2) on; unread, it goes when the receiving
  socket does.
* Ancillary data comes with the first byte that it was sent with. What does not fit the buffer is closed by the kernel
  (MSG_CTRUNC); a buffer for one descriptor has, for alignment, room for two.
* SO_PEERCRED tells who connected, or listened, or made the socketpair(2).

The protocol, and what becomes of the lock when either side dies, is in docs/design.md, "Hand-over".
"""

from __future__ import annotations

import errno
import os
import time
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET
from array import array
from select import POLLIN, POLLOUT, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    Ancillary = list[tuple[int, int, bytes]]

_TAKE, _HAVE, _YOURS = b"t", b"h", b"y"
_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL


def give(connection: socket, descriptor: int, timeout: float | None, let_go: Callable[[], object]) -> None:
    """Pass a descriptor on; `let_go` is called, and everything returns, when the other side has it.

    Raises OSError when it has not, and nothing has changed on our side: TimeoutError after `timeout` seconds,
    ConnectionError when the other side is gone, EPROTO when it answers something else.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    _until(connection, POLLOUT, deadline)
    connection.sendmsg([_TAKE], [(SOL_SOCKET, SCM_RIGHTS, array("i", [descriptor]))], _FLAGS)
    _expect(connection, _HAVE, deadline)
    given = True  # before it is so: a signal handler that raises right after the send must find it so
    try:
        connection.send(_YOURS, _FLAGS)
    except OSError as error:
        given = error.errno is None  # a signal handler's
        raise
    finally:
        if given:
            let_go()


def take(
    connection: socket, timeout: float | None, have: Callable[[int], object], keep: Callable[[int], object]
) -> None:
    """Be passed a descriptor. `have` looks whether it is the right one, or raises; `keep` is called when it is ours.

    Whatever is raised, by us as `give` does, or by these, the descriptor is closed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    _until(connection, POLLIN, deadline)
    # map() rather than a call: nothing that a signal handler raises can come before the descriptors are known.
    (message,) = map(connection.recvmsg, (len(_TAKE),), (CMSG_SPACE(4),), (MSG_DONTWAIT | MSG_CMSG_CLOEXEC,))
    kept = -1
    try:
        data = message[0]
        descriptors = _descriptors(message[1])
        if data != _TAKE or len(descriptors) != 1:
            raise _broken(data, "a descriptor")
        have(descriptors[0])
        connection.send(_HAVE, _FLAGS)
        _expect(connection, _YOURS, deadline)
        keep(descriptors[0])
        kept = descriptors[0]
    finally:
        for descriptor in _descriptors(message[1]):
            if descriptor != kept:
                os.close(descriptor)


def _descriptors(ancillary: Ancillary) -> list[int]:
    found = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found.frombytes(data[: len(data) // found.itemsize * found.itemsize])
    return found.tolist()


def _expect(connection: socket, wanted: bytes, deadline: float | None) -> None:
    _until(connection, POLLIN, deadline)
    data = connection.recv(len(wanted), MSG_DONTWAIT)
    if data != wanted:
        raise _broken(data, repr(wanted))


def _broken(data: bytes, wanted: str) -> OSError:
    if not data:
        return ConnectionResetError(errno.ECONNRESET, "the other side is gone")
    return OSError(errno.EPROTO, f"the other side said {data!r} rather than {wanted}")


def _until(connection: socket, events: int, deadline: float | None) -> None:
    poller = poll()
    poller.register(connection, events)
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if poller.poll(None if left is None else int(min(left * 1000 + (left > 0), 2**31 - 1))):
            return
        if left == 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
