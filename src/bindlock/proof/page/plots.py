"""The three plots: release latency after SIGKILL, against the holder's memory, and wake-up latency of a waiter."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bindlock.proof.page import svg
from bindlock.proof.page.words import FACES, duration, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from markupsafe import Markup
    from matplotlib.axes import Axes

    from bindlock.proof.cell import Cell, Times
    from bindlock.proof.report import Report

_KILLED = "sigkill"
_MEMORY = "memory"
_WAITER_RELEASED = "waiter-release"
_WAITER_KILLED = "waiter-kill"

#: Units of a plot's height: a lock's row, what the axis takes, and the legend.
_ROW = 44
_FOOT = 42
#: Beside the axis: half the width of a tick's label.
_SIDE = 22
#: Words begin and end where the figure does: so much beyond the axis, as a part of its length.
_BESIDE = (_SIDE - 2) / (svg.WIDTH - 2 * _SIDE)
_LEGEND = 22
#: Bins of the distributions, to a factor of ten: with few samples, and with many.
_COARSE, _FINE, _MANY = 8, 16, 100
#: The bottom of the scale: no clock here tells less.
_LEAST = 1e-7
#: Of small fields beside each other.
_COLUMNS = 2
#: In a table, where there is no time.
_NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Plot:
    """A plot, and the same in words and numbers. Without a drawing, `missing` says why."""

    key: str
    title: str
    caption: str = ""
    drawing: Markup | None = None
    missing: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class _Strip:
    """A lock's row of a plot of distributions: what is drawn above its line, and what below it, if anything."""

    label: str
    note: str
    above: Cell | None
    below: Cell | None = None


def plots(report: Report) -> list[Plot]:
    """All three, in their order on the page."""
    with svg.settings():
        return [_release(report), _memory(report), _wake(report)]


# Release latency.


def _release(report: Report) -> Plot:
    key, title = "release", "Release latency after SIGKILL"
    cells = _cells(report, _KILLED)
    if not any(cell.samples for cell in cells.values()):
        return Plot(key, title, missing=_why(report, _KILLED))
    titles = _titles(report)
    strips = [_Strip(titles[lock], _spread_of(cell), cell) for lock, cell in cells.items()]
    axis = "from the kill to a new holder (log scale)"
    return Plot(
        key,
        title,
        "One row for each lock: how its trials spread over the time from SIGKILL to a new holder. The kernel's part "
        "of it and the parent's waitpid(2) are included. Heights are in proportion within a row; the line goes from "
        "the fastest to the slowest.",
        svg.inline(_strips(strips, axis), key, title, _summary(titles, cells)),
        head=("Lock", "Trials", "Min", "Median", "p99", "Max"),
        rows=[(titles[lock], *_figures(cell)) for lock, cell in cells.items()],
    )


# Release latency against memory.


def _memory(report: Report) -> Plot:
    key, title = "memory", "Release latency and the holder's memory"
    cells = _cells(report, _MEMORY)
    points = [point for cell in cells.values() for point in cell.points]
    if not points:
        return Plot(key, title, missing=_why(report, _MEMORY))
    titles = _titles(report)
    sizes = sorted({megabytes for megabytes, _ in points})
    medians = {lock: _medians(cell.points) for lock, cell in cells.items()}
    overall = _medians(points)
    listed = ", ".join(f"{size:g} MiB {duration(overall[size])}" for size in sizes)
    return Plot(
        key,
        title,
        "One field for each lock: a dot is a trial, the dashed line is the median of all locks. Both scales are "
        "logarithmic.",
        svg.inline(_fields(titles, cells, overall), key, title, f"Medians of all locks: {listed}."),
        head=("Lock", *(f"{size:g} MiB" for size in sizes)),
        rows=[
            (titles[lock], *(duration(found[size]) if size in found else _NOTHING for size in sizes))
            for lock, found in medians.items()
        ],
    )


def _fields(titles: dict[str, str], cells: dict[str, Cell], overall: dict[float, float]) -> Figure:
    columns = min(_COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    head, foot, left, gap, height = 20, 46, 50, 26, 62
    whole = head + rows * (height + gap) - gap + foot
    figure = _figure(whole)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=left / svg.WIDTH, right=1 - 6 / svg.WIDTH, top=1 - head / whole, bottom=foot / whole,
        wspace=0.12, hspace=gap / height,
    )  # fmt: skip
    sizes = sorted(overall)
    times = [seconds for cell in cells.values() for _, seconds in cell.points]
    axes = [field for line in grid for field in line]
    for field, (lock, cell) in zip(axes, cells.items(), strict=False):
        field.set_title(_shortened(titles[lock]), loc="left", pad=4, fontsize=10.5)
        field.plot(sizes, [overall[size] for size in sizes], color=svg.MUTED, linestyle=(0, (3, 2)), linewidth=1)
        field.plot(*zip(*cell.points, strict=True) if cell.points else ((), ()), "o", color=svg.FIRST, markersize=4,
                   markeredgewidth=0, alpha=0.75)  # fmt: skip
        if not cell.points:
            field.text(0.04, 0.95, _word(cell), transform=field.transAxes, va="top")
        field.set_xscale("log", base=2)
        field.set_yscale("log")
        field.xaxis.set_major_locator(FixedLocator(sizes))
        field.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        field.xaxis.set_minor_locator(NullLocator())
        _scale(field, "y", times)
        field.tick_params(length=3)
        field.margins(x=0.12)
    for place, field in enumerate(axes):
        if place >= len(cells):
            field.set_visible(False)
        elif place + columns >= len(cells):
            # The last of its column, also where the last row is not full.
            field.tick_params(labelbottom=True)
    figure.text(0.5, 8 / whole, "memory of the holder, MiB (log scale)", ha="center", fontsize=11)
    return figure


