"""The tasks of one event loop that want the same name: first come, first served, and only the first is in the kernel's
queue.

So any number of tasks costs the descriptors of one: its ticket, its connection (or one for each slot), the sign that
it is the head, the socket that it is going to bind, and what the event loop watches. And so a process has, whatever the
number of its tasks, one place at a time in the order of all processes. (One for each event loop, and one for each of
its threads that waits with a blocking `Lock`.)

The loop's own thread is the only one that touches a line. A place is left twice on every way out, in case a signal
handler has kept us from it the first time: one left behind would be in everybody's way for ever.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import suppress
from weakref import WeakValueDictionary

from anyio import Event, move_on_after
from anyio.lowlevel import RunVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    #: What the kernel tells names apart by, and how many can have it; and whether the time of those in line is over,
    #: but for the grace.
    Key: TypeAlias = tuple[tuple[tuple[bytes, int], int], bool]

#: What tells each event loop from all others.
_loop: RunVar[object] = RunVar("bindlock.aio.line")
#: The lines of all loops. Only places refer to them, and only tasks to places: so when a loop was closed with tasks in
#: line, nothing here keeps it all alive.
_lines: WeakValueDictionary[tuple[object, Key], OrderedDict[Place, None]] = WeakValueDictionary()


def is_empty(key: Key) -> bool:
    """Whether no task of this event loop is in that line."""
    return not _lines or not _lines.get((_this_loop(), key))


def _this_loop() -> object:
    loop = _loop.get(None)
    if loop is None:
        loop = object()
        _loop.set(loop)
    return loop


class Place:
    """A task's place in a line, from `join` to `leave`."""

    __slots__ = ("_line", "_turn")

    def __init__(self, key: Key) -> None:
        self._line: OrderedDict[Place, None] = _lines.setdefault((_this_loop(), key), OrderedDict())
        #: Set as soon as it is the first.
        self._turn: Event | None = None

    @property
    def is_first(self) -> bool:
        """Whether nobody is before it."""
        return next(iter(self._line), None) is self

    def join(self) -> None:
        """Stand behind all others."""
        self._line[self] = None

    async def reached(self, until: float) -> bool:
        """Sleep until nobody is before it: True; or until then, on the clock of `time.monotonic`: False."""
        if not self.is_first:
            self._turn = Event()
            with move_on_after(until - time.monotonic()):
                await self._turn.wait()
        return self.is_first

    def leave(self) -> None:
        """Let the next one be the first. To be called again when interrupted."""
        self._line.pop(self, None)
        first = next(iter(self._line), None)
        if first is not None and first._turn is not None:
            with suppress(RuntimeError):  # the loop was closed, and nobody there will ever be woken
                first._turn.set()
