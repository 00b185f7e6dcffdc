"""How a holder ends, or lets go."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from bindlock.proof.event import event
from bindlock.proof.kernel.call import never_dump
from bindlock.proof.process import await_death, hear

if TYPE_CHECKING:
    from bindlock.proof.kind import Kind
    from bindlock.proof.process import Child
    from bindlock.proof.trial import Trial

ORDER_OF_EXIT = (
    "do_exit() (kernel/exit.c) gives back the memory (exit_mm), then the descriptors (exit_files, exit_task_work), and "
    "tells the parent only then (exit_notify)."
)
_TOLD = "Free when the parent is told of the death."


@event(
    "released", expected="Free when the release returns.", rule="The last close, an unlock or an unlink: nothing else."
)
def released(trial: Trial) -> None:
    """The holder gives the lock back, and lives on."""

    def then(child: Child, lock: Kind) -> None:
        hear(child)
        lock.release()
        child.say("released")
        hear(child)

    holder = trial.hold(then)
    trial.begin()
    holder.say("")
    holder.expect("released")
    trial.expect_free()


@event("clean exit", expected="Free when the parent is told of the exit.", rule=ORDER_OF_EXIT)
def clean_exit(trial: Trial) -> None:
    """The holder gives the lock back at the end of its block, and exits with status 0."""

    def then(child: Child, lock: Kind) -> None:
        try:
            hear(child)
        finally:
            lock.release()

    holder = trial.hold(then)
    trial.begin()
    holder.say("")
    holder.reap()
    trial.expect_free()


@event("exception", expected="Free when the parent is told of the exit.", rule=ORDER_OF_EXIT)
def exception(trial: Trial) -> None:
    """An exception that nobody catches leaves the holder's block, which gives the lock back, and ends the process."""

    def then(child: Child, lock: Kind) -> None:
        try:
            hear(child)
            raise ZeroDivisionError
        finally:
            lock.release()

    holder = trial.hold(then)
    trial.begin()
    holder.say("")
    holder.reap()
    trial.expect_free()


@event("SIGTERM", expected=_TOLD, rule=ORDER_OF_EXIT)
def sigterm(trial: Trial) -> None:
    """The holder is sent SIGTERM, for which it has no handler."""
    trial.expect_free_once_killed(trial.hold(), signal.SIGTERM)


@event("SIGKILL", expected=_TOLD, rule=ORDER_OF_EXIT, trials=(40, 10_000))
def sigkill(trial: Trial) -> None:
    """The holder is killed with SIGKILL, and its parent waits for it with waitpid(2)."""
    trial.expect_free_once_killed(trial.hold())


@event("abort", expected=_TOLD, rule=ORDER_OF_EXIT)
def abort(trial: Trial) -> None:
    """The holder aborts itself, with core dumps off."""

    def then(child: Child, _: Kind) -> None:
        hear(child)
        os.abort()

    holder = trial.hold(then, before=never_dump)
    trial.begin()
    holder.say("")
    holder.reap()
    trial.expect_free()


@event(
    "zombie nobody reaps",
    expected="Free when a pidfd says that it is dead.",
    rule="A zombie (state Z) has given back everything but its number and its status: exit_notify() comes last.",
)
def zombie(trial: Trial) -> None:
    """The holder is killed, and its parent does not wait for it: it stays a zombie."""
    holder = trial.hold()
    trial.begin()
    holder.signal(signal.SIGKILL)
    await_death(holder.pid)
    trial.expect_free()
