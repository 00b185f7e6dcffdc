"""All commands, by click: their options, help, completion, and what they exit with."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import sys
from _signal import SIG_DFL, SIGPIPE, signal
from typing import TYPE_CHECKING, Any

import click

import bindlock
from bindlock.cli import run as run_module
from bindlock.cli.contended import say
from bindlock.errors import BindlockError, Held, os_error, printable
from bindlock.linux.become import die_of_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

    from bindlock.lock.holder import Holder

NOT_HELD = 3  # LSB: "program is not running"
USAGE_ERROR = 64
SYSTEM_ERROR = 71
INTERRUPTED = 130
_WRITE_FAILURES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main(arguments: list[str]) -> int:
    """Carry out a command line; the exit status."""
    signal(SIGPIPE, SIG_DFL)  # nobody reads: end as any command does
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names are UTF-8, whatever the terminal can show
    try:
        status = cli.main(arguments, prog_name="bindlock", standalone_mode=False, complete_var="_BINDLOCK_COMPLETE")
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE_ERROR
    except click.ClickException as error:
        error.show()
        return USAGE_ERROR
    except click.exceptions.Abort:
        return INTERRUPTED
    except BindlockError as error:
        say(error.summary)
        return error.exit_status
    except OSError as error:
        if error.errno not in _WRITE_FAILURES:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would try again at its exit
        say(f"cannot write: {os_error(error.errno)}")
        return SYSTEM_ERROR


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


SECONDS = Number("seconds", run_module.seconds)
STATUS = Number("status", run_module.status)


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


def _complete_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
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


def _scope(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--scope", type=click.Choice(["user", "host"]), default="user", show_default=True,
        help="Shared by your processes, or by every user of the host.",
    )(function)  # fmt: skip


def _name(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("name", shell_complete=_complete_names)(_scope(function))


def _json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def _no_traceback_on_interrupt(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def interruptible(*args: Any, **kwargs: Any) -> Any:
        die_of_interrupts()
        return function(*args, **kwargs)

    return interruptible


@click.group(
    context_settings=_CONTEXT,
    epilog="""\b
Examples: bindlock run backup -- ./backup.sh
          bindlock stop backup
