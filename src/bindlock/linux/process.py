"""Processes: naming one without ever meaning another, and telling whether it is on its way out.

The kernel's rules (proc(5), pidfd_open(2); kernel/exit.c and fs/coredump.c, Linux 6.12 and 6.18):

* A PID is used again; a pidfd never changes its process. A PID together with its start time (field 22 of
  /proc/PID/stat, in clock ticks since boot) is as good as unique: PIDs would have to wrap round within one tick.
* The descriptors of a killed process go late in `do_exit`: a core dump is written first, then the memory is given
  back, 60 µs a MiB. Until then it can be recognised: SIGKILL is pending, or the PF_EXITING flag is set, or it says
  CoreDumping.
* State Z is no sign: the leader of a process whose other threads live on is a zombie, too, and the lock is held.
"""

from __future__ import annotations

import errno
import os
import time
from _io import FileIO
from _signal import SIGKILL as SIGKILL  # `signal` would import enum
from _signal import SIGTERM as SIGTERM
from _signal import pidfd_send_signal
from select import POLLIN, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_TICKS = os.sysconf("SC_CLK_TCK")
_PF_EXITING = 0x4
_SIGKILL_BIT = 1 << 8
_ENDED = (errno.ENOENT, errno.ESRCH)
#: Bytes of a command line that are looked at: strangers choose its length.
_COMMAND_BYTES = 64 * 1024


def started(pid: int) -> int | None:
    """The start time of a process in clock ticks since boot, or None when there is no such process to be seen."""
    stat = _read(f"/proc/{pid}/stat") if _proc_is_ours() else None
    return None if stat is None else int(_fields(stat)[19])


