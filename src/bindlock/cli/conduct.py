"""A run of the proof with somebody watching it: a progress bar, and an orderly end when it is interrupted."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from bindlock.errors import printable
from bindlock.proof.kind import key_of
from bindlock.proof.run import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    from rich.console import RenderableType

    from bindlock.proof.cell import Cell
    from bindlock.proof.event import Event
    from bindlock.proof.run import Plan

#: What ends a run in an orderly way.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPING = "bindlock: stopping: the trials under way end first"


class Interrupted(BaseException):
    """A signal has ended the run; all that it made is gone. `number` is the signal."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.strsignal(number))

    def die(self) -> int:
        """End this process by that signal, as whoever sent it expects; the exit status if that does not work."""
        signal.signal(self.number, signal.SIG_DFL)
        os.kill(os.getpid(), self.number)
        return 128 + self.number


def conduct(plan: Plan) -> list[Cell]:
    """Run the plan, on a terminal with a progress bar on standard error. Raises Interrupted after a signal."""
    bar = _Bar(len(plan.locks) * len(plan.events))
    with _Orderly(bar.say_stopping) as orderly, bar:

        def begun(lock: str, event: Event) -> None:
            with orderly.undisturbed():
                bar.begun(key_of(lock), event.title)

        def done(cell: Cell) -> None:
            with orderly.undisturbed():
                bar.done(cell.lock)
            if bar.finished:
                orderly.hold_back()

        return run(plan, begun, done)


class _Orderly:
    """The first of `SIGNALS` raises Interrupted in the main thread, at a place where the clean-up is bound to follow.

    That is within the loop of `run`: from the first cell begun to the last one done. Before that and afterwards, and
    while a callback is drawing, it is put off. Those that follow are ignored: the end is under way.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._number: int | None = None
        self._armed = False
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> _Orderly:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup: it is to go on
                self._before[number] = signal.signal(number, self._handle)
        # A worker that is gone already, when it is spoken to, must not be the end of us.
        self._before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # One that came when the last cell was done, and was put off.
        if self._number is not None and exc_info[0] is None:
            raise Interrupted(self._number)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put signals off for as long as the block runs."""
        self._armed = False
        yield
        self._armed = True
        if self._number is not None:
            self._raise()

    def hold_back(self) -> None:
        """Put signals off until the end."""
        self._armed = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is None:
            self._number = number
            self._tell()
            if self._armed:
                self._raise()

    def _raise(self) -> None:
        assert self._number is not None
        self._armed = False
        raise Interrupted(self._number)


class _Bar:
    """How many cells are done, and which are under way; nothing where standard error is no terminal."""

    def __init__(self, cells: int) -> None:
        self._cells = cells
        self._done = 0
        self._now: dict[str, str] = {}
        self._note = ""
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._progress = _Progress(self._line, console) if console.is_terminal else None

    @property
    def finished(self) -> bool:
        """Whether all cells are done."""
        return self._done == self._cells

    def begun(self, lock: str, event: str) -> None:
        """A cell is under way."""
        self._now[lock] = event

    def done(self, lock: str) -> None:
        """A cell is done."""
        self._now.pop(lock, None)
        self._done += 1
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done)

    def say_stopping(self) -> None:
        """Say that the end is under way. Called by a handler of signals, so it must not print."""
        self._note = _STOPPING
        if self._progress is None:
            with suppress(OSError):  # nobody reads it
                os.write(2, f"{_STOPPING}\n".encode())
        else:
            self._progress.live.transient = False  # the note stays

    def _line(self) -> str:
        return self._note or ", ".join(f"{event} ({lock})" for lock, event in list(self._now.items()))

    def __enter__(self) -> _Bar:
        if self._progress is not None:
            self._task = self._progress.add_task("proof", total=self._cells)
            self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._progress is not None:
            with suppress(OSError):  # the terminal is gone, as after SIGHUP
                self._progress.stop()


class _Progress(Progress):
    """A bar with a line below it; both are drawn by a thread of its own."""

    def __init__(self, line: Callable[[], str], console: Console) -> None:
        self._below = line
        super().__init__(
            BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TimeElapsedColumn(),
            console=console, transient=True, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the line."""
        yield from super().get_renderables()
        yield Text(printable(self._below()), no_wrap=True, overflow="ellipsis")
