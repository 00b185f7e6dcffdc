"""Abstract Unix sockets: binding a name, queueing behind its holder, asking who that is.

The kernel's rules (unix(7); net/unix/af_unix.c, Linux 6.12 and 6.18):

* `unix_bind_abstract` gives an address to one socket per network namespace and type, atomically, without any
  permission check. The name goes when the last reference to the open file goes (`unix_release_sock`), so with the
  process at the latest, and before anybody is told of the death (`do_exit`: `exit_files` and `exit_task_work` come
  before `exit_notify`).
* A connection to a listening socket is queued without the listener running any code. When the listener goes, every
  queued connection is hung up, and the name is free *before* that wake-up. (Not so for accepted connections: the
  holder's descriptors are closed one after the other. So waiters are never accepted.)
* The queue takes backlog + 1 connections. One that is closed keeps its place until somebody accepts it.

Fork: a child inherits every descriptor, and would keep the name bound after its parent released it. So all sockets
made here are in `_open` *before* they are bound, and the child closes them first thing. That leaves the instant between
socket(2) and the entry, if another thread forks just then: `_fork_guard` is held over it, and over every fork.

Signals: CPython runs Python signal handlers after a call has returned, at a backward jump and at a function's start;
never between two plain assignments. So whatever must be done or left undone together stands between two calls, and
a socket is always in the hands of an object that closes it.
"""

from __future__ import annotations

import errno
from _thread import RLock, get_ident
from posix import close, fstat, pidfd_open, register_at_fork  # not os: see `bindlock.names`
from sys import byteorder

