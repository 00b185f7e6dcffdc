"""System calls that answer with an error of our choice, in this process and its children (seccomp(2))."""

from __future__ import annotations

import ctypes
import platform
import struct

from bindlock.proof.errors import NotPossible
from bindlock.proof.kernel.call import call

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
#: The numbers of flock(2) and fcntl(2), where they are known.
_NUMBERS = {"x86_64": (73, 72), "aarch64": (32, 25), "riscv64": (32, 25)}
_LOCK_COMMANDS = (6, 7, 37, 38)  # F_SETLK, F_SETLKW, and those of open file descriptions


def refuse_locks(errno: int) -> None:
    """From now on flock(2), and the locks of fcntl(2), fail with that error."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise NotPossible(f"the numbers of flock(2) and fcntl(2) on {platform.machine()} are not known here")
    flock, fcntl = numbers
    refuse = (_RETURN, 0, 0, _ERRNO | errno)
    commands = [(_JUMP_IF_EQUAL, len(_LOCK_COMMANDS) - position, 0, command)
                for position, command in enumerate(_LOCK_COMMANDS)]  # fmt: skip
    program = [
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_IF_EQUAL, len(commands) + 3, 0, flock),
        (_JUMP_IF_EQUAL, 0, len(commands) + 1, fcntl),
        (_LOAD, 0, 0, 24),  # seccomp_data.args[1], its low half
        *commands,
        (_RETURN, 0, 0, _ALLOW),
        refuse,
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    try:
        call("prctl", _PR_SET_SECCOMP, _FILTER, header, 0, 0)
    except OSError as error:
        raise NotPossible(f"no filter of system calls can be had here ({error})") from None
