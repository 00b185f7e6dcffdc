"""The blocking driver: carries an attempt through to its end, and sleeps in poll(2)."""

from __future__ import annotations

import time

from bindlock.errors import AlreadyHeld, Held, Lost, Untrusted, printable
from bindlock.linux.binding import Binding, bindings, this_thread
from bindlock.linux.queue import hung_up
from bindlock.lock.attempt import Attempt
from bindlock.lock.decide import ACQUIRE, ENDS, WAIT, Decision
from bindlock.lock.lock import check_timeout
from bindlock.names import Name, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from bindlock.lock.decide import Event, State
    from bindlock.lock.holder import Holder

_FOREVER = float("inf")


def run(attempt: Attempt, go_through: Callable[[Attempt], object] | None = None) -> State:
    """Go through the table to one of its ends. Raises `CannotLock` when the kernel refuses to answer."""
    try:
        # Not the loop itself: in CPython 3.13 its last jump backwards, where a signal handler may raise, is no part of
        # the block that it stands in.
        (go_through or _go_through)(attempt)
    finally:
        try:
            attempt.end()
        finally:
            # A second signal may have kept us from that. A third cannot keep us from this: no handler runs before the
            # first call, which is not Python's, has returned. (Connections are closed when nothing refers to them.)
            ticket, head = attempt.ticket, attempt.head
            try:
                if ticket is not None and ticket.socket is not None:
                    ticket.socket.close()
            finally:
                try:
                    if head is not None and head.socket is not None:
                        head.socket.close()
                finally:
                    if attempt.spare:
                        attempt.spare[0].close()
    return attempt.decision.state


def _go_through(attempt: Attempt) -> None:
    decision = attempt.decision
    while decision.state not in ENDS:
        event = _sleep(attempt) if decision.state in ("QUEUED", "PAUSED") else attempt.step()
        decision.next(event, time.monotonic())


def _sleep(attempt: Attempt) -> Event:
    decision = attempt.decision
    seconds = max(0.0, decision.until - time.monotonic())
    if decision.state == "PAUSED":
        time.sleep(seconds)
        return "tick"
    return "hang-up" if hung_up(attempt.places, None if seconds == _FOREVER else seconds) else "time"


def acquire(
    name: Name, binding: Binding, timeout: float | None, waiting: Callable[[Holder], object] | None = None
) -> None:
    """Bind `binding`, waiting for the name up to `timeout` seconds.

    Raises `Held`, `Untrusted`, `CannotLock`, or whatever a signal handler raises, and then nothing is bound; or
    `AlreadyHeld` when the calling thread would wait for itself.
    """
    if binding.forget_if_lost():
        raise Lost(name.text)
    thread = this_thread()
    for own in bindings():
        if own.thread is not thread:
            continue
        if own is binding:
            raise AlreadyHeld(f"{printable(name.text)} is held by this thread, by this very object; release it first")
        if own.key == name.key and (timeout is None or timeout == _FOREVER):
            raise AlreadyHeld(
                f"{printable(name.text)} is held by this thread, by another Lock object: without a time-out it would "
                "wait for itself for ever; release that, or give a time-out"
            )
    have(name, binding, Attempt(name, binding, Decision(ACQUIRE, time.monotonic(), timeout), waiting=waiting))


def have(name: Name, binding: Binding, attempt: Attempt, go_through: Callable[[Attempt], object] | None = None) -> None:
    """Have `binding` bound by the attempt; whatever is raised, nothing is bound then."""
    thread = this_thread()
    try:
        refuse(name, attempt, run(attempt, go_through))
    except BaseException:
        if binding.thread is thread and binding.bound:
            binding.close()  # a signal handler has raised after the name was had, and before we could say so
        raise


def refuse(name: Name, attempt: Attempt, end: State) -> None:
    """Raise what the end of an acquire means, `Held` or `Untrusted`, unless it is that the name was had."""
    if end == "REFUSED":
        raise Held(name.text, attempt.holder())
    if end == "UNTRUSTED":
        stranger = attempt.holder()
        raise Untrusted(name.text, (stranger and stranger.uid) or 0, stranger)


def wait(name: str, timeout: float | None = None, *, scope: str = "user") -> None:
    """Sleep until the name is free, without taking it: somebody else may have it the moment after.

    Raises `Held` after `timeout` seconds (None: never), `CannotLock` when the kernel cannot be asked,
    `InvalidArgument` for what cannot be a name or a time-out.
    """
    parsed = parse(name, scope).trusting_all()
    attempt = Attempt(parsed, None, Decision(WAIT, time.monotonic(), check_timeout(timeout)))
    if run(attempt) != "FREE":
        raise Held(name, attempt.holder())


def await_release(name: Name, inode: int, timeout: float | None) -> bool:
    """Sleep until the socket `inode` no longer has the name: True; or for `timeout` seconds: False."""
    return run(Attempt(name, None, Decision(WAIT, time.monotonic(), check_timeout(timeout)), inode)) == "FREE"
