"""What `import bindlock` adds to the start of an interpreter, and what it loads."""

from __future__ import annotations

import os
import random
import re
import statistics
import subprocess
import sys
import time

from benchmarks.result import Row, ratio_of_rounds, seconds

TITLE = "import"
_NOTHING = "pass"
_OURS = "import bindlock"
_OURS_USED = "import bindlock; bindlock.Lock"
_PEERS = ["import filelock", "import portalocker", "import fasteners"]
_UNWANTED = {"click", "rich", "asyncio"}
#: A line of -X importtime: microseconds alone, microseconds in all, module.
_LINE = re.compile(r"^import time: +\d+ \| +(\d+) \| (\S+)$", re.MULTILINE)


def measure(quick: bool) -> list[Row]:
    """Whole interpreters in turns, then what the interpreter itself says."""
    runs = 40 if quick else 120
    walls = _time_all([_NOTHING, _OURS, _OURS_USED, *_PEERS], runs)
    rows = []
    for ours in (_OURS, _OURS_USED):
        for peer in _PEERS:
            limit = 0.5 if peer == "import filelock" and ours == _OURS else None
            rows.append(_compare(f"{ours}: wall clock", walls[ours], peer, walls[peer], walls[_NOTHING], limit))
    inside = _time_inside([_OURS, *_PEERS], runs // 6)
    for peer in _PEERS:
        limit = 0.5 if peer == "import filelock" else None
        rows.append(_compare(f"{_OURS}: -X importtime", inside[_OURS], peer, inside[peer], [0.0] * (runs // 6), limit))
    return [*rows, _loaded()]


def _compare(
    what: str, ours: list[float], peer: str, theirs: list[float], nothing: list[float], limit: float | None
) -> Row:
    # The empty program is subtracted as one figure, its median: subtracted run by run it would add its noise.
    empty = statistics.median(nothing)
    mine, other = ([value - empty for value in values] for values in (ours, theirs))
    ratio, lowest, highest = ratio_of_rounds(mine, other)
    return Row(
        what,
        seconds(statistics.median(mine)),
        peer,
        seconds(statistics.median(other)),
        f"{ratio:.3f} x ({lowest:.3f} to {highest:.3f})",
        "" if limit is None else f"≤ {limit:g} x",
        None if limit is None else ratio <= limit,
        len(ours),
        {
            "ratio": ratio,
            "ours": statistics.median(mine),
            "theirs": statistics.median(other),
            "interpreter": empty,
        },
    )


def _time_all(programs: list[str], runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {program: [] for program in programs}
    order = list(programs)
    for number in range(-3, runs):
        random.shuffle(order)
        for program in order:
            command = [sys.executable, "-I", "-c", program]
            start = time.perf_counter()
            child = os.posix_spawn(sys.executable, command, os.environ)
            _, status = os.waitpid(child, 0)
            took = time.perf_counter() - start
            assert status == 0, program
            if number >= 0:
                times[program].append(took)
    return times


def _time_inside(programs: list[str], runs: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {program: [] for program in programs}
    for _ in range(runs):
        for program in programs:
            command = [sys.executable, "-I", "-X", "importtime", "-c", program]
            report = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
            found = {module: int(microseconds) for microseconds, module in _LINE.findall(report)}
            times[program].append(found[program.split()[1]] / 1e6)
    return times


def _loaded() -> Row:
    def modules(program: str) -> set[str]:
        command = [sys.executable, "-I", "-c", f"{program}\nimport sys; print(*sys.modules)"]
        return set(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split())

    before = modules(_NOTHING)
    ours, used, theirs = (modules(program) - before for program in (_OURS, _OURS_USED, "import filelock"))
    unwanted = sorted(used & _UNWANTED)
    return Row(
        "modules loaded",
        f"{len(ours)}, {len(used)} with Lock" + (f"; {', '.join(unwanted)} among them" if unwanted else ""),
        "import filelock",
        f"{len(theirs)}" + (f", {', '.join(sorted(theirs & _UNWANTED))} among them" if theirs & _UNWANTED else ""),
        target="no click, rich, asyncio",
        reached=not unwanted,
        repetitions=1,
        numbers={"ours": sorted(ours), "with_lock": sorted(used), "theirs": len(theirs)},
    )
