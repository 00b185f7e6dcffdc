"""What a wait of some seconds costs: how often the waiter ran, and for how long. All wait at the same time."""

from __future__ import annotations

import contextlib
import tempfile
import time

from benchmarks.actor import Actor
from benchmarks.peers import LOCKS, OURS
from benchmarks.result import Row, seconds

TITLE = "waiting"
_WITH_TIMEOUT = "bindlock with a time-out"


def measure(quick: bool) -> list[Row]:
    """Leave a holder and a waiter of each kind alone."""
    length = 3 if quick else 10
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="bindlock-benchmark-"))
        holders, waiters = {}, {}
        for number, kind in enumerate(LOCKS):
            path = f"{scratch}/{number}"
            holders[kind] = stack.enter_context(Actor(kind, path))
            waiters[kind] = stack.enter_context(Actor(kind, path))
            holders[kind].ask("hold")
            waiters[kind].write("take")
        for waiter in waiters.values():
            waiter.await_waiting()
        before = {kind: _cost(waiter.pid) for kind, waiter in waiters.items()}
        time.sleep(length)
        after = {kind: _cost(waiter.pid) for kind, waiter in waiters.items()}
        for kind, waiter in waiters.items():
            holders[kind].ask("release")
            waiter.read()
    costs = {kind: (after[kind][0] - before[kind][0], after[kind][1] - before[kind][1]) for kind in waiters}
    return [*_rows(OURS, length, costs), *_rows(_WITH_TIMEOUT, length, costs)[:1]]


def _rows(ours: str, length: int, costs: dict[str, tuple[int, float]]) -> list[Row]:
    what = f"{TITLE} {length} s" + (" with a time-out" if ours == _WITH_TIMEOUT else "")
    wake_ups, processor = costs[ours]
    promise = Row(
        what,
        _text(costs[ours]),
        target="0 wake-ups, 0 CPU",
        reached=wake_ups == 0 and processor == 0,
        repetitions=1,
        numbers={kind: {"wake_ups": cost[0], "processor_seconds": cost[1]} for kind, cost in costs.items()},
    )
    others = [kind for kind in costs if kind not in (OURS, _WITH_TIMEOUT)]
    return [promise, *(Row(what, _text(costs[ours]), kind, _text(costs[kind]), repetitions=1) for kind in others)]


def _text(cost: tuple[int, float]) -> str:
    return f"{cost[0]} wake-ups, {seconds(cost[1]) if cost[1] else '0'} CPU"


def _cost(pid: int) -> tuple[int, float]:
    """How often a process of one thread has been put on a processor, and the seconds it was there."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            nanoseconds, _, runs = map(int, file.read().split())
        return runs, nanoseconds / 1e9
    except FileNotFoundError:  # a kernel without CONFIG_SCHED_INFO
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        switches = int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"])
        return switches, 0.0
