"""`bindlock run`: from start to exit of a command that does nothing, and what stays in memory while one runs."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from signal import SIGKILL

import bindlock
from benchmarks.peers import name_of
from benchmarks.result import Row, at_least, at_most

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

TITLE_START = "run: start to exit"
TITLE_MEMORY = "run: memory while the command runs"
_DEADLINE = 10.0
_BIN = os.path.dirname(sys.executable)
_COMMAND = f"{_BIN}/bindlock"
#: The interpreter by the path that scripts/bindlock starts it by.
_PYTHON = f"{_BIN}/python{sys.version_info.major}.{sys.version_info.minor}"
_TRUE = shutil.which("true") or "/bin/true"
_SLEEP = shutil.which("sleep") or "/bin/sleep"


def measure_start(quick: bool) -> list[Row]:
    """Ours, the interpreter alone, and commands without an interpreter."""
    with tempfile.TemporaryDirectory(prefix="bindlock-benchmark-") as scratch:
        missing = _missing(name_of(f"{scratch}/lock"))
        if missing:
            return [Row(TITLE_START, f"not measured: {missing}", target="≤ 1.15 x")]
        commands = {
            "ours": [_COMMAND, "run", "-n", name_of(f"{scratch}/lock"), _TRUE],
            "python -I -S -c pass": [_PYTHON, "-I", "-S", "-c", "pass"],
            "sh -c, then python -I -S": ["/bin/sh", "-c", f"exec {_PYTHON} -I -S -c pass"],
            "true": [_TRUE],
        }
        if flock := shutil.which("flock"):
            commands["flock(1)"] = [flock, "-n", f"{scratch}/file", _TRUE]
        times = _time_all(commands, 100 if quick else 500)
    ours = times.pop("ours")
    rows = [at_most(TITLE_START, ours, "python -I -S -c pass", times.pop("python -I -S -c pass"), 1.15)]
    rows.append(at_most(TITLE_START, ours, "sh -c, then python -I -S", times.pop("sh -c, then python -I -S")))
    return rows + [at_least(TITLE_START, ours, kind, values) for kind, values in times.items()]


def measure_memory(quick: bool) -> list[Row]:
    """Compare a sleeping command alone, under ours, and under flock(1)."""
    target = "the command's own only"
    with tempfile.TemporaryDirectory(prefix="bindlock-benchmark-") as scratch:
        name = name_of(f"{scratch}/lock")
        missing = _missing(name)
        if missing:
            return [Row(TITLE_MEMORY, f"not measured: {missing}", target=target)]
        sleep = [_SLEEP, "600"]
        commands = {"bindlock run": [_COMMAND, "run", "-n", name, *sleep], "the bare command": sleep}
        if flock := shutil.which("flock"):
            commands["flock(1)"] = [flock, "-n", f"{scratch}/file", *sleep]
        repetitions = 5 if quick else 20
        seen: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in commands}
        for _ in range(repetitions):
            for kind, command in commands.items():
                seen[kind].append(_footprint(command))
    processes, own, whole = (
        {kind: statistics.median(row[i] for row in rows) for kind, rows in seen.items()} for i in range(3)
    )
    texts = {
        kind: f"{processes[kind]:.0f} process{'' if processes[kind] == 1 else 'es'}, {own[kind]:.0f} KiB of its own, "
        f"{whole[kind]:.0f} KiB resident"
        for kind in commands
    }
    noise = max(abs(row[1] - own["the bare command"]) for row in seen["the bare command"])
    alone = processes["bindlock run"] == 1 and own["bindlock run"] - own["the bare command"] <= max(noise, 8)
    return [
        Row(
            TITLE_MEMORY,
            texts["bindlock run"],
            kind,
            texts[kind],
            target=target if kind == "the bare command" else "",
            reached=alone if kind == "the bare command" else None,
            repetitions=repetitions,
            numbers={"processes": processes, "own_kibibytes": own, "resident_kibibytes": whole},
        )
        for kind in list(commands)[1:]
    ]


def _missing(name: str) -> str:
    """Why there is nothing to be measured: what is fast because it does not do its work is not timed."""
    if not os.path.exists(_COMMAND):
        return "the command is not installed"
    if status := _run([_COMMAND, "run", "-n", name, _TRUE]):
        return f"`bindlock run -n NAME true` gives status {status}"
    with bindlock.Lock(name):
        status = _run([_COMMAND, "run", "-n", name, _TRUE])
    return "" if status == 75 else f"`bindlock run -n NAME true` gives status {status} where the name is held, not 75"


def _run(command: list[str]) -> int:
    with _quiet() as actions:
        child = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextlib.contextmanager
def _quiet() -> Iterator[list[tuple[int, int, int]]]:
    with open(os.devnull, "w") as nothing:
        yield [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 1), (os.POSIX_SPAWN_DUP2, nothing.fileno(), 2)]


def _time_all(commands: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    # posix_spawn does not copy this process's memory map, so how large this process is makes no difference.
    times: dict[str, list[float]] = {kind: [] for kind in commands}
    order = list(commands)
    for number in range(-3, runs):
        random.shuffle(order)
        for kind in order:
            command = commands[kind]
            start = time.perf_counter()
            child = os.posix_spawn(command[0], command, os.environ)
            _, status = os.waitpid(child, 0)
            took = time.perf_counter() - start
            assert status == 0, f"{command} gave status {os.waitstatus_to_exitcode(status)}"
            if number >= 0:
                times[kind].append(took)
    return times


def _footprint(command: list[str]) -> tuple[int, int, int]:
    """Count processes, KiB that are theirs alone, KiB resident, once the command sleeps."""
    child = os.posix_spawn(command[0], command, os.environ)
    family = [child]
    try:
        deadline = time.monotonic() + _DEADLINE
        # Whether it is the child or one of its children that becomes the command, it is the last one.
        while not _sleeps_as_command((family := _family(child))[-1]):
            assert time.monotonic() < deadline, f"{command} does not sleep"
            time.sleep(0.001)
        sizes = [_sizes(pid) for pid in family]
        return len(family), sum(own for own, _ in sizes), sum(whole for _, whole in sizes)
    finally:
        # Those it started go first: nobody else has reaped them while their parent lives, so their PIDs are theirs.
        for pid in reversed(family):
            os.kill(pid, SIGKILL)
        os.waitpid(child, 0)


def _family(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return [pid, *(relative for child in children for relative in _family(child))]


def _sleeps_as_command(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        state = file.read().rpartition(") ")[2][0]
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        arguments = file.read().split(b"\0")
    # The arguments alone would also be seen between exec and the program's first instructions.
    return state == "S" and arguments[0] == _SLEEP.encode()


def _sizes(pid: int) -> tuple[int, int]:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        next(file)
        fields = {line.partition(":")[0]: int(line.split()[1]) for line in file}
    return fields["Private_Clean"] + fields["Private_Dirty"], fields["Rss"]
