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

Row = tuple[bindlock.BoundName, "Holder | None"]


def show(every: bool, as_json: bool) -> None:
    """Print the list once."""
    rows = _rows(every, {})
    if as_json:
        print(json.dumps([_as_dict(row) for row in rows], indent=2))
    else:
        console = _console()
        console.print(_table(rows))


def watch(every: bool, as_json: bool) -> None:
    """Show the list until interrupted: live on a terminal, else again whenever it has changed."""
    console = _console()
    known: dict[int, Holder | None] = {}
    try:
        if console.is_terminal and not as_json:
            with Live(console=console, auto_refresh=False, transient=False) as live:
                while True:
                    live.update(_table(_rows(every, known)), refresh=True)
                    time.sleep(_INTERVAL)
        before: list[Any] | None = None
        while True:
            rows = _rows(every, known)
            # Ages go on; they are no news.
            now = [
                (bound.name, bound.scope, bound.inode, holder and (holder.pid, holder.waiters))
                for bound, holder in rows
            ]
            if now != before:
                before = now
                if as_json:
                    print(json.dumps([_as_dict(row) for row in rows]), flush=True)
                else:
                    console.print(_table(rows))
            time.sleep(_INTERVAL)
    except KeyboardInterrupt:
        return


def _rows(every: bool, known: dict[int, Holder | None]) -> list[Row]:
    """Every name with its holder; a holder in `known` (by the socket's inode) is not looked for again."""
    rows: list[Row] = []
    for bound in bindlock.locks(every=every):
        holder = known.get(bound.inode)
        if holder is None or bound.queued != holder.waiters:
            holder = bound.holder()
        rows.append((bound, holder))
    known.clear()
    known.update((bound.inode, holder) for bound, holder in rows)
    return rows


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, emoji=False, width=_PIPE_WIDTH)


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
    for heading in ("NAME", "SCOPE", "HOLDER", "USER", "COMMAND", "AGE", "WAITERS"):
        table.add_column(
            heading,
            justify="right" if heading in ("HOLDER", "AGE", "WAITERS") else "left",
            no_wrap=True,
            overflow="ellipsis" if heading == "COMMAND" else "fold",  # what is cut on a narrow terminal
            min_width=len(heading),
        )
    for bound, holder in rows:
        age = holder.age if holder else None
        cells = (
            printable(bound.name),
            bound.scope,
            "?" if holder is None or holder.pid is None else str(holder.pid),
            user(holder.uid if holder else bound.uid),
            command_text(holder.command) if holder else "",
            "" if age is None else duration(age),
            str(holder.waiters if holder else bound.queued),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _as_dict(row: Row) -> dict[str, Any]:
    bound, holder = row
    fields: dict[str, Any] = {"pid": None, "uid": bound.uid, "user": user(bound.uid), "inode": bound.inode}
    if holder is not None:
        fields = holder.as_dict()
    return fields | {"name": bound.name, "scope": bound.scope}
