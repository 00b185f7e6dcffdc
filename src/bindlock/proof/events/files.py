"""Something is the matter with the lock's files, or their directory. For a lock without files nothing is."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from bindlock.proof.errors import Fault, NotPossible
from bindlock.proof.event import event
from bindlock.proof.events.places import rehearse
from bindlock.proof.kernel import clock, namespace, seccomp
from bindlock.proof.kernel.user import become_nobody
from bindlock.proof.process import Child, hear

if TYPE_CHECKING:
    from bindlock.proof.kind import Kind, Site
    from bindlock.proof.trial import Trial

_FREE = "Had: nobody has it; or an error that says what is the matter, but never that it is held."
_HELD = "Held: the holder lives."
_DAY, _YEAR = 86_400, 365 * 86_400


@event(
    "directory read-only",
    expected=_FREE,
    rule="A file cannot be created on, nor opened for writing from, a mount that is read-only: EROFS (mnt_want_write, "
    "fs/namespace.c; open(2)).",
    trials=(2, 200),
)
def directory_read_only(trial: Trial) -> None:
    """Nobody has the lock. A process for which the directory of its files is mounted read-only tries it."""

    def place() -> None:
        namespace.enter("mount")
        namespace.mount_read_only(trial.site.directory)

    trial.expect_free_from(place)


@event(
    "directory full",
    expected=_FREE,
    rule="A file needs an inode, and a PID in it a block; without them open(2) and write(2) say ENOSPC.",
    trials=(2, 200),
)
def directory_full(trial: Trial) -> None:
    """Nobody has the lock. A process tries it whose directory for its files is a file system that is full.

    It has no block and no inode left.
    """

    def place() -> None:
        namespace.enter("mount")
        namespace.mount_tmpfs(trial.site.directory, "size=16k,nr_inodes=8")
        _fill(trial.site)

    trial.expect_free_from(place)


@event(
    "directory not ours",
    expected=_FREE,
    rule="Creating a file needs the permission to write to its directory: EACCES (inode_permission, fs/namei.c; "
    "path_resolution(7)). Binding an abstract name or a port above 1023 needs none.",
    trials=(2, 200),
)
def directory_not_ours(trial: Trial) -> None:
    """Nobody has the lock. A process that may not write to the directory of its files tries it.

    It is one of another user, and the directory has mode 0755, as /run has. An ordinary user cannot become another; the
    directory has mode 0555 then, which is the same to the kernel.
    """

    def place() -> None:
        rehearse(trial)
        if os.geteuid() == 0:
            become_nobody()
        else:
            trial.site.directory.chmod(0o555)

    trial.expect_free_from(place)


@event(
    "no locks on the file system",
    expected=_FREE,
    rule="A file system may have no locks to give: on NFS without its lock service flock(2) and fcntl(2) say ENOLCK "
    "(nfs(5), nolock).",
    trials=(6, 1000),
)
def no_locks(trial: Trial) -> None:
    """Nobody has the lock. A process tries it to whom flock(2) and fcntl(2) say ENOLCK, as an NFS without locks does.

    No such file system is mounted: a filter of system calls (seccomp(2)) gives that answer.
    """
    trial.expect_free_from(lambda: seccomp.refuse_locks(errno.ENOLCK))


@event(
    "lock file deleted",
    expected=_HELD,
    rule="A lock is on the inode, and the path leads to it no more: who creates the file anew locks another inode "
    "(unlink(2), flock(2)).",
    trials=(6, 1000),
)
def file_deleted(trial: Trial) -> None:
    """While the holder lives every file in the directory of the lock is removed, as cleaners of /tmp do."""
    trial.hold()
    for path in trial.site.directory.iterdir():
        path.unlink()
    trial.expect_held()


@event(
    "lock file read by the holder",
    expected=_HELD,
    rule="When a process closes any descriptor of a file, all its record locks on it go (fcntl(2); "
    "locks_remove_posix, called by filp_close).",
    trials=(6, 1000),
)
def file_read(trial: Trial) -> None:
    """Other code in the holder opens each file in the directory of the lock for reading, and closes it again."""

    def then(child: Child, lock: Kind) -> None:
        for path in lock.site.directory.iterdir():
            if path.is_file():
                with path.open("rb"):
                    pass
        child.say("read")
        hear(child)

    trial.hold(then).expect("read")
    trial.expect_held()


@event(
    "reboot, run directory kept",
    expected="Free: the machine has started anew.",
    rule="Files outlive the machine's going down, where their directory is on a disk. Numbers of processes begin "
    "anew with each start (alloc_pid, kernel/pid.c; pid_namespaces(7)), so what is started in the same order gets the "
    "same ones.",
    trials=(1, 100),
)
def reboot(trial: Trial) -> None:
    """The holder is gone with its whole machine; its files are still there, and its PID is another program's.

    Each start of the machine is a new PID namespace, with its numbers from 1 on. The first ends, and everybody in it is
    killed, while one of its programs has the lock. In the second, programs are started until one gets the PID
    that the holder had. While that one lives the first process of that namespace tries the lock.
    """
    first = trial.child(lambda init: _first_boot(trial, init))
    number = int(first.hear() or 0)
    first.say("go down")
    first.wait()
    trial.expect_free_from(lambda: _second_boot(number))


@event(
    "time jump",
    expected=_HELD,
    rule="No lock of the kernel has an age. A time namespace shifts the clocks that count from the machine's start "
    "(time_namespaces(7)).",
    trials=(2, 100),
    shared=True,
)
def time_jump(trial: Trial) -> None:
    """While the holder lives the lock's files come to be dated a year back, and then a year ahead.

    Each time a process tries the lock whose clocks since the start of the machine have jumped a day ahead. The
    machine's own clock is not touched.
    """
    trial.hold()
    for years in (-1, 1):
        moment = time.time() + years * _YEAR
        for path in trial.site.directory.iterdir():
            os.utime(path, (moment, moment), follow_symlinks=False)
        try:
            trial.expect_held_from(lambda: clock.jump(_DAY))
        except NotPossible as error:
            trial.remark = f"the files alone: {error}"
            trial.expect_held()


def _fill(site: Site) -> None:
    descriptors: list[int] = []
    try:
        while True:
            descriptors.append(os.open(site.directory / f"filler.{len(descriptors)}", os.O_WRONLY | os.O_CREAT, 0o644))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    try:
        while True:
            os.write(descriptors[0], bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    for descriptor in descriptors:
        os.close(descriptor)


def _first_boot(trial: Trial, init: Child) -> None:
    def body(program: Child) -> None:
        lock = trial.take(program)
        hear(program, lock)

    namespace.enter("pid")
    for _ in range(trial.random.randrange(8)):
        Child(hear).close()
    holder = Child(body)
    holder.expect("held")
    init.say(str(holder.pid))
    init.expect("go down")


def _second_boot(number: int) -> None:
    namespace.enter("pid")
    while (program := Child(hear)).pid < number:
        program.close()
    if program.pid != number:
        raise Fault(f"PID {number} is not given out again, but {program.pid}")
