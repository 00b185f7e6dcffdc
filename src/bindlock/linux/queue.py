"""Queueing at a bound address, and asking who listens there.

The kernel's rules (unix(7); net/unix/af_unix.c, Linux 6.12 and 6.18):

* A connection to a listening socket is queued without the listener running any code. When the listener goes, every
  queued connection is hung up, and the name is free *before* that wake-up. (Not so for accepted connections: the
  holder's descriptors are closed one after the other. So waiters are never accepted.)
* The queue takes backlog + 1 connections. One that is closed keeps its place until somebody accepts it.
* The credentials of a connection are those of the last listen(2), whoever has the socket by now.
"""

from __future__ import annotations

import errno
from _signal import pidfd_send_signal  # `signal` would import enum
from _socket import AF_UNIX, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket
from posix import pidfd_open
from select import POLLIN, poll
from sys import byteorder

from bindlock.linux.binding import FLAGS
from bindlock.linux.process import exited, pidfd

_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it


def queue(address: bytes, kind: int = SOCK_STREAM) -> socket | int:
    """Take a place in the queue of whoever listens at `address`: the connection, or the errno of the refusal.

    ECONNREFUSED: nobody listens, so the name is free, or bound only. EAGAIN: the queue is full. EPERM, EACCES: a
    security policy (Landlock's scope, AppArmor, SELinux). EPROTOTYPE: bound with another socket type.
    """
    connection = socket(AF_UNIX, kind | FLAGS)
    refusal: int = connection.connect_ex(address)
    if not refusal:
        return connection
    connection.close()
    return refusal


def peer_uid(connection: socket) -> int:
    """The uid of whoever listens at the other end, as it was at its listen(2) (SO_PEERCRED, unix(7))."""
    return _credentials(connection)[1]


def _credentials(connection: socket) -> tuple[int, int, int]:
    packed = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    pid, uid, gid = (int.from_bytes(packed[i : i + 4], byteorder) for i in (0, 4, 8))
    return pid, uid, gid


class Peer:
    """Who listened at an address, as the kernel wrote it down for one connection (SO_PEERCRED, unix(7))."""

    __slots__ = ("gid", "gone", "pid", "uid")

    def __init__(self, connection: socket) -> None:
        pid, self.uid, self.gid = _credentials(connection)
        #: None when the process has no number in our PID namespace.
        self.pid: int | None = pid or None
        #: The kernel says that this process is no more.
        self.gone = self._is_gone(connection)

    def _is_gone(self, connection: socket) -> bool:
        try:
            with pidfd(connection.getsockopt, SOL_SOCKET, _SO_PEERPIDFD) as owner:
                return exited(owner)
        except OSError as error:
            # Linux 6.12 and before refuse a process that has been reaped; before 6.5 there is no such option.
            if error.errno in (errno.EINVAL, errno.ESRCH):
                return True
            if error.errno != errno.ENOPROTOOPT:
                raise
        if self.pid is None:
            return False
        try:
            with pidfd(pidfd_open, self.pid) as owner:
                return exited(owner)
        except ProcessLookupError:
            return True


def signal_peer(connection: socket, number: int) -> None:
    """Send whoever listened a signal, be it in another PID namespace: Linux 6.5, else OSError with ENOPROTOOPT."""
    with pidfd(connection.getsockopt, SOL_SOCKET, _SO_PEERPIDFD) as owner:
        pidfd_send_signal(owner.fileno(), number)


def hung_up(connections: list[socket], seconds: float | None) -> bool:
    """Sleep until one of those that `connections` are queued at is gone: True; or for `seconds`: False.

    No event but the hang-up is asked for (POLLHUP and POLLERR cannot be declined), so nothing that a stranger sends
    wakes us.
    """
    poller = poll()
    for connection in connections:
        poller.register(connection, 0)
    # poll(2) takes a C int of milliseconds, 24 days at most: the caller asks again. It is rounded up, so that it does
    # not come back just before the deadline; and goes on after a signal whose handler returns (PEP 475).
    return bool(poller.poll(None if seconds is None else int(min(seconds * 1000 + (seconds > 0), 2**31 - 1))))


def those_hung_up(connections: list[socket]) -> list[socket]:
    """Those among `connections` whose other end is gone."""
    poller = poll()
    for connection in connections:
        poller.register(connection, 0)
    ended = {descriptor for descriptor, _ in poller.poll(0)}
    return [connection for connection in connections if connection.fileno() in ended]


def arrivals(listener: socket) -> poll:
    """What tells, by `poll(0)`, whether somebody is, or was, queued at a listening socket of ours."""
    poller = poll()
    poller.register(listener, POLLIN)
    return poller
