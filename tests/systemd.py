"""The real systemd for tests: a system manager of its own, PID 1 of a PID namespace, that the machine knows nothing of.

It shares with the test the network namespace, and so the table of abstract names: the test can wait for what a service
holds. All else is its own: processes, mounts, control groups, /run, /etc and /dev. The unit files of the machine are
not read. /proc/sys and /sys are read-only to it, and it lacks the capabilities that reach out of namespaces.

It needs root, cgroup v2 (mounted anywhere; no controllers), and Debian's packages systemd and util-linux (unshare,
setpriv, nsenter). It is up within a fifth of a second. If the test is killed, so is all of it; an empty control group
is left.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.errors import NotPossible
from bindlock.proof.kernel.cgroup import unified
from tests.actors import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

MANAGERS = (Path("/usr/lib/systemd/systemd"), Path("/lib/systemd/systemd"))
_PROGRAMS = ("systemctl", "unshare", "setpriv", "nsenter")
#: Not: to set up the loopback interface of the network namespace we share, the clock, modules, devices, audit, kmsg.
_DROPPED = "-net_admin,-sys_time,-sys_module,-sys_rawio,-mknod,-syslog,-audit_control,-audit_read,-mac_admin"

#: Run as PID 1. The old /proc still tells the number that the test knows us by.
_BOOT = """
read -r pid rest </proc/self/stat
echo "pid $pid"
echo 0 >"$group/cgroup.procs"
mount -t proc proc /proc
exec unshare --cgroup sh -euc "$furnish"
"""
_FURNISH = """
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -o remount,bind,ro /sys
for path in /proc/sys /proc/sysrq-trigger; do
    [ -e $path ] || continue
    mount --bind $path $path
    mount -o remount,bind,ro $path
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/generators /run/etc /run/dev
for file in passwd group nsswitch.conf ld.so.cache alternatives; do
    [ ! -e /etc/$file ] || cp -a /etc/$file /run/etc/
done
echo "$machine" >/run/etc/machine-id
for device in null zero full random urandom tty; do
    : >/run/dev/$device
    mount --bind /dev/$device /run/dev/$device
done
: >/run/dev/console
mount --bind "$console" /run/dev/console
mount --bind /run/etc /etc
mount --rbind /run/dev /dev
ln -s /proc/self/fd /dev/fd
exec env -i PATH="$PATH" container=bindlock NOTIFY_SOCKET="$notify" SYSTEMD_LOG_COLOR=0 TERM=dumb \
    SYSTEMD_UNIT_PATH="$units" \
    SYSTEMD_GENERATOR_PATH=/run/generators SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/generators \
    setpriv --bounding-set="$dropped" \
    "$manager" --system --unit=test.target --show-status=no --log-target=console --log-level=warning