def _medians(points: Iterable[tuple[float, float]]) -> dict[float, float]:
    found: dict[float, list[float]] = {}
    for parameter, seconds in points:
        found.setdefault(parameter, []).append(seconds)
    return {parameter: sorted(values)[len(values) // 2] for parameter, values in found.items()}


# Wake-up latency.


def _wake(report: Report) -> Plot:
    key, title = "wake", "Wake-up latency of a waiter"
    released, killed = _cells(report, _WAITER_RELEASED), _cells(report, _WAITER_KILLED)
    if not any(cell.samples for cell in [*released.values(), *killed.values()]):
        return Plot(key, title, missing=_why(report, _WAITER_RELEASED, _WAITER_KILLED))
    titles = _titles(report)
    kinds = [(what, cells) for what, cells in (("released", released), ("killed", killed)) if cells]
    strips = [
        _Strip(
            titles[lock],
            " / ".join(_median_of(cells[lock]) for _, cells in kinds),
            released.get(lock),
            killed.get(lock),
        )
        for lock in titles
    ]
    axis = "from the release or kill to the waiter's having it (log scale)"
    text = " ".join(f"When the holder is {what}: {_summary(titles, cells)}" for what, cells in kinds)
    return Plot(
        key,
        title,
        "One row for each lock: above its line the holder gave it back, below it was killed with SIGKILL; the medians "
        "are written in that order. A lock that offers no way of being woken is asked again and again, after a pause.",
        svg.inline(_strips(strips, axis, ("released", "killed")), key, title, text),
        head=("Lock", "Holder", "Trials", "Min", "Median", "p99", "Max"),
        rows=[(titles[lock], what, *_figures(cells[lock])) for lock in titles for what, cells in kinds],
    )


# Distributions, a row for each lock.


def _strips(strips: Sequence[_Strip], axis: str, names: tuple[str, str] | None = None) -> Figure:
    head = _LEGEND if names is None else 2 * _LEGEND - 6
    whole = head + _ROW * len(strips) + _FOOT
    figure = _figure(whole)
    field = figure.subplots()
    figure.subplots_adjust(
        left=_SIDE / svg.WIDTH, right=1 - _SIDE / svg.WIDTH, top=1 - head / whole, bottom=_FOOT / whole
    )  # fmt: skip
    field.set_xscale("log")
    cells = [cell for strip in strips for cell in (strip.above, strip.below) if cell is not None]
    _scale(field, "x", [value for cell in cells for value in cell.samples])
    field.set_ylim(len(strips), 0)
    field.autoscale(False)
    field.yaxis.set_major_locator(NullLocator())
    field.spines["left"].set_visible(False)
    field.set_xlabel(axis)
    for place, strip in enumerate(strips):
        _strip(field, place, strip, both=names is not None)
    field.legend(
        handles=_legend(names), loc="lower left", bbox_to_anchor=(-_BESIDE, 1), ncols=2 if names else 3,
        borderpad=0, borderaxespad=0.4, handlelength=1.2, handletextpad=0.4, columnspacing=1.4, labelspacing=0.3,
    )  # fmt: skip
    return figure


def _strip(field: Axes, place: int, strip: _Strip, both: bool) -> None:
    # Of the row's height: its words on top, then the distribution over a line, or on both sides of it.
    line, height = (0.68, 0.24) if both else (0.88, 0.42)
    across = field.get_yaxis_transform()
    field.plot([-_BESIDE, 1 + _BESIDE], [place, place], transform=across, color=svg.GRID, linewidth=0.8, clip_on=False)
    field.text(-_BESIDE, place + 0.08, strip.label, transform=across, va="top", fontsize=11)
    field.text(1 + _BESIDE, place + 0.09, strip.note, transform=across, va="top", ha="right", color=svg.MUTED)
    for cell, sign, colour in ((strip.above, -1, svg.FIRST), (strip.below, 1, svg.SECOND)):
        if cell is not None and cell.latency is not None:
            _distribution(field, cell.samples, cell.latency, place + line, sign * height, colour)


def _distribution(field: Axes, samples: Sequence[float], times: Times, base: float, height: float, colour: str) -> None:
    counts = Counter(_bin(max(value, _LEAST), len(samples)) for value in samples)
    first, last = min(counts), max(counts)
    most = max(counts.values())
    field.stairs(
        [base + height * counts[place] / most for place in range(first, last + 1)],
        [_edge(place, len(samples)) for place in range(first, last + 2)],
        baseline=base, fill=True, color=colour, alpha=0.55, linewidth=0,
    )  # fmt: skip
    field.plot([times.min, times.max], [base, base], color=colour, linewidth=1.2, solid_capstyle="butt")
    field.plot([times.median] * 2, [base, base + height], color=svg.TEXT, linewidth=2, solid_capstyle="butt")
    field.plot([times.p99], [base + height * 0.25], "d", color=svg.TEXT, markersize=5, markeredgewidth=0)


def _per_decade(count: int) -> int:
    return _FINE if count >= _MANY else _COARSE


def _bin(value: float, count: int) -> int:
    return math.floor(math.log10(value) * _per_decade(count))


def _edge(place: int, count: int) -> float:
    return float(10 ** (place / _per_decade(count)))


def _legend(names: tuple[str, str] | None) -> list[Patch | Line2D]:
    marks: list[Patch | Line2D] = [
        Line2D([], [], color=svg.TEXT, linestyle="", marker="|", markersize=9, markeredgewidth=2, label="median"),
        Line2D([], [], color=svg.TEXT, linestyle="", marker="d", markersize=5, markeredgewidth=0, label="p99"),
    ]
    if names is None:
        return [Patch(color=svg.FIRST, alpha=0.55, linewidth=0, label="trials"), *marks]
    return [
        Patch(color=svg.FIRST, alpha=0.55, linewidth=0, label=f"{names[0]} (above)"),
        Patch(color=svg.SECOND, alpha=0.55, linewidth=0, label=f"{names[1]} (below)"),
        *marks,
    ]


# What they share.


def _figure(height: float) -> Figure:
    return Figure(figsize=(svg.WIDTH / svg.INCH, height / svg.INCH), dpi=svg.INCH)


def _scale(field: Axes, which: str, times: Sequence[float]) -> None:
    """Have a logarithmic axis that all these times are on, its ticks written as times."""
    low, high = max(min(times), _LEAST) / 1.4, max(*times, _LEAST) * 1.4
    axis = field.xaxis if which == "x" else field.yaxis
    (field.set_xlim if which == "x" else field.set_ylim)(low, high)
    few = high / low < 30
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_minor_locator(NullLocator() if few else LogLocator(subs=tuple(range(2, 10))))
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: _round(seconds)))
    axis.set_minor_formatter(NullFormatter())
    field.grid(axis="x" if which == "x" else "y", which="major")


