"""The semaphore object for asyncio and trio."""

from __future__ import annotations

from bindlock.aio.lock import AsyncLock
from bindlock.lock.lock import _INHERIT
from bindlock.lock.semaphore import Semaphore
from bindlock.lock.slot_attempt import SlotAttempt, SlotDecision

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bindlock.lock.holder import Holder
    from bindlock.lock.lock import Children


class AsyncSemaphore(AsyncLock):
    """`Semaphore` for tasks of asyncio and trio: the same names, arguments and errors; and all that `AsyncLock` says.

    One object has at most one slot: tasks that are to have one each need an object each. The tasks of one event loop
    are served in the order in which they came. Only the first of those who wait stands in the queue of all processes,
    with a descriptor for each of the slots; the next one does as soon as that has a slot.

    Raises `InvalidArgument` for what cannot be a name, number of slots, scope, time-out or kind of children.
    """

    __slots__ = ()

    _lock: _DrivenSemaphore

    def __init__(
        self, name: str, *, slots: int, scope: str = "user", timeout: float | None = None, children: Children = "drop"
    ) -> None:
        self._arguments = {"slots": slots, "scope": scope, "children": children}
        self._lock = _DrivenSemaphore(name, timeout=timeout, **self._arguments)

    @property
    def slots(self) -> int:
        """How many can have the name at a time."""
        return self._lock.slots

    @property
    def slot(self) -> int | None:
        """The number of the slot that this object has, from 1; None when it has none."""
        return self._lock.slot

    async def acquire(
        self, timeout: float | None = _INHERIT, *, waiting: Callable[[Holder], object] | None = None
    ) -> None:
        """Have a slot, or raise; nothing is held then, whatever is raised.

        `timeout` is in seconds, None is for ever, and by default it is the constructor's. `waiting` is a plain
        function; it is called once, with one of those who are in the way, if there is somebody to wait for. Raises

        * `Held` when all slots are held and the time is over: its `holder` is one of those who have them;
        * `Untrusted` when no slot is free, and one is held by a user whom the scope does not trust;
        * `CannotLock` when it could not be tried: out of descriptors, or forbidden by a policy;
        * `AlreadyHeld` when this object is held by the calling task, or when it would wait without end for itself;
        * `InvalidArgument` for a negative time-out, or NaN; and when somebody trusted has the name with another number
          of slots, or as a `Lock`;
        * what the event loop cancels a task with.

        Holders that were killed a moment ago are given up to 0.25 s to be gone, whatever the time-out.
        """
        await super().acquire(timeout, waiting=waiting)


class _DrivenSemaphore(Semaphore):
    """What an `AsyncSemaphore` has its slot by."""

    __slots__ = ()

    @property
    def line(self) -> tuple[tuple[bytes, int], int]:
        """What is waited for in one line; and how many can have it."""
        return self._slots.queue.key, self.slots

    def attempt(
        self, begun: float, timeout: float | None, waiting: Callable[[Holder], object] | None = None
    ) -> SlotAttempt:
        """An attempt at a slot."""
        return SlotAttempt(self._slots, SlotDecision(begun, timeout), waiting)

    def __repr__(self) -> str:
        return super().__repr__().replace("bindlock.Semaphore", "bindlock.AsyncSemaphore", 1)


_DrivenSemaphore.__name__ = AsyncSemaphore.__name__  # in errors
