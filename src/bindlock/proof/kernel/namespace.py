"""Namespaces: a process moves into new ones (unshare(2), namespaces(7)).

Who may not make them makes a user namespace first, in which it is root and may (user_namespaces(7)); where that is
forbidden, too, there are none to be had.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from bindlock.proof.errors import NotPossible
from bindlock.proof.kernel.call import call, die_with_parent

_FLAGS = {"mount": 0x00020000, "user": 0x10000000, "pid": 0x20000000, "network": 0x40000000}
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000


def enter(*names: str) -> None:
    """Move this process into new namespaces: "mount", "user", "pid", "network".

    With "pid" what returns is a forked child, the first process of the new namespace, which has a /proc of its own. The
    process that called waits for it, and ends with it. Raises NotPossible where the kernel does not allow it.
    """
    wanted = {*names, "mount"} if "pid" in names else set(names)
    flags = 0
    for name in wanted:
        flags |= _FLAGS[name]
    uid, gid = os.geteuid(), os.getegid()
    try:
        try:
            call("unshare", flags)
        except PermissionError:
            flags |= _FLAGS["user"]
            call("unshare", flags)
        if flags & _FLAGS["user"]:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS, errno.EUSERS):
            raise
        raise NotPossible(f"no new {' and '.join(sorted(wanted))} namespace is allowed here ({error})") from None
    if "pid" in wanted:
        _be_first()
    if "mount" in wanted:
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    if "pid" in wanted:
        _mount("proc", "/proc", "proc", 0, None)


def mount_tmpfs(path: Path, options: str = "") -> None:
    """Mount an empty file system there, in a mount namespace of our own."""
    _mount("tmpfs", str(path), "tmpfs", 0, options)


def mount_read_only(path: Path) -> None:
    """Make what is under that path read-only, in a mount namespace of our own."""
    _mount(str(path), str(path), None, _MS_BIND, None)
    # Who is root of a user namespace only may not take these away, so they are said again (mount_namespaces(7)).
    kept = os.statvfs(path).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME)
    _mount(None, str(path), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept, None)


def _be_first() -> None:
    die_with_parent()
    first = os.fork()
    if first:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    die_with_parent()


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind, options)]
    try:
        call("mount", *arguments[:3], flags, arguments[3])
    except PermissionError as error:
        raise NotPossible(f"{target} cannot be mounted in a namespace of our own ({error})") from None
