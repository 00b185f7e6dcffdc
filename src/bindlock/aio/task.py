"""Who holds a lock, counted in tasks: to refuse a task that would wait for itself, and for nothing else."""

from __future__ import annotations

import sys
from contextlib import suppress
from weakref import WeakKeyDictionary, ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bindlock.aio.drive import Driven

#: The task that acquired each lock that is held through an `AsyncLock` or `AsyncSemaphore`.
holders: WeakKeyDictionary[Driven, ref[Any]] = WeakKeyDictionary()


def this_task() -> ref[Any]:
    """What tells this task from all others, past ones included; compare with ``is``.

    A task has one such reference, as long as somebody has it; one made later, at the same address, gets another. (The
    numbers that anyio gives to tasks are used again.) What is adopted outside of all tasks is nobody's.
    """
    task: Any = None
    if "asyncio" in sys.modules:
        with suppress(RuntimeError):  # no loop of asyncio's runs in this thread
            task = sys.modules["asyncio"].current_task()
    if task is None and "trio" in sys.modules:
        with suppress(RuntimeError):
            task = sys.modules["trio"].lowlevel.current_task()
    return ref(sys if task is None else task)
