"""One trial: a lock of some kind, a holder, what happens to it, and whether the lock then says what is true."""

from __future__ import annotations

import enum
import os
import shutil
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from bindlock.proof.errors import Fault, NotPossible
from bindlock.proof.kernel.call import die_with_parent
from bindlock.proof.process import Child, check, hear, reap_all, state, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from bindlock.proof.kind import Kind, Site

    #: What a holder does when it has the lock. It has it until the process ends, or this lets it go.
    Then = Callable[[Child, Kind], object]


class Outcome(enum.StrEnum):
    """What a trial came to; of a cell's, the worst: the first of these."""

    #: The proof itself went wrong.
    FAULT = "fault"
    #: Two had it at once.
    DOUBLE = "double"
    #: It was refused though nobody was there, for as long as we asked.
    STALE = "stale"
    #: It was refused though nobody was there, and had some time later.
    LATE = "late"
    #: It could not even be tried, and said so.
    CANNOT = "cannot"
    RIGHT = "right"


class Over(Exception):
    """The lock has said something that is not true, so there is no use in going on."""


class Trial:
    """What the functions of events are written with. Use it in a `with` block: at its end nothing of it is left.

    That goes for every child of this process, whoever started it.
    """

    def __init__(self, kind: type[Kind], site: Site, random: Random, patience: float, number: int = 0) -> None:
        #: Its number in the cell, from 0.
        self.number = number
        self.kind = kind
        self.site = site
        self.random = random
        #: Seconds after which a lock that is still refused is called stale.
        self.patience = patience
        self.outcome = Outcome.RIGHT
        #: What is worth telling people, beyond the outcome.
        self.remark = ""
        #: Seconds from the event to a new holder, if there was to be one.
        self.latency: float | None = None
        #: How long it was refused after all the world could know that it is free.
        self.late: float | None = None
        #: How long it took to answer, where it was not refused.
        self.answered: float | None = None
        #: A number that the latency is to be seen against, as megabytes.
        self.parameter: float | None = None
        self._children: list[Child] = []
        self._began = time.monotonic()

    # Holders.

    def child(self, body: Callable[[Child], object]) -> Child:
        """A process that ends with the trial; with this process, too, be it stopped or frozen then."""

        def mortal(child: Child) -> None:
            die_with_parent()  # whoever is stopped does not notice the end of its input
            body(child)

        child = Child(mortal)
        self._children.append(child)
        return child

    def hold(self, then: Then | None = None, before: Callable[[], object] | None = None) -> Child:
        """A process that has the lock. `before` is called before it takes it, `then` as soon as it has it.

        Without `then` it waits to be killed; a line that it hears ends it, too.
        """

        def body(child: Child) -> None:
            if before is not None:
                before()
            lock = self.take(child)
            (then or hear)(child, lock)

        child = self.child(body)
        child.expect("held")
        return child

    def take(self, child: Child) -> Kind:
        """In a child: have the lock, and say "held"."""
        lock = self.kind(self.site)
        if not lock.acquire():
            raise Fault("the first to try the lock was refused")
        child.say("held")
        return lock

    # What happens.

    def begin(self) -> None:
        """The event is now: from here the time is taken."""
        self._began = time.monotonic()

    # What the lock says.

    def expect_free(self, lock: Kind | None = None) -> None:
        """Nobody is there, and everybody could know it: now the lock must be had."""
        lock = lock or self.kind(self.site)
        known = time.monotonic()
        refused = False
        while True:
            got = self._attempt(lock)
            now = time.monotonic()
            if got:
                break
            refused = True
            if now - known > self.patience:
                self.conclude(Outcome.STALE)
            check()
            time.sleep(0.0002)
        if self.latency is None:
            self.latency = now - self._began
        lock.release()
        if refused:
            self.late = now - known
            self.conclude(Outcome.LATE)
        self.answered = now - known

    def expect_free_once_killed(self, holder: Child, number: int = signal.SIGKILL) -> None:
        """The holder is killed by that signal: the lock must be had as soon as waitpid(2) tells of the death."""
        self.begin()
        holder.signal(number)
        holder.reap()
        self.expect_free()

    def expect_held(self) -> None:
        """The holder lives: the lock must be refused."""
        lock = self.kind(self.site)
        if self._attempt(lock):
            lock.release()
            self.conclude(Outcome.DOUBLE)

    def expect_held_while(self, alive: Callable[[], object]) -> None:
        """The holder is on its way out: the lock must be refused until that is no longer so."""
        lock = self.kind(self.site)
        if self._attempt(lock):
            still = alive()
            lock.release()
            if still:
                self.conclude(Outcome.DOUBLE)

    def expect_held_from(self, place: Callable[[], object]) -> None:
        """The holder lives: the lock must be refused to a process that has first gone to another place."""
        answer = self.answer_from(place)
        if answer == "had":
            self.conclude(Outcome.DOUBLE)

    def expect_free_from(self, place: Callable[[], object]) -> None:
        """Nobody has it: a process that has first gone to another place must have it."""
        answer = self.answer_from(place)
        if answer == "refused":
            self.conclude(Outcome.STALE)

    def answer_from(self, place: Callable[[], object]) -> str:
        """What a process that has first gone to another place is told: "had" or "refused"."""

        def body(child: Child) -> None:
            place()
            lock = self.kind(self.site)
            try:
                child.say("had" if lock.acquire() else "refused")
            except OSError as error:
                child.say(f"cannot {error}")

        with Child(body) as child:
            answer = child.hear()
            if answer.startswith("cannot "):
                self.cannot(answer.removeprefix("cannot "))
            if answer not in ("had", "refused"):
                raise Fault("who was to try the lock ended without an answer")
            child.wait()
        return answer

    def descriptor(self, lock: Kind) -> int:
        """The descriptor that is the lock. Raises NotPossible when there is none."""
        number = lock.fileno()
        if number is None:
            raise NotPossible("no descriptor is this lock")
        return number

    def expect_woken(self, end: Callable[[], object]) -> None:
        """A process waits for the lock when the holder's end comes: it must have it in the end."""

        def body(child: Child) -> None:
            lock = self.kind(self.site)
            child.say("waiting")
            lock.wait()
            child.say(str(time.monotonic()))

        waiter = self.child(body)
        waiter.expect("waiting")
        until(lambda: waiter.heard_within(0) or state(waiter.pid) == "S", "asleep")
        if self.kind.interval:
            # Not in step with its looking.
            time.sleep(self.random.uniform(0, self.kind.interval))
        self.begin()
        end()
        deadline = max(5 * self.patience, 3 * (self.kind.interval or 0))
        if not waiter.heard_within(deadline):
            self.conclude(Outcome.STALE)
        latency = float(waiter.hear()) - self._began
        if latency < 0:
            self.conclude(Outcome.DOUBLE)  # it had it before the end
        self.latency = latency

    def conclude(self, outcome: Outcome, remark: str = "") -> NoReturn:
        """End the trial with that outcome."""
        self.outcome = outcome
        self.remark = remark
        raise Over

    def _attempt(self, lock: Kind) -> bool:
        try:
            return lock.acquire()
        except OSError as error:
            self.cannot(str(error))

    def cannot(self, reason: str) -> NoReturn:
        """End the trial: the lock could not be tried, and said why."""
        self.conclude(Outcome.CANNOT, reason.replace(str(self.site.directory), "…"))

    def __enter__(self) -> Trial:
        os.mkdir(self.site.directory)
        os.chmod(self.site.directory, 0o1777 if self.site.shared else 0o755)  # as /run/lock, and as /run
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        for child in reversed(self._children):
            child.close()
        reap_all()
        shutil.rmtree(self.site.directory)
        return isinstance(error, Over)
