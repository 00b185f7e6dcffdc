"""From the end of one holder to the next one's holding: the holder is in one process, the waiter in another.

Before a lock is released, or its holder killed, the waiter is seen to sleep in the kernel. Locks that sleep and look
again are released at a random moment of their sleep, as life would have it, and get fewer rounds, as each is so long.

The waiter has a processor, and the holder and this process another. Left to the scheduler, who shares one with whom is
decided early and stays, differs from lock to lock, and matters more than the lock does.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
import time

from benchmarks.actor import Actor
from benchmarks.peers import OURS
from benchmarks.result import Row, at_least, at_most, percentile_99, seconds

TITLE = "to the waiter's holding"
_WAKING = [OURS, "bare system calls", "flock(2)"]
#: Seconds after which their intervals have stopped growing, and the interval (their defaults).
_LOOKING_AGAIN = {"filelock": (0.0, 0.05), "portalocker": (0.0, 0.25), "fasteners": (0.55, 0.1)}
_WARM_UP = 3


def measure(quick: bool) -> list[Row]:
    """Both ends, with all locks in turns."""
    rounds, seldom = (120, 20) if quick else (1500, 40)
    rows = []
    processors = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        here, there = {min(processors)}, {max(processors)}
        stack.callback(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, here)
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="bindlock-benchmark-"))
        pairs = {}
        for number, kind in enumerate([*_WAKING, *_LOOKING_AGAIN]):
            path = f"{scratch}/{number}"
            holder = stack.enter_context(Actor(kind, path, here))
            pairs[kind] = holder, stack.enter_context(Actor(kind, path, there))
        for begin, end, what in (("hold", "release", "release"), ("fork", "kill", "SIGKILL")):
            times = _time_all(pairs, begin, end, rounds, seldom)
            rows += _compare(f"from {what} {TITLE}", times)
    return rows


def _compare(what: str, times: dict[str, list[float]]) -> list[Row]:
    ours = times[OURS]
    rows = [at_most(what, ours, "bare connect, poll, bind", times["bare system calls"], 1.25)]
    rows += [at_least(what, ours, kind, times[kind]) for kind in times if kind not in _WAKING[:2]]
    worst = {kind: percentile_99(values) for kind, values in times.items()}
    rows.append(
        Row(
            f"{what}, p99",
            seconds(worst[OURS]),
            "bare connect, poll, bind",
            seconds(worst["bare system calls"]),
            f"{worst[OURS] / worst['bare system calls']:.2f} x",
            repetitions=len(ours),
            numbers={"p99": worst, "means": {kind: statistics.fmean(values) for kind, values in times.items()}},
        )
    )
    return rows


def _time_all(
    pairs: dict[str, tuple[Actor, Actor]], begin: str, end: str, rounds: int, seldom: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {kind: [] for kind in pairs}
    order = list(pairs)
    for number in range(-_WARM_UP, rounds):
        random.shuffle(order)
        for kind in order:
            if kind in _WAKING or number % seldom == 0:
                took = _time_one(*pairs[kind], begin, end, _LOOKING_AGAIN.get(kind))
                if number >= 0:
                    times[kind].append(took)
    return times


def _time_one(holder: Actor, waiter: Actor, begin: str, end: str, sleeps: tuple[float, float] | None) -> float:
    holder.ask(begin)
    waiter.write("take")
    waiter.await_waiting()
    if sleeps is not None:
        time.sleep(sleeps[0] + random.random() * sleeps[1])
    holder.write(end)
    # The waiter's answer first: as long as we sleep for that one, the holder's does not wake us, to take a processor
    # just when the waiter needs it.
    held = waiter.read()
    return (held - holder.read()) / 1e9
