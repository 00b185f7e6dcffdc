"""The page itself: a template, filled with a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bindlock.proof.page import words
from bindlock.proof.page.plots import plots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindlock.proof.cell import Cell
    from bindlock.proof.report import Report, Row, Subject

#: What the machine's facts are called on the page; others go by their key.
_MACHINE = {"kernel": "Kernel", "architecture": "Architecture", "processor": "Processor", "processors": "Processors",
            "memory": "Memory", "python": "Python", "user": "Run as"}  # fmt: skip


@dataclass(frozen=True)
class _Line:
    """An event, with its cells in the order of the locks."""

    row: Row
    cells: Sequence[tuple[Subject, Cell]]


def render(report: Report) -> str:
    """The report as one HTML page, which refers to nothing outside itself."""
    # Autoescape: reasons and remarks are what other processes said.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=words.duration,
        number=words.number,
        moment=words.moment,
        prose=words.prose,
        breakable=words.breakable,
    )
    found = {cell.outcome for cell in report.cells}
    return environment.get_template("page.html.j2").render(
        report=report,
        lines=_lines(report),
        faces=words.FACES,
        found=[outcome for outcome in words.FACES if outcome in found],
        machine=[(_MACHINE.get(key, key), value) for key, value in report.machine.items()],
        titles={row.key: row.title for row in report.events},
        plots=plots(report),
    )


def _lines(report: Report) -> list[_Line]:
    cells = {(cell.lock, cell.event): cell for cell in report.cells}
    return [_Line(row, [(lock, cells[lock.key, row.key]) for lock in report.locks]) for row in report.events]