def _round(seconds: float) -> str:
    """A tick's time: a round number."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        value = float(f"{seconds * factor:.6g}")
        if value < 1000:
            return f"{value:g} {unit}"
    return f"{seconds:g} s"


def _cells(report: Report, event: str) -> dict[str, Cell]:
    """The cells of an event by lock, in the order of the locks; none when it was not run."""
    found = {cell.lock: cell for cell in report.cells if cell.event == event}
    return {lock.key: found[lock.key] for lock in report.locks if lock.key in found}


def _titles(report: Report) -> dict[str, str]:
    return {lock.key: lock.title for lock in report.locks}


def _why(report: Report, *events: str) -> str:
    """Why there is nothing to draw."""
    reasons = []
    for event in events:
        cells = _cells(report, event)
        reason = next((cell.reason for cell in cells.values() if cell.reason), "")
        if not cells:
            reasons.append(f"the event {event} was not run")
        elif reason:
            reasons.append(f"the event {event} was not possible here ({reason})")
        else:
            reasons.append(f"no trial of the event {event} came to a new holder")
    return "There is no plot: " + ", and ".join(reasons) + "."


def _word(cell: Cell) -> str:
    face = FACES[cell.outcome]
    return f"no time: {face.word}"


def _spread_of(cell: Cell) -> str:
    times = cell.latency
    return _word(cell) if times is None else f"{duration(times.median)}, p99 {duration(times.p99)}"


def _median_of(cell: Cell) -> str:
    return FACES[cell.outcome].word if cell.latency is None else duration(cell.latency.median)


def _figures(cell: Cell) -> tuple[str, ...]:
    times: Times | None = cell.latency
    if times is None:
        return number(cell.trials), FACES[cell.outcome].word, _NOTHING, _NOTHING, _NOTHING
    return number(times.count), *(duration(value) for value in (times.min, times.median, times.p99, times.max))


def _summary(titles: dict[str, str], cells: dict[str, Cell]) -> str:
    known = [(cell.latency.median, titles[lock]) for lock, cell in cells.items() if cell.latency is not None]
    never = [f"{titles[lock]} ({FACES[cell.outcome].word})" for lock, cell in cells.items() if cell.latency is None]
    parts = []
    if known:
        parts.append("Medians: " + ", ".join(f"{title} {duration(median)}" for median, title in sorted(known)) + ".")
    if never:
        parts.append(f"Without a time: {', '.join(never)}.")
    return " ".join(parts)


def _shortened(title: str) -> str:
    return title if len(title) <= 26 else title[:25] + "…"
