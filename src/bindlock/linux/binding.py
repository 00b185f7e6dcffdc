"""Having an abstract Unix address: the socket that is the lock, and what a fork does to it.

The kernel's rules (unix(7); net/unix/af_unix.c and kernel/exit.c, Linux 6.12 and 6.18):

* `unix_bind_abstract` gives an address to one socket per network namespace and type, atomically, without any
  permission check. SO_REUSEADDR is ignored.
* The name goes when the last reference to the open file goes (`unix_release_sock`): with the process at the latest, and
  before anybody is told of the death (`do_exit`: `exit_files` and `exit_task_work` come before `exit_notify`).

Fork: a child inherits every descriptor, and would keep the name bound after its parent released it. So all sockets
made here are in `_open` *before* they are bound, and the child closes them before it runs any other code. That leaves
two instants, if another thread forks just then: between socket(2) and the entry; and between the socket object's
forgetting its descriptor and close(2). `fork_guard` is held over both, and over every fork.

Signals: CPython runs Python signal handlers after a call has returned, at a backward jump and at a function's start;
never between two plain assignments. So whatever must be done or left undone together stands between two calls, and
a socket is always in the hands of an object that closes it.

`bindlock run` has this module loaded at every start: hence nothing is imported here that can be done without, `os`,
`errno` and ``from __future__`` (a module as any other) included.
"""

from _socket import (
    AF_UNIX,
    SCM_RIGHTS,
    SO_ACCEPTCONN,
    SO_DOMAIN,
    SO_TYPE,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)  # fmt: skip
from _thread import RLock, _local
from posix import close, fstat, register_at_fork, set_inheritable
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Places in the queue; the kernel takes the smaller of this and net.core.somaxconn (4096 since Linux 5.4).
BACKLOG = 4096
#: The backlog of a ticket whose owner has the lock: how sock_diag(7) tells it from that of a waiter.
SPENT = 0
FLAGS = SOCK_CLOEXEC | SOCK_NONBLOCK

#: Every socket of this process that is, or is about to be, bound to a lock's name, by its descriptor's number. Strong
#: references: a `Lock` that is dropped must find its socket open, to say so before it closes it.
_open: "dict[int, tuple[socket, Binding]]" = {}
#: What tells of names that this process has in some other way: `bindlock.linux.private` adds its own.
others: "list[Callable[[], list[Binding]]]" = []
fork_guard = RLock()
_threads = _local()


