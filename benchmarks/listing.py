"""bindlock.locks() among many names: of bindlock's and of others', held by another process and by the asking one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

import bindlock
from benchmarks.peers import name_of
from benchmarks.result import Row, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TITLE = "bindlock.locks()"
COUNTS = (1_000, 2_000, 5_000, 10_000)
LIMIT = 0.040
#: From the smallest to the largest count, the cost of one name may grow by so much: ten times the names, 15 times the
#: time, where what grows with the square would take a hundred times as long.
LINEAR = 1.5
#: Descriptors that a process needs beside those of the names.
_SPARE = 100


def measure(quick: bool) -> list[Row]:
    """Every way to have the names, in turns."""
    rounds, repetitions = (2, 5) if quick else (4, 9)
    cases = {
        "bindlock's names, held elsewhere": ("ours", False, "locks"),
        "bindlock's names, held by this process": ("ours", True, "locks"),
        "others' names, held elsewhere": ("others", False, "locks"),
        "others' names, every=True": ("others", False, "every"),
        "read /proc/net/unix": ("ours", False, "proc"),
    }
    times: dict[str, dict[int, list[float]]] = {case: {count: [] for count in COUNTS} for case in cases}
    for _ in range(rounds):
        for count in COUNTS:
            for case, arguments in cases.items():
                times[case][count] += _time(count, *arguments, repetitions)
    reading = times.pop("read /proc/net/unix")
    rows = []
    for case, values in times.items():
        rows += _compare(f"{TITLE}, {case}", values, reading)
    return rows


def _compare(what: str, ours: dict[int, list[float]], reading: dict[int, list[float]]) -> list[Row]:
    few, many = COUNTS[0], COUNTS[-1]
    took, read = ({count: statistics.median(values) for count, values in times.items()} for times in (ours, reading))
    growth = (took[many] / many) / (took[few] / few)
    return [
        Row(
            f"{what}: {many}",
            seconds(took[many]),
            "read /proc/net/unix",
            seconds(read[many]),
            f"{took[many] / read[many]:.2f} x",
            f"≤ {seconds(LIMIT)}",
            took[many] <= LIMIT,
            len(ours[many]),
            {"seconds": took, "seconds_to_read_proc_net_unix": read},
        ),
        Row(
            f"{what}: each of {many}",
            seconds(took[many] / many),
            "; ".join(f"of {count}" for count in COUNTS[:-1]),
            "; ".join(seconds(took[count] / count) for count in COUNTS[:-1]),
            f"{growth:.2f} x",
            f"linear: ≤ {LINEAR:g} x",
            growth <= LINEAR,
            len(ours[few]),
            {"growth": growth},
        ),
    ]


def _time(count: int, whose: str, here: bool, what: str, repetitions: int) -> list[float]:
    """Ask from a fresh process, so that nothing but the names is in its memory."""
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="bindlock-benchmark-"))
        prefix = name_of(f"{scratch}/")
        if not here:
            room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _SPARE
            for first in range(0, count, room):
                last = min(first + room, count)
                stack.enter_context(_holder([prefix, whose, str(first), str(last)]))
        arguments = [prefix, whose, "0", str(count if here else 0), what, str(repetitions), str(count)]
        command = [sys.executable, "-m", "benchmarks.listing", *arguments]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    values: list[float] = json.loads(output)
    return values


@contextlib.contextmanager
def _holder(arguments: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.listing", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()  # which it waits for, to exit
            process.stdout.read()


def _bind(prefix: str, whose: str, first: int, last: int) -> list[object]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held: list[object] = []
    for number in range(first, last):
        if whose == "ours":
            lock = bindlock.Lock(f"{prefix}{number}")
            lock.acquire()
            held.append(lock)
        else:
            own = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
            own.bind(f"\0{prefix}{number}".encode())
            own.listen(1)
            held.append(own)
    return held


def _ask(what: str, repetitions: int, expected: int) -> list[float]:
    times = []
    for number in range(-1, repetitions):
        start = time.perf_counter()
        if what == "proc":
            with open("/proc/net/unix", "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
            found = expected
        else:
            found = len(bindlock.locks(every=what == "every"))
        took = time.perf_counter() - start
        assert found >= expected, f"{found} names instead of {expected}"
        if number >= 0:
            times.append(took)
    return times


def _act(prefix: str, whose: str, first: str, last: str, *question: str) -> None:
    held = _bind(prefix, whose, int(first), int(last))
    if question:
        what, repetitions, count = question
        expected = int(count) if whose == "ours" or what != "locks" else 0
        print(json.dumps(_ask(what, int(repetitions), expected)), flush=True)
    else:
        print(len(held), flush=True)
        sys.stdin.read()
    # The kernel lets go of them faster than thousands of objects could complain of being dropped.
    os._exit(0)


if __name__ == "__main__":
    _act(*sys.argv[1:])
