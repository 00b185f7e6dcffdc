"""What a service manager and a service say to each other; and a lock's name in the hands of the real systemd."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bindlock
from bindlock.linux import service
from bindlock.names import parse
from bindlock.proof.errors import NotPossible
from tests.actors import DEADLINE, Cast, Child, bindable, until
from tests.systemd import Reports, Systemd

EXAMPLES = Path(__file__).parents[1] / "examples" / "systemd"
SOURCE = str(Path(bindlock.__file__).parents[1])
#: The signal that tells the service below to take the lock out of the store.
REMOVE = "USR2"

#: A service with a lock: the one that it was passed, or else one that it acquires. It reports to sys.argv[1].
SERVICE = """
import os, signal, sys
import bindlock

path, name, *options = sys.argv[1:]
report = open(path, "w", buffering=1)
signals = {signal.SIGUSR2, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
lock = bindlock.Lock(name, timeout=0)
try:
    lock.adopt()
    report.write(f"adopted {lock.fileno()}\\n")
except bindlock.NotHeld:
    lock.acquire()
    if "store" in options:
        lock.store()
    report.write("acquired\\n")
if "fail" in options:
    sys.exit(1)
bindlock.notify("READY=1", f"STATUS=held: {lock.held}")
while signal.sigwait(signals) == signal.SIGUSR2:
    lock.unstore()
    report.write("removed\\n")
"""


# The protocol.


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[socket.socket]:
    """The socket of a service manager that does what the test does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        yield manager


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """Where NOTIFY_SOCKET is not set, or empty, a message is not sent, and that is said."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert not service.notify("READY=1")
    assert not service.barrier()


def test_a_message_is_one_datagram_with_its_descriptors(manager: socket.socket) -> None:
    """All lines of a message, and the descriptors, arrive together."""
    with socket.socket(socket.AF_UNIX) as lock:
        assert service.notify("FDSTORE=1", "FDNAME=bindlock", descriptors=[lock.fileno()])
        data, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
        (received,) = descriptors
        try:
            assert data == b"FDSTORE=1\nFDNAME=bindlock"
            assert os.fstat(received).st_ino == os.fstat(lock.fileno()).st_ino
        finally:
            os.close(received)


def test_the_service_manager_may_listen_at_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A NOTIFY_SOCKET with a slash is a path."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("notify")
        # As long as a path may be, through a link of our own: pytest's is too long on some machines.
        monkeypatch.setenv("NOTIFY_SOCKET", f"/proc/{os.getpid()}/cwd/notify")
        assert service.notify("STATUS=En attente de «backup»")
        assert manager.recv(4096).decode() == "STATUS=En attente de «backup»"


def test_a_service_manager_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A message that cannot be delivered raises OSError."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with pytest.raises(ConnectionRefusedError):
        service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    with pytest.raises(OSError, match="vsock:2:1234") as caught:
        service.notify("READY=1")
    assert caught.value.errno == errno.EAFNOSUPPORT


def test_a_line_is_one_line(manager: socket.socket) -> None:
    """A line break within a line, which would be another assignment, is refused before anything is sent."""
    with pytest.raises(ValueError, match="line break"):
        service.notify("STATUS=busy\nMAINPID=1")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1)


def test_a_service_manager_that_does_not_read_does_not_stop_us(manager: socket.socket) -> None:
    """When the manager's queue is full, notify() sleeps, and gives up after its time-out."""
    sent = 0
    before = time.process_time()
    try:
        while sent < 10_000:
            service.notify("STATUS=again", timeout=0.5)
            sent += 1
        pytest.fail("the queue has no end")
    except TimeoutError:
        pass
    assert time.process_time() - before < 0.4, "it spins"
    for _ in range(sent):
        assert manager.recv(4096) == b"STATUS=again"


def test_a_barrier_is_passed_when_the_manager_closes_it(manager: socket.socket) -> None:
    """barrier() returns when what it sent is closed, and TimeoutError says when that does not happen."""

    def body(child: Child) -> None:
        child.say(str(service.barrier()))

    with Child(body) as child:
        data, (theirs,), _, _ = socket.recv_fds(manager, 4096, 4)
        assert data == b"BARRIER=1"
        assert not child.heard_within(0.05)
        os.close(theirs)
        child.expect("True")
    with pytest.raises(TimeoutError):
        service.barrier(timeout=0.05)
    os.close(socket.recv_fds(manager, 4096, 4)[1][0])


# What is passed.

PASSED = """
import os
from bindlock.linux import service
try:
    passed = service.passed(unset=True)
    print(passed, [os.get_inheritable(descriptor) for descriptor, _ in passed])
except (OSError, ValueError) as error:
    print(type(error).__name__, str(error))
print([variable for variable in os.environ if variable.startswith("LISTEN_")], service.passed())
"""


def passed(cast: Cast, assignments: str, count: int = 2) -> list[str]:
    """What a process says that gets `count` descriptors from 3 on, and LISTEN_PID and other variables as assigned."""
    opened = " ".join(f"{number}</dev/null" for number in range(3, 3 + count))
    script = f'exec env LISTEN_PID=$$ PYTHONPATH={SOURCE} {assignments} "$0" -c "$1" {opened}'
    actor = cast.start("sh", "-c", script, sys.executable, PASSED)
    return [actor.read(), actor.read()]


def test_passed_descriptors_come_with_their_names(cast: Cast) -> None:
    """The descriptors from 3 on are listed with their names, are closed on exec, and are passed once."""
    said = passed(cast, "LISTEN_FDS=2 LISTEN_FDNAMES=bindlock: LISTEN_PIDFDID=7")
    assert said == ["[(3, 'bindlock'), (4, '')] [False, False]", "[] []"]


def test_passed_descriptors_without_names_are_unknown(cast: Cast) -> None:
    """Without LISTEN_FDNAMES a descriptor is called what sd_listen_fds_with_names(3) calls it."""
    assert passed(cast, "LISTEN_FDS=1") == ["[(3, 'unknown')] [False]", "[] []"]


@pytest.mark.parametrize("assignments", ["", "LISTEN_FDS=1 LISTEN_PID=1"])
def test_nothing_is_passed_without_the_variables_or_to_another(cast: Cast, assignments: str) -> None:
    """A process that the variables are not for, as a child of the service, was passed nothing."""
    assert passed(cast, assignments) == ["[] []", "[] []"]


@pytest.mark.parametrize(
    ("assignments", "variable"),
    [
        ("LISTEN_FDS=0", "LISTEN_FDS"),
        ("LISTEN_FDS=-1", "LISTEN_FDS"),
        ("LISTEN_FDS=1_0", "LISTEN_FDS"),
        ("LISTEN_FDS=", "LISTEN_FDS"),
        ("LISTEN_FDS=2147483647", "LISTEN_FDS"),
        ("LISTEN_FDS=99999999999999999999999", "LISTEN_FDS"),
        ("LISTEN_FDS=1 LISTEN_PID=me", "LISTEN_PID"),
        ("LISTEN_FDS=1 LISTEN_FDNAMES=a:b", "LISTEN_FDNAMES"),
    ],
)
def test_malformed_variables_are_an_error(cast: Cast, assignments: str, variable: str) -> None:
    """Variables that make no sense raise ValueError, and are removed all the same."""
    error, rest = passed(cast, assignments)
    assert error.startswith(f"ValueError {variable}=")
    assert rest == "[] []"


def test_descriptors_that_are_announced_and_not_there_are_an_error(cast: Cast) -> None:
    """A descriptor that is not open raises OSError, not "nothing was passed"."""
    error, rest = passed(cast, "LISTEN_FDS=3", count=2)
    assert "[Errno 9]" in error
    assert rest == "[] []"


# The real systemd.


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A system manager of the test's own."""
    manager = Systemd(tmp_path)
    try:
        manager.__enter__()
    except NotPossible as reason:
        pytest.skip(str(reason))
    try:
        yield manager
    finally:
        print(manager.said())
        manager.__exit__(None, None, None)


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    """What services of the test report."""
    with Reports(tmp_path / "reports") as reports:
        yield reports


class Waiters:
    """Connections queued at a name."""

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.queued: list[socket.socket] = []

    def join(self) -> int:
        """Queue one more: the PID of the holder by the kernel's word, which is that of the last listen(2)."""
        assert self.joined()
        credentials = self.queued[-1].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)

    def joined(self) -> bool:
        """Whether one more could queue."""
        connection = socket.socket(socket.AF_UNIX)
        if connection.connect_ex(self.address):
            connection.close()
            return False
        self.queued.append(connection)
        return True

    def hung_up(self, seconds: float = 0) -> list[bool]:
        """Which of them have been woken."""
        woken = []
        for connection in self.queued:
            poller = select.poll()
            poller.register(connection, 0)
            woken.append(bool(poller.poll(seconds * 1000)))
        return woken


