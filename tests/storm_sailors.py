"""A process of the storm: acquires and releases until it is killed."""

from __future__ import annotations

import os
import random
import select
import signal
from typing import TYPE_CHECKING, Protocol

import bindlock
import bindlock.lock.block  # what a refused try loads: before the fork rather than in each child

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.storm_witnesses import Log

#: Seconds, from none to for ever; the shortest are over in the middle of a system call or two.
TIMEOUTS = (None, 0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


class Lockable(Protocol):
    """What the storm needs of a lock."""

    @property
    def held(self) -> bool: ...
    def acquire(self, timeout: float | None) -> None: ...
    def release(self) -> None: ...


class Sailor:
    """Acquires and releases until it is killed. Everything it does is drawn from its seed."""

    def __init__(self, lock: Callable[[bool], Lockable], log: Log, seed: str) -> None:
        self._lock = lock
        self._log = log
        self._chance = random.Random(seed)
        #: While True a SIGINT is put by: the witnesses' books are being kept.
        self._busy = True

    def run(self) -> None:
        signal.signal(signal.SIGINT, self._interrupt)
        while True:
            try:
                self._turn()
            except KeyboardInterrupt:
                self._log.add("interrupted")
            self._busy = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._busy:
            self._busy = True
            raise KeyboardInterrupt

    def _turn(self) -> None:
        share = self._chance.random() < 0.1
        lock = self._lock(share)
        if self._acquire(lock):
            self._inside(lock, share)

    def _acquire(self, lock: Lockable) -> bool:
        try:
            self._busy = False
            lock.acquire(self._chance.choice(TIMEOUTS))
            self._busy = True
        except bindlock.Held:
            self._busy = True
            self._log.add("timed out")
            if lock.held:
                self._log.call_out("held: acquire says that somebody else has it, but the lock that it is held")
            return False
        except KeyboardInterrupt:
            # It may have come the moment after acquire returned.
            if lock.held:
                lock.release()
            raise
        except Exception as error:
            self._log.add("errors")
            self._log.call_out(f"error: {error!r}")
            raise
        self._log.add("acquired")
        if not lock.held:
            self._log.call_out("held: acquire returned, but the lock says that it is not held")
        return True

    def _inside(self, lock: Lockable, share: bool) -> None:
        self._log.enter()
        try:
            self._busy = False
            self._dawdle()
            self._busy = True
            if share:
                self._share(lock)
                return
            if self._chance.random() < 0.1:
                self._drop(lock)
        finally:
            self._busy = True
            if lock.held:
                self._log.leave()
                lock.release()

    def _dawdle(self) -> None:
        dawdle(self._chance)

    def _drop(self, lock: Lockable) -> None:
        """Fork a child that must have nothing, and may outlive us."""
        self._log.add("dropped")
        if os.fork():
            return
        if lock.held:
            self._log.call_out("drop: a forked child has the lock")
        self._dawdle()
        os._exit(0)

    def _share(self, lock: Lockable) -> None:
        """Fork a child that has the lock, too, leave it to the child, and be out."""
        self._log.add("shared")
        handed, hand = os.pipe()
        if os.fork():
            os.close(handed)
            self._log.leave()
            os.write(hand, b"!")
            os.close(hand)
            lock.release()
            return
        os.close(hand)
        os.read(handed, 1)  # nothing comes when the parent was killed: then its marks are those of a dead one
        if not lock.held:
            self._log.call_out("share: a forked child has no lock")
        self._log.enter()
        lock = self._adopted(lock)
        self._dawdle()
        self._log.leave()
        if self._chance.random() < 0.5:
            lock.release()
        os._exit(0)

    def _adopted(self, lock: Lockable) -> Lockable:
        """What the child of a sharing fork has the lock by from now on."""
        return lock


def dawdle(chance: random.Random) -> None:
    """Be inside for a little while, never the same."""
    what = chance.random()
    if what < 0.5:
        os.sched_yield()
    elif what < 0.9:
        for _ in range(chance.randrange(2000)):
            pass
    else:
        select.select([], [], [], chance.random() * 0.003)
