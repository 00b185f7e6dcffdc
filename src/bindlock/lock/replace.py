"""The policy *replace*: whoever has the name is ended, and then it is our turn.

SIGTERM goes to the very process that holds, by pidfd; and after the grace SIGKILL, if that process still holds. We are
in the queue meanwhile, as everybody is, and keep our place there. Should somebody be before us, the name is theirs
first, and they are asked to go in their turn, as soon as they have it. So of several that replace, the last one to come
has the name in the end: it is behind the others, and ends them.

Two waits go on at the same time, by the two tables of `bindlock.lock.decide`: to have the name, and to see the very
socket go that has it now.
"""

from __future__ import annotations

import errno
import os
import time

from bindlock.errors import CannotLock, CannotSignal, Held, Untrusted
from bindlock.linux.process import SIGKILL, SIGTERM
from bindlock.linux.queue import hung_up
from bindlock.lock import block
from bindlock.lock.attempt import Attempt
from bindlock.lock.decide import ACQUIRE, ENDS, SLOWEST, WAIT, Decision
from bindlock.lock.holder import identify
from bindlock.lock.look import look

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bindlock.linux.binding import Binding
    from bindlock.lock.decide import Event
    from bindlock.lock.holder import Holder
    from bindlock.names import Name

#: Seconds after SIGKILL in which the name has to be free: a core dump may be written, a child may have the socket, too.
_AFTERWARDS = 5.0
_FOREVER = float("inf")


def acquire(
    name: Name, binding: Binding, timeout: float | None, grace: float,
    waiting: Callable[[Holder], object] | None = None,
) -> None:  # fmt: skip
    """Have the name within `timeout` seconds, ending each process that has it, with `grace` seconds to go by itself.

    Raises as `block.acquire` does; `Held`, too, when the holder cannot be seen, is this process, or outlives SIGKILL;
    and `CannotSignal` when it is not ours to signal.
    """
    begun = time.monotonic()
    try:
        block.acquire(name, binding, 0.0)
        return
    except Held as held:
        if held.holder is None or held.holder.pid == os.getpid():
            raise
    left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
    attempt = Attempt(name, binding, Decision(ACQUIRE, time.monotonic(), left), waiting=waiting)
    block.have(name, binding, attempt, lambda attempt: _replace(name, attempt, grace))


def _replace(name: Name, attempt: Attempt, grace: float) -> None:
    """Go on with `attempt` to one of its ends, and end meanwhile whoever has the name."""
    _go_on([attempt], 0.0)  # in the queue before anybody is asked to go
    pause = 0.001
    while attempt.decision.state not in ENDS:
        holder = _in_the_way(name)
        if holder is None:  # it is the turn of one before us: the kernel sends no event for a name that is bound
            _go_on([attempt], time.monotonic() + pause)
            pause = min(2 * pause, SLOWEST)
            continue
        pause = 0.001
        for number, patience in ((SIGTERM, grace), (SIGKILL, _AFTERWARDS)):
            _signal(holder, number)
            if not _outlasts(name, attempt, holder, patience):
                break
        else:
            raise Held(name.text, holder)


def _outlasts(name: Name, attempt: Attempt, holder: Holder, seconds: float) -> bool:
    """Go on with `attempt`; whether this very process still has the name after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        if attempt.head is not None:  # the first in the queue is woken by the holder itself
            _go_on([attempt], end)
        else:
            now = time.monotonic()
            watch = Attempt(name, None, Decision(WAIT, now, max(0.0, end - now)), holder.inode)
            try:
                _go_on([attempt, watch], 0.0)
                # It may be queued at the next one by now. If the holder is still there, it was when that connected.
                if _still(name, attempt, holder):
                    _go_on([attempt, watch])
            finally:
                watch.end()
        if not _still(name, attempt, holder):
            return False
        if time.monotonic() >= end:
            return True


def _still(name: Name, attempt: Attempt, holder: Holder) -> bool:
    """Whether that very process has the name; a child of it that has the socket, too, is asked to go in its turn."""
    now = _in_the_way(name) if attempt.decision.state not in ENDS else None
    return now is not None and (now.inode, now.pid) == (holder.inode, holder.pid)


def _go_on(attempts: list[Attempt], until: float = _FOREVER) -> None:
    """Drive them, and sleep, until one of them has ended, or it is `until`; a single one until it has been woken."""
    woken = False
    while True:
        for attempt in attempts:
            decision = attempt.decision
            while decision.state not in ("QUEUED", "PAUSED", *ENDS):
                decision.next(attempt.step(), time.monotonic())
            if decision.state in ENDS:
                return
        if woken or time.monotonic() >= until:
            return
        wake = min(until, *(attempt.decision.until for attempt in attempts))
        places = [place for attempt in attempts for place in attempt.places]
        hung_up(places, None if wake == _FOREVER else max(0.0, wake - time.monotonic()))
        for attempt in attempts:
            event = _event(attempt)
            if event is not None:
                attempt.decision.next(event, time.monotonic())
                woken = len(attempts) == 1


def _event(attempt: Attempt) -> Event | None:
    """What has woken this one; None when it can sleep on."""
    over = time.monotonic() >= attempt.decision.until
    if attempt.decision.state == "PAUSED":
        return "tick" if over else None
    return "hang-up" if hung_up(attempt.places, 0.0) else "time" if over else None


def _in_the_way(name: Name) -> Holder | None:
    """Who has the name now, if that is somebody to end; None when it is free.

    Raises `Untrusted` for a stranger, `Held` when it is this process, or nobody that can be seen.
    """
    try:
        sighting = look(name)
        holder = identify(name, sighting) if sighting is not None else None
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's
        raise CannotLock(name.text, error.errno, "looking for its holder") from error
    if holder is not None and not holder.trusted:
        raise Untrusted(name.text, holder.uid or 0, holder)
    if holder is not None and holder.pid == os.getpid():
        raise Held(name.text, holder)
    return holder


def _signal(holder: Holder, number: int) -> None:
    try:
        holder.signal(number)
    except CannotSignal as error:
        if error.errno != errno.ESRCH:  # else it has gone by itself
            raise
