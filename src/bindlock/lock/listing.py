"""What names there are in this network namespace."""

from __future__ import annotations

from contextlib import contextmanager

from bindlock.errors import CannotLock
from bindlock.linux.diag import Diag, Entry
from bindlock.lock import slots, tickets
from bindlock.lock.holder import Holder, identify
from bindlock.lock.look import count_waiters, drop_dead, in_line, look
from bindlock.lock.waiter import Waiter, queue_of
from bindlock.names import Name, is_ours, spell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class BoundName:
    """A name that was bound when it was looked for. A snapshot; everything in it is the kernel's word.

    `name` and `scope` spell it so that they mean it again (see `bindlock.names.spell`); `uid` made the socket; `inode`
    is the socket's; `queued` counts the connections in its queue, those of dead waiters included. Of a semaphore it is
    all slots at once, and those are of the lowest that is held.
    """

    __slots__ = ("_entries", "_entry")

    def __init__(self, *entries: Entry) -> None:
        self._entry = entries[0]
        self._entries = entries

    @property
    def _name(self) -> Name:
        return spell(self.address, self._entry.kind)

    @property
    def slots(self) -> int | None:
        """How many can have it at a time, where it is a semaphore; None for a lock."""
        return slots.numbers(self._entry.address)[1] or None

    @property
    def taken(self) -> int:
        """How many have it."""
        return len(self._entries)

    @property
    def name(self) -> str:
        """The name as a user would write it."""
        return self._name.text

    @property
    def scope(self) -> str:
        """``user``, ``host`` or ``verbatim``."""
        return self._name.scope

    @property
    def address(self) -> bytes:
        """The kernel's address, with its leading NUL; of a semaphore, what the addresses of its slots begin with."""
        return slots.whose(self._entry.address)

    @property
    def uid(self) -> int:
        """The uid of the process that made the socket."""
        return self._entry.uid

    @property
    def trusted(self) -> bool:
        """Whether the scope of the name trusts that user; of a semaphore, all of its users."""
        return all(self._name.trusts(entry.uid) for entry in self._entries)

    @property
    def inode(self) -> int:
        """The inode of the socket."""
        return self._entry.inode

    @property
    def queued(self) -> int:
        """Connections in its queue, those of dead waiters included."""
        return self._entry.queued

    def holder(self) -> Holder | None:
        """Who has it now; None when it has become free. Costs a look of its own: /proc, and at times a connection.

        Of a semaphore, one of those who have it.
        """
        try:
            name = self._name
            if self.slots:
                return next(iter(slots.holders(name)), None)
            sighting = look(name)
            return None if sighting is None else identify(name, sighting)
        except OSError as error:
            raise CannotLock(self.name, error.errno or 0, "looking for its holder") from error

    def holders(self) -> list[Holder]:
        """All who have it now, by slot where it is a semaphore. Costs as `holder` does, for each."""
        if not self.slots:
            holder = self.holder()
            return [] if holder is None else [holder]
        try:
            return slots.holders(self._name)
        except OSError as error:
            raise CannotLock(self.name, error.errno or 0, "looking for its holders") from error

    def waiters(self) -> int:
        """How many wait for it now; 0 when it has become free. Disturbs nobody."""
        name = self._name
        if self.slots:
            with _asking():
                return len(in_line(slots.queue_name(name)))
        with _asking() as diag:
            return count_waiters(diag, name, self._entry, diag.bound(tickets.of(name)))[1]

    def queue(self) -> tuple[Waiter, ...]:
        """Who waits for it now, in order: see `bindlock.waiters`. Costs a walk through /proc."""
        return queue_of(self._name)

    def __repr__(self) -> str:
        slots = f" slots={self.taken}/{self.slots}" if self.slots else ""
        return f"<BoundName {self.name!r} scope={self.scope}{slots} uid={self.uid} inode={self.inode}>"


def locks(*, every: bool = False) -> list[BoundName]:
    """Every bindlock lock of this network namespace, of whatever user, sorted by address; or `every` abstract name.

    The tickets of those who wait are no names, and left out. One dump of sock_diag(7): nobody is disturbed, and 10 000
    names take some 30 ms. Raises `CannotLock` where sock_diag is forbidden or missing.
    """
    with _asking() as diag:
        entries = diag.bound()
        drop_dead(diag, entries)
    named: dict[tuple[bytes, int, int], list[Entry]] = {}
    for entry in entries:
        if (every or is_ours(entry.address)) and not tickets.is_part(entry.address):
            count = slots.numbers(entry.address)[1]
            named.setdefault((slots.whose(entry.address), count, entry.kind), []).append(entry)
    return [
        BoundName(*sorted(together, key=lambda entry: slots.numbers(entry.address)))
        for _, together in sorted(named.items())
    ]


@contextmanager
def _asking() -> Iterator[Diag]:
    try:
        with Diag() as diag:
            yield diag
    except OSError as error:
        raise CannotLock("the list of names", error.errno or 0, "asking sock_diag") from error
