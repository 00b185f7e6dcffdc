"""A process of the storm that runs an event loop: several of its tasks want the lock, and are cancelled."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint

import bindlock
from bindlock.aio.lock import AsyncLock
from tests.storm_sailors import TIMEOUTS

if TYPE_CHECKING:
    from types import FrameType

    from tests.storm_witnesses import Log

TASKS = 4
#: Seconds after which an acquire is cancelled.
PATIENCE = (0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, *(1.0,) * 10)


class TaskSailor:
    """Tasks that acquire and release until they are killed. An interrupt cancels them all, and they begin again."""

    def __init__(self, name: str, log: Log, seed: str) -> None:
        self._name = name
        self._log = log
        self._chance = random.Random(seed)
        self._scope: anyio.CancelScope | None = None
        self._interrupted = False
        #: To the witnesses they are one: which of them is in is written down here.
        self._inside: AsyncLock | None = None

    def run(self) -> None:
        self._log.about("tasks")
        signal.signal(signal.SIGINT, self._interrupt)
        anyio.run(self._for_ever)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True

    async def _for_ever(self) -> None:
        while True:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, group.cancel_scope)
                for _ in range(TASKS):
                    group.start_soon(self._sail, random.Random(self._chance.random()))
            self._log.add("interrupted")

    async def _watch(self, scope: anyio.CancelScope) -> None:
        while not self._interrupted:
            await anyio.sleep(0.01)
        self._interrupted = False
        scope.cancel()

    async def _sail(self, chance: random.Random) -> None:
        while True:
            lock = AsyncLock(self._name)
            patience = chance.choice(PATIENCE)
            if await self._acquire(lock, chance.choice(TIMEOUTS), patience):
                await self._be_inside(lock, chance)

    async def _acquire(self, lock: AsyncLock, timeout: float | None, patience: float) -> bool:
        had = False
        with anyio.move_on_after(patience) as scope:
            try:
                await lock.acquire(timeout)
                had = True
            except bindlock.Held:
                self._log.add("timed out")
            except Exception as error:
                self._log.add("errors")
                self._log.call_out(f"error: {error!r}")
                raise
            finally:
                if lock.held != had:
                    self._log.call_out(f"task: held is {lock.held} after an acquire that returned: {had}")
        if scope.cancelled_caught:
            self._log.add("cancelled")
        return had

    async def _be_inside(self, lock: AsyncLock, chance: random.Random) -> None:
        self._log.add("acquired")
        self._log.add("by tasks")
        if self._inside is not None:
            self._log.call_out("task: entered while another task of the same process was in")
        self._inside = lock
        self._log.enter()
        try:
            await (checkpoint() if chance.random() < 0.8 else anyio.sleep(chance.random() * 0.003))
        finally:
            self._log.leave()
            if self._inside is not lock:
                self._log.call_out("task: leaves and finds another task of the same process")
            self._inside = None
            lock.release()
