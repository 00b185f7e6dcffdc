"""All commands, by click: their help, what they exit with, and their completion."""

from __future__ import annotations

import errno
import os
import sys
from _signal import SIG_DFL, SIGPIPE, signal
from typing import TYPE_CHECKING, Any

import click

import bindlock
from bindlock.cli import holders
from bindlock.cli import run as run_module
from bindlock.cli.contended import say
from bindlock.cli.options import (
    PATIENCE,
    SECONDS,
    SLOTS,
    STATUS,
    complete_names,
    dies_of_interrupts,
    scope_option,
)
from bindlock.errors import BindlockError, os_error

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

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


class Run(click.Command):
    """``bindlock run``: click has no option whose value can be left out when an argument follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give ``--replace`` its value."""
        options: list[str] = []
        rest = list(args)
        while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
            option = rest.pop(0)
            options.append(f"--replace={run_module.GRACE:g}" if option == "--replace" else option)
            if _takes_the_next(option) and rest:
                options.append(rest.pop(0))
        return super().parse_args(ctx, options + rest)


def _takes_the_next(option: str) -> bool:
    """Whether the value of an option, or of the last of several (``-qw``), is the next argument."""
    valued = {spelling for spellings, takes in run_module.OPTIONS.values() if takes for spelling in spellings}
    if option.startswith("--"):
        return option in valued
    first = next((place for place, letter in enumerate(option) if f"-{letter}" in valued), None)
    return first == len(option) - 1


class Replace(click.Option):
    """``--replace``, whose value follows without a space or not at all, as the help says."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        record = super().get_help_record(ctx)
        return record and (record[0].replace(" [", "["), record[1])


@cli.command(
    "run",
    cls=Run,
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples: bindlock run backup -- ./backup.sh --full
          bindlock run --replace=5 web -- ./serve
          bindlock run -nq mirror -c 'rsync -a …'
The command has the lock (BINDLOCK_NAME, BINDLOCK_FD) until it is gone, and
all that it leaves running. Exit status: its own; 75 when held by another.""",
)
@click.option("-n", "--nb", "--nonblock", "nonblock", is_flag=True, help="Skip: do not wait.")
@click.option("-w", "--wait", "--timeout", "wait", type=SECONDS, help="Wait at most so long.")
@click.option(
    "--replace", cls=Replace, type=PATIENCE, metavar="[=GRACE]", help="End who has it: TERM, after 10 s KILL.",
    shell_complete=complete_names,  # click takes the word after it for its value
)  # fmt: skip
@click.option("--slots", type=SLOTS, metavar="N", help="So many at a time.")
@click.option("--fork", is_flag=True, help="Run COMMAND as a child, and pass signals on.")
@click.option(
    "-E", "--conflict-exit-code", "conflict", type=STATUS, default=run_module.CONFLICT,
    show_default=True, help="Status when held.",
)  # fmt: skip
@click.option("-c", "--command", "shell", metavar="STRING", help="Have $SHELL run STRING; also after NAME.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say who is in the way.")
@click.option("--verbose", is_flag=True, help="Say how long it took, and what is run.")
@scope_option
@click.argument("name", shell_complete=complete_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(name: str, command: tuple[str, ...], **options: Any) -> int:
    """Have the lock NAME, then become COMMAND."""
    try:
        plan = run_module.Plan([name, *command], **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return plan.carry_out()


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
@dies_of_interrupts
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


for command in (holders.status, holders.list_, holders.wait, holders.stop, holders.signal_):
    cli.add_command(command)
