"""A report of the proof as text: for a terminal, in colour; for whatever else reads it, plain and in whole lines."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bindlock.errors import printable
from bindlock.proof.kind import title
from bindlock.proof.trial import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from bindlock.proof.cell import Cell, Times
    from bindlock.proof.event import Event
    from bindlock.proof.kind import Kind
    from bindlock.proof.report import Report

#: Wide enough for any line where there is no terminal: what reads it wants whole lines.
_PIPE_WIDTH = 4096
_COLUMN_GAP = 2

#: A symbol; the same for terminals that have ASCII only; a letter; a word; its meaning; a colour.
_LOOKS: dict[Outcome | None, tuple[str, str, str, str, str, str]] = {
    Outcome.RIGHT: ("✓", ".", "", "right", "right", "green"),
    Outcome.LATE: ("~", "~", "L", "late", "freed too late", "yellow"),
    Outcome.STALE: ("✗", "x", "S", "stale", "held by nobody", "bold red"),
    Outcome.DOUBLE: ("✗", "x", "D", "double", "two holders", "bold red"),
    Outcome.CANNOT: ("?", "?", "C", "cannot", "could not be tried", "magenta"),
    None: ("-", "-", "", "n/a", "not possible here", "dim"),
    Outcome.FAULT: ("!", "!", "F", "fault", "the proof itself went wrong", "reverse red"),
}
#: Events with a table of latencies of their own, and what is measured there.
_LATENCIES = {
    "sigkill": "From SIGKILL to a new holder",
    "waiter-release": "From the release to the waiter",
    "waiter-kill": "From SIGKILL to the waiter",
}
#: Why a lock that took its time is not called late.
_ANSWER = (
    "A lock may look again for a while before it answers, as bindlock does for up to 0.25 s when the holder's process "
    "is gone: what counts is the answer."
)
#: What follows figures of the machine.
_UNITS = {"processors": " processors", "memory": " of memory"}


def show(report: Report) -> None:
    """Print it on standard output, the most important things first."""
    with _console() as console:
        _Pages(report, console).show()


def show_known(events: Sequence[Event], locks: Mapping[str, type[Kind] | ImportError]) -> None:
    """Print all events and all kinds of lock, with a line each."""
    with _console() as console:
        table = _table("EVENT", "TRIALS", "QUICK", "WHAT IT IS", right=("TRIALS", "QUICK"))
        for event in events:
            quick, full = event.trials
            table.add_row(_text(event.key), str(full), str(quick), _text(event.title))
        console.print(table)
        console.print()
        table = _table("LOCK", "WHAT IT IS")
        for key, kind in locks.items():
            what = f"not installed: {kind.name}" if isinstance(kind, ImportError) else title(kind)
            table.add_row(_text(key), _text(what))
        console.print(table)


class _Pages:
    """One report, and where it is shown."""

    def __init__(self, report: Report, console: Console) -> None:
        self._report = report
        self._console = console
        self._ascii = not _can_show("✓", console)
        self._keys = [lock.key for lock in report.locks]
        self._titles = {row.key: row.title for row in report.events}
        self._cells = {(cell.event, cell.lock): cell for cell in report.cells}
        self._wide = self._width_of_words() <= console.width

    def show(self) -> None:
        report = self._report
        self._line(report.headline, "bold")
        self._line(", ".join(value + _UNITS.get(key, "") for key, value in report.machine.items()))
        self._line(
            f"bindlock {report.bindlock}, {'quick' if report.quick else 'full'}, began {report.began}, "
            f"seed {report.seed}"
        )
        if report.absent:
            self._line(f"not installed: {', '.join(report.absent)}")
        self._matrix()
        self._reasons()
        self._remarks()
        self._totals()
        for event, what in _LATENCIES.items():
            cells = [cell for cell in self._row(event) if cell.latency is not None]
            self._times(f"{what}, in milliseconds", [(cell.lock, cell.latency) for cell in cells])
        late = [cell for cell in report.cells if cell.late is not None]
        self._times(
            "How late it was, in milliseconds",
            [(f"{cell.lock}, {self._titles[cell.event]}", cell.late) for cell in late],
        )
        self._trials()
        self._verdicts()

    # The matrix.

    def _matrix(self) -> None:
        self._heading("Matrix")
        if not self._wide:
            numbered = [_text(f"{number} {key}") for number, key in enumerate(self._keys, 1)]
            self._console.print(Columns(numbered, padding=(0, 2)))
            self._line("")
        heads = [key if self._wide else str(number) for number, key in enumerate(self._keys, 1)]
        table = Table(
            box=None, pad_edge=False, padding=(0, _COLUMN_GAP if self._wide else 1, 0, 0), header_style="bold",
            footer_style="bold", show_footer=not self._wide,
        )  # fmt: skip
        table.add_column("", overflow="fold")
        for head in heads:
            table.add_column(_text(head), _text(head), no_wrap=True)
        for row in self._report.events:
            table.add_row(_text(row.title), *(self._mark(self._cells[row.key, key].outcome) for key in self._keys))
        self._console.print(table)
        self._line("")
        seen = {cell.outcome for cell in self._report.cells}
        self._console.print(Columns([self._meaning(outcome) for outcome in _LOOKS if outcome in seen], padding=(0, 3)))
        self._line(_ANSWER)

    def _mark(self, outcome: Outcome | None) -> Text:
        symbol, plain, letter, word, _, style = _LOOKS[outcome]
        symbol = plain if self._ascii else symbol
        return Text(f"{symbol} {word}" if self._wide else f"{symbol}{letter}", style)

    def _meaning(self, outcome: Outcome | None) -> Text:
        """A mark, explained."""
        mark, meaning = self._mark(outcome), _LOOKS[outcome][4]
        if mark.plain.endswith(meaning):
            return mark
        return Text.assemble(mark, ": " if self._wide else " ", meaning)

    def _width_of_words(self) -> int:
        word = max(len(f"- {look[3]}") for look in _LOOKS.values())
        columns = [max(word, len(printable(key))) for key in self._keys]
        return max(map(len, self._titles.values()), default=0) + sum(_COLUMN_GAP + width for width in columns)

    # Why.

    def _reasons(self) -> None:
        rows = self._report.rows_not_possible
        self._pairs("Rows not possible here", [(self._titles[event], reason) for event, reason in rows.items()])
        self._grouped("Cells not possible", [
            (cell, cell.reason) for cell in self._report.cells if cell.outcome is None and cell.event not in rows
        ])  # fmt: skip

    def _remarks(self) -> None:
        for outcome, heading in ((Outcome.CANNOT, "Could not be tried"), (Outcome.FAULT, "Faults of the proof")):
            self._grouped(
                heading, [(cell, cell.remark) for cell in self._report.cells if cell.outcome is outcome]
            )  # fmt: skip

    def _grouped(self, heading: str, said: Sequence[tuple[Cell, str]]) -> None:
        """What was said of cells, with those of an event together that say the same."""
        groups: dict[tuple[str, str], list[str]] = {}
        for cell, text in said:
            groups.setdefault((cell.event, text), []).append(cell.lock)
        self._pairs(
            heading, [(self._titles[event], f"{', '.join(locks)}: {text}") for (event, text), locks in groups.items()]
        )

    # Figures.

    def _totals(self) -> None:
        self._heading("Totals")
        totals = {key: self._report.totals(key) for key in self._keys}
        shown = [outcome for outcome in _LOOKS if any(total[outcome] for total in totals.values())]
        words = {outcome: _LOOKS[outcome][3].upper() for outcome in shown}
        table = _table("LOCK", *words.values(), right=words.values())
        for key, total in totals.items():
            marks = (Text(str(total[outcome]), _LOOKS[outcome][5] if total[outcome] else "dim") for outcome in shown)
            table.add_row(_text(key), *marks)
        self._console.print(table)

    def _times(self, heading: str, rows: Sequence[tuple[str, Times | None]]) -> None:
        if not rows:
            return
        self._heading(heading)
        table = _table("LOCK", "MIN", "MEDIAN", "P99", "MAX", "TRIALS", right=("MIN", "MEDIAN", "P99", "MAX", "TRIALS"))
        for name, times in rows:
            assert times is not None
            figures = (times.min, times.median, times.p99, times.max)
            table.add_row(_text(name), *(f"{seconds * 1000:.2f}" for seconds in figures), str(times.count))
        self._console.print(table)

    def _trials(self) -> None:
        """How many trials the cells had; the event that had the most is named."""
        counts: dict[str, list[int]] = {}
        for cell in self._report.cells:
            if cell.trials:
                counts.setdefault(cell.event, []).append(cell.trials)
        if not counts:
            return
        self._heading("Trials a cell")
        every = [count for event in counts.values() for count in event]
        self._line(_range(every))
        most = [event for event in counts if max(counts[event]) == max(every)]
        if len(most) < len(counts):
            self._line(f"{', '.join(self._titles[event] for event in most)}: {_range(counts[most[0]])}")

    def _verdicts(self) -> None:
        self._pairs("Verdicts", [(key, self._report.verdict(key)) for key in self._keys])

    # How it is printed.

    def _row(self, event: str) -> list[Cell]:
        return [self._cells[event, key] for key in self._keys if (event, key) in self._cells]

    def _heading(self, text: str) -> None:
        self._line("")
        self._line(text, "bold")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(_text(text, style))

    def _pairs(self, heading: str, pairs: Sequence[tuple[str, str]]) -> None:
        """A sentence on each of some things."""
        if not pairs:
            return
        self._heading(heading)
        for name, sentence in pairs:
            text = Text.assemble(_text(name, "bold"), ": ", _text(sentence))
            self._console.print(Padding(text, (0, 0, 0, 2), expand=False))


def _range(counts: Sequence[int]) -> str:
    least, most = (f"{count:,}".replace(",", " ") for count in (min(counts), max(counts)))
    return least if least == most else f"{least} to {most}"


@contextmanager
def _console() -> Iterator[Console]:
    """Where it is printed; what is no terminal gets it at the end, without the spaces that fill up columns."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        yield console
        return
    plain = Console(highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)
    with plain.capture() as captured:
        yield plain
    for line in captured.get().splitlines():
        print(line.rstrip(" "))


def _can_show(text: str, console: Console) -> bool:
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _text(text: str, style: str = "") -> Text:
    """A text of which a terminal obeys nothing."""
    return Text(printable(text), style)


def _table(*headings: str, right: Collection[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table