@pytest.fixture
def waiters(name: str) -> Iterator[Waiters]:
    """Waiters of our lock `name`."""
    waiters = Waiters(parse(name).address)
    yield waiters
    for connection in waiters.queued:
        connection.close()


def example(unit: str, lock: str, name: str, command: str = "/bin/true", extra: str = "") -> str:
    """One of the examples, with another name of the lock, another command, and with more lines for [Service]."""
    stem = unit.partition(".")[0]
    text = (EXAMPLES / unit).read_text().replace(f"/usr/local/bin/{stem}", command)
    text = text.replace(f"bindlock/0/{lock}\n", f"bindlock/0/{name}\n").replace(f"run -n {lock} ", f"run -n {name} ")
    text = text.replace("/usr/bin/env bindlock ", f"{sys.executable} -m bindlock ")
    text = text.replace("RestartSec=1s", "RestartSec=10ms")
    return text.replace("[Service]\n", f'[Service]\nEnvironment="PYTHONPATH={SOURCE}"\n{extra}')


@pytest.fixture
def program(tmp_path: Path, reports: Reports, name: str) -> str:
    """The command line of the service above."""
    path = tmp_path / "service.py"
    path.write_text(SERVICE)
    return f"{sys.executable} {path} {reports.path} {name}"


@pytest.mark.parametrize("unit", sorted(path.name for path in EXAMPLES.iterdir()))
def test_systemd_understands_the_examples(tmp_path: Path, unit: str) -> None:
    """systemd-analyze(1) has no complaint about an example."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze(1) (Debian's package systemd)")
    for path in EXAMPLES.iterdir():
        (tmp_path / path.name).write_text(example(path.name, "", ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        cwd=tmp_path, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE,
    )  # fmt: skip
    ours = [line for line in done.stdout.splitlines() if unit.partition(".")[0] in line]
    assert (done.returncode, ours) == (0, [])


def test_a_service_under_bindlock_run_is_the_main_process(systemd: Systemd, reports: Reports, name: str) -> None:
    """The command of ``bindlock run`` is the unit's main process, and the holder; a second one ends, with 75."""
    told = f"ExecStopPost=/bin/sh -c 'echo %N $SERVICE_RESULT $EXIT_STATUS $MAINPID. >{reports.path}'\n"
    for unit in ("first.service", "second.service"):
        systemd.unit(unit, example("backup.service", "backup", name, "/bin/sleep infinity", told))
    systemd.ctl("start", "first.service")
    until(lambda: bindlock.holder(name))
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == systemd.main("first.service")
    systemd.ctl("start", "second.service")
    reports.expect("second success 75 .")
    systemd.until("second.service", "ActiveState", "inactive")
    assert systemd.property("first.service", "ActiveState") == "active"
    systemd.ctl("stop", "first.service")
    reports.expect("first success TERM .")
    assert bindlock.holder(name) is None


