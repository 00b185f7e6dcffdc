"""The list of locks, as a table or as JSON, once or live."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

import bindlock
from bindlock.errors import printable
from bindlock.lock.holder import command_text, duration, user

if TYPE_CHECKING:
    from bindlock.lock.holder import Holder

#: Seconds between two looks of `watch`: the kernel tells nobody of a name that is bound.
_INTERVAL = 1.0
#: Wide enough for any line where there is no terminal: what reads it wants whole lines.
_PIPE_WIDTH = 4096


class Row:
    """One name, who has it, and how many wait."""

    def __init__(self, bound: bindlock.BoundName, holder: Holder, waiters: int) -> None:
        self.bound = bound
        self.holder = holder
        self.waiters = waiters

    def as_dict(self) -> dict[str, Any]:
        """All that is known, for JSON."""
        queue = self.bound.queue() if self.waiters else ()
        return (
            self.holder.as_dict()
            | {
                "name": self.bound.name,
                "scope": self.bound.scope,
                "waiters": self.waiters,
                "queue": [waiter.as_dict() for waiter in queue],
            }
            | ({"slots": self.bound.slots, "taken": self.bound.taken} if self.bound.slots else {})
        )

    def cells(self, slots: bool) -> tuple[str, ...]:
        """What stands in the table, escaped; with or without a column for slots."""
        holder = self.holder
        taken = f"{self.bound.taken}/{self.bound.slots}" if self.bound.slots else ""
        return (
            printable(self.bound.name),
            self.bound.scope,
            "?" if holder.pid is None else str(holder.pid),
            user(holder.uid),
            command_text(holder.command),
            "" if holder.age is None else duration(holder.age),
            *((taken,) if slots else ()),
            str(self.waiters),
        )


def show(every: bool, as_json: bool) -> None:
    """Print the list once."""
    rows = _rows(every, {})
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        console = _console()
        console.print(_table(rows))


def watch(every: bool, as_json: bool) -> None:
    """Show the list until interrupted: live on a terminal, else again whenever it has changed."""
    console = _console()
    known: dict[int, Holder] = {}
    try:
        if console.is_terminal and not as_json:
            with Live(console=console, auto_refresh=False, transient=False) as live:
                while True:
                    live.update(_table(_rows(every, known)), refresh=True)
                    time.sleep(_INTERVAL)
        before: list[Any] | None = None
        while True:
            rows = _rows(every, known)
            now = [
                (row.bound.inode, row.holder.pid, row.bound.taken, row.waiters) for row in rows
            ]  # ages go on; they are no news
            if now != before:
                before = now
                if as_json:
                    print(json.dumps([row.as_dict() for row in rows]), flush=True)
                else:
                    console.print(_table(rows))
            time.sleep(_INTERVAL)
    except KeyboardInterrupt:
        return


def _rows(every: bool, known: dict[int, Holder]) -> list[Row]:
    """Every name with its holder; a holder in `known` (by the socket's inode) is not asked again, which would take a
    place in its queue at every look.
    """
    rows: list[Row] = []
    for bound in bindlock.locks(every=every):
        holder = known.get(bound.inode) or bound.holder()
        if holder is not None:  # else it has become free since
            rows.append(Row(bound, holder, bound.waiters()))
    known.clear()
    known.update((row.bound.inode, row.holder) for row in rows)
    return sorted(rows, key=lambda row: (row.bound.name, row.bound.scope))


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    slots = any(row.bound.slots for row in rows)
    for heading in ("NAME", "SCOPE", "HOLDER", "USER", "COMMAND", "AGE", *(("SLOTS",) if slots else ()), "WAITERS"):
        table.add_column(
            heading,
            justify="right" if heading in ("HOLDER", "AGE", "SLOTS", "WAITERS") else "left",
            # Rich makes narrow what may be wrapped, and cuts all else only when it still is too wide.
            no_wrap=heading != "COMMAND",
            overflow="ellipsis",
            min_width=len(heading),
        )
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True) for cell in row.cells(slots)))
    return table
