"""The lock object for asyncio and trio."""

from __future__ import annotations

from bindlock.aio import drive
from bindlock.aio.task import holders
from bindlock.errors import Held
from bindlock.lock.lock import _INHERIT, Lock, check_timeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from bindlock.lock.holder import Holder
    from bindlock.lock.lock import Children


class AsyncLock:
    """`Lock` for tasks of asyncio and trio: the same names, arguments and errors, but waiting does not block the loop.

    Tasks exclude each other as threads and processes do, and all of them a blocking `Lock` of the same name. Any task
    or thread may release. The tasks of one event loop are served in the order in which they came, and only the first of
    them stands in the queue of all processes: waiting costs a process three descriptors a name, whatever the number of
    its tasks, and a process with many of them gets no more turns than one with a single one.

    An acquire is always a checkpoint: also when the name is free, other tasks may run first. When it is cancelled
    nothing is held, and nothing is left in any queue. There is no thread and no polling. Needs anyio (``pip install
    bindlock[aio]``).

    Raises `InvalidArgument` for what cannot be a name, scope, time-out or kind of children.
    """

    __slots__ = ("__weakref__", "_children", "_lock", "_scope")

    def __init__(
        self, name: str, *, scope: str = "user", timeout: float | None = None, children: Children = "drop"
    ) -> None:
        self._scope = scope
        self._children: Children = children
        self._lock = _Driven(name, scope=scope, timeout=timeout, children=children)

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
        holders.pop(self._lock, None)
        self._lock.release()

    def detach(self) -> int:
        """Keep the name for as long as the process lives, and forget it: the descriptor, or -1 when not held."""
        holders.pop(self._lock, None)
        return self._lock.detach()

    def fileno(self) -> int:
        """The descriptor of the bound socket; -1 when not held."""
        return self._lock.fileno()

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
        return _again, (self.name, self._scope, self.timeout, self._children)


class _Driven(Lock):
    """What an `AsyncLock` has the name by. It says so when it is dropped, and by that name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return super().__repr__().replace("bindlock.Lock", "bindlock.AsyncLock", 1)


def _again(name: str, scope: str, timeout: float | None, children: Children) -> AsyncLock:
    return AsyncLock(name, scope=scope, timeout=timeout, children=children)
