"""One attempt at a name: carries out what `bindlock.lock.decide` says, but for sleeping, which is the drivers' affair.

An attempt owns, beside the lock's own socket, bound or not yet: its ticket; its connection to the ticket before, or to
the holder (its *place*); and while it is the first, the name of the head. All are gone on every way out. What a signal
handler raises after the name was had, and before the caller knows, makes the driver give the name back.
"""

from __future__ import annotations

import errno

from bindlock.errors import CannotLock
from bindlock.linux.queue import arrivals, peer_uid, queue
from bindlock.lock import tickets
from bindlock.lock.holder import identify
from bindlock.lock.look import NO_DIAG, in_line, is_bound, look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from select import poll

    from bindlock.linux.binding import Binding
    from bindlock.lock.decide import Decision, Event, State
    from bindlock.lock.holder import Holder
    from bindlock.lock.look import Sighting
    from bindlock.names import Name

#: Answers to connect(2) that mean "not in this queue, not now": nobody listens, it is full, a policy forbids it, or it
#: is no stream socket. The slow timer takes over.
_UNQUEUED = frozenset({errno.ECONNREFUSED, errno.EAGAIN, errno.EPERM, errno.EACCES, errno.EPROTOTYPE, errno.ENOTCONN})
#: Answers to the bind(2) of a ticket: a policy allows the name's address, but not a ticket's.
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})
#: By name: with its methods an attempt would refer to itself in a circle, and only the collector close its connections.
_STEPS: dict[State, str] = {
    "CLAIM": "_claim",
    "TICKET": "_take_ticket",
    "FOLLOW": "_follow",
    "CONNECT": "_connect",
    "RETRY": "_claim",
    "LOOK": "_look",
}
_DOING = {"CLAIM": "binding its name", "RETRY": "binding its name", "TICKET": "taking a ticket"}


