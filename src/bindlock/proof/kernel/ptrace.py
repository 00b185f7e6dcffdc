"""Holding a process as a debugger does (ptrace(2))."""

from __future__ import annotations

import ctypes
import os
import signal

from bindlock.proof.errors import Fault, NotPossible
from bindlock.proof.kernel.call import call

_SEIZE, _INTERRUPT, _CONTINUE = 0x4206, 0x4207, 7
_TRACE_EXIT, _EVENT_EXIT = 0x40, 6


def stop(pid: int) -> None:
    """Become the tracer of a child, and stop it. Raises NotPossible where tracing is forbidden."""
    _seize(pid, 0)
    _ptrace(_INTERRUPT, pid)
    await_stop(pid)


def stop_at_exit(pid: int) -> None:
    """Become the tracer of a child that is to be stopped by the kernel as soon as it dies."""
    _seize(pid, _TRACE_EXIT)


def await_exit_stop(pid: int) -> None:
    """Wait until it is stopped on its way out: with its memory and descriptors all there."""
    if await_stop(pid) >> 8 != signal.SIGTRAP | _EVENT_EXIT << 8:
        raise Fault(f"process {pid} did not stop at its exit")


def await_stop(pid: int) -> int:
    """Wait until a child is stopped, by whatever: the status, as of waitpid(2). Raises Fault when it ends instead."""
    # Not to be reaped here: its PID would not be its own any more.
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if found is None or found.si_code not in (os.CLD_STOPPED, os.CLD_TRAPPED):
        raise Fault(f"process {pid} ended, and was to be stopped")
    return os.waitpid(pid, os.WUNTRACED)[1]


def resume(pid: int) -> None:
    """Let it go on."""
    _ptrace(_CONTINUE, pid)


def _seize(pid: int, options: int) -> None:
    try:
        _ptrace(_SEIZE, pid, options)
    except PermissionError as error:
        raise NotPossible(f"tracing is not allowed here ({error})") from None


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    call("ptrace", ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(0), ctypes.c_long(data))
