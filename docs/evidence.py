"""Writes the tables of docs/when-is-it-free.md from a report: ``python docs/evidence.py [REPORT.json] [--check]``.

The report is what ``bindlock prove --json docs/evidence.json`` wrote. With --check nothing is written: the status is 1
when the page has other tables than the report makes.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from bindlock.proof.report import Report
from bindlock.proof.trial import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bindlock.proof.cell import Cell, Times

DOCUMENT = Path(__file__).with_name("when-is-it-free.md")
EVIDENCE = Path(__file__).with_name("evidence.json")

#: Headings of the matrix: with its titles it would be too wide to read.
_SHORT = {
    "pathname": "socket path",
    "pid-file": "PID file",
    "pid-file-exclusive": "PID file O_EXCL",
    "tcp": "TCP",
    "tcp-reuseaddr": "TCP reuseaddr",
    "tcp-reuseport": "TCP reuseport",
    "udp": "UDP",
}
#: The locks that are a socket: the others are files.
_SOCKETS = frozenset({"bindlock", "abstract", "pathname", "tcp", "tcp-reuseaddr", "tcp-reuseport", "udp"})
_BLOCK = re.compile(r"^<!-- evidence: ([\w-]+) -->\n.*?^<!-- /evidence -->\n", re.MULTILINE | re.DOTALL)


def matrix(report: Report) -> str:
    """Every cell: an event a row, a lock a column; in two tables, both with bindlock, for one would be too wide."""
    ours = [lock.key for lock in report.locks if lock.key == "bindlock"]
    others = [lock.key for lock in report.locks if lock.key != "bindlock"]
    sockets = [lock for lock in others if lock in _SOCKETS]
    files = [lock for lock in others if lock not in _SOCKETS]
    return (
        f"Sockets:\n\n{_matrix(report, ours + sockets)}\n"
        f"Files, and libraries that use them:\n\n{_matrix(report, ours + files)}"
    )


def sigkill(report: Report) -> str:
    """How long after a SIGKILL each lock was had again."""
    cells = [(lock.title, report.cell(lock.key, "sigkill")) for lock in report.locks]
    rows = [[title, _outcome(cell), number(cell.trials), *_latency(cell, "min")] for title, cell in cells]
    return _table(["lock", "outcome", "trials", "min", "median", "p99", "max"], rows)


def ours(report: Report) -> str:
    """The column of bindlock, in full."""
    cells = [(event.title, report.cell("bindlock", event.key)) for event in report.events]
    rows = [
        [
            title,
            _outcome(cell),
            number(cell.trials),
            *_latency(cell),
            duration(cell.answered.p99) if cell.answered else "-",
        ]
        for title, cell in cells
    ]
    return _table(["event", "bindlock is", "trials", "median", "p99", "max", "answered in (p99)"], rows)


def late(report: Report) -> str:
    """Whatever was refused at first though nobody was there, and had later."""
    titles = {lock.key: lock.title for lock in report.locks}
    rows = []
    for event in report.events:
        for cell in (report.cell(lock.key, event.key) for lock in report.locks):
            if cell.late is not None:
                share = f"{number(cell.late.count)} of {number(cell.trials)}"
                rows.append([event.title, titles[cell.lock], share, *_times(cell.late)])
    return _table(["event", "lock", "late in", "median", "p99", "max"], rows) if rows else "Nothing was late.\n"


def not_possible(report: Report) -> str:
    """The events that could be had with no lock or not with all, and the locks that were not there; and why."""
    rows = [["all", _short(lock), reason] for lock, reason in report.absent.items()]
    for event in report.events:
        if event.key in report.rows_not_possible:
            rows.append([event.title, "all", report.rows_not_possible[event.key]])
            continue
        locks: dict[str, list[str]] = {}
        for cell in (report.cell(lock.key, event.key) for lock in report.locks):
            if cell.outcome is None:
                locks.setdefault(cell.reason, []).append(_short(cell.lock))
        rows += [[event.title, ", ".join(names), reason] for reason, names in locks.items()]
    return _table(["event", "with", "why not"], rows) if rows else "Every event could be had there, with every lock.\n"


def machine(report: Report) -> str:
    """Where the figures are from, and how to have others."""
    there = report.machine
    quick = " --quick" if report.quick else ""
    return (
        f"{report.headline}.\n\n"
        f"{'A quick' if report.quick else 'The full'} run of bindlock {report.bindlock} on {report.began[:10]}, "
        f"as {there['user']}: {there['kernel']}, {there['architecture']}, {there['processors']} processors "
        f"({there['processor']}), {there['memory']} of memory, {there['python']}. "
        "To make it again, on your machine:\n\n"
        f"```sh\nbindlock prove{quick} --seed {report.seed} --json docs/evidence.json\npython docs/evidence.py\n```\n"
    )


BLOCKS: dict[str, Callable[[Report], str]] = {
    "machine": machine,
    "matrix": matrix,
    "sigkill": sigkill,
    "bindlock": ours,
    "late": late,
    "not-possible": not_possible,
}


def rendered(document: str, report: Report) -> str:
    """The document with the tables that the report makes. Raises ValueError when a table has no place, or not one."""
    places = _BLOCK.findall(document)
    if sorted(places) != sorted(BLOCKS):
        raise ValueError(f"places for {', '.join(places)}; tables: {', '.join(BLOCKS)}")
    return _BLOCK.sub(
        lambda place: f"<!-- evidence: {place[1]} -->\n{BLOCKS[place[1]](report)}<!-- /evidence -->\n", document
    )


def number(count: int) -> str:
    """As people write it."""
    return f"{count:,}".replace(",", " ")


def duration(seconds: float) -> str:
    """Three figures at most, in the unit that fits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            value = seconds * factor
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _matrix(report: Report, locks: Sequence[str]) -> str:
    rows = [
        [event.title, *(_outcome(report.cell(lock, event.key), exactly=True) for lock in locks)]
        for event in report.events
    ]
    rows.append(["**right**", *(_score(report, lock) for lock in locks)])
    return _table(["event", *map(_short, locks)], rows)


