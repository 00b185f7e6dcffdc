"""One attempt at a slot: `bindlock.lock.attempt` for one of many names, by the same table of `bindlock.lock.decide`.

Whoever is the first in the queue is connected to the holders of *all* slots, and keeps those connections until they are
hung up, for each that is closed keeps its place in a holder's queue. Who is behind follows the ticket before, as for a
lock. A ticket is closed as soon as its owner has a slot, and is not stowed: the next one may be needed before that slot
is free again. So two wake up at a release: the first of the queue, which has the slot, and the second, which is the
first now.
"""

from __future__ import annotations

import errno
import time

from bindlock.errors import AlreadyHeld, Lost, printable
from bindlock.linux.binding import bindings, this_thread
from bindlock.linux.queue import those_hung_up
from bindlock.lock import block
from bindlock.lock.attempt import Attempt
from bindlock.lock.decide import ACQUIRE, Decision
from bindlock.lock.holder import identify
from bindlock.lock.look import look_at
from bindlock.lock.slots import numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterable

    from bindlock.lock.decide import Event, State
    from bindlock.lock.holder import Holder
    from bindlock.lock.look import Sighting
    from bindlock.lock.slots import Slots

_FOREVER = float("inf")


class SlotDecision(Decision):
    """The same decisions; and while some holder's queue cannot be joined the slow timer runs beside the sleep."""

    __slots__ = ("incomplete",)

    def __init__(self, now: float, timeout: float | None) -> None:
        super().__init__(ACQUIRE, now, timeout)
        #: Not all holders would wake us.
        self.incomplete = False

    def next(self, event: Event, now: float) -> State:
        """Take in what happened and say what to do now."""
        state = super().next(event, now)
        if state == "QUEUED" and self.incomplete:
            self.until = min(self.until, now + self._pause(event))
        return state


