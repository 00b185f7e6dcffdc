"""One instance of a program: the plain call and the decorator.

The same words do two things, and Python calls the function before it is known for which: ``single_instance("x")`` as a
statement must take the lock at once, as a decorator it must not (the module may only be imported, by a test, say, while
the program runs). Where it stands tells them apart: right behind an ``@``, in the source line that the interpreter says
is being executed. Where there is no source to be read (``python -c``, a zip file) the lock is taken at once: too
early rather than not at all.
"""

from __future__ import annotations

import sys
from itertools import islice

from bindlock.errors import BindlockError
from bindlock.lock.lock import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import ParamSpec, TypeVar

    Parameters = ParamSpec("Parameters")
    Result = TypeVar("Result")

#: Locks taken by plain calls: held until the process is gone.
_taken: list[Lock] = []


class SingleInstance:
    """What `single_instance` returns: the decorator. A plain call has done its work already."""

    __slots__ = ("_lock",)

    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def __call__(self, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """`function`, run with the lock held."""
        from functools import wraps

        @wraps(function)
        def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            if self._lock in _taken:
                return function(*args, **kwargs)
            _take_or_exit(self._lock)
            try:
                return function(*args, **kwargs)
            finally:
                if self._lock.fileno() >= 0:  # not in a forked child that has come back from `function`
                    self._lock.release()

        return alone


def single_instance(name: str, *, scope: str = "user") -> SingleInstance:
    """Let a program run once at a time; a second start says on standard error who runs, and exits with status 75.

    As a plain call, anywhere but behind an ``@``, the name is taken at once and held for as long as the process lives::

        bindlock.single_instance("backup")

    As a decorator, it is taken when the function is called, and held while it runs::

        @bindlock.single_instance("backup")
        def main() -> None: ...

    In a child of multiprocessing that imports the main module again, a plain call does nothing: it is part of the
    instance that runs, not a second one.

    Raises `SystemExit`, with the status of the error (see `bindlock.errors`): 75 when another instance runs, 77 when
    the name is held by a user who is not trusted, 69 or 71 when it could not be tried; and `InvalidArgument` for what
    cannot be a name.
    """
    caller = sys._getframe(1)
    instance = SingleInstance(Lock(name, scope=scope))
    if not _is_decorator(caller) and caller.f_globals.get("__name__") != "__mp_main__":
        _take_or_exit(instance._lock)
        _taken.append(instance._lock)
    return instance


def _take_or_exit(lock: Lock) -> None:
    try:
        lock.acquire(timeout=0)
    except BindlockError as error:
        print(f"bindlock: {error.summary}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


def _is_decorator(frame: FrameType) -> bool:
    """Whether the call that `frame` is making stands right behind an ``@`` in its source."""
    line, _, column, _ = next(islice(frame.f_code.co_positions(), frame.f_lasti // 2, None))
    if line is None or column is None:
        return False
    try:
        with open(frame.f_code.co_filename, "rb") as source:
            text = next((text for number, text in enumerate(source, 1) if number == line), b"")
    except (OSError, ValueError):
        return False
    return text[:column].strip() == b"@"
