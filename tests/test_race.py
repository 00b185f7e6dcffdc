"""Many processes reach for a free name at the same instant: one has it, always exactly one."""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import bindlock
from tests.actors import DEADLINE, Child, bindable

if TYPE_CHECKING:
    from collections.abc import Callable

RACERS = 50
WON, LOST = 1, 2


class Race:
    """The starting line: children sleep on a counter that is raised by as many as are to start.

    Two such counters take turns, so that nobody can start twice in a round.
    """

    def __init__(self, results: mmap.mmap) -> None:
        self.results = results
        self.start = [os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC) for _ in range(2)]
        self.done = os.eventfd(0, os.EFD_CLOEXEC)

    def run(self, number: int, reach: Callable[[], bool], let_go: Callable[[], None], child: Child) -> None:
        """In a child: race, tell, and when it has won hold until told to let go."""
        turn = 0
        while True:
            os.eventfd_read(self.start[turn])
            won = reach()
            self.results[number] = WON if won else LOST
            os.eventfd_write(self.done, 1)
            if won:
                child.hear()
                let_go()
                os.eventfd_write(self.done, 1)
            turn = not turn

    def round(self, turn: int) -> list[int]:
        """Start all; when all have tried, the numbers of those who won."""
        self.results[:] = bytes(RACERS)
        os.eventfd_write(self.start[turn], RACERS)
        self.finish(RACERS)
        tries = self.results[:]
        assert set(tries) <= {WON, LOST}
        return [number for number, result in enumerate(tries) if result == WON]

    def finish(self, count: int) -> None:
        """Wait until so many have said that they are done."""
        while count:
            assert select.select([self.done], [], [], DEADLINE)[0], f"{count} of {RACERS} are not done"
            count -= os.eventfd_read(self.done)

    def close(self) -> None:
        for counter in (*self.start, self.done):
            os.close(counter)


def race(rounds: int, racer: Callable[[], tuple[Callable[[], bool], Callable[[], None]]]) -> list[int]:
    """How many won, for every round."""
    with ExitStack() as stack:
        track = Race(stack.enter_context(mmap.mmap(-1, RACERS)))
        stack.callback(track.close)

        def body(number: int) -> Callable[[Child], None]:
            return lambda child: track.run(number, *racer(), child)

        children = [stack.enter_context(Child(body(number))) for number in range(RACERS)]
        winners = []
        for turn in range(rounds):
            won = track.round(turn % 2)
            winners.append(len(won))
            for number in won:
                children[number].say("let go")
            track.finish(len(won))
        for child in children:
            child.signal(signal.SIGKILL)
        return winners


def test_one_winner(name: str, long: bool, seed: int) -> None:
    """Of 50 processes that start at once for a free name one gets it, in each round."""

    def racer() -> tuple[Callable[[], bool], Callable[[], None]]:
        chance = random.Random(f"{seed} {os.getpid()}")
        lock = bindlock.Lock(name)

        def reach() -> bool:
            if chance.random() < 0.5:
                return lock.try_acquire()
            try:
                lock.acquire(timeout=0)
            except bindlock.Held:
                return False
            return True

        return reach, lock.release

    rounds = 20_000 if long else 500
    winners = race(rounds, racer)
    assert winners == [1] * rounds
    assert bindable(name)


def test_one_winner_of_those_who_wait(name: str, long: bool) -> None:
    """Of 50 processes that wait for a name, one has it when it is let go, then the next, until each had it once."""
    rounds = 100 if long else 5

    def body(child: Child) -> None:
        lock = bindlock.Lock(name)
        for turn in range(rounds):
            os.eventfd_read(start[turn])
            lock.acquire(timeout=DEADLINE)
            seen = inside[0]
            if inside[1]:
                child.say("two at once")
            inside[1] = 1
            os.sched_yield()
            inside[1] = 0
            inside[0] = seen + 1 & 255
            lock.release()
            os.eventfd_write(done, 1)
        child.hear()

    with ExitStack() as stack:
        inside = stack.enter_context(mmap.mmap(-1, 2))
        start = [os.eventfd(0, os.EFD_SEMAPHORE) for _ in range(rounds)]
        done = os.eventfd(0)
        for counter in (*start, done):
            stack.callback(os.close, counter)
        children = [stack.enter_context(Child(body)) for _ in range(RACERS)]
        for turn in range(rounds):
            with bindlock.Lock(name, timeout=0):
                os.eventfd_write(start[turn], RACERS)
            count = RACERS
            while count:
                ready = select.select([done, *(child._in for child in children)], [], [], DEADLINE)[0]
                assert ready == [done], "two at once, or nobody"
                count -= os.eventfd_read(done)
        assert inside[0] == RACERS * rounds & 255, "a step was lost: two at once"
        for child in children:
            child.say("go home")
            assert child.wait() == 0
    assert bindable(name)


def test_a_broken_lock_is_called_out() -> None:
    """The race itself notices a lock that lets more than one in."""

    def racer() -> tuple[Callable[[], bool], Callable[[], None]]:
        lock = bindlock.Lock(f"test-broken-{os.getpid()}")
        return lock.try_acquire, lock.release

    assert race(3, racer) == [RACERS] * 3