class SlotAttempt(Attempt):
    """One wait for a slot, step by step."""

    decision: SlotDecision

    def __init__(self, slots: Slots, decision: SlotDecision, waiting: Callable[[Holder], object] | None = None) -> None:
        #: What a slot is had by, in the end.
        self.slot = slots.candidate()
        super().__init__(slots.queue, self.slot, decision, waiting=waiting)
        self._slots = slots
        #: The places at holders, by the number of the slot.
        self._at: dict[int, socket] = {}
        self._sightings: list[Sighting] = []

    def end(self) -> None:
        """Leave nothing but the slot, if it was had and is our object's."""
        if self._slots.slot is not self.slot:
            self.slot.close()
        super().end()

    def holder(self) -> Holder | None:
        """Who was in the way when last looked: a stranger, if there is one, else one of the holders."""
        try:
            if not self._sightings:
                self._sightings = self._sight(self._wanted())
            strange = (one for one in self._sightings if not self._name.trusts(one.uid))
            found = next(strange, self._sightings[0] if self._sightings else None)
            return identify(self._slots.named(found.entry.address), found) if found and found.entry else None
        except OSError as error:
            if error.errno is None:
                raise
            return None  # that they are held is known, and said, all the same

    def _claim(self) -> Event:
        if not self._slots.slot.bound:
            numbers = self._hung_up() or self._free()
            if any(map(self._bind, numbers)):  # one after the other, up to the first that can be had
                if self._agreed():
                    return "claimed"
                self.slot.close()
        if self.decision.state == "RETRY" and self.decision.incomplete:
            self._join()
        return "in use"

    def _agreed(self) -> bool:
        """Make the slot that was bound our object's: when all agree about their number, and no thread was quicker."""
        _, odd = self._slots.survey()
        if odd is not None:
            self.slot.close()  # before we look who it is
            raise self._slots.disagreement(odd)
        if not self._slots.keep(self.slot):
            return False
        self._drop_ticket()
        return True

    def _free(self) -> list[int]:
        free, odd = self._slots.survey()
        if odd is not None:
            raise self._slots.disagreement(odd)
        return free

    def _bind(self, number: int) -> bool:
        self.slot.address = self._slots.address(number)
        try:
            self.slot.bind(self.spare)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    def _take_ticket(self) -> Event:
        if self._slots.slot.bound:
            # Another thread's: only its release is of use to us, and nobody is to stand behind us meanwhile.
            self._tell()
            self._drop_ticket()
            return "first"
        return super()._take_ticket()

    def _bind_head(self) -> None:
        """Nobody who passes needs to know: no ticket is ever stowed."""

    def _connect(self) -> Event:
        self._tell()
        missing = self._join()
        if missing:
            # As for a lock: who binds and never listens, or fills its own queue, is still told from a friend.
            self._sightings = self._sight(missing)
            if not all(self._name.trusts(one.uid) for one in self._sightings):
                return "stranger"
        return "queued" if self.places else "unqueued"

    def _join(self) -> list[int]:
        """Queue at all holders where we do not yet; the slots where that did not work."""
        wanted = self._wanted()
        ended = those_hung_up(self.places)
        stay = {number: place for number, place in self._at.items() if number in wanted and place not in ended}
        for place in self.places:
            if place not in stay.values():
                place.close()
        self._at, self.places = stay, list(stay.values())
        missing = []
        for number in wanted:
            if number not in self._at:
                if self._queue_at(self._slots.address(number)):
                    self._at[number] = self.places[-1]
                else:
                    missing.append(number)
        self.decision.incomplete = bool(missing)
        return missing

    def _look(self) -> Event:
        self._leave_queue()
        wanted = self._wanted()
        self._sightings = self._sight(wanted)
        if len(self._sightings) < len(wanted):
            return "free"
        if not all(self._name.trusts(one.uid) for one in self._sightings):
            return "stranger"
        return "going" if any(one.going for one in self._sightings) else "alive"

    def _wanted(self) -> list[int]:
        """The slots of use to us: all; or just that which this very object has, by another thread."""
        own = self._slots.slot
        return [numbers(own.address)[0]] if own.bound else list(range(1, self._slots.count + 1))

    def _sight(self, wanted: Iterable[int]) -> list[Sighting]:
        return look_at(self._name, frozenset(map(self._slots.address, wanted)).__contains__)

    def _hung_up(self) -> list[int]:
        """The slots whose holders were there when we queued, and are not now."""
        ended = those_hung_up(list(self._at.values()))
        return [number for number, place in self._at.items() if place in ended]

    def _leave_queue(self) -> None:
        super()._leave_queue()
        self._at.clear()
        self.decision.incomplete = False


def acquire(slots: Slots, timeout: float | None, waiting: Callable[[Holder], object] | None) -> None:
    """Have a slot, waiting up to `timeout` seconds; when it raises, as `Semaphore.acquire` does, nothing is bound."""
    _check(slots, timeout)
    attempt = SlotAttempt(slots, SlotDecision(time.monotonic(), timeout), waiting)
    slot = attempt.slot
    try:
        block.refuse(slots.name, attempt, block.run(attempt))
    except BaseException:
        # Also one that was had, and is our object's: a signal handler has raised before we could say so.
        try:
            slot.close()
        finally:
            own = slot.socket
            if own is not None:
                own.close()  # a second one has kept us from that
        raise


def _check(slots: Slots, timeout: float | None) -> None:
    """Raise `Lost`; or `AlreadyHeld` when this thread would wait for itself."""
    own = slots.slot
    if own.forget_if_lost():
        raise Lost(slots.name.text)
    thread = this_thread()
    mine = [one for one in bindings() if one.thread is thread]
    if own in mine:
        raise AlreadyHeld(f"{printable(slots.name.text)} is held by this thread, by this very object; release it first")
    if timeout is None or timeout == _FOREVER:
        all_of_them = set(map(slots.address, range(1, slots.count + 1)))
        if all_of_them <= {one.address for one in mine}:
            raise AlreadyHeld(
                f"all slots of {printable(slots.name.text)} are held by this thread, by other objects: without a "
                "time-out it would wait for itself for ever; release one, or give a time-out"
            )
