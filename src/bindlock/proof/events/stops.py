"""Holders that are there and do nothing: stopped, traced, frozen, with their first thread gone."""

from __future__ import annotations

import ctypes
import signal
from _thread import start_new_thread
from typing import TYPE_CHECKING

from bindlock.proof.event import event
from bindlock.proof.events.endings import ORDER_OF_EXIT
from bindlock.proof.kernel import cgroup, clone, ptrace
from bindlock.proof.kernel.call import die_with_parent
from bindlock.proof.process import hear, state, until

if TYPE_CHECKING:
    from bindlock.proof.kind import Kind
    from bindlock.proof.process import Child
    from bindlock.proof.trial import Trial

_HELD_THEN_FREE = "Held as long as it lives; free when the parent is told of the death."
_THREADS = 50
#: Of those, so many compete for the processor.
_BUSY = 4


@event("stopped, then killed", expected=_HELD_THEN_FREE, rule="SIGKILL ends a stopped process without continuing it.")
def stopped(trial: Trial) -> None:
    """The holder is stopped with SIGSTOP, and then killed."""
    holder = trial.hold()
    holder.signal(signal.SIGSTOP)
    ptrace.await_stop(holder.pid)
    trial.expect_held()
    trial.expect_free_once_killed(holder)


@event("killed under ptrace", expected=_HELD_THEN_FREE, rule="SIGKILL ends a traced process in its stop (ptrace(2)).")
def ptraced(trial: Trial) -> None:
    """A debugger has stopped the holder, which is then killed."""
    holder = trial.hold()
    ptrace.stop(holder.pid)
    trial.expect_held()
    trial.expect_free_once_killed(holder)


@event(
    "debugger stops its exit",
    trials=(1, 100),
    expected="Held until the debugger lets it go on; free when the parent is told of the death.",
    rule="PTRACE_EVENT_EXIT stops a dying process before anything of it is given back (do_exit: ptrace_event).",
)
def ptraced_exit(trial: Trial) -> None:
    """The holder is killed, and a debugger that asked for it stops it on its way out."""
    holder = trial.hold()
    ptrace.stop_at_exit(holder.pid)
    holder.signal(signal.SIGKILL)
    ptrace.await_exit_stop(holder.pid)
    try:
        trial.expect_held()
        trial.begin()
    finally:
        ptrace.resume(holder.pid)
    holder.reap()
    trial.expect_free()


@event(
    "frozen cgroup",
    trials=(2, 100),
    expected=_HELD_THEN_FREE,
    rule="A frozen process of cgroup v2 is held in a stop like SIGSTOP's; SIGKILL ends it without a thaw (cgroups(7)).",
)
def frozen(trial: Trial) -> None:
    """The holder's cgroup (version 2) is frozen, and the holder is then killed."""
    with cgroup.cgroup(cgroup.unified(), trial.site.name) as group, trial.hold() as holder:
        cgroup.move(group, holder.pid)
        (group / "cgroup.freeze").write_text("1")
        cgroup.wait_for(group, "frozen 1")
        trial.expect_held()
        trial.expect_free_once_killed(holder)


@event(
    "frozen cgroup, version 1",
    trials=(1, 50),
    expected="Held until it is thawed, though it was killed; then free when the parent is told of the death.",
    rule="The freezer of cgroup v1 holds a process in the kernel, where SIGKILL does not reach it until it is thawed.",
)
def frozen_v1(trial: Trial) -> None:
    """The holder's cgroup (version 1) is frozen, the holder is killed, and the cgroup thawed."""
    with cgroup.cgroup(cgroup.version_1("freezer"), trial.site.name) as group, trial.hold() as holder:
        cgroup.move(group, holder.pid)
        (group / "freezer.state").write_text("FROZEN")
        try:
            until(lambda: (group / "freezer.state").read_text() == "FROZEN\n", "frozen")
            holder.signal(signal.SIGKILL)
            trial.expect_held()
            trial.begin()
        finally:
            (group / "freezer.state").write_text("THAWED")
        holder.reap()
        trial.expect_free()


@event(
    "leader thread gone",
    trials=(6, 1000),
    expected=_HELD_THEN_FREE,
    rule="Threads share the descriptors (CLONE_FILES): they go with the last thread, though the process is shown as Z.",
)
def leader_gone(trial: Trial) -> None:
    """The holder's first thread ends, another lives on; then it is killed."""

    def then(child: Child, _: Kind) -> None:
        start_new_thread(hear, (child,))
        ctypes.CDLL(None).pthread_exit(None)

    holder = trial.hold(then)
    until(lambda: state(holder.pid) == "Z", "a zombie")
    trial.expect_held()
    trial.expect_free_once_killed(holder)


@event(
    "many threads",
    trials=(4, 200),
    expected="Free when the parent is told of the death.",
    rule="The descriptors go with the last thread, and the parent is told after that one. " + ORDER_OF_EXIT,
)
def many_threads(trial: Trial) -> None:
    """The holder has 50 threads, 4 of them busy, when it is killed."""

    def before() -> None:
        for number in range(_THREADS - 1):
            start_new_thread(_spin if number < _BUSY else signal.pause, ())

    holder = trial.hold(before=before)
    trial.expect_free_once_killed(holder)


@event(
    "PID used again",
    trials=(4, 200),
    inside=("pid",),
    expected="Free: the holder is dead, whoever has its number.",
    rule="The kernel gives numbers out again (alloc_pid); here by clone3(2) with set_tid, in a PID namespace.",
)
def pid_reused(trial: Trial) -> None:
    """The holder is killed, and another process gets its PID."""
    holder = trial.hold()
    trial.begin()
    holder.signal(signal.SIGKILL)
    holder.reap()

    def another() -> None:
        die_with_parent()
        signal.pause()

    clone.fork_as(holder.pid, another)
    trial.expect_free()


def _spin() -> None:
    while True:
        pass
