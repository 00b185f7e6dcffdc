"""Looking at a name without harm to those who wait for it.

A connection is the quick way to the holder's PID, but it keeps its place in the holder's queue for ever. So
sock_diag(7) is asked first, which touches nothing; a connection is made only while the queue is under half full; and
/proc says the rest. And because sock_diag has then just shown the queues of *this* process's locks, too, their dead
connections are dropped on the way, which costs nothing more.

Three facts are kept apart (they can disagree): who made the socket (sock_diag's uid), who listened (the connection's
SO_PEERCRED), and who has it open now (/proc).
"""

from __future__ import annotations

import errno
import time

from bindlock.linux import process
from bindlock.linux.binding import bindings
from bindlock.linux.diag import Diag, Entry
from bindlock.linux.queue import Peer, arrivals, queue, signal_peer
from bindlock.lock import tickets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bindlock.linux.binding import Binding
    from bindlock.names import Name

#: How often a name that changes hands under our eyes is looked at again.
_TRIES = 5
#: Dead connections at the front of a queue that are dropped when they are seen.
_WORTHWHILE = 16
#: Seconds: longer than it takes to look who listens.
_LOOK = 0.005
#: Refusals of sock_diag itself: seccomp, no kernel module, no netlink.
NO_DIAG = frozenset({errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOENT, errno.EPROTONOSUPPORT, errno.ENOSYS})
#: Connect was refused by a rule rather than by the state of the socket: Landlock's scope, AppArmor, SELinux.
_REFUSALS = frozenset({errno.ECONNREFUSED, errno.EAGAIN, errno.EPERM, errno.EACCES, errno.EPROTOTYPE})


class Sighting:
    """What one look saw: the bound socket, and, where it could be asked, who listened on it."""

    __slots__ = ("entry", "gid", "gone", "listener", "uid", "waiters")

    def __init__(self, entry: Entry | None, peer: Peer | None, waiters: int = 0) -> None:
        self.entry = entry
        #: How many wait for the name, at the holder or behind others.
        self.waiters = waiters
        #: The PID that listened, or None when it could not be asked or has no number here.
        self.listener = peer.pid if peer else None
        #: The uid of the one who listened, else of the one who made the socket; None when neither could be asked.
        self.uid = peer.uid if peer else entry.uid if entry else None
        self.gid = peer.gid if peer else None
        #: The process that listened is no more.
        self.gone = peer is not None and peer.gone

    @property
    def inode(self) -> int:
        """The socket's inode, 0 where sock_diag cannot be had."""
        return self.entry.inode if self.entry else 0

    @property
    def going(self) -> bool:
        """The holder is dead, or dying: it will let go without doing anything more."""
        return self.gone or (self.listener is not None and process.dying(self.listener))


def in_line(name: Name) -> list[Entry]:
    """The tickets of those who wait for the name, in order. Raises OSError when the kernel cannot be asked."""
    with Diag() as diag:
        start = tickets.stem(name)
        return tickets.waiting(name, diag.bound(lambda address: address.startswith(start)))


def is_bound(name: Name, inode: int) -> bool:
    """Whether the socket `inode` has the name. Raises OSError when the kernel cannot be asked."""
    with Diag() as diag:
        now = diag.bound(frozenset({name.address}).__contains__)
        return any(entry.inode == inode and entry.key == name.key for entry in now)


def look(name: Name) -> Sighting | None:
    """What is bound to the name; None when nothing is. Raises OSError when the kernel cannot be asked."""
    try:
        with Diag() as diag:
            return _look(diag, name)
    except OSError as error:
        if error.errno not in NO_DIAG:
            raise
    return _connect_only(name)


def is_wanted(name: Name, binding: Binding) -> bool:
    """Whether somebody waits for the name that `binding` has; what is dead in its queue is dropped when nobody does.

    Without sock_diag(7) the dead cannot be told from the living. Raises OSError when the kernel cannot be asked.
    """
    inode = binding.inode()
    try:
        with Diag() as diag:
            entries = diag.bound(tickets.with_name(name))
            if tickets.waiting(name, entries):
                return True
            for entry in entries:
                now = diag.queues(entry) if entry.inode == inode else None
                if now is not None and _stay(diag, now):
                    return True
                if now is not None:
                    binding.drop_dead(now.dead_in_front)
    except OSError as error:
        if error.errno not in NO_DIAG:
            raise
        return binding.socket is not None and bool(arrivals(binding.socket).poll(0))
    return False


def _stay(diag: Diag, entry: Entry) -> bool:
    """Whether one of those who are connected to it waits, and has not just been looking."""
    clients = {inode for inode in entry.clients if inode}
    if clients:
        time.sleep(_LOOK)
        now = diag.queues(entry)
        return now is not None and not clients.isdisjoint(now.clients)
    return False