class Attempt:
    """One wait, step by step: `step` does what `decision` asks for, up to the states in which a driver has to sleep."""

    def __init__(
        self, name: Name, binding: Binding | None, decision: Decision, inode: int = 0,
        waiting: Callable[[Holder], object] | None = None,
    ) -> None:  # fmt: skip
        self.decision = decision
        #: The connections, to the ticket before or to the holder, whose hang-up is waited for; none without a place.
        self.places: list[socket] = []
        self.ticket: Binding | None = None
        #: The lock's own socket while it is not bound. What can be done before we are woken is: the name is free then.
        self.spare: list[socket] = []
        self._followers: poll | None = None
        #: Bound while we are the first in the queue.
        self.head: Binding | None = None
        self._name = name
        self._binding = binding
        #: Await the end of this very socket, whoever has the name next; 0: of any.
        self._inode = inode
        #: Called once, when there is somebody to wait for.
        self._waiting = waiting
        self._telling = False
        #: The address of the ticket before ours.
        self._before: bytes | None = None
        self._sighting: Sighting | None = None

    def step(self) -> Event:
        """Do what the state asks for; what happened. Raises `CannotLock` when the kernel refuses to answer."""
        state = self.decision.state
        try:
            event: Event = getattr(self, _STEPS[state])()
            return event
        except OSError as error:
            if error.errno is None or self._telling or isinstance(error, CannotLock):
                raise  # not the kernel's: a signal handler's, or the caller's own
            action = _DOING.get(state, "queueing for it" if state != "LOOK" else "looking at its holder")
            action = getattr(error, "action", action)  # of bindlock.linux.table, which is rarely loaded
            raise CannotLock(self._name.text, error.errno or 0, action) from error

    def end(self) -> None:
        """Leave nothing but the lock, if it was had."""
        self._drop_ticket()
        self._leave_queue()
        self._drop_head()
        if self._binding is not None:
            self._binding.discard(self.spare)

    def holder(self) -> Holder | None:
        """Who was in the way when last looked; None when that cannot be seen."""
        try:
            if self._sighting is None:
                self._sighting = look(self._name)
            return identify(self._name, self._sighting) if self._sighting else None
        except OSError as error:
            if error.errno is None:
                raise
            return None  # that it is held is known, and said, all the same

    def _claim(self) -> Event:
        assert self._binding is not None
        if self.decision.state == "CLAIM":
            self._leave_queue()  # its descriptor may be the last that we are allowed
        try:
            self._binding.bind(self.spare)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return "in use"
        # Otherwise the ticket is closed, and those behind it queue anew, behind the one whom we have passed.
        if self.ticket is not None and self._is_followed() and (self.head is not None or not self._passed()):
            self._binding.stow(self.ticket)
        return "claimed"

    def _is_followed(self) -> bool:
        # A private socket is asked by `stow`, in one go with the rest.
        return self._followers is None or bool(self._followers.poll(0))

    def _take_ticket(self) -> Event:
        self._tell()
        if self.ticket is None and self._name.listens:
            self._bind_ticket()
        if self.ticket is None:
            return "first"  # as far as we can tell: without an order
        if self.ticket.socket is not None:
            self._followers = arrivals(self.ticket.socket)
        try:
            line = in_line(self._name)
        except OSError as error:
            if error.errno not in NO_DIAG:
                raise
            self._drop_ticket()  # who cannot list tickets cannot keep the order either
            return "first"
        self._before = tickets.before(self.ticket, line)
        if self._before is not None:
            return "behind"
        self._bind_head()
        return "first"

    def _bind_ticket(self) -> None:
        assert self._binding is not None
        for address in tickets.addresses(self._name):
            # Ours before it is bound: a signal handler may raise as soon as it is.
            self.ticket = type(self._binding)(address, self._name.kind, False)
            try:
                self.ticket.bind()
                return
            except OSError as error:
                self.ticket = None
                if error.errno in _FORBIDDEN:
                    return
                if error.errno != errno.EADDRINUSE:
                    raise

    def _bind_head(self) -> None:
        assert self._binding is not None
        if self.head is None:
            self.head = type(self._binding)(tickets.head(self._name), self._name.kind, False)
            try:
                self.head.bind()
            except OSError as error:
                self.head = None
                if error.errno is None:
                    raise  # a signal handler's
                # Somebody else is the head, or it cannot be had here: we may be passed more than once.

    def _passed(self) -> bool:
        """Whether somebody else is the first in the queue, though we have the name."""
        try:
            first = queue(tickets.head(self._name))
            if isinstance(first, int):
                return first != errno.ECONNREFUSED
            trusted = self._name.trusts(peer_uid(first))
            first.close()
            return trusted
        except OSError as error:
            if error.errno is None:
                raise  # a signal handler's
            return True  # it cannot be seen

    def _follow(self) -> Event:
        assert self._before is not None
        self._leave_queue()
        return "queued" if self._queue_at(self._before) else "unqueued"

    def _connect(self) -> Event:
        self._tell()
        self._leave_queue()
        if self._queue_at(self._name.address):
            if not self._inode or is_bound(self._name, self._inode):
                return "queued"
            self._leave_queue()  # the name had changed hands before we connected: this is the queue of the next one
            return "unqueued"
        # Who binds and never listens, or fills its own queue, is still told from a friend; and a stranger's name may
        # have changed hands meanwhile.
        self._sighting = look(self._name)
        strange = self._sighting is not None and not self._name.trusts(self._sighting.uid)
        return "stranger" if strange else "unqueued"

    def _look(self) -> Event:
        self._leave_queue()
        self._sighting = sighting = look(self._name)
        if sighting is None or (self._inode and sighting.inode != self._inode):
            return "free"
        if not self._name.trusts(sighting.uid):
            return "stranger"
        return "going" if sighting.going else "alive"

    def _queue_at(self, address: bytes) -> bool:
        """Take a place in the queue of somebody who is trusted; whether that worked."""
        place = queue(address) if self._name.listens else errno.EPROTOTYPE
        if isinstance(place, int):
            if place not in _UNQUEUED:
                raise OSError(place, "connect")
            return False
        if not self._name.trusts(peer_uid(place)):
            place.close()
            return False
        self.places.append(place)
        return True

    def _tell(self) -> None:
        if self._waiting is not None:
            tell, self._waiting = self._waiting, None
            holder = self.holder()
            if holder is not None:
                self._telling = True
                tell(holder)
                self._telling = False

    def _leave_queue(self) -> None:
        while self.places:
            self.places.pop().close()

    def _drop_head(self) -> None:
        if self.head is not None:
            self.head.close()
        self.head = None

    def _drop_ticket(self) -> None:
        if self.ticket is not None:
            self.ticket.close()
        self.ticket = None
