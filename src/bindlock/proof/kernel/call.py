"""Calls into the C library, with errors as exceptions."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """Call a function of the C library. Raises OSError, with the function's name, when it returns a negative number."""
    result: int = getattr(LIBC, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")
    return result


def end_with_parent() -> None:
    """Be sent SIGTERM when the thread that started us is gone (prctl(2), PR_SET_PDEATHSIG)."""
    call("prctl", 1, 15, 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the thread that forked us is gone (prctl(2), PR_SET_PDEATHSIG)."""
    call("prctl", 1, 9, 0, 0, 0)


def never_dump() -> None:
    """Dump no core, not even to a program, which RLIMIT_CORE does not prevent (prctl(2), PR_SET_DUMPABLE; core(5))."""
    call("prctl", 4, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own is gone (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    call("prctl", 36, 1, 0, 0, 0)
