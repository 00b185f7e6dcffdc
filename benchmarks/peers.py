"""The locks that are compared: each is a pair of functions, acquire and release, made for a path in a scratch folder.

Locks without a file take the path's last parts as their name. Every library is used as its manual's first example does,
with its own defaults for how often it looks again; only the time-out is long for all. Imports are in the functions, so
that a process loads nothing but the lock that it is about.
"""

from __future__ import annotations

import os
from collections.abc import Callable

#: Longer than any measurement, where a lock wants to know how long to wait.
LONG = 3600.0

Pair = tuple[Callable[[], object], Callable[[], object]]


def name_of(path: str) -> str:
    """Name a lock that has no file: the scratch folder's random name makes it unlike any other run's."""
    return f"{os.path.basename(os.path.dirname(path))}-{os.path.basename(path)}"


def bindlock_lock(path: str) -> Pair:
    """Ours."""
    import bindlock

    lock = bindlock.Lock(name_of(path))
    return lock.acquire, lock.release


def bindlock_with_timeout(path: str) -> Pair:
    """Ours, when it must also wake up by itself in the end."""
    import bindlock

    lock = bindlock.Lock(name_of(path), timeout=LONG)
    return lock.acquire, lock.release


def bindlock_never(path: str) -> Pair:
    """Ours, where no child can have it: in a descriptor table of its own, made for each acquire."""
    import bindlock

    lock = bindlock.Lock(name_of(path), children="never")
    return lock.acquire, lock.release


def bare(path: str) -> Pair:
    """Do the system calls by which ours waits, in the shortest Python that does the same."""
    import _socket
    import errno
    import select

    # Nothing of it is used: the processes of both are to be alike, because how much a process has to give back is
    # part of how long it takes to die.
    import bindlock

    bindlock.Lock(name_of(path))
    address = b"\0bindlock-benchmark/" + name_of(path).encode()
    flags = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
    held: list[_socket.socket] = []

    def acquire() -> None:
        while True:
            own = _socket.socket(_socket.AF_UNIX, flags)
            try:
                own.bind(address)
            except OSError as error:
                own.close()
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                own.listen(4096)
                held.append(own)
                return
            place = _socket.socket(_socket.AF_UNIX, flags)
            if place.connect_ex(address) == 0:
                poller = select.poll()
                poller.register(place, 0)
                poller.poll()
            place.close()

    def release() -> None:
        held.pop().close()

    return acquire, release


def flock(path: str) -> Pair:
    """Lock a file, waiting in the kernel."""
    import fcntl

    held: list[int] = []

    def acquire() -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        held.append(descriptor)

    def release() -> None:
        os.close(held.pop())

    return acquire, release


def filelock_lock(path: str) -> Pair:
    """filelock.FileLock."""
    from filelock import FileLock

    lock = FileLock(path, timeout=LONG)
    return lock.acquire, lock.release


def portalocker_lock(path: str) -> Pair:
    """portalocker.Lock."""
    from portalocker import Lock

    lock = Lock(path, timeout=LONG)
    return lock.acquire, lock.release


def fasteners_lock(path: str) -> Pair:
    """fasteners.InterProcessLock."""
    from fasteners import InterProcessLock

    lock = InterProcessLock(path)
    return lock.acquire, lock.release


OURS = "bindlock"
NEVER = 'bindlock, children="never"'
LOCKS: dict[str, Callable[[str], Pair]] = {
    OURS: bindlock_lock,
    "bare system calls": bare,
    "flock(2)": flock,
    "filelock": filelock_lock,
    "portalocker": portalocker_lock,
    "fasteners": fasteners_lock,
    "bindlock with a time-out": bindlock_with_timeout,
    NEVER: bindlock_never,
}
