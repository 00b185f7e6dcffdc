"""The awaiting driver: what `bindlock.lock.block` is for threads. It sleeps in the event loop.

Cancellation comes at an ``await``, and there are four: the checkpoint with which every acquire begins, the wait for a
turn in the line of tasks, and the two sleeps of an attempt. At none of them is the name had; after it was had there is
none. So an acquire that was cancelled holds nothing, and one that was not says what it holds. What is had, the name or
one of its slots, is the attempt's affair, and nothing here knows the difference.
"""

from __future__ import annotations

import time

from anyio import move_on_after, sleep, wait_readable
from anyio.lowlevel import checkpoint

from bindlock.aio.line import Place, is_empty
from bindlock.aio.task import holders, this_task
from bindlock.errors import AlreadyHeld, CannotLock, Lost, printable
from bindlock.linux.binding import this_thread
from bindlock.linux.watch import hang_ups
from bindlock.lock.block import refuse
from bindlock.lock.decide import ENDS, GRACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from select import epoll
    from typing import Any, TypeAlias
    from weakref import ref

    from bindlock.aio.lock import _DrivenLock
    from bindlock.aio.semaphore import _DrivenSemaphore
    from bindlock.lock.attempt import Attempt
    from bindlock.lock.decide import Event, State
    from bindlock.lock.holder import Holder

    Driven: TypeAlias = _DrivenLock | _DrivenSemaphore

_FOREVER = float("inf")
#: Event loops cannot count to any number of seconds: the wait goes on after a day.
_LONGEST = 86400.0


async def acquire(lock: Driven, timeout: float | None, waiting: Callable[[Holder], object] | None) -> None:
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


def _claim(lock: Driven, timeout: float | None) -> bool:
    """Have the name, if it is free and nobody of this event loop is in line for it."""
    if timeout != 0 and not is_empty((lock.line, False)):
        return False
    attempt = lock.attempt(0.0, 0.0)
    try:
        return attempt.step() == "claimed"
    finally:
        try:
            attempt.end()
        finally:
            attempt.end()  # as in `run`


def _check(lock: Driven, me: ref[Any], timeout: float | None) -> None:
    name = printable(lock.name)
    if lock._binding.forget_if_lost():
        holders.pop(lock, None)
        raise Lost(lock.name)
    mine = [own for reference in holders.keyrefs() if (own := reference()) is not None and holders.get(own) is me]
    mine = [own for own in mine if own._binding.bound]
    if lock in mine:
        raise AlreadyHeld(f"{name} is held by this task, by this very object; release it first")
    _, count = lock.line
    if (timeout is None or timeout == _FOREVER) and [own.line for own in mine].count(lock.line) == count:
        others = "another object" if count == 1 else f"{count} other objects"
        raise AlreadyHeld(
            f"{name} is held by this task, by {others}: without a time-out it would wait for itself for ever; release "
            "that, or give a time-out"
        )


async def _contend(lock: Driven, timeout: float | None, waiting: Callable[[Holder], object] | None) -> None:
    begun = time.monotonic()
    deadline = begun + (_FOREVER if timeout is None else timeout)
    for over, until in ((False, deadline), (True, begun + GRACE)):
        if until == begun:
            continue  # one that must not wait does not stand behind those that may
        place = Place((lock.line, over))
        try:
            place.join()
            has_waited = not place.is_first
            if has_waited and not over:
                waiting = _tell(lock, waiting)
            if await place.reached(until):
                now = time.monotonic()
                attempt = lock.attempt(begun, timeout, waiting)
                if has_waited and now < deadline:
                    # Even if it is free by now, it may be the turn of another process: we stand in the kernel's queue
                    # from this moment on, and not since we stand in line here.
                    attempt.decision.next("in use", now)
                return refuse(lock._name, attempt, await run(attempt))
        finally:
            try:
                place.leave()
            finally:
                place.leave()
    attempt = lock.attempt(begun, timeout, waiting)
    return refuse(lock._name, attempt, await run(attempt))


def _tell(lock: Driven, waiting: Callable[[Holder], object] | None) -> Callable[[Holder], object] | None:
    """Call `waiting` with the holder: what is still to be called when the turn has come."""
    if waiting is not None:
        # A throw-away: what it has seen will be old when the turn comes.
        holder = lock.attempt(0.0, None).holder()
        if holder is not None:
            waiting(holder)
            return None
    return waiting


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
    with _places(attempt) as places, move_on_after(seconds):
        await wait_readable(places.fileno())
        return "hang-up"
    return "time"


def _places(attempt: Attempt) -> epoll:
    try:
        return hang_ups(attempt.places)
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's
        raise CannotLock(attempt._name.text, error.errno, "waiting for it") from error
