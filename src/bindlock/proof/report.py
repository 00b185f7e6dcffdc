"""What a run came to: all its cells, the machine it ran on, what each lock and each event is, and a verdict."""

from __future__ import annotations

import inspect
import json
import os
import platform
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import bindlock
from bindlock.proof import kind as kinds
from bindlock.proof.cell import Cell
from bindlock.proof.trial import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindlock.proof.event import Event
    from bindlock.proof.kind import Kind

FORMAT = 1


@dataclass(frozen=True)
class Subject:
    """A kind of lock, described."""

    key: str
    title: str
    #: How it is written.
    how: str
    rule: str

    @classmethod
    def of(cls, key: str, kind: type[Kind]) -> Self:
        """Described by its own words."""
        how = (inspect.getdoc(kind) or "").partition("\n")[2]
        return cls(key, kinds.title(kind), " ".join(how.split()), kind.rule)


@dataclass(frozen=True)
class Row:
    """An event, described."""

    key: str
    title: str
    done: str
    expected: str
    rule: str

    @classmethod
    def of(cls, event: Event) -> Self:
        """Described by its own words."""
        return cls(event.key, event.title, event.done, event.expected, event.rule)


@dataclass(frozen=True)
class Report:
    """One run, as JSON has it."""

    locks: Sequence[Subject]
    events: Sequence[Row]
    cells: Sequence[Cell]
    #: Kinds that were left out, and why.
    absent: dict[str, str]
    quick: bool
    seed: int
    seconds: float
    machine: dict[str, str]
    began: str
    bindlock: str = field(default_factory=lambda: bindlock.__version__)
    format: int = FORMAT

    def cell(self, lock: str, event: str) -> Cell:
        """The cell of a lock and an event, by their keys."""
        return next(cell for cell in self.cells if (cell.lock, cell.event) == (lock, event))

    @property
    def rows_not_possible(self) -> dict[str, str]:
        """The events that could be had with no lock, by key, and why."""
        found = {}
        for row in self.events:
            cells = [cell for cell in self.cells if cell.event == row.key]
            if cells and all(cell.outcome is None for cell in cells):
                found[row.key] = cells[0].reason
        return found

    @property
    def trials(self) -> int:
        """How many trials there were in all."""
        return sum(cell.trials for cell in self.cells)

    @property
    def headline(self) -> str:
        """How complete it is, in a line."""
        rows = len(self.rows_not_possible)
        trials = f"{self.trials:,}".replace(",", " ")
        return (
            f"{_count(len(self.events), 'event')}, {_count(len(self.locks), 'lock')}, "
            f"{trials} trials in {self.seconds:.0f} s; {_count(rows, 'row')} not possible here"
        )

    def totals(self, lock: str) -> Counter[Outcome | None]:
        """How many of the lock's cells came to what; None: not possible."""
        return Counter(cell.outcome for cell in self.cells if cell.lock == lock)

    def verdict(self, lock: str) -> str:
        """The lock's whole row of outcomes, in a sentence."""
        cells = [cell for cell in self.cells if cell.lock == lock and cell.outcome is not None]
        right = sum(cell.outcome is Outcome.RIGHT for cell in cells)
        parts = [f"right in {right} of {len(cells)}"]
        titles = {row.key: row.title for row in self.events}
        for outcome, words in _WORDS.items():
            found = [titles[cell.event] for cell in cells if cell.outcome is outcome]
            if found:
                parts.append(f"{words}: {'; '.join(found)}")
        return ". ".join(part[0].upper() + part[1:] for part in parts) + "."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("format", "bindlock", "began", "seconds", "quick", "seed", "machine", "absent")
        fields = {name: getattr(self, name) for name in names}
        fields["rows_not_possible"] = self.rows_not_possible
        fields["locks"] = [vars(lock) for lock in self.locks]
        fields["events"] = [vars(row) for row in self.events]
        fields["cells"] = [cell.as_dict() for cell in self.cells]
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Of what `as_dict` gave."""
        fields = {name: value for name, value in fields.items() if name != "rows_not_possible"}
        fields["locks"] = [Subject(**lock) for lock in fields["locks"]]
        fields["events"] = [Row(**row) for row in fields["events"]]
        fields["cells"] = [Cell.from_dict(cell) for cell in fields["cells"]]
        return cls(**fields)

    def as_json(self) -> str:
        """As JSON text, a line for each cell, lock and event."""
        fields = {
            name: "[\n" + ",\n".join(f"  {json.dumps(one)}" for one in value) + "\n ]"
            if isinstance(value, list)
            else json.dumps(value)
            for name, value in self.as_dict().items()
        }
        return "{\n" + ",\n".join(f" {json.dumps(name)}: {value}" for name, value in fields.items()) + "\n}\n"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Of a file with JSON."""
        return cls.from_dict(json.loads(path.read_text()))


#: Worse than right, from the worst.
_WORDS = {
    Outcome.FAULT: "not tested, for a fault of the proof",
    Outcome.DOUBLE: "two holders",
    Outcome.STALE: "stale",
    Outcome.LATE: "late",
    Outcome.CANNOT: "cannot be tried",
}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def now() -> str:
    """The time, for `Report.began`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, str]:
    """What the figures depend on; nothing that names the machine or its user."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.1f} GiB",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
