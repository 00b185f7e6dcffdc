"""Having an abstract Unix address: the socket that is the lock, and what a fork does to it.

The kernel's rules (unix(7); net/unix/af_unix.c and kernel/exit.c, Linux 6.12 and 6.18):

* `unix_bind_abstract` gives an address to one socket per network namespace and type, atomically, without any
  permission check. SO_REUSEADDR is ignored.
* The name goes when the last reference to the open file goes (`unix_release_sock`): with the process at the latest, and
  before anybody is told of the death (`do_exit`: `exit_files` and `exit_task_work` come before `exit_notify`).

Fork: a child inherits every descriptor, and would keep the name bound after its parent released it. So all sockets
made here are in `_open` *before* they are bound, and the child closes them first thing. That leaves the instant between
socket(2) and the entry, if another thread forks just then: `_fork_guard` is held over it, and over every fork.

Signals: CPython runs Python signal handlers after a call has returned, at a backward jump and at a function's start;
never between two plain assignments. So whatever must be done or left undone together stands between two calls, and
a socket is always in the hands of an object that closes it.

`bindlock run` has this module loaded at every start: hence nothing is imported here that can be done without, `os`,
`errno` and ``from __future__`` (a module as any other) included.
"""

from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket
from _thread import RLock, get_ident
from posix import close, fstat, register_at_fork

#: Places in the queue; the kernel takes the smaller of this and net.core.somaxconn (4096 since Linux 5.4).
BACKLOG = 4096
FLAGS = SOCK_CLOEXEC | SOCK_NONBLOCK

#: Every socket of this process that is, or is about to be, bound to a lock's name. Strong references: a `Lock` that is
#: dropped must find its socket open, to say so before it closes it.
_open: "dict[socket, Binding]" = {}
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
            from errno import EADDRINUSE

            raise OSError(EADDRINUSE, "bound already")
        thread = get_ident()
        own = None
        try:
            with _fork_guard:
                own = socket(AF_UNIX, self.kind | FLAGS)
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

    def inode(self) -> int:
        """The inode of the bound socket: what sock_diag(7) and /proc call it by."""
        return fstat(self.fileno()).st_ino

    def drop_dead(self, count: int) -> None:
        """Accept and close the first `count` connections of the queue, whose clients are gone.

        Closing one that still waits would be no harm, only a wake-up for nothing: its owner tries the name and queues
        again.
        """
        own = self._socket
        if own is None:
            return
        try:
            # iter() and zip() rather than a call to _accept(): a descriptor that a call has returned is lost when a
            # signal handler raises just then; between an iterator's step and the next call no handler runs.
            accepted = zip(range(count), iter(own._accept, None), strict=False)  # type: ignore[attr-defined]
            for _, (descriptor, _) in accepted:
                close(descriptor)
        except BlockingIOError:
            pass  # somebody else emptied the queue

    def verify(self) -> bool:
        """Ask the kernel whether the descriptor still is the bound socket, and not closed, or reused for another."""
        return self._socket is not None and _is_still(self._socket, self)


def bindings() -> list[Binding]:
    """The names that this process has now."""
    return [binding for own, binding in list(_open.items()) if binding._socket is own and _is_still(own, binding)]


def _in_child() -> None:
    try:
        for own, binding in list(_open.items()):
            if not binding.share:
                del _open[own]
                if _is_still(own, binding):
                    own.close()
                else:
                    own.detach()
    finally:
        _fork_guard.release()


def _is_still(own: socket, binding: Binding) -> bool:
    """Whether the descriptor is the socket we made: other code may have closed it, and its number be another's now."""
    try:
        # Without an address: one that `bind` has not bound yet, or a stranger's.
        return own.getsockname() in ((binding.address,) if binding._socket is own else (binding.address, ""))
    except OSError as error:
        from errno import EBADF, ENOTSOCK

        if error.errno in (EBADF, ENOTSOCK):
            return False
        raise


register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_in_child)
