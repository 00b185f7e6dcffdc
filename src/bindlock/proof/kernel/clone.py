"""A process with a PID of our choice (clone3(2), set_tid; Linux 5.5): in a PID namespace in which we are root."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.errors import Fault, NotPossible

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE3 = 435
_SIGCHLD = 17
#: Forking more often than that would take too long: pid_max is 32768 by default, and 4 million under systemd.
_FORKS = 70_000
_LAST = Path("/proc/sys/kernel/ns_last_pid")


def fork_as(pid: int, body: Callable[[], object]) -> None:
    """Fork a child that has just that PID, which must be free, and calls `body`.

    By clone3(2); where that is refused, by telling the kernel of the PID namespace which number was the last
    (proc_sys_kernel(5), ns_last_pid); else by forking until its numbers come round. Raises NotPossible when none works.
    """
    if _clone3(pid, body) or _told(pid, body) or _come_round(pid, body):
        return
    raise NotPossible("no process can be made with a PID of our choice here")


def _clone3(pid: int, body: Callable[[], object]) -> bool:
    wanted = ctypes.c_int(pid)
    arguments = struct.pack("=QQQQQQQQQQ", 0, 0, 0, 0, _SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    # PyDLL: the interpreter's lock stays ours, so that the child has it, too.
    child = ctypes.PyDLL(None, use_errno=True).syscall(_CLONE3, buffer, len(arguments))
    if child == 0:
        _run(body)
    if child < 0:
        code = ctypes.get_errno()
        if code in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
            return False
        raise Fault(f"clone3 with PID {pid} on {platform.release()}: {os.strerror(code)}")
    return True


def _told(pid: int, body: Callable[[], object]) -> bool:
    try:
        _LAST.write_text(str(pid - 1))
    except OSError:
        return False
    return _fork_if(pid, body)


def _come_round(pid: int, body: Callable[[], object]) -> bool:
    if int(Path("/proc/sys/kernel/pid_max").read_text()) > _FORKS:
        return False
    return any(_fork_if(pid, body) for _ in range(_FORKS))


def _fork_if(pid: int, body: Callable[[], object]) -> bool:
    """Fork a child, which goes on only when it has that PID; whether it has."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        if os.read(ready, 1):
            _run(body)
        os._exit(0)
    os.close(ready)
    if child == pid:
        os.write(go, b"!")
    os.close(go)
    if child != pid:
        os.waitpid(child, 0)
    return child == pid


def _run(body: Callable[[], object]) -> None:
    try:
        body()
    finally:
        os._exit(0)
