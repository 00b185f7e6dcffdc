r"""Slots: the addresses of a semaphore, and what of them is bound.

Slot 2 of 3 of the name ``encode`` is bound at the name's address, a NUL, ``slots``, a NUL and ``2/3``; its waiters have
tickets of their own there (see `bindlock.lock.tickets`). No user can spell such an address, and a `Lock` of the same
name has none of them.

The number of slots is part of the address, for two who do not agree about it must never share one. That they do not
agree is seen by listing (sock_diag(7)), before anybody is told that a slot is held. Each first binds its slot, and then
lists: so of two who do it at the same instant at least one sees the other. Each lists before that, too: whoever has the
wrong number lets go again, but those with the right one who came meanwhile would have seen it, and raised.
"""

from __future__ import annotations

from bindlock.errors import CannotLock, InvalidArgument, printable
from bindlock.linux.binding import Binding
from bindlock.lock import tickets
from bindlock.names import Name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from bindlock.linux.diag import Entry
    from bindlock.lock.holder import Holder

#: Slots that a name can have: the first in the queue has a connection to the holder of each.
MOST = 1000


class Slot(Binding):
    """A binding of any one of the slots: whoever binds it chooses the address first, whoever adopts one is given it."""

    __slots__ = ("count", "start")

    #: What the addresses of the slots begin with, and how many there are.
    start: bytes
    count: int

    def _check(self, own: socket) -> None:
        address = own.getsockname()
        if isinstance(address, bytes) and address.startswith(self.start) and numbers(address)[1] == self.count:
            self.address = address
        super()._check(own)


class _Turn:
    """A binding that an object had a slot by, and, once it has another, the one after."""

    __slots__ = ("after", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.after: dict[None, _Turn] = {}


class Slots:
    """The slots of a name, for one object that has at most one of them at a time, whatever its threads do."""

    __slots__ = ("_turn", "count", "name", "queue", "share")

    def __init__(self, name: Name, count: int, share: bool) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
            raise InvalidArgument(f"a semaphore has from 1 to {MOST} slots, not {count!r}")
        if not name.listens:
            raise InvalidArgument(f"{printable(name.text)} cannot have slots: nobody can wait for datagram sockets")
        self.name = name
        self.count = count
        #: Whether forked children keep the slot, too.
        self.share = share
        #: The name under which the slots and tickets are.
        self.queue = Name(name.text, name.scope, tickets.of_slots(name), name.kind, name.trusted)
        self._turn = _Turn(self.candidate())

    def address(self, number: int) -> bytes:
        """The address of one slot; they are numbered from 1."""
        return tickets.stem(self.queue) + b"%d/%d" % (number, self.count)

    def candidate(self) -> Slot:
        """A binding for one attempt to have a slot. No child has it, for it may be none in the end: see `keep`."""
        slot = Slot(self.address(1), self.name.kind, False)
        slot.start = tickets.stem(self.queue)
        slot.count = self.count
        return slot

    @property
    def slot(self) -> Slot:
        """What the object has its slot by, if it is bound, or had it by last."""
        return self._last().slot

    def keep(self, slot: Slot) -> bool:
        """Make a bound slot the object's; False when another thread has been quicker."""
        turn = self._last()
        new = _Turn(slot)
        # One step of the interpreter's decides: whoever is the first after what was there before.
        if turn.slot.bound or turn.after.setdefault(None, new) is not new:
            return False
        slot.share = self.share
        return True

    def _last(self) -> _Turn:
        turn = self._turn
        while turn.after:
            turn = turn.after[None]
        self._turn = turn
        return turn

    def survey(self) -> tuple[list[int], Entry | None]:
        """The numbers of the slots that are free, and somebody trusted who does not agree that these are the slots.

        Raises `CannotLock` when the kernel does not say: nothing falls open.
        """
        from bindlock.linux.diag import Diag

        start = tickets.stem(self.queue)
        plain = self.name.address
        try:
            with Diag() as diag:
                entries = diag.bound(lambda address: address.startswith(start) or address == plain)
        except OSError as error:
            if error.errno is None:
                raise  # a signal handler's
            raise CannotLock(self.name.text, error.errno, "listing its slots") from error
        free = set(range(1, self.count + 1))
        odd = None
        for entry in entries:
            number, count = numbers(entry.address)
            if entry.kind != self.name.kind:
                continue
            if count == self.count:
                free.discard(number)
            elif (count or entry.address == plain) and self.name.trusts(entry.uid):
                odd = entry
        return sorted(free), odd

    def disagreement(self, entry: Entry) -> InvalidArgument:
        """The error for what `survey` has found."""
        from bindlock.lock.holder import identify
        from bindlock.lock.look import Sighting

        who = identify(self.named(entry.address), Sighting(entry, None))
        other = numbers(entry.address)[1]
        theirs = f"{other} slots" if other else "none, for it is a lock,"
        return InvalidArgument(
            f"{printable(self.name.text)} has {self.count} slots here, and {theirs} to {who}; "
            "say the same number everywhere, or take another name"
        )

    def named(self, address: bytes) -> Name:
        """The name with the address of a slot: what a `Holder` is known by."""
        return Name(self.name.text, self.name.scope, address, self.name.kind, self.name.trusted)


def numbers(address: bytes) -> tuple[int, int]:
    r"""The number of a slot, and how many there are; (0, 0) for any other address.

    >>> numbers(b"\0bindlock/host/encode\0slots\0" + b"2/3"), numbers(b"\0bindlock/host/encode")
    ((2, 3), (0, 0))
    """
    rest, _, last = address.rpartition(b"\0")
    number, _, count = last.partition(b"/")
    if rest.endswith(tickets.SLOTS) and number.isdigit() and count.isdigit() and len(last) <= len("1000/1000"):
        pair = int(number), int(count)
        # Only as we spell them: "02/3" is no slot.
        if 1 <= pair[0] <= pair[1] <= MOST and last == b"%d/%d" % pair:
            return pair
    return 0, 0


def whose(address: bytes) -> bytes:
    r"""The address of the name whose slot has that address, or else the address itself.

    >>> whose(b"\0bindlock/host/encode\0slots\0" + b"2/3")
    b'\x00bindlock/host/encode'
    """
    return address.rpartition(b"\0")[0].removesuffix(tickets.SLOTS) if numbers(address)[1] else address


def queue_name(name: Name) -> Name:
    """The name under which all of a semaphore is that is called `name`, or that has it as the address of a slot."""
    plain = Name(name.text, name.scope, whose(name.address), name.kind, name.trusted)
    return Name(name.text, name.scope, tickets.of_slots(plain), name.kind, name.trusted)


def holders(name: Name) -> list[Holder]:
    """Who has a slot of that name, by number, strangers and those who say another number of slots included.

    Raises OSError when the kernel cannot be asked.
    """
    from bindlock.lock.holder import identify
    from bindlock.lock.look import look_at

    queue = queue_name(name)
    start = tickets.stem(queue)
    found = []
    for sighting in look_at(queue, lambda address: address.startswith(start) and numbers(address)[1]):
        if sighting.entry is not None:
            slot = Name(name.text, name.scope, sighting.entry.address, name.kind, name.trusted)
            found.append(identify(slot, sighting))
    return found
