"""Sandboxes that a child of the tests puts itself into: seccomp filters and Landlock's scope, by plain system calls."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1
#: The number of socket(2), where it is known.
_SOCKET = {"x86_64": 41, "aarch64": 198, "riscv64": 198, "ppc64le": 326, "s390x": 359}.get(platform.machine())
seccomp_reason = None if _SOCKET else f"the number of socket(2) on {platform.machine()} is not known here"


def refuse_sockets(family: int, errno: int) -> None:
    """From now on socket(2) with that address family fails with that error in this process."""
    assert _SOCKET
    instructions = [
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_IF_EQUAL, 0, 3, _SOCKET),
        (_LOAD, 0, 0, 16),  # seccomp_data.args[0], its low half
        (_JUMP_IF_EQUAL, 0, 1, family),
        (_RETURN, 0, 0, _ERRNO | errno),
        (_RETURN, 0, 0, _ALLOW),
    ]
    _filter(instructions)


def refuse_call(number: int, errno: int) -> None:
    """From now on the system call with that number fails with that error in this process."""
    _filter([
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_IF_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _ERRNO | errno),
        (_RETURN, 0, 0, _ALLOW),
    ])  # fmt: skip


def _filter(instructions: list[tuple[int, int, int, int]]) -> None:
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))


def landlock_reason() -> str | None:
    """Why Landlock's scope cannot be had here; None where it can."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if version >= 6:
        return None
    return "needs Landlock with scopes (Linux 6.12): " + (
        f"this kernel has version {version}" if version > 0 else os.strerror(ctypes.get_errno())
    )


def landlock_scope() -> None:
    """From now on this process can connect to no abstract socket that was made outside of the sandbox."""
    attributes = struct.pack("=QQQ", 0, 0, _LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)
    ruleset = _check(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