class Binding:
    """One attempt at a time to have a name; the name is had exactly while `bound`."""

    __slots__ = ("address", "kind", "share", "socket", "thread")

    def __init__(self, address: bytes, kind: int, share: bool) -> None:
        self.address = address
        self.kind = kind
        #: Whether forked children keep the name bound, too.
        self.share = share
        #: The thread that bound it last.
        self.thread: object = None
        #: The socket itself, for those who cannot afford a call of Python's.
        self.socket: socket | None = None

    @property
    def key(self) -> tuple[bytes, int]:
        """What the kernel tells names apart by: `bindlock.names.Name.key`."""
        return self.address, self.kind

    @property
    def bound(self) -> bool:
        """Whether this process has the socket, as far as Python knows (no system call)."""
        return self.socket is not None and self.socket.fileno() >= 0

    def bind(self, spare: "list[socket] | None" = None) -> None:
        """Take the name, with the system calls socket, bind, listen.

        Raises OSError: EADDRINUSE when it is taken, anything else when it could not be tried. Whatever is raised,
        also by a signal handler and at whatever instant, nothing is bound afterwards.

        `spare` is for who tries again: there is the socket between two tries, so that only the first has to make it.
        In the end its owner must `discard` what is there.
        """
        if self.socket is not None and self.socket.fileno() >= 0:
            # In this network namespace the kernel would say the same; a process can move to another.
            from errno import EADDRINUSE

            raise OSError(EADDRINUSE, "bound already")
        thread = this_thread()
        own = spare[0] if spare else None
        number = -1 if own is None else own.fileno()
        try:
            if number < 0:  # none, or closed by the at-fork hook
                own = None
                with fork_guard:
                    own = socket(AF_UNIX, self.kind | FLAGS)
                    number = own.fileno()
                    if number in _open:  # it was closed behind our back, or the kernel would not give out its number
                        _open[number][0].detach()
                    _open[number] = own, self
                    if spare is not None:
                        spare[:] = (own,)
            assert own is not None
            own.bind(self.address)
            if self.kind == SOCK_STREAM:
                own.listen(BACKLOG)
            self.thread = thread
            self.socket = own
            if spare:
                spare.clear()
        except BaseException:
            # What is not bound is left to the owner of `spare`. So is what is, when a handler raises in here again.
            if own is not None and not (spare and _is_unbound(own)):
                try:
                    with fork_guard:
                        own.close()
                finally:
                    own.close()  # a second signal has kept us from it, or nothing to do
                    if number in _open and _open[number][0] is own:
                        del _open[number]
            raise

    def adopt(self, descriptor: int) -> None:
        """Have the name by a descriptor that comes from elsewhere, bound and listening; it belongs to this object then.

        listen(2) makes us the one whom the kernel names. Raises OSError, and leaves the descriptor alone: EBADF or
        ENOTSOCK for no socket, EADDRNOTAVAIL for one that is not of this name.
        """
        thread = this_thread()
        known, owner = _open.get(descriptor, (None, None))
        if known is not None and owner is not None and known is owner.socket and _is_still(known, owner):
            from errno import EBUSY

            raise OSError(EBUSY, "another lock of this process has it")
        # map() rather than a call: a signal handler that raised just then would have the new object close the lock.
        (own,) = map(socket, (AF_UNIX,), (self.kind,), (0,), (descriptor,))
        try:
            # At once in place of what `hold` has written down, if it has: no fork finds the descriptor in no hands.
            _open[descriptor] = own, self
            if known is not None:
                known.detach()
            self._check(own)
            set_inheritable(descriptor, False)
            own.setblocking(False)
            own.listen(BACKLOG)
            self.thread = thread
            self.socket = own
        except BaseException:
            if _open.get(descriptor, (None,))[0] is own:
                del _open[descriptor]
            own.detach()
            raise

    def hold(self, descriptor: int) -> None:
        """Have forked children close `descriptor` until it is adopted, or dropped.

        Raises OSError (EADDRNOTAVAIL) unless it could be adopted. To be called with the `fork_guard` held.
        """
        (other,) = map(socket, (AF_UNIX,), (self.kind,), (0,), (descriptor,))
        try:
            self._check(other)
            _open[descriptor] = other, self
        except BaseException:
            other.detach()
            raise

    def drop(self, descriptor: int) -> None:
        """Close a descriptor that may be held."""
        known, owner = _open.get(descriptor, (None, None))
        if known is not None and owner is self and self.socket is not known:
            del _open[descriptor]
            known.detach()
        close(descriptor)

    def renew(self) -> None:
        """Have the kernel name this process as the holder: after a fork it names the one that listened before."""
        own = self.socket
        if own is not None:
            own.listen(BACKLOG)
            self.thread = this_thread()

    def close(self) -> None:
        """Let the name go. Raises OSError (EBADF) when other code closed the descriptor before."""
        own = self.socket
        if own is not None:
            number = own.fileno()
            try:
                with fork_guard:  # Python forgets the number before the kernel does
                    own.close()  # from here on `bound` is False, whatever interrupts us
            finally:
                if number in _open and _open[number][0] is own:
                    del _open[number]

    def stow(self, ticket: "Binding") -> None:
        """Have `ticket`, with which the name was had, last as long as the name does, as a spent one.

        It is sent into a connection to our own name, which nobody accepts. So it goes with the queue of this socket,
        which `unix_release_sock` empties after it has removed the name. Where the kernel will not have it, it goes too
        early: a wake-up for nothing, and no harm, so that no refusal is an error here. It is closed in any case.
        """
        carrier = None
        try:
            if ticket.socket is not None:
                carrier = socket(AF_UNIX, SOCK_STREAM | FLAGS)
                ticket.socket.listen(SPENT)
                carrier.connect(self.address)
                right = ticket.socket.fileno().to_bytes(4, byteorder)
                carrier.sendmsg([b"\0"], [(SOL_SOCKET, SCM_RIGHTS, right)])
        except OSError as error:
            if error.errno is None:
                raise  # a signal handler's
        finally:
            if carrier is not None:
                carrier.close()
        ticket.close()

    def discard(self, spare: "list[socket]") -> None:
        """Close what `bind` has left. To be called again when interrupted."""
        for own in spare:
            number = own.fileno()
            with fork_guard:
                own.close()
            if number in _open and _open[number][0] is own:
                del _open[number]
        spare.clear()

    def detach(self) -> int:
        """Forget the socket and leave it open, for as long as the process lives; the descriptor's number, or -1."""
        own = self.socket
        if own is None:
            return -1
        number = own.fileno()
        if number in _open and _open[number][0] is own:
            del _open[number]
        return own.detach()

    def forget_if_lost(self) -> bool:
        """Whether other code closed the descriptor; then its number, which may be another's by now, is forgotten."""
        own = self.socket
        with fork_guard:  # under which no other thread closes or binds it
            if own is None or own.fileno() < 0 or _is_still(own, self):
                return False
            number = own.detach()
            if number in _open and _open[number][0] is own:
                del _open[number]
            return True

    def _check(self, own: socket) -> None:
        options = [own.getsockopt(SOL_SOCKET, option) for option in (SO_DOMAIN, SO_TYPE, SO_ACCEPTCONN)]
        if options != [AF_UNIX, self.kind, 1] or own.getsockname() != self.address:
            from errno import EADDRNOTAVAIL

            raise OSError(EADDRNOTAVAIL, "no listening socket of this name")

    def fileno(self) -> int:
        """The descriptor, or -1."""
        return -1 if self.socket is None else self.socket.fileno()

    def inode(self) -> int:
        """The inode of the bound socket: what sock_diag(7) and /proc call it by; 0 when it is bound no more."""
        try:
            return fstat(self.fileno()).st_ino
        except OSError as error:
            from errno import EBADF

            if error.errno != EBADF:  # another thread has released it
                raise
            return 0

    def drop_dead(self, count: int) -> None:
        """Accept and close the first `count` connections of the queue, whose clients are gone.

        Closing one that still waits would be no harm, only a wake-up for nothing: its owner tries the name and queues
        again.
        """
        own = self.socket
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
        except OSError as error:
            from errno import EBADF, EINVAL

            if error.errno not in (EBADF, EINVAL):  # another thread has released it
                raise

    def verify(self) -> bool:
        """Ask the kernel whether the descriptor still is the bound socket, and not closed, or reused for another."""
        return self.socket is not None and _is_still(self.socket, self)