from _socket import (
    AF_UNIX,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

#: Places in the queue; the kernel takes the smaller of this and net.core.somaxconn (4096 since Linux 5.4).
BACKLOG = 4096
_SO_PEERPIDFD = 77  # Linux 6.5; Python has no name for it
_FLAGS = SOCK_CLOEXEC | SOCK_NONBLOCK

#: Every socket of this process that is, or is about to be, bound to a lock's name. Strong references: a `Lock` that is
#: dropped must find its socket open, to say so before it closes it.
_open: dict[socket, Binding] = {}
_fork_guard = RLock()


class Binding:
    """One attempt at a time to have a name; the name is had exactly while `bound`."""

    __slots__ = ("_socket", "address", "kind", "share", "thread")

    def __init__(self, address: bytes, kind: int, share: bool) -> None:
        self.address = address
        self.kind = kind
        #: Whether forked children keep the name bound, too.
        self.share = share
        #: The thread that bound it last.
        self.thread = 0
        self._socket: socket | None = None

    @property
    def key(self) -> tuple[bytes, int]:
        """What the kernel tells names apart by: `bindlock.names.Name.key`."""
        return self.address, self.kind

    @property
    def bound(self) -> bool:
        """Whether this process has the socket, as far as Python knows (no system call)."""
        return self._socket is not None and self._socket.fileno() >= 0

    def bind(self) -> None:
        """Take the name, with the system calls socket, bind, listen.

        Raises OSError: EADDRINUSE when it is taken, anything else when it could not be tried. Whatever is raised,
        also by a signal handler and at whatever instant, nothing is bound afterwards.
        """
        if self._socket is not None and self._socket.fileno() >= 0:
            # In this network namespace the kernel would say the same; a process can move to another.
            raise OSError(errno.EADDRINUSE, "bound already")
        thread = get_ident()
        own = None
        try:
            with _fork_guard:
                own = socket(AF_UNIX, self.kind | _FLAGS)
                _open[own] = self
            own.bind(self.address)
            if self.kind == SOCK_STREAM:
                own.listen(BACKLOG)
            self.thread = thread
            self._socket = own
        except BaseException:
            if own is not None:
                if own in _open:  # not pop(): a call, after which a second signal could keep us from close()
                    del _open[own]
                own.close()
            raise

    def close(self) -> None:
        """Let the name go. Raises OSError (EBADF) when other code closed the descriptor before."""
        own = self._socket
        if own is not None:
            try:
                own.close()  # from here on `bound` is False, whatever interrupts us
            finally:
                _open.pop(own, None)

    def detach(self) -> int:
        """Leave the name bound for as long as the process lives; the descriptor's number."""
        own = self._socket
        if own is None:
            return -1
        _open.pop(own, None)
        return own.detach()

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return -1 if self._socket is None else self._socket.fileno()

    def verify(self) -> bool:
        """Ask the kernel whether the descriptor still is the bound socket, and not closed, or reused for another."""
        return self._socket is not None and _is_still(self._socket, self.address)


def bindings() -> list[Binding]:
    """The names that this process has now."""
    return [binding for own, binding in list(_open.items()) if binding._socket is own and _is_still(own, binding.address)]


def inode(binding: Binding) -> int:
    """The inode of a bound socket: what sock_diag(7) and /proc call it by."""
    return fstat(binding.fileno()).st_ino


def drop_dead(binding: Binding, count: int) -> None:
    """Accept and close the first `count` connections of the queue, whose clients are gone.

    Closing one that still waits would be no harm, only a wake-up for nothing: its owner tries the name and queues
    again.
    """
    own = binding._socket
    if own is None:
        return
    try:
        # iter() and zip() rather than a call to _accept(): a descriptor that a call has returned is lost when a signal
        # handler raises just then; between an iterator's step and the next call no handler runs.
        for _, (descriptor, _) in zip(range(count), iter(own._accept, None)):  # type: ignore[attr-defined]
            close(descriptor)
    except BlockingIOError:
        pass  # somebody else emptied the queue


def queue(address: bytes) -> socket | int:
    """Take a place in the queue of whoever listens at `address`: the connection, or the errno of the refusal.

    ECONNREFUSED: nobody listens, so the name is free, or bound only. EAGAIN: the queue is full. EPERM, EACCES: a
    security policy (Landlock's scope, AppArmor, SELinux). EPROTOTYPE: bound with another socket type.
    """
    connection = socket(AF_UNIX, SOCK_STREAM | _FLAGS)
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
    """Who listened at an address, as the kernel wrote it down for one connection (SO_PEERCRED, unix(7)).

    pid is None when the process has no number in our PID namespace. `pidfd` is -1 where none can be had; otherwise
    close it with `close`.
    """

    __slots__ = ("gid", "gone", "pid", "pidfd", "uid")

    def __init__(self, connection: socket) -> None:
        self.pidfd = -1
        pid, self.uid, self.gid = _credentials(connection)
        self.pid: int | None = pid or None
        #: The kernel says that this process is no more.
        self.gone = False
        try:
            self.pidfd = connection.getsockopt(SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            # Linux 6.12 and before refuse a process that has been reaped; before 6.5 there is no such option.
            if error.errno in (errno.EINVAL, errno.ESRCH):
                self.gone = True
            elif error.errno != errno.ENOPROTOOPT:
                raise
        if self.pidfd < 0 and not self.gone and self.pid is not None:
            try:
                self.pidfd = pidfd_open(self.pid)
            except ProcessLookupError:
                self.gone = True
        if self.pidfd >= 0:
            self.gone = exited(self.pidfd, 0)

    def close(self) -> None:
        """Close the pidfd."""
        descriptor, self.pidfd = self.pidfd, -1
        if descriptor >= 0:
            close(descriptor)


def hung_up(connection: socket, seconds: float | None) -> bool:
    """Sleep until the holder that `connection` is queued at is gone: True; or for `seconds`: False.

    No event but the hang-up is asked for (POLLHUP and POLLERR cannot be declined), so nothing that a stranger sends
    wakes us.
    """
    return _poll(connection.fileno(), 0, seconds)


def exited(pidfd: int, seconds: float | None) -> bool:
    """Sleep until the process of `pidfd` has exited, all its threads included: True; or for `seconds`: False."""
    from select import POLLIN

    return _poll(pidfd, POLLIN, seconds)


def _poll(descriptor: int, events: int, seconds: float | None) -> bool:
    from select import poll  # not needed for an uncontended lock

    poller = poll()
    poller.register(descriptor, events)
    # poll(2) takes a C int of milliseconds, 24 days at most: the caller asks again. It is rounded up, so that it does
    # not come back just before the deadline; and goes on after a signal whose handler returns (PEP 475).
    milliseconds = None if seconds is None else min(int(seconds * 1000) + (seconds > 0), 2**31 - 1)
    return bool(poller.poll(milliseconds))


def _in_child() -> None:
    for own, binding in list(_open.items()):
        if not binding.share:
            del _open[own]
            if _is_still(own, binding.address):
                own.close()
            else:
                own.detach()
    _fork_guard.release()


def _is_still(own: socket, address: bytes) -> bool:
    """Whether the descriptor is the socket we made, bound or not yet: other code may have closed and reused it."""
    try:
        return own.getsockname() in (address, "")
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            return False
        raise


register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_in_child)
