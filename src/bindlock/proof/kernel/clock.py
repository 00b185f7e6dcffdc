"""Clocks that jump, for one process: a time namespace (time_namespaces(7), Linux 5.6).

It shifts the clocks that count from the start of the machine. The time of day is one for all namespaces.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from bindlock.proof.errors import Fault, NotPossible
from bindlock.proof.kernel import namespace
from bindlock.proof.kernel.call import call

_NEWTIME = 0x80


def jump(seconds: int) -> None:
    """From now on CLOCK_MONOTONIC and CLOCK_BOOTTIME of this process say so much more.

    Raises NotPossible where the kernel does not allow it.
    """
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        try:
            call("unshare", _NEWTIME)
        except PermissionError:
            namespace.enter("user")
            call("unshare", _NEWTIME)
        Path("/proc/self/timens_offsets").write_text(f"monotonic {seconds} 0\nboottime {seconds} 0\n")
        descriptor = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
        try:
            call("setns", descriptor, _NEWTIME)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENOSPC, errno.EINVAL, errno.ENOSYS):
            raise
        raise NotPossible(f"no new time namespace is allowed here ({error})") from None
    if time.clock_gettime(time.CLOCK_BOOTTIME) - before < seconds:
        raise Fault("the clocks of the time namespace did not jump")
