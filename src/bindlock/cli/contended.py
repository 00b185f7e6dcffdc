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

CANNOT_FORK = 71


def acquire(plan: Plan) -> Lock | int:
    """The lock, held; or the exit status, and the reason on standard error."""

    def tell(holder: Holder) -> None:
        say(f"waiting for {printable(plan.name)}, held by {holder}")

    start = monotonic()
    try:
        waiting = tell if plan.verbose or (not plan.quiet and _watched()) else None
        lock = _lock(plan)
        if plan.replace is None:
            lock.acquire(plan.timeout, waiting=waiting)
        else:
            lock.acquire(plan.timeout, waiting=waiting, replace=plan.replace)
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


def supervise(plan: Plan, descriptor: int) -> int:
    """Run the command as a child, which has the lock, too; its exit status."""
    from bindlock.linux.supervise import supervise

    def refused(number: int, error: OSError) -> None:
        say(f"cannot pass signal {number} on to {printable(plan.command[0])}: {os_error(error.errno or 0)}")

    try:
        return supervise(lambda: plan.become(descriptor), refused)
    except OSError as error:
        say(f"cannot fork: {os_error(error.errno or 0)}")
        return CANNOT_FORK


def explain_failure(plan: Plan, error: OSError | ValueError) -> int:
    """The exit status for a command that cannot be executed, and the reason on standard error."""
    code = error.errno if isinstance(error, OSError) else None
    hint = "; options stand before the name" if plan.command[0].startswith("-") else ""
    say(f"cannot run {printable(plan.command[0])}: {os_error(code) if code else error}{hint}")
    return NOT_FOUND if code in (ENOENT, ENOTDIR) else NOT_EXECUTABLE


def _lock(plan: Plan) -> Lock:
    if plan.slots is None:
        return Lock(plan.name, scope=plan.scope)
    from bindlock.lock.semaphore import Semaphore

    return Semaphore(plan.name, slots=plan.slots, scope=plan.scope)


def say(line: str) -> None:
    """One line on standard error, if there is one."""
    if sys.stderr is not None:
        print(f"bindlock: {line}", file=sys.stderr, flush=True)


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
