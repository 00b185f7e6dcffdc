"""One line of the table: what was measured, beside whom, and whether that is what was promised."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Measurements are cut into this many consecutive rounds; each gives a ratio of its own, and their median is reported.
ROUNDS = 9


@dataclass(frozen=True)
class Row:
    """`measured` is what is compared with the target: a ratio, or an absolute figure where `peer` is empty."""

    what: str
    ours: str
    peer: str = ""
    theirs: str = ""
    ratio: str = ""
    target: str = ""
    reached: bool | None = None
    repetitions: int = 0
    numbers: dict[str, object] = field(default_factory=dict)


def at_most(what: str, ours: Sequence[float], peer: str, theirs: Sequence[float], limit: float | None = None) -> Row:
    """Promise that ours costs no more than `limit` times theirs. Seconds, in the order of measurement."""
    ratio, lowest, highest = ratio_of_rounds(ours, theirs)
    return _compared(what, ours, peer, theirs, (ratio, lowest, highest), "≤", limit)


def at_least(what: str, ours: Sequence[float], peer: str, theirs: Sequence[float], limit: float | None = None) -> Row:
    """Promise that theirs costs at least `limit` times ours. Seconds, in the order of measurement."""
    ratio, lowest, highest = ratio_of_rounds(theirs, ours)
    return _compared(what, ours, peer, theirs, (ratio, lowest, highest), "≥", limit)


def ratio_of_rounds(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Give the median, the lowest and the highest of the rounds' ratios."""
    rounds = min(ROUNDS, len(above), len(below))
    ratios = [
        statistics.median(_round(above, number, rounds)) / statistics.median(_round(below, number, rounds))
        for number in range(rounds)
    ]
    return statistics.median(ratios), min(ratios), max(ratios)


def percentile_99(values: Sequence[float]) -> float:
    """Give the value that one in a hundred exceeds."""
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


def seconds(value: float) -> str:
    """Write a duration with three digits and the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(value) * factor >= 1:
            return f"{value * factor:.3g} {unit}" if abs(value) * factor < 1000 else f"{value * factor:.0f} {unit}"
    return f"{value * 1e9:.0f} ns"


def _compared(
    what: str,
    ours: Sequence[float],
    peer: str,
    theirs: Sequence[float],
    ratios: tuple[float, float, float],
    sense: str,
    limit: float | None,
) -> Row:
    ratio, lowest, highest = ratios
    return Row(
        what=what,
        ours=seconds(statistics.median(ours)),
        peer=peer,
        theirs=seconds(statistics.median(theirs)),
        ratio=f"{ratio:.2f} x ({lowest:.2f} to {highest:.2f})",
        target="" if limit is None else f"{sense} {limit:g} x",
        reached=None if limit is None else ratio <= limit if sense == "≤" else ratio >= limit,
        repetitions=min(len(ours), len(theirs)),
        numbers={
            "ratio": ratio,
            "ratio_lowest": lowest,
            "ratio_highest": highest,
            "ratio_is": "ours / theirs" if sense == "≤" else "theirs / ours",
            "ours": _summary(ours),
            "theirs": _summary(theirs),
        },
    )


def _round(values: Sequence[float], number: int, rounds: int) -> Sequence[float]:
    return values[number * len(values) // rounds : (number + 1) * len(values) // rounds]


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "p99": percentile_99(values),
        "lowest": min(values),
        "repetitions": len(values),
    }
