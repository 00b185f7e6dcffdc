"""Control groups of our own (cgroups(7)), made and removed."""

from __future__ import annotations

import errno
import os
import select
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.errors import Fault, NotPossible
from bindlock.proof.process import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator


_PREFIX = "bindlock-"


def unified(controller: str = "") -> Path:
    """Where groups of version 2 can be made: in the group that we are in, or the next above it that has `controller`.

    Raises NotPossible when there is none.
    """
    mounted = next((path for path in _mounts("cgroup2") if (path / "cgroup.controllers").exists()), None)
    if mounted is None:
        raise NotPossible("no cgroup v2 is mounted here")
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = mounted / line.removeprefix("0::").strip().lstrip("/")
            for path in (own, *own.parents):
                if not path.is_relative_to(mounted) or not path.exists():
                    continue
                if not controller or controller in (path / "cgroup.subtree_control").read_text().split():
                    return path
    if controller:
        raise NotPossible(f"the {controller} controller of cgroup v2 is not enabled here")
    return mounted


def version_1(controller: str) -> Path:
    """Where groups of version 1 can be made. Raises NotPossible when there is no such hierarchy."""
    for path in _mounts("cgroup"):
        if path.name == controller or controller in path.name.split(","):
            return path
    raise NotPossible(f"no cgroup v1 hierarchy for {controller} is mounted here")


@contextmanager
def cgroup(parent: Path, name: str) -> Iterator[Path]:
    """A group of our own, for as long as the block runs. Raises NotPossible when none can be made there."""
    group = parent / f"{_PREFIX}{name}"
    try:
        group.mkdir()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        raise NotPossible(f"no cgroup can be made here ({error.strerror})") from None
    try:
        yield group
    finally:
        _end(group)


def sweep(prefix: str) -> None:
    """Remove all groups whose names begin so, and end what is in them: what a killed worker left."""
    for mount in (*_mounts("cgroup"), *_mounts("cgroup2")):
        for folder, names, _ in os.walk(mount):  # which passes over what vanishes meanwhile
            for name in names:
                if name.startswith(f"{_PREFIX}{prefix}-"):
                    _end(Path(folder, name))


def _end(group: Path) -> None:
    for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0"), ("cgroup.kill", "1")):
        if (group / file).exists():
            (group / file).write_text(value)
    until(lambda: _removed(group), "removed")


def _removed(group: Path) -> bool:
    """Whether the group could be removed: that works a moment after its last process is gone."""
    try:
        os.rmdir(group)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def move(group: Path, pid: int) -> None:
    """Put a process into the group; 0 is the caller. Raises NotPossible where that is not delegated to us."""
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except PermissionError as error:
        raise NotPossible(f"no process can be put into a cgroup here ({error.strerror})") from None


def wait_for(group: Path, line: str) -> None:
    """Sleep until the group's cgroup.events has that line."""
    with (group / "cgroup.events").open() as events:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        end = time.monotonic() + DEADLINE
        while line not in events.read():
            if time.monotonic() > end or not poller.poll(1000 * DEADLINE):
                raise Fault(f"cgroup.events does not say {line!r}")
            events.seek(0)


def _mounts(kind: str) -> list[Path]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in lines if fields[2] == kind]
