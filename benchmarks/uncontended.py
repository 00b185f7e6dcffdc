"""Acquiring and releasing a lock that nobody else wants.

Several processes, each of which times all locks in turns, in batches: a process has its own hash seed and memory
layout, which can make one piece of Python a few per cent faster or slower for as long as the process lives. (pyperf
does the same, but times one benchmark after the other.)
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

from benchmarks import peers
from benchmarks.result import Row, at_least, at_most, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "acquire and release, uncontended"
LIMITS = {"filelock": 8.0, "portalocker": 2.3, "fasteners": 2.3, "flock(2)": None}
_NEVER_LIMIT = 300e-6
_BATCH_SECONDS = 0.004


def measure(quick: bool) -> list[Row]:
    """Run the processes and compare."""
    times: dict[str, list[float]] = {}
    for _ in range(3 if quick else 9):
        with tempfile.TemporaryDirectory(prefix="bindlock-benchmark-") as scratch:
            command = [sys.executable, "-m", "benchmarks.uncontended", scratch, "20" if quick else "60"]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        for kind, values in json.loads(output).items():
            times.setdefault(kind, []).extend(values)
    ours = times[peers.OURS]
    rows = [at_most(TITLE, ours, "socket, bind, listen, close", times["bare system calls"], 1.3)]
    rows += [at_least(TITLE, ours, kind, times[kind], limit) for kind, limit in LIMITS.items()]
    return [*rows, _never(times)]


def _never(times: dict[str, list[float]]) -> Row:
    row = at_most(f'{TITLE}, children="never"', times[peers.NEVER], 'children="drop"', times[peers.OURS])
    return replace(
        row, target=f"≤ {seconds(_NEVER_LIMIT)}", reached=statistics.median(times[peers.NEVER]) <= _NEVER_LIMIT
    )


def _bare_cycles(path: str) -> Callable[[int], float]:
    # The same four system calls with nothing around them, not even a function: the strictest thing to be compared with.
    from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, socket

    address = b"\0bindlock-benchmark/" + peers.name_of(path).encode()
    kind = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK

    def cycles(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            own = socket(AF_UNIX, kind)
            own.bind(address)
            own.listen(4096)
            own.close()
        return (time.perf_counter() - start) / count

    return cycles


def _cycles(kind: str, path: str) -> Callable[[int], float]:
    acquire, release = peers.LOCKS[kind](path)

    def cycles(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            acquire()
            release()
        return (time.perf_counter() - start) / count

    return cycles


def _time_all(scratch: str, batches: int) -> dict[str, list[float]]:
    timers = {
        kind: _cycles(kind, f"{scratch}/{number}") for number, kind in enumerate([peers.OURS, peers.NEVER, *LIMITS])
    }
    timers["bare system calls"] = _bare_cycles(f"{scratch}/bare")
    counts = {kind: max(1, int(_BATCH_SECONDS / timer(200))) for kind, timer in timers.items()}
    times: dict[str, list[float]] = {kind: [] for kind in timers}
    order = list(timers)
    for _ in range(batches):
        random.shuffle(order)
        for kind in order:
            times[kind].append(timers[kind](counts[kind]))
    return times


if __name__ == "__main__":
    print(json.dumps(_time_all(sys.argv[1], int(sys.argv[2]))))
