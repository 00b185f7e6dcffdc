"""Tasks for the tests of locks that are awaited: on either back end, counted in steps of the loop."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import bindlock
from bindlock.aio import line
from bindlock.aio.lock import AsyncLock
from bindlock.aio.task import holders
from tests.actors import DEADLINE, bindable

#: Processes that have `{backend}` filled in; `waiting` says "waits" as soon as there is somebody to wait for.
ACTOR = """
import sys, anyio, bindlock
from bindlock.aio.lock import AsyncLock
say = lambda text: print(text, flush=True)
async def main(name, backend):
    lock = AsyncLock(name)
    await lock.acquire(waiting=lambda holder: say("waits"))
    say("held")
    await anyio.to_thread.run_sync(sys.stdin.readline)
    lock.release()
    say("released")
anyio.run(main, *sys.argv[1:3], backend=sys.argv[2])
"""


@pytest.fixture(name="backend", params=["asyncio", "trio"])
def on_either(request: pytest.FixtureRequest) -> str:
    """The event loop."""
    if request.param == "trio":
        pytest.importorskip("trio", reason="needs trio")
    return str(request.param)


def run(backend: str, main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function to its end, but no longer than the deadline; no line is left with anybody in it."""

    async def bounded() -> Any:
        with anyio.fail_after(2 * DEADLINE):
            return await main()

    try:
        return anyio.run(bounded, backend=backend)
    finally:
        assert not in_line()


def in_line() -> int:
    """How many tasks are in line, in all event loops."""
    return sum(map(len, line._lines.values()))


class Task:
    """A task that wants a lock, and lets go of it when told to; it can be cancelled at any step."""

    def __init__(self, name: str, group: Any, lock: AsyncLock | None = None, timeout: float | None = None) -> None:
        self.lock = lock or AsyncLock(name)
        self.scope = anyio.CancelScope()
        #: What came of the acquire: "held", "cancelled", or the error.
        self.outcome: str | BaseException | None = None
        self.done = anyio.Event()
        self._timeout = timeout
        self._leave = anyio.Event()
        group.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                await self.lock.acquire(self._timeout)
                self.outcome = "held"
            except anyio.get_cancelled_exc_class():
                self.outcome = "cancelled"
                raise
            except bindlock.BindlockError as error:
                self.outcome = error
            finally:
                self.done.set()
        if self.outcome == "held":
            assert self.lock.held
            with anyio.CancelScope(shield=True):
                await self._leave.wait()
            self.lock.release()

    def leave(self) -> None:
        """Let it release the lock, now or as soon as it has it."""
        self._leave.set()


async def steps(count: int) -> None:
    """Let the event loop go round so many times."""
    for _ in range(count):
        await checkpoint()


async def until(condition: Callable[[], object]) -> None:
    """Go round until that is so; the time-out of `run` ends it otherwise."""
    while not condition():
        await checkpoint()


def opened() -> int:
    """How many descriptors are open."""
    return len(os.listdir("/proc/self/fd"))


def nothing_left(name: str, descriptors: int) -> None:
    """The name is free, nobody is in line, no task is remembered, and no more descriptors are open than there were."""
    assert bindable(name)
    assert not in_line()
    assert not [lock for lock in holders if lock.held and lock.name == name]
    assert opened() == descriptors
