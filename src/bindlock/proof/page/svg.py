"""A figure of matplotlib as SVG in a page: in the page's colours and font, with a text for who cannot see it.

matplotlib knows colours only by value. So the figures are drawn in values that nobody would choose, and those are
replaced by the page's CSS variables, which differ in light and dark.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

TEXT = "#010101"
MUTED = "#020202"
GRID = "#030303"
FIRST = "#040404"
SECOND = "#050505"
_VARIABLES = {
    TEXT: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
}
#: Of a figure's width; one unit is one pixel where the page has room. Narrow, so that a phone need not shrink it.
WIDTH = 370
#: Units to an inch, which matplotlib counts in.
INCH = 72

#: By the groups of matplotlib's settings.
_SETTINGS: Any = {
    # Text stays text, in the page's font; ids are the same each time.
    "svg": {"fonttype": "none", "hashsalt": "bindlock"},
    "font": {"size": 10},
    "text": {"color": TEXT, "parse_math": False},
    "axes": {"labelcolor": TEXT, "edgecolor": MUTED, "linewidth": 0.8, "labelsize": 11, "axisbelow": True},
    "axes.spines": {"top": False, "right": False},
    "grid": {"color": GRID, "linewidth": 0.8},
    "xtick": {"color": MUTED, "labelcolor": TEXT, "labelsize": 10},
    "ytick": {"color": MUTED, "labelcolor": TEXT, "labelsize": 10},
    "legend": {"frameon": False, "fontsize": 10},
}


@contextmanager
def settings() -> Iterator[None]:
    """While this lasts, figures are made as `inline` wants them, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        for group, values in _SETTINGS.items():
            mpl.rc(group, **values)
        yield


def inline(figure: Figure, key: str, title: str, description: str) -> Markup:
    """The SVG element; `key` keeps its ids apart from those of other figures of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', drawing)
    assert box is not None
    body = drawing[drawing.index(">") + 1 :]
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", body).replace("xlink:href", "href")
    for value, variable in _VARIABLES.items():
        body = body.replace(value, variable)
    head = Markup(
        '<svg class="plot" viewBox="{box}" role="img" aria-labelledby="{key}-title {key}-desc">'
        '<title id="{key}-title">{title}</title><desc id="{key}-desc">{description}</desc>'
    ).format(box=box[1], key=key, title=title, description=description)
    return head + Markup(body)  # noqa: S704 - matplotlib escapes the texts it draws
