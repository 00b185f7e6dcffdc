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
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SHUT_RDWR, SOL_SOCKET
from array import array
from select import POLLIN, poll

from bindlock.linux.binding import fork_guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    Ancillary = list[tuple[int, int, bytes]]

_READY, _TAKE, _HAVE, _YOURS = b"r", b"t", b"h", b"y"
_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL


def give(
    connection: socket, descriptor: int, timeout: float | None,
    let_go: Callable[[], object], surely: Callable[[], object],
) -> None:  # fmt: skip
    """Pass a descriptor on; `let_go` is called, and everything returns, when the other side has it.

    `surely` is called after it, and must be C code that does what is left when a signal handler has interrupted that.
    Raises OSError when the other side has not got it, and nothing has changed on ours: TimeoutError after `timeout`
    seconds, ConnectionError when the other side is gone, EPROTO when it answers something else. But for a time-out
    before the other side was there, the connection is shut down then: what is still under way must not be taken for
    an answer to the next try.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    _expect(connection, _READY, deadline)
    given: list[int] = []
    # map() rather than a call: no handler can raise between the send and our knowing of it, so what is raised is either
    # the kernel's, and it was not sent, or comes later.
    word = map(connection.send, (_YOURS,), (_FLAGS,))
    try:
        connection.sendmsg([_TAKE], [(SOL_SOCKET, SCM_RIGHTS, array("i", [descriptor]))], _FLAGS)
        _expect(connection, _HAVE, deadline)
        given = [*word]
    finally:
        if given:
            try:
                let_go()
            finally:
                surely()
        else:
            _shut(connection)


def take(
    connection: socket, timeout: float | None,
    hold: Callable[[int], object], keep: Callable[[int], object], drop: Callable[[int], object],
) -> None:  # fmt: skip
    """Be passed a descriptor. `hold` looks whether it is the right one, or raises; `keep` is called when it is ours.

    Whatever is raised, by us as `give` does, or by these, it is given to `drop`, and the connection shut down: from
    then on the other side cannot say that it is ours. No fork comes between its arrival and `hold`.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    kept: list[object] = []
    message: tuple[bytes, Ancillary, int, object] = b"", [], 0, None
    try:
        connection.send(_READY, _FLAGS)
        _until(connection, POLLIN, deadline)
        with fork_guard:
            # map() rather than a call: nothing that a signal handler raises can come before the descriptors are known.
            (message,) = map(connection.recvmsg, (len(_TAKE),), (CMSG_SPACE(4),), (MSG_DONTWAIT | MSG_CMSG_CLOEXEC,))
            descriptors = _descriptors(message[1])
            if message[0] != _TAKE or len(descriptors) != 1:
                raise _broken(message[0], "a descriptor")
            hold(descriptors[0])
        connection.send(_HAVE, _FLAGS)
        _hear(connection, deadline)
        keeping = map(keep, descriptors)
        kept = [*keeping]  # nor can it come between the keeping and our knowing of it
    finally:
        if not kept:
            for descriptor in _descriptors(message[1]):
                drop(descriptor)
            _shut(connection)
            _drain(connection)


def _hear(connection: socket, deadline: float | None) -> None:
    """Wait for the word. When the time is over, see that it can come no more, and whether it has come before that."""
    try:
        _expect(connection, _YOURS, deadline)
    except TimeoutError as error:
        if error.errno is None:
            raise  # a signal handler's
        _shut(connection)
        _expect(connection, _YOURS, time.monotonic())


def _shut(connection: socket) -> None:
    """Send and receive nothing more; what has come already can still be read (`unix_shutdown`)."""
    try:
        connection.shutdown(SHUT_RDWR)
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's


def _drain(connection: socket) -> None:
    """Close what was sent and never read: nobody would know why the name is bound."""
    try:
        while connection.recv(4096, MSG_DONTWAIT):
            pass
    except OSError as error:
        if error.errno is None:
            raise


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
