"""What an event is: a function that makes something happen to a lock's holder, and what one has to know about it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bindlock.proof.trial import Trial

    Script = Callable[[Trial], None]

#: Trials of an event that takes a millisecond: quick, full.
FAST = (12, 1000)


@dataclass(frozen=True)
class Event:
    """One event, written once for all kinds of lock."""

    #: On the command line, and in JSON.
    key: str
    #: In the tables.
    title: str
    run: Script
    #: What is done, in full sentences: the docstring of the function.
    done: str
    #: What a good lock does.
    expected: str
    #: Which rule of the kernel explains what is seen.
    rule: str
    #: How many trials make a cell, when quick and when not.
    trials: tuple[int, int]
    #: Whether processes of other users are to contend.
    shared: bool
    #: Namespaces that all trials of the cell are in: "pid", "mount", …. Those who may not make them make a user
    #: namespace first.
    inside: tuple[str, ...]


def event(
    title: str,
    *,
    expected: str,
    rule: str,
    trials: tuple[int, int] = FAST,
    shared: bool = False,
    inside: tuple[str, ...] = (),
) -> Callable[[Script], Event]:
    """Make an event of a function; its key is the function's name, its docstring says what is done."""

    def decorate(function: Script) -> Event:
        done = " ".join((inspect.getdoc(function) or "").split())
        key = function.__name__.strip("_").replace("_", "-")
        return Event(key, title, function, done, expected, rule, trials, shared, inside)

    return decorate
