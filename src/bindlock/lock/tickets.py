"""Tickets: the places in the queue of a name, their addresses, and who comes before whom.

A ticket is a socket of its waiter's, bound and listening at the address of the name, a NUL, and a number. How they make
an order is in docs/design.md. The number is the time of arrival on CLOCK_BOOTTIME, which never goes back, in
microseconds. A name has no NUL, so nobody can spell a ticket's address; where it would not fit, a digest of the name's
stands in its place.
"""

from __future__ import annotations

import time
from bisect import bisect_left

from bindlock.names import ROOM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bindlock.linux.binding import Binding
    from bindlock.linux.diag import Entry
    from bindlock.names import Name

#: Digits of a number: enough for 300 years without a restart.
_DIGITS = 16
_DIGEST_BYTES = 16
#: What follows the name where a semaphore is meant, whose queue is one of its own: see `bindlock.lock.slots`.
SLOTS = b"\0slots"
_HEAD = b"head"
#: In no UTF-8, so in no name: another name cannot be spelled to have the tickets of a long one.
_UNSPELLABLE = b"\xff"
#: Numbers tried, from the time of arrival on. More than so many can only be a stranger's work.
_TRIES = 100


def stem(name: Name) -> bytes:
    r"""What the addresses of a name's tickets begin with.

    >>> from bindlock.names import parse
    >>> stem(parse("backup", "host"))
    b'\x00bindlock/host/backup\x00'
    >>> len(stem(parse("@" + 107 * "x")))
    92
    """
    return b"\0" + _shortened(name.address[1:], ROOM - 1 - _DIGITS, _UNSPELLABLE) + b"\0"


def of_slots(name: Name) -> bytes:
    r"""The address under which everything of a name's semaphore is: nobody binds it, it is for `stem` and the others.

    >>> from bindlock.names import Name, parse
    >>> of_slots(parse("encode", "host"))
    b'\x00bindlock/host/encode\x00slots'
    >>> len(stem(Name("x", "verbatim", of_slots(parse("@" + 107 * "x")))))
    92
    """
    # With the mark of `bindlock.names`: what the list makes of a slot's address is a name, and means these slots again.
    return b"\0" + _shortened(name.address[1:], ROOM - 1 - _DIGITS - len(SLOTS), b"~") + SLOTS


def head(name: Name) -> bytes:
    """The address that the first in the queue binds, to be seen by those who pass it."""
    return stem(name) + _HEAD


def number(address: bytes) -> int | None:
    r"""The number of a ticket; None for any other address.

    >>> number(b"\0bindlock/host/backup\x001234"), number(b"\0bindlock/host/backup")
    (1234, None)
    """
    head, _, digits = address[1:].rpartition(b"\0")
    head = head.removesuffix(SLOTS)
    return int(digits) if head and b"\0" not in head and _is_number(digits) else None


def is_part(address: bytes) -> bool:
    """Whether an address is that of a ticket or a head, and so no name."""
    return number(address) is not None or address.endswith(b"\0" + _HEAD)


def of(name: Name) -> Callable[[bytes], bool]:
    """Tell the addresses of the name's tickets from others, those of its semaphore's included."""
    start = stem(name)
    return lambda address: address.startswith(start) and _is_number(address[len(start) :])


def with_name(name: Name) -> Callable[[bytes], bool]:
    """Tell the name's own address, and those of its tickets, from others."""
    is_ticket = of(name)
    return lambda address: address == name.address or is_ticket(address)


def waited(address: bytes) -> float:
    """Seconds since the waiter arrived whose ticket has that address."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - (number(address) or 0) / 1e6)


def addresses(name: Name) -> Iterator[bytes]:
    """The addresses that a ticket for the name may have, if it is taken now: the first that is free."""
    arrival = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    return (stem(name) + b"%d" % value for value in range(arrival, arrival + _TRIES))


def waiting(name: Name, entries: Iterable[Entry]) -> list[Entry]:
    """The tickets among `entries` whose owners wait for the name, and may: in order."""
    is_ticket = of(name)
    found = [
        entry
        for entry in entries
        if entry.listening
        and entry.limit  # else it is spent
        and entry.kind == name.kind
        and is_ticket(entry.address)
        and name.trusts(entry.uid)
    ]
    return sorted(found, key=_order)


def before(ticket: Binding, queue: list[Entry]) -> bytes | None:
    """The address of the ticket to follow, given those that wait in order; None for the first of them."""
    place = bisect_left(queue, number(ticket.address) or 0, key=_order)
    return queue[place - 1].address if place else None


def _order(entry: Entry) -> int:
    return number(entry.address) or 0


def _is_number(digits: bytes) -> bool:
    return len(digits) <= _DIGITS and digits.isdigit()


def _shortened(tail: bytes, room: int, mark: bytes) -> bytes:
    """As much of a name as there is room for, a mark, and a digest; what is short enough stays as it is."""
    if len(tail) <= room:
        return tail
    from hashlib import blake2b

    end = mark + blake2b(tail, digest_size=_DIGEST_BYTES).hexdigest().encode()
    return tail[: room - len(end)].decode(errors="ignore").encode().rstrip(b"\0") + end
