"""Children that outlive their parent, the holder."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.event import event
from bindlock.proof.process import hear, state, until

if TYPE_CHECKING:
    from bindlock.proof.kind import Kind
    from bindlock.proof.process import Child
    from bindlock.proof.trial import Then, Trial

_FREE = "Free when the parent is told of the death: the child has nothing to do with the lock."
_GAP = 0.004


@event(
    "forked child outlives it",
    expected=_FREE,
    rule="fork(2) copies every descriptor (copy_files): what belongs to the open file lives as long as any copy does.",
)
def forked_child(trial: Trial) -> None:
    """The holder has forked a child with os.fork, which runs on when the holder is killed."""

    def then(child: Child, _: Kind) -> None:
        if os.fork() == 0:
            child.say("forked")
        hear(child)

    _outlived(trial, then)


@event(
    "child forked by C code",
    trials=(4, 100),
    expected=_FREE,
    rule="fork(2) copies every descriptor (copy_files), and the at-fork hooks of Python are not called by C code.",
)
def forked_child_of_c(trial: Trial) -> None:
    """A C library in the holder has forked a child, unknown to Python, which runs on when the holder is killed."""

    def then(child: Child, _: Kind) -> None:
        if ctypes.PyDLL(None).fork() == 0:
            child.say("forked")
        hear(child)

    _outlived(trial, then)


@event(
    "subprocess outlives it",
    trials=(4, 300),
    expected=_FREE,
    rule="execve(2) closes what is marked close-on-exec (do_close_on_exec), as all is that Python opens (PEP 446).",
)
def subprocess(trial: Trial) -> None:
    """The holder has started a program, which runs on when the holder is killed."""

    def then(child: Child, _: Kind) -> None:
        actions = [(os.POSIX_SPAWN_DUP2, child.ends()[0], 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        pid = os.posix_spawnp("cat", ["cat"], os.environ, file_actions=actions)
        # It returns at the exec, and the descriptors are closed a little later: the gap has an event of its own.
        until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() == b"cat\0" or state(pid) == "Z", "executed")
        child.say("forked")
        hear(child)

    _outlived(trial, then)


@event(
    "killed between fork and exec",
    trials=(20, 500),
    expected="Free when the parent is told of the death.",
    rule="Close-on-exec acts at the exec: between fork and exec the child has a copy of everything. It is short, but "
    "the child need not have been scheduled when its parent is dead.",
)
def fork_exec_gap(trial: Trial) -> None:
    """The holder starts one program after the other with system(3), and is killed at a random instant."""

    def then(child: Child, _: Kind) -> None:
        child.say("forked")
        while True:
            os.system("true")  # noqa: S605

    holder = trial.hold(then)
    holder.expect("forked")
    time.sleep(trial.random.uniform(0, _GAP))
    trial.expect_free_once_killed(holder)


def _outlived(trial: Trial, then: Then) -> None:
    holder = trial.hold(then)
    holder.expect("forked")
    trial.expect_free_once_killed(holder)
