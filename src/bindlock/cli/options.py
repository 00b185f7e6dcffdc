"""What several commands take: names, scopes, times, signals."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import click

import bindlock
from bindlock.cli import run as run_module
from bindlock.linux.become import die_of_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem


class Number(click.ParamType):  # type: ignore[type-arg]
    """A number as `bindlock.cli.run` understands it."""

    def __init__(self, name: str, convert: Callable[[str], float]) -> None:
        self.name = name
        self._convert = convert

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        try:
            return self._convert(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _patience(text: str) -> float:
    value = run_module.seconds(text)
    if value == float("inf"):
        raise ValueError(f"{text!r} is no grace: give seconds, 0 or more; to ask only, there is bindlock stop")
    return value


SECONDS = Number("seconds", run_module.seconds)
PATIENCE = Number("seconds", _patience)
STATUS = Number("status", run_module.status)
SLOTS = Number("slots", run_module.slots)


class Signal(click.ParamType):  # type: ignore[type-arg]
    """A signal, by number or name, with or without SIG."""

    name = "signal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Its number."""
        import signal

        text = str(value).upper()
        if text.isdecimal() and 0 < int(text) < signal.NSIG:
            return int(text)
        try:
            return int(signal.Signals["SIG" + text.removeprefix("SIG")])
        except KeyError:
            self.fail(f"{value!r} is no signal: give one as TERM, SIGTERM or 15", param, ctx)


def complete_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names that there are now, and that begin so."""
    from click.shell_completion import CompletionItem

    scope = ctx.params.get("scope", "user")
    verbatim = incomplete.startswith(("@", "padded:", "datagram:"))
    return [
        CompletionItem(bound.name)
        for bound in bindlock.locks(every=verbatim)
        # A shell may insert it as it is, and anybody can bind a name: nothing that a shell might obey.
        if re.fullmatch(r"[\w@%+=:,./-]+", bound.name)
        and bound.name.startswith(incomplete)
        and (verbatim or (bound.scope == scope and bound.trusted))
    ]


def scope_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option --scope."""
    return click.option(
        "--scope", type=click.Choice(["user", "host"]), default="user", show_default=True,
        help="Shared by your processes, or by every user of the host.",
    )(function)  # fmt: skip


def name_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument NAME, and the option --scope."""
    return click.argument("name", shell_complete=complete_names)(scope_option(function))


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """The option --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def dies_of_interrupts(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have Ctrl-C end the command by the signal, without a traceback."""

    @functools.wraps(function)
    def interruptible(*args: Any, **kwargs: Any) -> Any:
        die_of_interrupts()
        return function(*args, **kwargs)

    return interruptible
