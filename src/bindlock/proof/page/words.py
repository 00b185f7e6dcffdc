"""How outcomes, times and dates are put, in all parts of the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup, escape

from bindlock.proof.trial import Outcome


@dataclass(frozen=True)
class Face:
    """How an outcome looks: its symbol and colour go by `style`, and never stand without `word`."""

    style: str
    word: str
    meaning: str


FACES: dict[Outcome | None, Face] = {
    Outcome.RIGHT: Face("right", "right", "it said what was true, in every trial"),
    Outcome.LATE: Face("late", "late", "refused though nobody was there, and had some time later"),
    Outcome.STALE: Face("stale", "stale", "refused though nobody was there, for as long as was asked"),
    Outcome.DOUBLE: Face("double", "double", "two had it at once"),
    Outcome.CANNOT: Face("cannot", "cannot", "it could not even be tried, and said so"),
    Outcome.FAULT: Face("fault", "fault", "the proof itself went wrong, which says nothing about the lock"),
    None: Face("none", "n/a", "not possible on this machine, or for this lock"),
}


def duration(seconds: float) -> str:
    """A time, with three digits and the unit that suits it."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        # From 999.5 on, three digits would round to 1000.
        if seconds * factor < 999.5:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{_digits(seconds)} s"


def number(value: int) -> str:
    """Thousands apart, by a space that does not break."""
    return f"{value:,}".replace(",", "\N{NO-BREAK SPACE}")


def moment(text: str) -> str:
    """An ISO date with time, as one reads it."""
    when = datetime.fromisoformat(text)
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".rstrip()


def prose(text: str) -> Markup:
    """Escaped, with what stands in backquotes as code."""
    parts = re.split(r"(`+)(.+?)\1", text)
    # Three by three: plain text, the quotes, the quoted.
    pieces = [escape(parts[0])]
    for quoted, plain in zip(parts[2::3], parts[3::3], strict=True):
        pieces += [Markup("<code>{}</code>").format(quoted), escape(plain)]
    return Markup("").join(pieces)


def breakable(text: str) -> Markup:
    """Escaped; may be broken after an underscore, as in SO_REUSEADDR."""
    return escape(text).replace("_", Markup("_<wbr>"))


def _digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"
