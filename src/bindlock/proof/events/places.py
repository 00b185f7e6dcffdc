"""The holder is in the usual place; who tries the lock is in another."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from bindlock.proof.errors import NotPossible
from bindlock.proof.event import event
from bindlock.proof.kernel import loopback, namespace
from bindlock.proof.kernel.user import become_nobody

if TYPE_CHECKING:
    from pathlib import Path

    from bindlock.proof.trial import Trial

_EXPECTED = "Held: the other one is refused."


# All of these are `shared`: who may not make a namespace has a user namespace made around it, in which the uid is 0.
@event(
    "other mount namespace",
    expected=_EXPECTED,
    rule="The kernel looks a path up in the mounts of who asks (mount_namespaces(7); path_init, fs/namei.c): the same "
    "path leads to another inode. Abstract names and ports are no paths; their tables are the network namespace's.",
    trials=(2, 200),
    shared=True,
)
def mount_namespace(trial: Trial) -> None:
    """The holder lives. A process with a mount namespace of its own tries the lock.

    An empty file system is mounted there over the directory of the lock's files: as containers, and services with
    PrivateTmp=, have a /run or a /tmp of their own.
    """

    def place() -> None:
        namespace.enter("mount")
        namespace.mount_tmpfs(trial.site.directory)

    trial.hold()
    trial.expect_held_from(place)


@event(
    "other PID namespace",
    expected=_EXPECTED,
    rule="kill(2) looks the number up in the PID namespace of who asks (find_vpid, kernel/pid.c; pid_namespaces(7)): "
    "the holder has no number there, and its number may be somebody else's. Files, names and ports are the same.",
    trials=(2, 100),
    shared=True,
)
def pid_namespace(trial: Trial) -> None:
    """The holder lives. The first process of a new PID namespace, with a /proc of its own, tries the lock."""
    trial.hold()
    trial.expect_held_from(lambda: namespace.enter("pid"))


@event(
    "other user namespace",
    expected=_EXPECTED,
    rule="A user namespace changes what a process may do, and which number its user has, not what it looks things up "
    "in (user_namespaces(7)): inodes, abstract names and ports are the same.",
    trials=(2, 200),
    shared=True,
)
def user_namespace(trial: Trial) -> None:
    """The holder lives. A process of the same user, which is root in a new user namespace, tries the lock."""
    trial.hold()
    trial.expect_held_from(lambda: namespace.enter("user"))


@event(
    "other network namespace",
    expected=_EXPECTED,
    rule="The kernel has one table of abstract names, and one of ports, for each network namespace "
    "(unix_find_socket_byname, net/unix/af_unix.c; inet_csk_get_port; network_namespaces(7)): in another one the name "
    "is free. The path of a Unix socket is looked up in the file system, and so leads there from any namespace.",
    trials=(2, 100),
    shared=True,
)
def network_namespace(trial: Trial) -> None:
    """The holder lives. A process in a new network namespace, whose loopback interface is up, tries the lock."""

    def place() -> None:
        namespace.enter("network")
        loopback.bring_up()

    trial.hold()
    trial.expect_held_from(place)


@event(
    "another user",
    expected=_EXPECTED,
    rule="An abstract name has no owner and no mode (unix_bind_abstract). A file has: it is created with what the "
    "umask leaves, as 0644, and who may not write to it is refused by open(2) (inode_permission, fs/namei.c), with "
    "fs.protected_regular also where the mode allows it (may_create_in_sticky; proc_sys_fs(5)). kill(2) of somebody "
    "else's process is EPERM, which says that it lives. SO_REUSEPORT is for one user only (sk_reuseport_match).",
    trials=(2, 200),
    shared=True,
)
def another_user(trial: Trial) -> None:
    """The holder lives. A process of another user, without any privilege, tries the lock.

    The directory of the lock's files is as /run/lock and /tmp are: everybody may create files in it, and remove only
    their own (mode 1777).
    """
    only_root()

    def place() -> None:
        rehearse(trial)
        become_nobody()

    trial.hold()
    trial.expect_held_from(place)


@event(
    "chroot",
    expected=_EXPECTED,
    rule="A path begins at the root of who asks (set_root, fs/namei.c; chroot(2)): the same path leads to another "
    "inode. Abstract names and ports are no paths.",
    trials=(2, 200),
    shared=True,
)
def chroot(trial: Trial) -> None:
    """The holder lives. A process whose root directory is another one tries the lock.

    In that root there is nothing but the directory for the lock's files, empty, as an image of a container has a /run.
    """
    root = trial.site.directory / "root"

    def place() -> None:
        rehearse(trial)
        _chroot(root)

    trial.hold()
    root.mkdir(0o755)  # ours, or it fails
    (root / trial.site.directory.relative_to("/")).mkdir(parents=True)
    trial.expect_held_from(place)


def _chroot(root: Path) -> None:
    try:
        try:
            os.chroot(root)
        except PermissionError:
            namespace.enter("user")
            os.chroot(root)
    except PermissionError as error:
        raise NotPossible(f"no chroot is allowed here ({error})") from None
    os.chdir("/")


def only_root() -> None:
    """Raises NotPossible for who cannot become another user."""
    if os.geteuid():
        raise NotPossible("needs root, to become another user")


def rehearse(trial: Trial) -> None:
    """Have another lock of this kind, and be refused it: a library may load parts of itself only then.

    It could not any more as another user, or in another root.
    """
    directory = trial.site.directory / f"r.{os.getpid()}"
    site = replace(trial.site, name=f"{trial.site.name}-rehearsal", directory=directory)
    directory.mkdir()
    locks = [lock for lock in (trial.kind(site), trial.kind(site)) if lock.acquire()]
    for lock in locks:
        with suppress(FileNotFoundError):  # both had it, for one process is no two, and the other has removed it
            lock.release()
    shutil.rmtree(directory)
