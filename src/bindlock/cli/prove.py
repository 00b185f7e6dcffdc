"""``bindlock prove``: what is asked for, the run, and where its report goes."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import secrets
import signal
import stat
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bindlock.cli import matrix
from bindlock.cli.conduct import SIGNALS, Interrupted, conduct
from bindlock.errors import BindlockError, InvalidArgument, os_error, printable
from bindlock.proof import kind as kinds
from bindlock.proof.errors import Fault
from bindlock.proof.events import ALL
from bindlock.proof.kind import key_of
from bindlock.proof.report import Report, Row, Subject, machine, now
from bindlock.proof.run import Plan
from bindlock.proof.trial import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bindlock.proof.event import Event
    from bindlock.proof.kind import Kind

#: What the page of --html is made with.
_LIBRARIES = ("jinja2", "matplotlib")
_STANDARD_OUTPUT = "-"


class Unavailable(BindlockError):
    """A library is missing."""

    exit_status = 69


class WentWrong(BindlockError):
    """A fault of the proof itself."""

    exit_status = 70


class SystemTrouble(BindlockError):
    """A file cannot be written, or no process can be started."""

    exit_status = 71


@dataclass(frozen=True)
class Wish:
    """A command line of ``bindlock prove``, to be run: its options."""

    quick: bool
    only: Sequence[str]
    locks: Sequence[str]
    trials: int | None
    json: str | None
    html: str | None
    seed: int | None
    jobs: int | None

    def carry_out(self) -> int:
        """Run it, write its report and show it; the exit status.

        Raises click.UsageError for what makes no sense, and `BindlockError` for what could not be done.
        """
        events = _events(self.only)
        locks, absent = _locks(self.locks)
        self._check_files()
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        plan = Plan(list(locks), events, self.quick, seed, self.trials)
        if self.jobs is not None:
            plan = replace(plan, jobs=self.jobs)
        began, start = now(), time.monotonic()
        try:
            cells = conduct(plan)
        except Interrupted as interrupted:
            return interrupted.die()
        except Fault as fault:
            raise WentWrong(
                f"the proof itself went wrong: {printable(str(fault))}; to repeat it: --seed {seed}"
            ) from None
        except OSError as error:
            raise SystemTrouble(f"the proof cannot be run: {printable(str(error))}") from None
        report = Report(
            locks=[Subject.of(key_of(lock), kind) for lock, kind in locks.items()],
            events=[Row.of(event) for event in events],
            cells=cells, absent=absent, quick=self.quick, seed=seed, seconds=time.monotonic() - start,
            machine=machine(), began=began,
        )  # fmt: skip
        self._hand_over(report)
        faults = sum(cell.outcome is Outcome.FAULT for cell in cells)
        if faults:
            raise WentWrong(
                f"the proof itself went wrong in {faults} {'cell' if faults == 1 else 'cells'}; "
                f"to repeat it: --seed {seed}"
            )
        return 0

    def _check_files(self) -> None:
        """Raise now what would be raised when all is done."""
        if self.json is not None and self.json == self.html:
            raise _usage("--json and --html go to the same file")
        if self.html is not None:
            lacking = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
            if lacking:
                raise Unavailable(
                    f"--html needs {' and '.join(lacking)}: "
                    "install bindlock with its extra 'prove', as in: pipx install '.[prove]'"
                )
            importlib.import_module("bindlock.proof.page.render")
        for path in (self.json, self.html):
            if path is not None and path != _STANDARD_OUTPUT:
                _check_writable(path)

    def _hand_over(self, report: Report) -> None:
        """Write the files, and show the report where standard output is not one of them."""
        failure = None
        for path, made in ((self.json, Report.as_json), (self.html, _as_page)):
            if path is None:
                continue
            try:
                _write(path, made(report))
            except SystemTrouble as error:
                failure = error  # what was found out in minutes is shown nevertheless
        if _STANDARD_OUTPUT not in (self.json, self.html):
            matrix.show(report)
        if failure is not None:
            raise failure


def show_list() -> None:
    """Print all events and all kinds of lock, with a line each."""
    matrix.show_known(ALL, kinds.known())


def complete_event(incomplete: str) -> list[str]:
    """The keys of events that begin so."""
    return [event.key for event in ALL if event.key.startswith(incomplete)]


def complete_lock(incomplete: str) -> list[str]:
    """The keys of kinds that begin so, of those that are installed."""
    known = kinds.known().items()
    return [key for key, kind in known if key.startswith(incomplete) and not isinstance(kind, ImportError)]


def _events(keys: Sequence[str]) -> list[Event]:
    """Those events, or all, in the order of the tables."""
    known = [event.key for event in ALL]
    for key in keys:
        if key not in known:
            raise _usage(f"no event is called {printable(repr(key))}; there are: {', '.join(known)}", "only")
    return [event for event in ALL if not keys or event.key in keys]


def _locks(wanted: Sequence[str]) -> tuple[dict[str, type[Kind]], dict[str, str]]:
    """The kinds to be tried, by what names them on the command line; and those that are not installed, with the reason.

    A kind that was asked for and is not installed raises Unavailable.
    """
    known = kinds.known()
    if not wanted:
        found = {key: kind for key, kind in known.items() if not isinstance(kind, ImportError)}
        return found, {key: str(kind) for key, kind in known.items() if isinstance(kind, ImportError)}
    found = {}
    for text in dict.fromkeys(wanted):
        kind = known.get(text) or _load(text)
        if isinstance(kind, ImportError):
            raise Unavailable(f"{kind.name or text} is not installed")
        if key_of(text) in map(key_of, found):
            raise _usage(f"two kinds of lock would be called {key_of(text)!r} in the tables: rename the file", "locks")
        found[text] = kind
    return found, {}


def _load(text: str) -> type[Kind]:
    """The kind in a file."""
    if not text.endswith(".py"):
        raise _usage(
            f"no kind of lock is called {printable(repr(text))}; there are: {', '.join(kinds.known())}; "
            "or give a file.py with one of your own", "locks",
        )  # fmt: skip
    if not key_of(text).isprintable():
        raise _usage(f"{printable(text)}: a file of that name cannot be shown in a table", "locks")
    try:
        return kinds.load(text)
    except InvalidArgument as error:
        raise _usage(printable(str(error)), "locks") from None
    except Exception as error:  # noqa: BLE001 - it is the user's code that was run
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(text)]
        where = f"{printable(text)}, line {lines[-1]}" if lines else printable(text)
        raise _usage(f"{where}: {type(error).__name__}: {printable(str(error))}", "locks") from None


def _usage(message: str, parameter: str = "") -> click.UsageError:
    context = click.get_current_context(silent=True)
    if parameter:
        return click.BadParameter(message, context, param_hint={"only": "--only", "locks": "--lock"}[parameter])
    return click.UsageError(message, context)


def _as_page(report: Report) -> str:
    from bindlock.proof.page.render import render

    return render(report)


def _is_special(path: str) -> bool:
    """Whether there is something that is not a file: a device, a pipe."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _check_writable(path: str) -> None:
    """Raises SystemTrouble when a file cannot be written there."""
    try:
        if not path:
            raise OSError(errno.ENOENT, "")
        if os.path.isdir(path):
            raise OSError(errno.EISDIR, "")
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "")
        if not _is_special(path):
            beside = _beside(path)
            beside.touch(exist_ok=False)
            beside.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from None


def _write(path: str, text: str) -> None:
    """Write it whole or not at all. Raises SystemTrouble."""
    if path == _STANDARD_OUTPUT:
        print(text, end="")
        return
    data = text.encode(errors="backslashreplace")
    try:
        if _is_special(path):
            Path(path).write_bytes(data)
            return
        beside = _beside(path)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            beside.write_bytes(data)
            beside.replace(os.path.realpath(path))
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _beside(path: str) -> Path:
    """A new file in the same folder, so that it can take the other's place at once."""
    return Path(os.path.realpath(path)).with_name(f".bindlock-{secrets.token_hex(8)}")


def _cannot_write(path: str, error: OSError) -> SystemTrouble:
    return SystemTrouble(f"cannot write {printable(path)}: {os_error(error.errno or 0)}")
