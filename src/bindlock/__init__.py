"""A lock for daemons and jobs with no file behind it: a bound abstract Unix socket.

The kernel drops the name with the process, SIGKILL included, says who holds it, and wakes who waits for it::

    import bindlock

    with bindlock.Lock("backup", timeout=5):
        ...

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bindlock.aio.lock import AsyncLock
    from bindlock.aio.semaphore import AsyncSemaphore
    from bindlock.errors import (
        AlreadyHeld,
        BindlockError,
        CannotLock,
        CannotSignal,
        Held,
        InvalidArgument,
        Lost,
        NotHandedOver,
        NotHeld,
        Untrusted,
    )
    from bindlock.linux.service import notify
    from bindlock.lock.block import wait
    from bindlock.lock.holder import Holder, holder
    from bindlock.lock.instance import single_instance
    from bindlock.lock.listing import BoundName, locks
    from bindlock.lock.lock import Lock
    from bindlock.lock.semaphore import Semaphore
    from bindlock.lock.waiter import Waiter, waiters

__all__ = [
    "AlreadyHeld",
    "AsyncLock",
    "AsyncSemaphore",
    "BindlockError",
    "BoundName",
    "CannotLock",
    "CannotSignal",
    "Held",
    "Holder",
    "InvalidArgument",
    "Lock",
    "Lost",
    "NotHandedOver",
    "NotHeld",
    "Semaphore",
    "Untrusted",
    "Waiter",
    "holder",
    "locks",
    "notify",
    "single_instance",
    "wait",
    "waiters",
]
__version__ = "0.1.0"

_WHERE = {
    "bindlock.aio.lock": ["AsyncLock"],
    "bindlock.aio.semaphore": ["AsyncSemaphore"],
    "bindlock.errors": [
        "AlreadyHeld", "BindlockError", "CannotLock", "CannotSignal", "Held", "InvalidArgument", "Lost",
        "NotHandedOver", "NotHeld", "Untrusted",
    ],
    "bindlock.linux.service": ["notify"],
    "bindlock.lock.block": ["wait"],
    "bindlock.lock.holder": ["Holder", "holder"],
    "bindlock.lock.instance": ["single_instance"],
    "bindlock.lock.listing": ["BoundName", "locks"],
    "bindlock.lock.lock": ["Lock"],
    "bindlock.lock.semaphore": ["Semaphore"],
    "bindlock.lock.waiter": ["Waiter", "waiters"],
}  # fmt: skip


def __getattr__(name: str) -> object:
    for module, names in _WHERE.items():
        if name in names:
            import sys

            __import__(module)
            value: object = getattr(sys.modules[module], name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'bindlock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