def bindings() -> list[Binding]:
    """The names that this process has now."""
    found = [binding for own, binding in list(_open.values()) if binding.socket is own and _is_still(own, binding)]
    for more in others:
        found += more()
    return found


def this_thread() -> object:
    """What tells this thread from all others, past ones included: the numbers of those are used again."""
    try:
        return _threads.identity
    except AttributeError:
        _threads.identity = identity = object()
        return identity


def _drop_in_child() -> None:
    for number, (own, binding) in list(_open.items()):
        # What is shared, too, when it is not bound, or its owner is a thread that the child does not have.
        if not binding.share or binding.socket is not own:
            if _is_still(own, binding):
                own.close()
            else:
                own.detach()
            del _open[number]


def _is_unbound(own: socket) -> bool:
    try:
        return bool(own.getsockname() == "")
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's
        return False  # closed


def _is_still(own: socket, binding: Binding) -> bool:
    """Whether the descriptor is the socket we made: other code may have closed it, and its number be another's now."""
    try:
        # Without an address: one that `bind` has not bound yet, or a stranger's.
        return own.getsockname() in ((binding.address,) if binding.socket is own else (binding.address, ""))
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's
        return False  # closed (EBADF), or a file or socket of some other kind


# Twice, for a signal handler that raises in the first leaves the rest to the second: the interpreter reports what is
# raised in a hook, and goes on. The guard is given back by a hook without Python code, which no signal can interrupt.
register_at_fork(before=fork_guard.acquire, after_in_child=_drop_in_child)
register_at_fork(after_in_parent=fork_guard.release, after_in_child=_drop_in_child)
register_at_fork(after_in_child=fork_guard.release)
