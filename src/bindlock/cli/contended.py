"""``bindlock run`` when there is something to say: the name is taken, or the command cannot be run."""

from __future__ import annotations

import sys
from errno import ENOENT, ENOTDIR
from time import monotonic

from bindlock.cli.run import NOT_EXECUTABLE, NOT_FOUND, Plan
from bindlock.errors import BindlockError, Held, os_error, printable
from bindlock.lock.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bindlock.lock.holder import Holder


def acquire(plan: Plan) -> Lock | int:
    """The lock, held; or the exit status, and the reason on standard error."""

    def tell(holder: Holder) -> None:
        say(f"waiting for {printable(plan.name)}, held by {holder}")

    start = monotonic()
    try:
        lock = Lock(plan.name, scope=plan.scope)
        lock.acquire(plan.timeout, waiting=tell if plan.verbose or (not plan.quiet and _watched()) else None)
    except Held as held:
        if not plan.quiet:
            say(held.summary)
        return plan.conflict
    except BindlockError as error:
        say(error.summary)
        return error.exit_status
    if plan.verbose:
        say(f"getting lock took {monotonic() - start:.6f} seconds")
        say(f"executing {printable(plan.command[0])}")
    return lock


def explain_failure(plan: Plan, error: OSError | ValueError) -> int:
    """The exit status for a command that cannot be executed, and the reason on standard error."""
    code = error.errno if isinstance(error, OSError) else None
    hint = "; options stand before the name" if plan.command[0].startswith("-") else ""
    say(f"cannot run {printable(plan.command[0])}: {os_error(code) if code else error}{hint}")
    return NOT_FOUND if code in (ENOENT, ENOTDIR) else NOT_EXECUTABLE


def say(line: str) -> None:
    """One line on standard error, if there is one."""
    if sys.stderr is not None:
        print(f"bindlock: {line}", file=sys.stderr, flush=True)


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