def age(start: int) -> float:
    """Seconds since a start time in clock ticks since boot, suspended time included."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start / _TICKS)


def command_line(pid: int) -> tuple[str, ...]:
    """The arguments of a process; its bracketed thread name where it has none; empty when it is gone."""
    line = _read(f"/proc/{pid}/cmdline", _COMMAND_BYTES) if _proc_is_ours() else None
    if line is None:
        return ()
    arguments = line.rstrip(b"\0")
    if arguments:
        return tuple(os.fsdecode(argument) for argument in arguments.split(b"\0"))
    name = _read(f"/proc/{pid}/comm")
    return () if name is None else (f"[{os.fsdecode(name.rstrip())}]",)


def pidfd(source: Callable[..., int], *arguments: object) -> FileIO:
    """A pidfd in an object that closes it, for a `with` statement; `source` is called for it with the arguments.

    Everything from the system call to the object is done by C code: after a call in Python a signal handler may raise,
    and a bare number that nothing owns yet would be lost.
    """
    (owner,) = map(FileIO, map(source, *((argument,) for argument in arguments)))
    return owner


def exited(owner: FileIO) -> bool:
    """Whether the process of a pidfd has exited, all its threads included."""
    poller = poll()
    poller.register(owner, POLLIN)
    return bool(poller.poll(0))


def dying(pid: int) -> bool:
    """Whether a process is dead, or has been killed, and will let go of everything without running again."""
    if not _proc_is_ours() or _read(f"/proc/{pid}/stat") is None:
        return _gone(pid)  # it cannot be seen here: no /proc, hidepid, another PID namespace's
    if not _thread_dying(f"/proc/{pid}"):
        return False
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError as error:
        if error.errno in _ENDED:
            return True
        raise
    return all(_thread_dying(f"/proc/{pid}/task/{thread}") for thread in threads)


def with_socket(inode: int, uid: int | None) -> list[int]:
    """The processes that have a socket open, as far as we may look: our own, or all for root. The lowest PID first.

    A socket can be sent to anybody who receives descriptors. So one that `uid` made, or listens on, is looked for only
    where that user could have left it on purpose: in processes of the same user, or anywhere when it is root's.
    """
    return with_sockets({inode: uid})[inode]


def with_sockets(uids: dict[int, int | None]) -> dict[int, list[int]]:
    """The same for many sockets, by their inodes, in one walk through /proc."""
    found: dict[int, list[int]] = {inode: [] for inode in uids}
    if not _proc_is_ours():
        return found
    wanted = {f"socket:[{inode}]": inode for inode in uids}
    pids = sorted(map(int, filter(str.isdigit, os.listdir("/proc"))))
    for look in (_links, _links_of_threads):  # few threads have a table of their own
        for pid in pids if wanted else ():
            theirs = wanted.keys() & look(pid)
            user = effective_uid(pid) if theirs else None
            for inode in map(wanted.__getitem__, theirs):
                if uids[inode] in (None, 0, user):
                    found[inode].append(pid)
        wanted = {link: inode for link, inode in wanted.items() if not found[inode]}
    return found


def stopped(pid: int) -> bool:
    """Whether a process is stopped (SIGSTOP, Ctrl-Z, a debugger), so that it acts on nothing until it is continued."""
    stat = _read(f"/proc/{pid}/stat") if _proc_is_ours() else None
    return stat is not None and _fields(stat)[0] in (b"T", b"t")


def send_signal(pid: int, start: int, number: int) -> None:
    """Send a signal to just the process with that PID and start time. Raises ProcessLookupError when it is gone."""
    with pidfd(os.pidfd_open, pid) as owner:
        if started(pid) != start:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        pidfd_send_signal(owner.fileno(), number)


def effective_uid(pid: int) -> int | None:
    """The effective uid of a process; None when it is gone."""
    for line in (_read(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[2])
    return None


def _gone(pid: int) -> bool:
    try:
        with pidfd(os.pidfd_open, pid) as owner:
            return exited(owner)
    except ProcessLookupError:
        return True


def _proc_is_ours() -> bool:
    """Whether /proc is there, and numbers processes as we do: it can be that of another PID namespace."""
    status = _read("/proc/self/status") or b""
    # NSpid: our numbers, from the namespace that /proc was mounted for down to our own (proc(5), Linux 4.1).
    return any(line.split()[1:] == [b"%d" % os.getpid()] for line in status.splitlines() if line.startswith(b"NSpid:"))


def _links(pid: int) -> set[str]:
    return _links_in(f"/proc/{pid}/fd")


def _links_of_threads(pid: int) -> set[str]:
    threads = _listed(f"/proc/{pid}/task")
    if len(threads) < 2:
        return set()
    return set().union(*(_links_in(f"/proc/{pid}/task/{thread}/fd") for thread in threads))


def _links_in(directory: str) -> set[str]:
    links = set()
    for descriptor in _listed(directory):
        try:
            links.add(os.readlink(f"{directory}/{descriptor}"))
        except OSError as error:  # ENOENT: closed since
            if error.errno not in (*_ENDED, errno.EACCES, errno.EPERM):
                raise
    return links


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        if error.errno not in (*_ENDED, errno.EACCES, errno.EPERM):
            raise
        return []


def _thread_dying(directory: str) -> bool:
    stat = _read(f"{directory}/stat")
    if stat is None or int(_fields(stat)[6]) & _PF_EXITING:
        return True
    status = _read(f"{directory}/status") or b""
    for line in status.splitlines():
        key, _, value = line.partition(b":")
        if key in (b"SigPnd", b"ShdPnd") and int(value, 16) & _SIGKILL_BIT:
            return True
        if key == b"CoreDumping" and int(value):
            return True
    return False


def _fields(stat: bytes) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may contain anything but its last ``)``."""
    return stat[stat.rindex(b")") + 2 :].split()


def _read(path: str, limit: int = 1 << 16) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(limit) or b""
    except OSError as error:
        if error.errno in (*_ENDED, errno.EACCES, errno.EPERM):  # EACCES: /proc mounted with hidepid
            return None
        raise
