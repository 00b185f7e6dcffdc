"""The semaphore: a name that so many can have at a time, and whether this object is one of them."""

from __future__ import annotations

from bindlock.errors import AlreadyHeld, CannotLock, InvalidArgument, printable
from bindlock.lock import slots as _slots
from bindlock.lock.lock import _INHERIT, HAND_OVER, Lock, check_timeout
from bindlock.names import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Any

    from bindlock.linux.binding import Binding
    from bindlock.lock.holder import Holder
    from bindlock.lock.lock import Children


class Semaphore(Lock):
    """At most `slots` at a time, in this network namespace, have a name.

    As a `Lock`, it goes with the process that has it, and those who wait have it in the order in which they came. The
    other arguments are those of `Lock`. Everybody must say the same number of slots, from 1 to 1000; who finds somebody
    trusted who has said another gets `InvalidArgument`. (A `Lock` of the same name does not look.)

    One object has at most one slot. Threads that are to have one each need an object each; threads that share one wait
    for each other.

    >>> with Semaphore("doctest-semaphore", slots=2) as one, Semaphore("doctest-semaphore", slots=2) as other:
    ...     one.slot, other.slot, Semaphore("doctest-semaphore", slots=2).try_acquire()
    (1, 2, False)

    Where sock_diag(7) cannot be had there are locks, but no semaphores: acquire raises `CannotLock`. To wait takes a
    descriptor for each of the slots, because the first of those who wait is connected to all holders.

    Raises `InvalidArgument` for what cannot be a name, number of slots, scope, time-out or kind of children.
    """

    __slots__ = ("_slots",)

    def __init__(
        self, name: str, *, slots: int, scope: str = "user", timeout: float | None = None, children: Children = "drop"
    ) -> None:
        if children == "never":
            raise InvalidArgument("a semaphore cannot have children='never': only a Lock can")
        super().__init__(name, scope=scope, timeout=timeout, children=children)
        self._slots = _slots.Slots(self._name, slots, children == "share")

    @property
    def _binding(self) -> Binding:
        return self._slots.slot

    @_binding.setter
    def _binding(self, unused: Binding) -> None:
        pass  # what `Lock` makes for the name itself, which no semaphore ever binds

    @property
    def slots(self) -> int:
        """How many can have the name at a time."""
        return self._slots.count

    @property
    def slot(self) -> int | None:
        """The number of the slot that this object has, from 1; None when it has none."""
        slot = self._slots.slot
        return _slots.numbers(slot.address)[0] if slot.bound else None

    def acquire(  # type: ignore[override]  # there is no one holder to replace
        self, timeout: float | None = _INHERIT, *, waiting: Callable[[Holder], object] | None = None
    ) -> None:
        """Have a slot, or raise; nothing is held then, whatever is raised.

        `timeout` is in seconds, None is for ever, and by default it is the constructor's. `waiting` is called once,
        with one of those who are in the way, if there is somebody to wait for. Raises

        * `Held` when all slots are held and the time is over: its `holder` is one of those who have them;
        * `Untrusted` when no slot is free, and one is held by a user whom the scope does not trust;
        * `CannotLock` when it could not be tried: out of descriptors, or forbidden by a policy;
        * `AlreadyHeld` when this object is held by the calling thread, or when it would wait without end for itself;
        * `InvalidArgument` for a negative time-out, or NaN; and when somebody trusted has the name with another number
          of slots, or as a `Lock`.

        Holders that were killed a moment ago are given up to 0.25 s to be gone, whatever the time-out.
        """
        from bindlock.lock import slot_attempt

        if timeout is not _INHERIT:
            check_timeout(timeout)
        slot_attempt.acquire(self._slots, self.timeout if timeout is _INHERIT else timeout, waiting)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for a slot: see `Lock.wanted`."""
        from bindlock.lock.look import in_line, is_wanted

        self._check_held()
        slot = self._slots.slot
        try:
            # Whoever waits without a ticket is queued here; and what is dead here is dropped.
            return bool(in_line(self._slots.queue)) or is_wanted(self._slots.named(slot.address), slot)
        except OSError as error:
            raise CannotLock(self.name, error.errno or 0, "looking for those who wait") from error

    def adopt(self, descriptor: int | None = None) -> None:
        """Have a slot through a socket that is bound to it already: see `Lock.adopt`. It has its number by that."""
        from bindlock.lock import handover

        if descriptor is None and self._binding.verify():
            handover.take_back(self._binding)
        else:
            self._binding.forget_if_lost()
            self._check_not_held()
            self._have(lambda slot: handover.adopt(self._name, slot, descriptor))

    def receive(self, connection: socket, timeout: float | None = HAND_OVER) -> None:
        """Be handed a slot by whoever calls `send` at the other end of a connected Unix socket: see `Lock.receive`."""
        from bindlock.lock import handover

        self._check_not_held()
        check_timeout(timeout)
        self._have(lambda slot: handover.receive(self._name, slot, connection, timeout))

    def _have(self, have: Callable[[_slots.Slot], object]) -> None:
        slot = self._slots.candidate()
        try:
            have(slot)
            if not self._slots.keep(slot):
                raise AlreadyHeld(f"{printable(self.name)}: another thread has a slot by this very object meanwhile")
        except BaseException:
            try:
                slot.close()
            finally:
                own = slot.socket
                if own is not None:
                    own.close()
            raise

    def __repr__(self) -> str:
        slot = self.slot
        state = "not held" if slot is None else f"slot {slot} held"
        return f"<bindlock.Semaphore {self.name!r} slots={self.slots} scope={self._name.scope} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        # As with a lock: a copy is another object that wants a slot, and holds nothing.
        children = "share" if self._slots.share else "drop"
        return _again, (
            self.name,
            {
                "slots": self.slots,
                "scope": "user" if self._name.scope == "verbatim" else self._name.scope,
                "timeout": self.timeout,
                "children": children,
            },
        )


def holders(name: str, *, scope: str = "user") -> list[Holder]:
    """Who has a slot of the name now, by number; nobody when it is free, or has no slots. Disturbs nobody.

    Raises `InvalidArgument` for what cannot be a name, `CannotLock` when the kernel cannot be asked.
    """
    parsed = parse(name, scope)
    try:
        return _slots.holders(parsed)
    except OSError as error:
        raise CannotLock(name, error.errno or 0, "looking for its holders") from error


def _again(name: str, arguments: dict[str, Any]) -> Semaphore:
    return Semaphore(name, **arguments)