def test_a_socket_unit_has_the_name_before_and_after_its_service(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """The first waiter starts the service; it, and all others, wait on through a restart; systemd accepts nobody."""
    systemd.unit("gateway.service", example("gateway.service", "gateway", name, program))
    systemd.unit("gateway.socket", example("gateway.socket", "gateway", name))
    systemd.ctl("start", "gateway.socket")
    assert waiters.join() == systemd.pid
    reports.expect("adopted 3")
    systemd.until("gateway.service", "ActiveState", "active")
    assert systemd.property("gateway.service", "StatusText") == "held: True"
    first = systemd.main("gateway.service")
    assert waiters.join() == first

    systemd.ctl("restart", "gateway.service")
    reports.expect("adopted 3")
    assert waiters.hung_up() == [False] * 2
    assert not Path(f"/proc/{first}").exists()
    assert waiters.join() == systemd.main("gateway.service")

    systemd.ctl("stop", "gateway.service")  # not for long: somebody waits
    reports.expect("adopted 3")
    waiters.queued.pop().close()
    systemd.ctl("stop", "gateway.socket", "gateway.service")
    assert waiters.hung_up(DEADLINE) == [True] * 2


def test_a_socket_unit_keeps_the_name_of_a_service_that_fails(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """With the limits of the example, a service that fails again and again does not cost the name."""
    text = example("gateway.service", "gateway", name, program + " fail")
    systemd.unit("gateway.service", text)
    systemd.unit("gateway.socket", example("gateway.socket", "gateway", name))
    systemd.ctl("start", "gateway.socket")
    waiters.join()
    reports.expect(*["adopted 3"] * 7)
    assert waiters.hung_up() == [False]
    systemd.unit("gateway.service", text.replace("StartLimitIntervalSec=0", ""))
    assert waiters.hung_up(DEADLINE) == [True], "the example's caveat"
    systemd.until("gateway.socket", "Result", "service-start-limit-hit")


def test_flushing_hangs_up_on_waiters(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """With FlushPending=yes the stop of the service wakes those who wait; the name is not free; it stays stopped."""
    systemd.unit("gateway.service", example("gateway.service", "gateway", name, program))
    systemd.unit("gateway.socket", example("gateway.socket", "gateway", name).replace("no\n", "no\nFlushPending=yes\n"))
    systemd.ctl("start", "gateway.socket")
    waiters.join()
    reports.expect("adopted 3")
    systemd.until("gateway.service", "ActiveState", "active")
    systemd.ctl("stop", "gateway.service")
    assert waiters.hung_up(DEADLINE) == [True]
    systemd.ctl("daemon-reload")  # it has dealt with all that came before
    assert systemd.property("gateway.service", "ActiveState") == "inactive"
    assert not bindable(name)


def test_a_look_is_enough_to_start_the_service(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """A connection that is closed at once starts the service, and, still in the queue, again after each stop."""
    systemd.unit("gateway.service", example("gateway.service", "gateway", name, program))
    systemd.unit("gateway.socket", example("gateway.socket", "gateway", name))
    systemd.ctl("start", "gateway.socket")
    waiters.join()
    waiters.queued.pop().close()
    for _ in range(2):
        reports.expect("adopted 3")
        systemd.until("gateway.service", "ActiveState", "active")
        systemd.ctl("stop", "gateway.service")
    reports.expect("adopted 3")


def test_the_descriptor_store_keeps_the_name_over_a_crash_and_a_restart(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """A lock in the store comes back to the next start, with all who wait; systemctl stop lets it go."""
    systemd.unit("worker.service", example("worker.service", "", name, program + " store"))
    systemd.ctl("start", "worker.service")
    reports.expect("acquired")
    first = systemd.main("worker.service")
    assert waiters.join() == first
    assert systemd.property("worker.service", "NFileDescriptorStore") == "1"

    systemd.ctl("kill", "--signal=KILL", "worker.service")
    until(lambda: not Path(f"/proc/{first}").exists())
    assert waiters.join() == first  # while nobody runs
    reports.expect("adopted 3")
    systemd.until("worker.service", "ActiveState", "active")
    assert systemd.property("worker.service", "StatusText") == "held: True"
    systemd.ctl("restart", "worker.service")
    systemd.ctl("daemon-reexec")
    reports.expect("adopted 3")
    assert waiters.hung_up() == [False] * 2
    assert waiters.join() == systemd.main("worker.service")
    systemd.ctl("stop", "worker.service")
    assert waiters.hung_up(DEADLINE) == [True] * 3
    assert bindlock.holder(name) is None


def test_a_lock_out_of_the_store_goes_with_the_service(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """After FDSTOREREMOVE=1 and the barrier only the service has the lock, and its death frees it."""
    systemd.unit("worker.service", example("worker.service", "", name, program + " store"))
    systemd.ctl("start", "worker.service")
    reports.expect("acquired")
    waiters.join()
    systemd.ctl("kill", f"--signal={REMOVE}", "worker.service")
    reports.expect("removed")
    assert systemd.property("worker.service", "NFileDescriptorStore") == "0"
    os.kill(systemd.main("worker.service"), signal.SIGKILL)
    assert waiters.hung_up(DEADLINE) == [True]
    reports.expect("acquired")


def test_without_a_store_the_lock_is_not_kept(
    systemd: Systemd, reports: Reports, waiters: Waiters, program: str, name: str
) -> None:
    """Without FileDescriptorStoreMax= what is sent is closed by systemd, and the name goes with the service."""
    text = example("worker.service", "", name, program + " store").replace("FileDescriptorStoreMax=1\n", "")
    systemd.unit("worker.service", text)
    systemd.ctl("start", "worker.service")
    reports.expect("acquired")
    waiters.join()
    systemd.ctl("restart", "worker.service")
    reports.expect("acquired")
    assert waiters.hung_up() == [True]


def test_two_system_managers_run_side_by_side(systemd: Systemd, tmp_path: Path, name: str) -> None:
    """Two system managers of the tests know nothing of each other, and share the names."""
    systemd.unit("gateway.socket", example("gateway.socket", "gateway", name))
    systemd.unit("gateway.service", example("gateway.service", "gateway", name))
    systemd.ctl("start", "gateway.socket")
    with Systemd(tmp_path) as other:
        assert other.property("gateway.socket", "LoadState") == "not-found"
        other.unit("gateway.socket", example("gateway.socket", "gateway", name))
        other.unit("gateway.service", example("gateway.service", "gateway", name))
        assert "failed" in other.ctl("start", "gateway.socket", check=False)
        systemd.ctl("stop", "gateway.socket")
        other.ctl("start", "gateway.socket")


def test_systemd_socket_activate_passes_the_name(cast: Cast, reports: Reports, waiters: Waiters, program: str) -> None:
    """systemd-socket-activate(1) does as a socket unit does: the way to try such a service by hand."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("there is no systemd-socket-activate(1) (Debian's package systemd)")
    address = waiters.address[1:].decode()
    actor = cast.start(
        "systemd-socket-activate", f"--listen=@{address}", "--fdname=bindlock", f"--setenv=PYTHONPATH={SOURCE}",
        *program.split(), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(waiters.joined)
    reports.expect("adopted 3")
    assert waiters.join() == actor.pid, "without --accept it becomes the command"
    actor.kill()
    assert waiters.hung_up(DEADLINE) == [True, True]
