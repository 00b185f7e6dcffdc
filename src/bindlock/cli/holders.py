"""The commands about who has a lock: status, list, wait, stop, signal."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import click

import bindlock
from bindlock.cli.contended import say
from bindlock.cli.options import SECONDS, Signal, dies_of_interrupts, json_option, name_argument
from bindlock.errors import Held, printable
from bindlock.lock.semaphore import holders

if TYPE_CHECKING:
    from bindlock.lock.holder import Holder

NOT_HELD = 3  # LSB: "program is not running"
#: Lines of a queue that people are shown.
_SHOWN = 10


@click.command(epilog="Exit status: 0 held, 3 free.")
@name_argument
@json_option
def status(name: str, scope: str, as_json: bool) -> int:
    """Say who has the lock NAME, and who waits."""
    holder = bindlock.holder(name, scope=scope)
    queue = bindlock.waiters(name, scope=scope) if holder is None or holder.waiters else ()
    slots = holders(name, scope=scope) if holder is not None and holder.slot else []
    if as_json:
        found = {"name": name, "scope": scope, "held": holder is not None} | _fields(holder)
        if slots:
            found["holders"] = [one.as_dict() for one in slots]
        click.echo(json.dumps(found | {"queue": [waiter.as_dict() for waiter in queue]}))
    if holder is not None:
        _trusted(holder)
    if not as_json:
        _show(name, holder, slots, queue)
    return NOT_HELD if holder is None else 0


def _show(name: str, holder: Holder | None, slots: list[Holder], queue: tuple[bindlock.Waiter, ...]) -> None:
    state = "free" if holder is None else f"held by {holder}"
    if holder is not None and holder.slot and slots:
        state = f"held {len(slots)} times of {holder.slot[1]}"
    click.echo(f"{printable(name)} is {state}" + (f"; {len(queue)} waiting" if queue else ""))
    for one in slots:
        click.echo(f"slot {one.slot[0] if one.slot else '?'}: {one}")
    for number, waiter in enumerate(queue[:_SHOWN], 1):
        click.echo(f"{number:4}. {waiter}")
    if len(queue) > _SHOWN:
        click.echo(f"      and {len(queue) - _SHOWN} more")
    if queue and queue[0].stopped:
        click.echo(f"The first is stopped: continue it (kill -CONT {queue[0].pid}), or end it.")


@click.command(
    "list",
    epilog="""\b
Examples:
  bindlock list --json | jq -r '.[].name'
  bindlock list --watch        until Ctrl-C""",
)
@click.option("--all", "every", is_flag=True, help="Every abstract name, other programs' too.")
@json_option
@click.option("--watch", is_flag=True, help="Go on, looking once a second; print what has changed.")
def list_(every: bool, as_json: bool, watch: bool) -> None:
    """Show the locks of this network namespace and their holders."""
    from bindlock.cli import table

    (table.watch if watch else table.show)(every, as_json)


@click.command(epilog="Exit status: 0 when it is free; 75 when the time was over before.")
@click.option("-w", "--wait", "--timeout", "timeout", type=SECONDS, help="Wait at most so long.")
@name_argument
@json_option
@dies_of_interrupts
def wait(name: str, scope: str, timeout: float | None, as_json: bool) -> int:
    """Wait until the lock NAME is free; it is not taken."""
    try:
        bindlock.wait(name, timeout, scope=scope)
    except Held as held:
        return _still_held(held, scope, as_json)
    if as_json:
        click.echo(json.dumps({"name": name, "scope": scope, "held": False}))
    return 0


@click.command(
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
@name_argument
@json_option
@dies_of_interrupts
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


@click.command("signal", epilog="Exit status: 0 sent; 3 nobody has it; 71 not sent.")
@name_argument
@click.argument("number", metavar="SIG", type=Signal())
def signal_(name: str, scope: str, number: int) -> int:
    """Send the holder of the lock NAME a signal: HUP, SIGHUP or 1."""
    holder = bindlock.holder(name, scope=scope)
    if holder is None:
        say(f"{printable(name)} is free: nobody to signal")
        return NOT_HELD
    _trusted(holder).signal(number)
    return 0


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
