"""For mkdocstrings: docstrings become Markdown, and ``#:`` comments the docstrings of attributes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension, Object

_DOCTEST = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)
_LITERAL = re.compile(r"::\n\n((?:    .*\n?|\n)+)")


def fenced(text: str) -> str:
    """The docstring with its doctests and literal blocks (``::``) as code of Markdown."""
    text = _DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", text)
    return _LITERAL.sub(lambda match: ":\n\n" + match[1], text)


def comment_above(path: Path, line: int) -> str:
    """The comment of lines with ``#:`` right above a line."""
    comment: list[str] = []
    for text in reversed(path.read_text().splitlines()[: line - 1]):
        if not text.strip().startswith("#:"):
            break
        comment.insert(0, text.strip()[2:].strip())
    return " ".join(comment)


class Docstrings(Extension):
    """Applied to every object that mkdocstrings loads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe."""
        if obj.is_attribute and obj.docstring is None and obj.lineno and isinstance(obj.filepath, Path):
            comment = comment_above(obj.filepath, obj.lineno)
            obj.docstring = Docstring(comment, parent=obj) if comment else None
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
