"""The storm (`tests.storm`), and its witnesses: they must call out what is wrong, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.actors import Child, bindable
from tests.storm import USUAL
from tests.storm_witnesses import Witnesses

if TYPE_CHECKING:
    from tests.actors import Cast


#: How often each must have happened in a minute, lest it is hardly a storm; what a new interpreter starts for is rarer.
OFTEN = {
    "killed": 100, "stopped": 100, "acquired": 100, "timed out": 100, "interrupted": 100, "shared": 50, "dropped": 50,
    "adopted": 20, "sent": 5, "not sent": 5, "received": 5, "by tasks": 50, "cancelled": 50,
    "executed": 2, "supervised": 2,
}  # fmt: skip
KILLED_WHILE = {"sending": 5, "executing": 2, "supervising": 2, "tasks": 20}


def storm(
    cast: Cast, name: str, seed: int, seconds: float, lock: str = "bindlock", kinds: tuple[str, ...] = USUAL
) -> dict[str, Any]:
    """Run a storm; what happened."""
    actor = cast.start(
        sys.executable, "-m", "tests.storm",
        "--name", name, "--seed", str(seed), "--seconds", str(seconds), "--lock", lock, "--kinds", ",".join(kinds),
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(actor.read(seconds + 60))
    print(json.dumps(result))
    assert actor.wait() == bool(result["violations"])
    return result


def test_never_two_never_stale(cast: Cast, name: str, seed: int, long: bool) -> None:
    """However 30 processes are killed, stopped, interrupted and forked, and whatever way the lock goes from one to
    another, two are never inside, and none for ever.
    """
    pytest.importorskip("anyio", reason="tasks need anyio")
    seconds = 1200 if long else 30
    result = storm(cast, name, seed, seconds)
    assert result["violations"] == []
    assert result["free"]
    assert result["idlest"] > 0, "some place of the 30 never had the lock"
    assert result["stillest"] < 15, "nobody had the lock for so long"
    for what, least in OFTEN.items():
        assert result[what] >= least * seconds / 60, f"hardly a storm: {what}"
    for what, least in KILLED_WHILE.items():
        assert result["killed while"][what] >= least * seconds / 60, f"hardly a storm: killed while {what}"
    assert result["errors"] == 0
    assert bindable(name)


@pytest.mark.parametrize("broken", ["two-doors", "falls-open"])
def test_a_broken_lock_is_called_out(cast: Cast, name: str, seed: int, broken: str) -> None:
    """A lock that now and then lets two in is called out within seconds, by each of the two witnesses."""
    result = storm(cast, name, seed, 30, broken)
    assert result["seconds"] < 30
    for witness in ("word", "record"):
        assert any(line.startswith(f"{witness}: ") for line in result["violations"])


def test_the_dead_are_not_called_out() -> None:
    """A holder that was killed inside is no longer there, reaped or not."""

    def body(child: Child) -> None:
        child.say(str(witnesses.enter()))
        child.hear()

    with closing(Witnesses()) as witnesses, Child(body) as child:
        child.expect("[]")
        child.signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert witnesses.enter() == []
        assert witnesses.leave() == []
        child.wait()
        assert witnesses.enter() == []


@pytest.mark.parametrize("stopped", [False, True])
def test_the_living_are_called_out(stopped: bool) -> None:
    """A holder that lives, stopped or not, is called out by both witnesses when another enters."""

    def body(child: Child) -> None:
        child.say(str(witnesses.enter()))
        child.hear()
        child.say(str(len(witnesses.leave())))

    with closing(Witnesses()) as witnesses, Child(body) as child:
        child.expect("[]")
        if stopped:
            child.signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
        called = witnesses.enter()
        assert [line.partition(":")[0] for line in called] == ["word", "record"]
        assert str(child.pid) in called[0]
        assert str(child.pid) in called[1]
        child.signal(signal.SIGCONT)
        child.say("")
        child.expect("1")
        child.wait()
