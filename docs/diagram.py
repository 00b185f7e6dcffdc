"""Draws the state diagrams of docs/design.md from the tables in `bindlock.lock.decide`: ``python docs/diagram.py``."""

from __future__ import annotations

from pathlib import Path

from bindlock.lock.decide import ACQUIRE, ENDS, START, WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bindlock.lock.decide import Table

DOCUMENT = Path(__file__).with_name("design.md")
PHASES = ("time left", "grace", "over")
DRAWN = {"acquire": ACQUIRE, "wait": WAIT}


def mermaid(table: Table, start: str) -> str:
    """One table as a flow chart: an arrow for every pair of states, labelled with the events that lead along it.

    An event that leads the same way in every phase of time stands alone; else the phases stand behind it.
    """
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), targets in table.items():
        for target in dict.fromkeys(targets):
            phases = [phase for phase, where in zip(PHASES, targets, strict=True) if where == target]
            label = event if len(phases) == len(PHASES) else f"{event} ({' or '.join(phases)})"
            arrows.setdefault((state, target), []).append(label)
    lines = ["flowchart TD", f"    start(( )) --> {start}"]
    lines += [f"    {end}([{end}])" for end in sorted(ENDS & {target for _, target in arrows})]
    lines += [f'    {state} -->|"{"<br>".join(labels)}"| {target}' for (state, target), labels in arrows.items()]
    return "\n".join(lines)


def drawn(document: str) -> str:
    """The document with its diagrams as the tables are now."""
    for name, table in DRAWN.items():
        head, mark, rest = document.partition(f"<!-- diagram: {name} -->\n")
        _, end, tail = rest.partition("<!-- /diagram -->\n")
        if not (mark and end):
            raise ValueError(f"no place for the diagram {name!r}")
        document = f"{head}{mark}```mermaid\n{mermaid(table, START[id(table)])}\n```\n{end}{tail}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(drawn(DOCUMENT.read_text()))