def _short(lock: str) -> str:
    return _SHORT.get(lock, lock)


def _outcome(cell: Cell, exactly: bool = False) -> str:
    """In a word; `exactly` adds in how many of the trials, unless it was all of them."""
    if cell.outcome is None:
        return "n/a" if exactly else "not possible"
    if cell.outcome is Outcome.RIGHT:
        return "✓" if exactly else "right"
    part = cell.counts[cell.outcome] / cell.trials
    if not exactly or part == 1:
        return f"**{cell.outcome}**"
    percent = min(part * 100, 99)  # 99.9 % is not all of them
    return f"**{cell.outcome}** {f'{percent:.1g}' if percent < 1 else f'{percent:.0f}'} %"


def _score(report: Report, lock: str) -> str:
    totals = report.totals(lock)
    return f"{totals[Outcome.RIGHT]} of {sum(totals.values()) - totals[None]}"


def _latency(cell: Cell, *first: str) -> list[str]:
    if cell.latency is None:
        return ["never" if cell.outcome is Outcome.STALE else "-"] * (len(first) + 3)
    return _times(cell.latency, *first)


def _times(times: Times, *first: str) -> list[str]:
    return [duration(getattr(times, name)) for name in (*first, "median", "p99", "max")]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or compare them: the exit status."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/when-is-it-free.md from a report.")
    parser.add_argument("report", type=Path, nargs="?", default=EVIDENCE)
    parser.add_argument("--check", action="store_true", help="write nothing: say whether they are those of the report")
    options = parser.parse_args(arguments)
    document = DOCUMENT.read_text()
    new = rendered(document, Report.load(options.report))
    if not options.check:
        DOCUMENT.write_text(new)
    elif new != document:
        print(f"{DOCUMENT} has other tables; run: python docs/evidence.py {options.report}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
