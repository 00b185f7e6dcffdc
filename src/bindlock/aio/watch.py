"""Sleeping until somebody wants a lock that a task has.

Nothing is asked again and again: the descriptor of the lock becomes readable when somebody comes. But somebody may have
come only to look, and whoever releases may be in another thread, where no event loop hears of it.
"""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

from anyio import sleep, wait_readable
from anyio.lowlevel import checkpoint

from bindlock.errors import CannotLock, Lost, NotHeld, printable
from bindlock.linux.watch import Watch
from bindlock.lock.decide import HURRY_PAUSE, SLOWEST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bindlock.aio.drive import Driven

#: Everybody who waits for a lock to be wanted, in all event loops.
_watches: WeakKeyDictionary[Watch, Driven] = WeakKeyDictionary()
# An epoll instance is one and the same in parent and child: what the child releases is no affair of the parent's tasks.
os.register_at_fork(after_in_child=_watches.clear)


async def wanted(lock: Driven) -> None:
    """Sleep until somebody waits for the lock; a checkpoint in any case."""
    await checkpoint()
    if lock._children == "never":
        while not _is_wanted(lock):  # it has no descriptor here
            await sleep(SLOWEST)
        return
    pause = 0.0
    with _watch(lock) as watch:
        _watches[watch] = lock  # before it is asked whether it is held: see `end`
        while not _is_wanted(lock):
            # Who came was gone, or only looked, and asking took away what it had left. Where it could not, because we
            # are in another network namespace by now, say, it is readable for ever.
            await sleep(pause)
            await wait_readable(watch.fileno())
            if watch.ended:  # others may have it by this very object
                raise NotHeld(f"{printable(lock.name)} was released while it was watched")
            pause = HURRY_PAUSE


def end(lock: Driven) -> None:
    """Wake those who wait for a lock to be wanted that is held no more."""
    for reference in _watches.keyrefs():
        watch = reference()
        if watch is not None and _watches.get(watch) is lock:
            watch.end()


def _is_wanted(lock: Driven) -> bool:
    if not lock.held:
        lock._check_held()
        raise Lost(lock.name)
    return lock.wanted


def _watch(lock: Driven) -> Watch:
    lock._check_held()
    try:
        return Watch(lock.fileno())
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # a signal handler's
        if not lock.held:
            lock._check_held()
            raise Lost(lock.name) from error
        raise CannotLock(lock.name, getattr(error, "errno", 0), "watching it") from error