Exit status: the command's own; 3 not held; 64 usage; 69, 71 cannot lock;
75 held by another; 77 by a stranger; 126, 127 as a shell.""",
)
@click.version_option(bindlock.__version__, prog_name="bindlock")
def cli() -> None:
    """Let only one of these run: a lock that the kernel drops with its process.

    A NAME is yours alone, all users' (--scope host), or any program's (@name).
    """


@cli.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  bindlock run backup -- ./backup.sh --full
  bindlock run -w 2.5 backup -c 'make && make install'
  * * * * *  bindlock run -nq mirror -- rsync -a …    (crontab)

The command inherits the lock (BINDLOCK_NAME, BINDLOCK_FD): the name is held until it, and whatever it
leaves running with its descriptors, is gone. Exit status: the command's; 75 when held by another.""",
)
@click.option("-n", "--nb", "--nonblock", "nonblock", is_flag=True, help="Do not wait.")
@click.option("-w", "--wait", "--timeout", "wait", type=SECONDS, help="Wait at most so long.")
@click.option(
    "-E", "--conflict-exit-code", "conflict", type=STATUS, default=run_module.CONFLICT,
    show_default=True, help="Status when held.",
)  # fmt: skip
@click.option("-c", "--command", "shell", metavar="STRING", help="Have $SHELL run STRING; also after NAME.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say who is in the way.")
@click.option("--verbose", is_flag=True, help="Say how long it took, and what is run.")
@_scope
@click.argument("name", shell_complete=_complete_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(name: str, command: tuple[str, ...], **options: Any) -> int:
    """Have the lock NAME, then become COMMAND."""
    try:
        plan = run_module.Plan([name, *command], **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return plan.carry_out()


@cli.command(epilog="Exit status: 0 held, 3 free.")
@_name
@_json
def status(name: str, scope: str, as_json: bool) -> int:
    """Say who has the lock NAME."""
    holder = bindlock.holder(name, scope=scope)
    if as_json:
        click.echo(json.dumps({"name": name, "scope": scope, "held": holder is not None} | _fields(holder)))
    if holder is None:
        if not as_json:
            click.echo(f"{printable(name)} is free")
        return NOT_HELD
    _trusted(holder)
    if not as_json:
        waiting = f"; {holder.waiters} waiting" if holder.waiters else ""
        click.echo(f"{printable(name)} is held by {holder}{waiting}")
    return 0


@cli.command(
    "list",
    epilog="""\b
Examples:
  bindlock list --json | jq -r '.[].name'
  bindlock list --watch        until Ctrl-C""",
)
@click.option("--all", "every", is_flag=True, help="Every abstract name, other programs' too.")
@_json
@click.option("--watch", is_flag=True, help="Go on, looking once a second; print what has changed.")
def list_(every: bool, as_json: bool, watch: bool) -> None:
    """Show the locks of this network namespace and their holders."""
    from bindlock.cli import table

    (table.watch if watch else table.show)(every, as_json)


@cli.command(epilog="Exit status: 0 when it is free; 75 when the time was over before.")
@click.option("-w", "--wait", "--timeout", "timeout", type=SECONDS, help="Wait at most so long.")
@_name
@_json
@_no_traceback_on_interrupt
def wait(name: str, scope: str, timeout: float | None, as_json: bool) -> int:
    """Wait until the lock NAME is free; it is not taken."""
    try:
        bindlock.wait(name, timeout, scope=scope)
    except Held as held:
        return _still_held(held, scope, as_json)
    if as_json:
        click.echo(json.dumps({"name": name, "scope": scope, "held": False}))
    return 0


@cli.command(
    epilog="""\b
Examples:
  bindlock stop web                       TERM, and up to 10 s
  bindlock stop --signal INT -w 2 --kill web

Exit status: 0 when it has let go, or nobody had it; 75 when it still has it."""
)
@click.option("-s", "--signal", "number", type=Signal(), default="TERM", show_default=True, help="Signal to send.")
@click.option(
    "-w", "--wait", "--timeout", "timeout", type=SECONDS, default=10.0, show_default=True, help="Seconds to wait."
)
@click.option("--kill", is_flag=True, help="Then send KILL, and wait as long again.")
@_name
@_json
@_no_traceback_on_interrupt
def stop(name: str, scope: str, number: int, timeout: float, kill: bool, as_json: bool) -> int:
    """End the holder of the lock NAME; return when it has let go.

    The signal goes to that very process, by pidfd, never to one that got its PID.
    """
    import signal

    holder = bindlock.holder(name, scope=scope)
    still = None
    if holder is not None:
        _signal(_trusted(holder), number)
        still = _outlasting(holder, scope, timeout)
        if still is not None and kill:
            _signal(still, signal.SIGKILL)
            still = _outlasting(still, scope, timeout)
    if still is not None:
        return _still_held(Held(name, still), scope, as_json)
    if as_json:
        click.echo(json.dumps({"name": name, "scope": scope, "held": False, "was_held": holder is not None}))
    elif holder is None:
        say(f"{printable(name)} is free: nobody to stop")
    return 0


@cli.command("signal", epilog="Exit status: 0 sent; 3 nobody has it; 71 not sent.")
@_name
@click.argument("number", metavar="SIG", type=Signal())
def signal_(name: str, scope: str, number: int) -> int:
    """Send the holder of the lock NAME a signal: HUP, SIGHUP or 1."""
    holder = bindlock.holder(name, scope=scope)
    if holder is None:
        say(f"{printable(name)} is free: nobody to signal")
        return NOT_HELD
    _trusted(holder).signal(number)
    return 0


def _complete_events(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from bindlock.cli.prove import complete_event

    return complete_event(incomplete)


def _complete_locks(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from bindlock.cli.prove import complete_lock

    # Where no key begins so, it may be the path of a kind of one's own.
    return [CompletionItem(key) for key in complete_lock(incomplete)] or [CompletionItem(incomplete, type="file")]


@cli.command(
    epilog="""\b
Examples:
  bindlock prove --quick
  bindlock prove --only sigkill --lock flock --lock ./mine.py
Exit status: 0 complete; 64 usage; 69 a library is missing; 70 the proof
itself went wrong; 71 cannot write."""
)
@click.option("--quick", is_flag=True, help="In under 30 s, with few trials each.")
@click.option("--only", metavar="EVENT", multiple=True, shell_complete=_complete_events, help="This event; repeatable.")
@click.option(
    "--lock", "locks", metavar="LOCK", multiple=True, shell_complete=_complete_locks,
    help="This kind of lock, or one of your own in a .py; repeatable.",
)  # fmt: skip
@click.option("--trials", metavar="N", type=click.IntRange(1), help="As many trials for each cell.")
@click.option("--json", metavar="FILE", type=click.Path(allow_dash=True), help="Write all figures; - is stdout.")
@click.option("--html", metavar="FILE", type=click.Path(allow_dash=True), help="Write a page with plots.")
@click.option("--seed", metavar="N", type=click.IntRange(0), help="Choose at random as that run did.")
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Run so many kinds at a time.")
@click.option("--list", "listed", is_flag=True, help="Only show the events and the kinds of lock.")
@_no_traceback_on_interrupt
def prove(listed: bool, **options: Any) -> int:
    """Try every way a holder can go, on every common kind of lock."""
    from bindlock.cli.prove import Wish, show_list

    if listed:
        show_list()
        return 0
    return Wish(**options).carry_out()


@cli.command(
    epilog="""\b
Put into your shell's start-up file:
  eval "$(bindlock completion bash)"      ~/.bashrc
  eval "$(bindlock completion zsh)"       ~/.zshrc
  bindlock completion fish | source       ~/.config/fish/config.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "bindlock", "_BINDLOCK_COMPLETE").source())


def _fields(holder: Holder | None) -> dict[str, Any]:
    return {} if holder is None else holder.as_dict()


def _trusted(holder: Holder) -> Holder:
    """The holder; raises `Untrusted` for one whom the scope does not expect: no process of ours, nor ours to end."""
    if not holder.trusted:
        raise bindlock.Untrusted(holder.name, holder.uid or 0, holder)
    return holder


def _outlasting(holder: Holder, scope: str, timeout: float) -> Holder | None:
    """Who has the very socket of `holder` after that many seconds; None when it is gone, whoever has the name next."""
    try:
        holder.wait(timeout)
    except Held:
        now = bindlock.holder(holder.name, scope=scope)
        return now if now is not None and now.inode == holder.inode else None
    return None


def _signal(holder: Holder, number: int) -> None:
    """Send it, unless the holder is gone already: then the wait that follows tells."""
    try:
        holder.signal(number)
    except bindlock.CannotSignal as error:
        if error.errno != errno.ESRCH:
            raise


def _still_held(held: Held, scope: str, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"name": held.name, "scope": scope, "held": True} | _fields(held.holder)))
    else:
        say(held.summary)
    return held.exit_status