"""
#: What every unit wants, or is wanted by; and what services write goes to the console, for there is no journal.
_TARGETS = ("basic", "multi-user", "shutdown", "sockets", "sysinit", "test", "timers", "umount")
_UNITS = {
    **{f"{target}.target": "[Unit]\nDescription=Empty\n" for target in _TARGETS},
    "service.d/console.conf": "[Service]\nStandardOutput=tty\nStandardError=tty\n",
}


class Systemd:
    """A system manager, for a `with` block, at whose end it and all of its services are gone.

    `folder` must be seen by it: not in /run, /etc or /dev. Raises NotPossible, with the reason, where it cannot be had.
    """

    def __init__(self, folder: Path) -> None:
        self.units = folder / f"units-{uuid.uuid4().hex[:8]}"
        #: Its number in the test's PID namespace.
        self.pid = 0
        self._said = b""
        self._stack = ExitStack()

    def __enter__(self) -> Systemd:
        _check()
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.said())
        self._stack.close()

    def unit(self, name: str, text: str) -> None:
        """Write a unit file, and have it read, anew if need be."""
        path = self.units / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.ctl("daemon-reload")

    def ctl(self, *arguments: str, check: bool = True) -> str:
        """What systemctl(1) prints; it waits for jobs to end. Fails the test when it fails, unless `check` is False."""
        done = subprocess.run(
            self.inside("systemctl", "--no-pager", "--no-ask-password", *arguments),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"systemctl {arguments}: {done.stdout}\n{self.said()}"
        return done.stdout.strip()

    def property(self, unit: str, name: str) -> str:
        """One property of a unit, as systemctl(1) shows it. PIDs are those of its own PID namespace: see `main`."""
        return self.ctl("show", "--value", f"--property={name}", "--", unit)

    def until(self, unit: str, name: str, value: str) -> None:
        """Ask until a property has that value: for what no service of the test's reports itself."""
        until(lambda: self.property(unit, name) == value)

    def main(self, unit: str) -> int:
        """The main process of a service, by its number in the test's PID namespace; 0 when there is none."""
        return self.outside(int(self.property(unit, "MainPID")))

    def outside(self, pid: int) -> int:
        """The number that the test knows a process of its PID namespace by; 0 when there is none."""
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                lines = (folder / "status").read_text().splitlines()
                numbers = next(line.split()[1:] for line in lines if line.startswith("NSpid:"))
                if len(numbers) > 1 and int(numbers[-1]) == pid and os.readlink(folder / "ns/pid") == space:
                    return int(folder.name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # gone since
        return 0

    def inside(self, *command: str) -> list[str]:
        """The command, to be run in its namespaces."""
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--", *command]

    def said(self) -> str:
        """Warnings of its own, and what its services wrote."""
        while select.select([self._console], [], [], 0)[0]:
            self._said += os.read(self._console, 65536)
        return self._said.decode(errors="replace")

    def _start(self) -> None:
        self.units.mkdir()
        self._stack.callback(shutil.rmtree, self.units)
        for name, text in _UNITS.items():
            (self.units / name).parent.mkdir(exist_ok=True)
            (self.units / name).write_text(text)
        group = self._stack.enter_context(_group())
        self._console = self._console_of_its_own()
        ready = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ready.bind("")
        environment = {
            "PATH": os.environ["PATH"], "group": str(group), "units": str(self.units), "machine": uuid.uuid4().hex,
            "console": self._console_name, "notify": "@" + ready.getsockname()[1:].decode(), "furnish": _FURNISH,
            "dropped": _DROPPED, "manager": str(_manager()),
        }  # fmt: skip
        first = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--ipc", "--uts", "--pid",
             "--fork", "--kill-child=KILL", "sh", "-euc", _BOOT],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, bufsize=0,
        )  # fmt: skip
        self._stack.enter_context(first)
        self._stack.callback(self._stop, first)
        self._wait_for(ready, first)

    def _console_of_its_own(self) -> int:
        ours, theirs = os.openpty()
        self._stack.callback(os.close, ours)
        self._stack.callback(os.close, theirs)  # open as long as ours: else reading it fails while nobody has it open
        self._console_name = os.ttyname(theirs)
        return ours

    def _wait_for(self, ready: socket.socket, first: subprocess.Popen[bytes]) -> None:
        """Sleep until it says READY=1, to the socket that PID 1 finds in NOTIFY_SOCKET in a container."""
        said = b""
        end = time.monotonic() + DEADLINE
        out = first.stdout
        assert out is not None
        waiting = [out.fileno(), ready.fileno()]  # in this order: its number is said first
        while time.monotonic() < end:
            for source in select.select(waiting, [], [], end - time.monotonic())[0]:
                if source == out.fileno():
                    data = os.read(source, 65536)
                    said += data
                    if said.startswith(b"pid ") and b"\n" in said:
                        self.pid = int(said.split()[1])
                    if not data:
                        first.wait(DEADLINE)
                        raise NotPossible(f"systemd ended with {first.returncode}: {_tail(said)}; {self.said()}")
                elif b"READY=1" in ready.recv(65536).split(b"\n"):
                    return
        raise NotPossible(f"systemd was not ready after {DEADLINE:g} s: {_tail(said)}; {self.said()}")

    def _stop(self, first: subprocess.Popen[bytes]) -> None:
        """Kill PID 1: it can be reaped when all others of its namespace are gone (pid_namespaces(7))."""
        if self.pid and first.poll() is None:
            os.kill(self.pid, 9)
        elif first.poll() is None:
            first.kill()
        first.wait(DEADLINE)


class Reports:
    """A named pipe that services write lines to, and the test reads them from. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rest = b""

    def __enter__(self) -> Reports:
        os.mkfifo(self.path)
        self._pipe = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)  # for writing, too: it has no end, whoever leaves
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._pipe)

    def read(self, deadline: float = DEADLINE) -> str:
        """The next line; fails the test after the deadline."""
        while b"\n" not in self._rest:
            assert select.select([self._pipe], [], [], deadline)[0], f"no service said anything for {deadline} s"
            self._rest += os.read(self._pipe, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def expect(self, *lines: str) -> None:
        """Read as many lines and compare."""
        assert [self.read() for _ in lines] == list(lines)


@contextmanager
def _group() -> Iterator[Path]:
    group = unified() / f"bindlock-systemd-{uuid.uuid4().hex[:12]}"
    try:
        group.mkdir()
    except OSError as error:
        raise NotPossible(f"no cgroup can be made here ({error.strerror})") from None
    try:
        yield group
    finally:
        until(lambda: _removed(group))


def _removed(group: Path) -> bool:
    """Whether the group could be removed, and those in it: that works a moment after its last process is gone."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _manager() -> Path | None:
    return next((path for path in MANAGERS if path.exists()), None)


def _check() -> None:
    if os.geteuid() != 0:
        raise NotPossible("a system manager of our own needs root")
    if _manager() is None:
        raise NotPossible(f"there is no {MANAGERS[0]} (Debian's package systemd)")
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            raise NotPossible(f"there is no {program}(1) (Debian's packages systemd and util-linux)")


def _tail(said: bytes) -> str:
    return said.decode(errors="replace").strip()[-1000:]
