"""The awaiting driver: what `bindlock.lock.block` is for threads. It sleeps in the event loop.

Cancellation comes at an ``await``, and there are four: the checkpoint with which every acquire begins, the wait for a
turn in the line of tasks, and the two sleeps of an attempt. At none of them is the name had; after it was had there is
none. So an acquire that was cancelled holds nothing, and one that was not says what it holds.
"""

from __future__ import annotations

import time

from anyio import move_on_after, sleep, wait_readable
from anyio.lowlevel import checkpoint

from bindlock.aio.line import Place, is_empty
from bindlock.aio.task import holders, this_task
from bindlock.errors import AlreadyHeld, Lost, printable
from bindlock.linux.binding import this_thread
from bindlock.linux.queue import hung_up
from bindlock.lock.attempt import Attempt
from bindlock.lock.block import refuse
from bindlock.lock.decide import ACQUIRE, ENDS, GRACE, SLOWEST, Decision

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any
    from weakref import ref

    from bindlock.lock.decide import Event, State
    from bindlock.lock.holder import Holder
    from bindlock.lock.lock import Lock

_FOREVER = float("inf")
#: Event loops cannot count to any number of seconds: the wait goes on after a day.
_LONGEST = 86400.0


async def acquire(lock: Lock, timeout: float | None, waiting: Callable[[Holder], object] | None) -> None:
    """Bind the lock, waiting for the name up to `timeout` seconds. A checkpoint, also when the name is free.

    Raises `Held`, `Untrusted`, `CannotLock`, `Lost`, or whatever the event loop or a signal handler raises, and then
    nothing is bound; or `AlreadyHeld` when the calling task would wait for itself.
    """
    # Before the name is had rather than after: so nothing is to be given back when it is cancelled; and a task that
    # releases and acquires in turn lets others be quicker.
    await checkpoint()
    me = this_task()
    mine = lock._binding.bound and holders.get(lock) is me
    try:
        if mine or not _claim(lock, timeout):
            _check(lock, me, timeout)
            await _contend(lock, timeout, waiting)
        holders[lock] = me
    except BaseException:
        binding = lock._binding
        said = holders.get(lock)
        if not mine and binding.bound and binding.thread is this_thread() and (said is None or said is me):
            binding.close()  # a signal handler has raised after the name was had, and before we could say so
        raise


def _claim(lock: Lock, timeout: float | None) -> bool:
    """Have the name, if it is free and nobody of this event loop is in line for it."""
    if timeout != 0 and not is_empty((lock._name.key, False)):
        return False
    try:
        lock._binding.bind()
    except OSError as error:
        if error.errno is None:
            raise  # not the kernel's: a signal handler's
        return False  # an attempt will meet with it again, and say what it means
    return True


def _check(lock: Lock, me: ref[Any], timeout: float | None) -> None:
    name = lock._name
    if lock._binding.forget_if_lost():
        holders.pop(lock, None)
        raise Lost(name.text)
    for reference in holders.keyrefs():
        own = reference()
        if own is None or holders.get(own) is not me or not own._binding.bound:
            continue
        if own is lock:
            raise AlreadyHeld(f"{printable(name.text)} is held by this task, by this very object; release it first")
        if own._name.key == name.key and (timeout is None or timeout == _FOREVER):
            raise AlreadyHeld(
                f"{printable(name.text)} is held by this task, by another AsyncLock object: without a time-out it "
                "would wait for itself for ever; release that, or give a time-out"
            )


async def _contend(lock: Lock, timeout: float | None, waiting: Callable[[Holder], object] | None) -> None:
    begun = time.monotonic()
    deadline = begun + (_FOREVER if timeout is None else timeout)
    for over, until in ((False, deadline), (True, begun + GRACE)):
        if until == begun:
            continue  # one that must not wait does not stand behind those that may
        decision = Decision(ACQUIRE, begun, timeout)
        place = Place((lock._name.key, over))
        try:
            place.join()
            has_waited = not place.is_first
            if has_waited and not over:
                waiting = _tell(lock, waiting)
            if await place.reached(until):
                now = time.monotonic()
                if has_waited and now < deadline:
                    # Even if it is free by now, it may be the turn of another process: we stand in the kernel's queue
                    # from this moment on, and not since we stand in line here.
                    decision.next("in use", now)
                return await _attempt(lock, decision, waiting)
        finally:
            try:
                place.leave()
            finally:
                place.leave()
    return await _attempt(lock, Decision(ACQUIRE, begun, timeout), waiting)


def _tell(lock: Lock, waiting: Callable[[Holder], object] | None) -> Callable[[Holder], object] | None:
    """Call `waiting` with the holder: what is still to be called when the turn has come."""
    if waiting is not None:
        # A throw-away: what it has seen will be old when the turn comes.
        holder = Attempt(lock._name, None, Decision(ACQUIRE, 0.0, None)).holder()
        if holder is not None:
            waiting(holder)
            return None
    return waiting


async def _attempt(lock: Lock, decision: Decision, waiting: Callable[[Holder], object] | None) -> None:
    attempt = Attempt(lock._name, lock._binding, decision, waiting=waiting)
    refuse(lock._name, attempt, await run(attempt))


async def run(attempt: Attempt) -> State:
    """Go through the table to one of its ends. Raises `CannotLock` when the kernel refuses to answer."""
    try:
        # Not the loop itself: in CPython 3.13 its last jump backwards, where a signal handler may raise, is no part of
        # the block that it stands in.
        await _go_through(attempt)
    finally:
        try:
            attempt.end()
        finally:
            attempt.end()  # a signal handler has kept us from it, or nothing to do
    return attempt.decision.state


async def _go_through(attempt: Attempt) -> None:
    decision = attempt.decision
    while decision.state not in ENDS:
        event = await _sleep(attempt) if decision.state in ("QUEUED", "PAUSED") else attempt.step()
        decision.next(event, time.monotonic())


async def _sleep(attempt: Attempt) -> Event:
    decision = attempt.decision
    # The event loop's clock may begin anywhere: only durations mean the same to both.
    seconds = min(max(0.0, decision.until - time.monotonic()), _LONGEST)
    if decision.state == "PAUSED":
        await sleep(seconds)
        return "tick"
    with move_on_after(seconds):
        await _hang_up(attempt.places)
        return "hang-up"
    return "time"


async def _hang_up(places: list[socket]) -> None:
    (place,) = places
    await wait_readable(place)
    while not hung_up(places, 0.0):
        # Somebody has accepted, and sends: readable at once for ever, so from now on a slow timer must do.
        await sleep(SLOWEST)
