"""Many want the lock at once; somebody waits for it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from bindlock.proof.errors import Fault
from bindlock.proof.event import event
from bindlock.proof.process import hear
from bindlock.proof.trial import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindlock.proof.kind import Kind
    from bindlock.proof.process import Child
    from bindlock.proof.trial import Trial

_CROWD = 50
_ONE = "Exactly one has it."
_RACE = (
    "Between a look and what is done upon it another process may do the same; only what the kernel decides in one "
    "step, under a lock of its own, has one winner (bind(2), flock(2), open(2) with O_EXCL)."
)


@event("50 contenders, free lock", expected=_ONE, rule=_RACE, trials=(1, 20))
def crowd(trial: Trial) -> None:
    """Nobody has the lock. 50 processes try it at the same instant, once each, and keep it if they have it."""
    _rush(trial, lambda: None)


@event("50 contenders, holder killed", expected=_ONE, rule=_RACE, trials=(1, 20))
def crowd_after_kill(trial: Trial) -> None:
    """The holder is killed with SIGKILL, and its parent told; then 50 processes try the lock at the same instant.

    Each tries once, and keeps the lock if it has it.
    """
    holder = trial.hold()

    def end() -> None:
        holder.signal(signal.SIGKILL)
        holder.reap()

    _rush(trial, end)


@event(
    "waiter, holder releases",
    expected="The waiter has it, soon.",
    rule="Whom the kernel keeps in a queue (flock(2) and F_SETLKW: locks_wake_up_blocks, fs/locks.c; the backlog of a "
    "listening socket, as bindlock's waiters) it wakes at once; who sleeps and looks again, at its next look.",
    trials=(2, 40),
)
def waiter_release(trial: Trial) -> None:
    """A process waits for the lock, in the way that this kind of lock offers. Then the holder gives it back."""

    def then(child: Child, lock: Kind) -> None:
        child.hear(3600)
        lock.release()
        hear(child)

    holder = trial.hold(then)
    trial.expect_woken(lambda: holder.say("release"))


@event(
    "waiter, holder killed",
    expected="The waiter has it, soon.",
    rule="What the kernel takes back at the death of a process (do_exit) wakes waiters as a release does; what only "
    "the holder itself can give back wakes nobody.",
    trials=(2, 40),
)
def waiter_kill(trial: Trial) -> None:
    """A process waits for the lock, in the way that this kind of lock offers. Then the holder is killed with SIGKILL.

    Its parent is told of the death at once, so that no zombie is left.
    """
    holder = trial.hold()

    def end() -> None:
        holder.signal(signal.SIGKILL)
        holder.reap()

    trial.expect_woken(end)


def _rush(trial: Trial, before: Callable[[], object]) -> None:
    """Have many try the lock at the same instant, right after `before`."""
    start, gate = os.pipe()

    def body(child: Child) -> None:
        os.close(gate)
        lock = trial.kind(trial.site)
        child.say("ready")
        os.read(start, 1)
        try:
            child.say("had" if lock.acquire() else "refused")
        except OSError as error:
            child.say(f"cannot {error}")
        hear(child)

    try:
        crowd = [trial.child(body) for _ in range(_CROWD)]
        for child in crowd:
            child.expect("ready")
        before()
    finally:
        # The end of the input is for all of them at once.
        os.close(gate)
        os.close(start)
    _judge(trial, [child.hear() for child in crowd])


def _judge(trial: Trial, answers: list[str]) -> None:
    had = answers.count("had")
    failures = [answer.removeprefix("cannot ") for answer in answers if answer.startswith("cannot ")]
    if had + answers.count("refused") + len(failures) < len(answers):
        raise Fault("a contender ended without an answer")
    if had > 1:
        trial.conclude(Outcome.DOUBLE, f"{had} of {len(answers)} had it at once")
    if failures:
        trial.cannot(f"{len(failures)} of {len(answers)}: {failures[0]}")
    if not had:
        trial.conclude(Outcome.STALE, f"all {len(answers)} were refused")