def look_at(name: Name, wanted: Callable[[bytes], object]) -> list[Sighting]:
    """What is bound to any of the `wanted` addresses, in order; the queue of `name` is that of all of them.

    Raises OSError when the kernel cannot be asked: there is no way without sock_diag(7).
    """
    is_ticket = tickets.of(name)
    with Diag() as diag:
        for _ in range(_TRIES):
            entries = diag.bound(lambda address: wanted(address) or is_ticket(address))
            drop_dead(diag, entries)
            seen = [entry for entry in entries if entry.kind == name.kind and not is_ticket(entry.address)]
            peers = [_ask_peer(entry.address) if entry.roomy else errno.EAGAIN for entry in seen]
            # As above: a socket that is still there was there when we connected.
            now = {entry.cookie: entry for entry in diag.all_queues(seen)} if seen else {}
            if len(now) == len(seen):
                break
    line = len(tickets.waiting(name, entries))
    # The first of the line is connected to each of them; whoever has no ticket is, too.
    queued = max((entry.waiters for entry in now.values()), default=0)
    waiters = line + max(0, queued - bool(line))
    return [
        Sighting(now[entry.cookie], None if isinstance(peer, int) else peer, waiters)
        for entry, peer in sorted(zip(seen, peers, strict=True), key=lambda pair: _in_order(pair[0]))
        if entry.cookie in now
    ]


def signal_listener(name: Name, inode: int, number: int) -> None:
    """Send a signal to the process that listens on the socket `inode`. Raises ProcessLookupError without one."""
    connection = queue(name.address) if name.listens else errno.EPROTOTYPE
    if isinstance(connection, int):
        raise ProcessLookupError(errno.ESRCH, "no process to be found by its socket")
    try:
        # Still the holder that was meant: then so it was when we connected.
        if not is_bound(name, inode):
            raise ProcessLookupError(errno.ESRCH, "it holds the name no more")
        signal_peer(connection, number)
    finally:
        connection.close()


def drop_dead(diag: Diag, entries: Iterable[Entry]) -> None:
    """Drop the dead connections at the front of those queues that belong to locks of this process."""
    queues = {entry.inode: entry for entry in entries if entry.queued}
    if not queues:
        return
    for binding in bindings():
        entry = queues.get(binding.inode())
        entry = diag.queues(entry) if entry else None
        # Not for each single one: among them may be the connection that keeps a spent ticket.
        if entry is not None and entry.dead_in_front >= _WORTHWHILE:
            binding.drop_dead(entry.dead_in_front)


def count_waiters(diag: Diag, name: Name, entry: Entry, entries: Iterable[Entry]) -> tuple[Entry | None, int]:
    """The socket that has the name as it is now, None when it is gone; and how many wait, given all tickets."""
    is_ticket = tickets.of(name)
    trusted = [other for other in entries if is_ticket(other.address) and name.trusts(other.uid)]
    # Spent ones, too: whoever waits has one connection, to the holder or to some ticket; or none yet, but a ticket.
    queues = diag.all_queues([entry, *trusted])
    now = queues[0] if queues and queues[0].cookie == entry.cookie else None
    connected = sum(one.waiters for one in queues)
    return now, max(connected, len(tickets.waiting(name, queues))) if now else 0


def _look(diag: Diag, name: Name) -> Sighting | None:
    known = frozenset({name.address, *(binding.address for binding in bindings())})
    is_ticket = tickets.of(name)
    entry = None
    for _ in range(_TRIES):
        entries = diag.bound(lambda address: address in known or is_ticket(address))
        drop_dead(diag, entries)
        entry = next((entry for entry in entries if entry.key == name.key), None)
        if entry is None:
            # A dump may leave a socket out; connect(2) looks it up.
            if not name.listens or _ask_peer(name.address) == errno.ECONNREFUSED:
                return None
            continue
        peer = _ask_peer(name.address) if entry.roomy else errno.EAGAIN
        # Exclusion makes this a proof: had the name changed hands, the socket seen before would be gone.
        now, waiters = count_waiters(diag, name, entry, entries)
        if now is not None:
            return Sighting(now, None if isinstance(peer, int) else peer, waiters)
    return Sighting(entry, None)


def _connect_only(name: Name) -> Sighting | None:
    """The look that is left without sock_diag."""
    peer = _ask_peer(name.address) if name.listens else _ask_datagram(name)
    if isinstance(peer, int):
        return None if peer == errno.ECONNREFUSED else Sighting(None, None)
    return Sighting(None, peer)


def _ask_datagram(name: Name) -> int:
    """The errno of connecting a datagram socket; 0 when something is bound there, which is not disturbed by it."""
    connection = queue(name.address, name.kind)
    if isinstance(connection, int):
        return connection
    connection.close()
    return 0


def _ask_peer(address: bytes) -> Peer | int:
    """Who listens there, by way of a connection, or the errno of the refusal."""
    connection = queue(address)
    if isinstance(connection, int):
        if connection in _REFUSALS:
            return connection
        raise OSError(connection, "connect")
    try:
        return Peer(connection)
    finally:
        connection.close()


def _in_order(entry: Entry) -> tuple[int, bytes]:
    return len(entry.address), entry.address  # numbers without leading zeros
