"""A request that stays pending in an io_uring (io_uring(7)): it has a reference of its own to the open file."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import struct

from bindlock.proof.errors import Fault, NotPossible
from bindlock.proof.kernel.call import LIBC

_SETUP, _ENTER, _SQES, _ACCEPT, _POLL = 425, 426, 0x10000000, 13, 6


def leave_pending(descriptor: int, what: str) -> None:
    """Leave an "accept", or a "poll", of the descriptor pending in an io_uring that stays open.

    Raises NotPossible where io_uring is not to be had.
    """
    parameters = (ctypes.c_uint32 * 30)()
    ring = LIBC.syscall(_SETUP, 4, parameters)
    if ring < 0:
        raise NotPossible(f"no io_uring here ({os.strerror(ctypes.get_errno())})")
    tail, mask, array = parameters[11], parameters[12], parameters[16]
    done, cqes = parameters[21], parameters[25]
    size = max(array + 4 * parameters[0], cqes + 16 * parameters[1])
    with mmap.mmap(ring, size) as rings, mmap.mmap(ring, 64 * parameters[0], offset=_SQES) as entries:
        entry = struct.pack("=BBHiQQII", _ACCEPT if what == "accept" else _POLL, 0, 0, descriptor, 0, 0, 0, 0)
        if what == "poll":
            entry = entry[:28] + struct.pack("=I", select.POLLIN)
        entries[: len(entry)] = entry
        index = struct.unpack_from("=I", rings, tail)[0]
        struct.pack_into("=I", rings, array + 4 * (index & struct.unpack_from("=I", rings, mask)[0]), 0)
        struct.pack_into("=I", rings, tail, index + 1)
        if LIBC.syscall(_ENTER, ring, 1, 0, 0, None, 0) != 1:
            raise OSError(ctypes.get_errno(), f"io_uring_enter: {errno.errorcode.get(ctypes.get_errno())}")
        if struct.unpack_from("=I", rings, done)[0]:
            raise Fault("the request is not pending")
