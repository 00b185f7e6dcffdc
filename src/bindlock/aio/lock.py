"""The lock object for asyncio and trio."""

from __future__ import annotations

from bindlock.aio import drive, watch
from bindlock.aio.task import holders, this_task
from bindlock.errors import Held
from bindlock.lock.attempt import Attempt
from bindlock.lock.decide import ACQUIRE, Decision
from bindlock.lock.lock import _INHERIT, Lock, check_timeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, TypeVar

    from bindlock.aio.drive import Driven
    from bindlock.lock.holder import Holder
    from bindlock.lock.lock import Children

    _Result = TypeVar("_Result")


class AsyncLock:
    """`Lock` for tasks of asyncio and trio: the same names, arguments and errors, but waiting does not block the loop.

    Tasks exclude each other as threads and processes do, and all of them a blocking `Lock` of the same name. Any task
    or thread may release. The tasks of one event loop are served in the order in which they came, and only the first of
    them stands in the queue of all processes: waiting costs a process five descriptors a name, whatever the number of
    its tasks, and a process with many of them gets no more turns than one with a single one.

    An acquire is always a checkpoint: also when the name is free, other tasks may run first. When it is cancelled
    nothing is held, and nothing is left in any queue. There is no thread and no polling. Needs anyio (``pip install
    bindlock[aio]``).

    Raises `InvalidArgument` for what cannot be a name, scope, time-out or kind of children.
    """

    __slots__ = ("__weakref__", "_arguments", "_lock")

    #: What a copy is made with, beside the name and the time-out.
    _arguments: dict[str, Any]
    _lock: Driven

    def __init__(
        self, name: str, *, scope: str = "user", timeout: float | None = None, children: Children = "drop"
    ) -> None:
        self._arguments = {"scope": scope, "children": children}
        self._lock = _DrivenLock(name, timeout=timeout, **self._arguments)

    @property
    def name(self) -> str:
        """The name, as written."""
        return self._lock.name

    @property
    def timeout(self) -> float | None:
        """Seconds that an acquire waits unless it says otherwise; None: for ever."""
        return self._lock.timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self._lock.timeout = check_timeout(timeout)

    @property
    def held(self) -> bool:
        """Whether this object, in this process, has the name: asked of the kernel, so true of forked children, too."""
        return self._lock.held

    async def acquire(
        self, timeout: float | None = _INHERIT, *, waiting: Callable[[Holder], object] | None = None
    ) -> None:
        """Have the name, or raise; nothing is held then, whatever is raised.

        `timeout` is in seconds, None is for ever, and by default it is the constructor's. `waiting` is a plain
        function; it is called once, with whoever is in the way, if there is somebody to wait for. Raises

        * `Held` when somebody else has the name and the time is over: its `holder` says who;
        * `Untrusted` when the scope does not trust the user who has it;
        * `CannotLock` when it could not be tried: out of descriptors, or forbidden by a policy;
        * `AlreadyHeld` when this object is held by the calling task, or when it would wait without end for itself;
        * `InvalidArgument` for a negative time-out, or NaN;
        * what the event loop cancels a task with.

        Holders that were killed a moment ago are given up to 0.25 s to be gone, whatever the time-out.
        """
        if timeout is not _INHERIT:
            check_timeout(timeout)
        await drive.acquire(self._lock, self._lock.timeout if timeout is _INHERIT else timeout, waiting)

    async def try_acquire(self) -> bool:
        """Have the name, without waiting: whether it worked. Raises as `acquire` does, but for `Held`.

        Still it is awaited, for a holder that was killed a moment ago.
        """
        try:
            await drive.acquire(self._lock, 0.0, None)
        except Held:
            return False
        return True

    def release(self) -> None:
        """Let the name go; nothing is awaited. Raises `NotHeld` and `Lost` as `Lock.release` does."""
        self._part(self._lock.release)

    async def wanted(self) -> None:
        """Sleep until somebody waits for the name that this object has: the kernel wakes us.

        Who looks at the name is connected for an instant, and may be taken for one that waits. With
        ``children="never"`` nobody can wake us, and it is asked four times a second. Raises

        * `NotHeld` when it is not held, or is released meanwhile;
        * `Lost` when other code had closed the descriptor before;
        * `CannotLock` when the kernel cannot be asked, or there is no descriptor left.
        """
        await watch.wanted(self._lock)

    def adopt(self, descriptor: int | None = None) -> None:
        """Have the name through a socket that is bound to it already: see `Lock.adopt`. Nothing is awaited."""
        self._lock.adopt(descriptor)
        holders[self._lock] = this_task()

    def keep_for_exec(self) -> dict[str, str]:
        """Let the program that this process executes next have the name: see `Lock.keep_for_exec`."""
        return self._lock.keep_for_exec()

    def detach(self) -> int:
        """Keep the name for as long as the process lives, and forget it: the descriptor, or -1 when not held."""
        return self._part(self._lock.detach)

    def fileno(self) -> int:
        """The descriptor of the bound socket; -1 when not held."""
        return self._lock.fileno()

    def _part(self, part: Callable[[], _Result]) -> _Result:
        holders.pop(self._lock, None)
        try:
            return part()
        finally:
            if not self._lock._binding.bound:
                watch.end(self._lock)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Not held: released in the block already, or this is a forked child, which has dropped it.
        if self._lock._binding.bound:
            self.release()

    def __repr__(self) -> str:
        return repr(self._lock)

    def __reduce__(self) -> tuple[object, ...]:
        # A copy, or one sent to another process, is another object that wants the same name: it holds nothing.
        return _again, (type(self), self.name, {**self._arguments, "timeout": self.timeout})


class _DrivenLock(Lock):
    """What an `AsyncLock` has the name by. It says so when it is dropped, and by that name."""

    __slots__ = ()

    @property
    def line(self) -> tuple[tuple[bytes, int], int]:
        """What is waited for in one line; and how many can have it."""
        return self._name.key, 1

    def attempt(
        self, begun: float, timeout: float | None, waiting: Callable[[Holder], object] | None = None
    ) -> Attempt:
        """An attempt at the name."""
        return Attempt(self._name, self._binding, Decision(ACQUIRE, begun, timeout), waiting=waiting)

    def __repr__(self) -> str:
        return super().__repr__().replace("bindlock.Lock", "bindlock.AsyncLock", 1)


_DrivenLock.__name__ = AsyncLock.__name__  # in errors


def _again(kind: type[AsyncLock], name: str, arguments: dict[str, Any]) -> AsyncLock:
    return kind(name, **arguments)
