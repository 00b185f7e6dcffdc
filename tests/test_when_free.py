"""When the name is free: every event of the proof, and what no event is about.

"Free" is asked of the kernel twice: by a bare bind, the moment that waitpid or a pidfd says dead, and by the lock.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

import bindlock
from bindlock.proof.errors import NotPossible
from bindlock.proof.events import ALL
from bindlock.proof.kernel import cgroup, io_uring
from bindlock.proof.kernel.call import LIBC as LIBC
from bindlock.proof.kernel.call import die_with_parent as die_with_parent
from bindlock.proof.process import state as state
from bindlock.proof.run import Plan, run
from bindlock.proof.trial import Outcome
from tests.actors import DEADLINE, Child, bindable, gone, until
from tests.conftest import needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bindlock.proof.event import Event
    from tests.actors import Actor, Cast

    Body = Callable[[Child], object]

CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
SYSCALLS = {
    "x86_64": {"accept": 288, "poll": 7, "epoll_wait": 232, "clock_nanosleep": 230},
    "aarch64": {"accept": 242, "poll": 73, "epoll_wait": 22, "clock_nanosleep": 115},
}.get(platform.machine(), {})


# Every event.


@dataclass(frozen=True)
class Expected:
    """What the trials of an event come to, at worst; several where it is a matter of the instant."""

    #: Asked by a bare bind and by the lock, both without patience. Empty: that makes no sense.
    kernel: tuple[Outcome, ...]
    #: Asked by the lock alone.
    lock: tuple[Outcome, ...]
    why: str = ""
    #: Fewer trials: in each the lock takes its whole grace.
    slow: bool = False

    def trials(self, event: Event, long: bool) -> int:
        """How many are to be made."""
        quick, full = event.trials
        trials = full if long else max(quick, full // 20)
        return max(1, trials // 10) if self.slow else trials


RIGHT, LATE, STALE, DOUBLE = (Outcome.RIGHT,), (Outcome.LATE,), (Outcome.STALE,), (Outcome.DOUBLE,)
#: What is not here is right: the kernel has the name free the moment that the event says so.
EXPECTED = {
    # The kernel is late, and the lock's grace makes good for it.
    "fork-exec-gap": Expected(LATE + RIGHT, RIGHT, "a child of system(3) has a copy until its exec"),
    "in-cycle": Expected(LATE + RIGHT, RIGHT, "freed by the kernel's collector, which the refusal itself starts"),
    "io-uring-pending": Expected(LATE + RIGHT, RIGHT, "freed by a worker of the kernel, after the death"),
    # The kernel is late, and the holder lives, so there is no grace; being asked who holds it ends the accept().
    "released-during-accept": Expected(LATE, LATE + RIGHT, "accept() has a reference until it returns"),
    # What the documentation owns up to.
    "forked-child-of-c": Expected(STALE, STALE, "Python's hooks do not see the fork, so nothing drops it", slow=True),
    "closed-by-others": Expected(DOUBLE, DOUBLE, "a descriptor that is closed is closed; the holder's Lost says so"),
    "dropped": Expected(DOUBLE, DOUBLE, "the lock is its object; there is a warning"),
    "network-namespace": Expected(DOUBLE, DOUBLE, "each network namespace has names of its own"),
    # Right, with something to say about how it is tried.
    "crowd": Expected((), RIGHT, "the bare binds of 50 get into the way of each other"),
    "crowd-after-kill": Expected((), RIGHT, "the same"),
    "in-flight": Expected(RIGHT, RIGHT, "who listened is gone, and the name held", slow=True),
    "ptraced-exit": Expected(RIGHT, RIGHT, "on its way out, and the name held", slow=True),
    "frozen-v1": Expected(RIGHT, RIGHT, "killed, and the name held", slow=True),
}
#: bindlock, and the same without any patience.
LOCK, STRICT = "bindlock", str(Path(__file__).with_name("strict.py"))


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.key)
def test_every_event(event: Event, long: bool, seed: int) -> None:
    """Whatever happens to a holder, the kernel and the lock say of the name what is expected of them."""
    expected = EXPECTED.get(event.key, Expected(RIGHT, RIGHT))
    trials = expected.trials(event, long)
    plan = Plan([LOCK, STRICT] if expected.kernel else [LOCK], [event], quick=False, seed=seed, trials=trials, jobs=2)
    cells = run(plan, lambda *_: None, lambda _: None)
    print(*cells, sep="\n")
    for cell, outcomes in zip(cells, (expected.lock, expected.kernel)[: len(plan.locks)], strict=True):
        if cell.outcome is None:
            pytest.skip(cell.reason)
        assert cell.outcome in outcomes, expected.why
        assert cell.trials == trials or cell.reason


def test_what_is_expected_is_of_events() -> None:
    """No event that is expected to be special is unknown."""
    assert EXPECTED.keys() <= {event.key for event in ALL}


# What no event is about.


@pytest.fixture
def trials(long: bool) -> int:
    """How many deaths make "always"."""
    return 5000 if long else 100


@pytest.mark.parametrize(
    ("last_words", "status"),
    [
        ("sys.exit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("raise ZeroDivisionError", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("os.execvp('true', ['true'])", 0),
        ("threading.Thread(target=os._exit, args=(5,)).start(); signal.pause()", 5),
    ],
)
def test_free_however_a_program_ends(cast: Cast, name: str, last_words: str, status: int) -> None:
    """However a program ends that never released, the name is free when its parent is told."""
    code = f"""
        import os, resource, signal, sys, threading, bindlock
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stderr = open(os.devnull, "w")
        lock = bindlock.Lock(sys.argv[1])
        lock.acquire()
        print("held", flush=True)
        sys.stdin.readline()
        {last_words}
    """
    actor = cast.python("if True:" + code, name)
    actor.expect("held")
    assert not bindable(name)
    actor.write()
    assert actor.wait() == status
    assert bindable(name)
    take(name)


@pytest.mark.parametrize("threads", [1, 9])
@pytest.mark.parametrize("doing", ["accept", "poll"])
def test_free_when_threads_were_inside_the_socket(name: str, trials: int, threads: int, doing: str) -> None:
    """Killed while its threads are inside a system call on the socket, the holder frees the name with its death."""

    def body(child: Child) -> None:
        sys.setswitchinterval(1e-4)
        lock = hold(child, name, say=False)
        work = accept_on if doing == "accept" else poll_on
        for _ in range(threads - 1):
            threading.Thread(target=work, args=(lock,), daemon=True).start()
        child.say("held")
        work(lock)

    def end(child: Child) -> None:
        # Not all of them: who lists all locks of the machine just now connects, and some calls return.
        until(lambda: in_call(child.pid, doing) >= 1 or bindlock_looked(name))
        child.signal(signal.SIGKILL)

    never_late(name, trials // 4, body, end)


def test_a_holder_without_its_first_thread_is_named(cast: Cast, name: str) -> None:
    """A holder whose first thread has ended is shown as a zombie, and found as the holder nevertheless."""
    actor = cast.python(
        "import ctypes, sys, threading, bindlock\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "lock = bindlock.Lock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print('held', flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)",
        name,
    )
    actor.expect("held")
    until(lambda: state(actor.pid) == "Z")
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == actor.pid
    assert actor.kill() == -signal.SIGKILL
    take(name)


def test_free_with_5000_descriptors(name: str, trials: int) -> None:
    """A holder with thousands of descriptors is no later than others."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if 0 <= hard < 5100:
        pytest.skip(f"only {hard} descriptors are allowed here (ulimit -Hn)")

    def body(child: Child) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (5100, hard))
        null = os.open(os.devnull, os.O_RDONLY)
        for _ in range(2500):
            os.dup(null)
        hold(child, name, say=False)
        for _ in range(2500):
            os.dup(null)
        child.say("held")
        child.hear()

    never_late(name, trials // 5, body, kill)


def test_a_zombie_that_nobody_reaps_is_no_holder(name: str) -> None:
    """A dead holder that its parent does not reap is not shown as the holder."""
    with Child(idle(name)) as child:
        child.expect("held")
        child.signal(signal.SIGKILL)
        assert gone(child.pid)
        assert state(child.pid) == "Z"
        assert bindlock.holder(name) is None


@needs_root
@pytest.mark.parametrize("who", ["init", "another"])
def test_free_with_the_init_of_its_pid_namespace(name: str, trials: int, who: str) -> None:
    """When the first process of a PID namespace is killed, the names of all its processes are free with it."""

    def body(child: Child) -> None:
        need(LIBC.unshare(CLONE_NEWPID), "unshare")
        first = os.fork()
        if first:
            child.say(str(first))
            os.waitpid(first, 0)
            return
        die_with_parent()
        if who == "another" and os.fork():
            signal.pause()
        child.hear()
        hold(child, name)
        signal.pause()

    late = 0
    for _ in range(trials // 10):
        with Child(body) as child, process(int(child.hear())) as init:
            child.say("")
            child.expect("held")
            signal.pidfd_send_signal(init, signal.SIGKILL)
            assert select.select([init], [], [], DEADLINE)[0]
            late += not bindable(name)
            child.wait()
    assert late == 0
    take(name)


def test_kill_ends_a_core_dump(cast: Cast, name: str, tmp_path: Path) -> None:
    """A holder that is killed while it dumps core is free at once, the dump cut short."""
    actor = dumper(cast, name, tmp_path, megabytes=800)
    until(lambda: dumping(actor.pid))
    assert not bindable(name)
    actor.signal(signal.SIGKILL)
    actor.wait()
    assert bindable(name)
    assert remove_core(tmp_path) < 800 << 20
    take(name)


@needs_root
def test_held_while_a_file_system_does_not_answer(name: str, tmp_path: Path) -> None:
    """A killed holder whose thread waits for a file system (FUSE, NFS) holds until that answers."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error.strerror}")

    def body(child: Child) -> None:
        need(LIBC.unshare(CLONE_NEWNS), "unshare")
        need(LIBC.mount(b"none", b"/", None, 0x44000, None), "mount")  # MS_REC | MS_PRIVATE
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        need(LIBC.mount(b"test", bytes(tmp_path), b"fuse", 0, options), "mount")
        os.close(device)
        hold(child, name)
        os.stat(tmp_path / "file")

    try:
        with Child(body) as child:
            child.expect("held")
            fuse_start(device)
            assert os.read(device, 1 << 18)  # its question is known to us, and stays unanswered
            child.signal(signal.SIGKILL)
            assert not gone(child.pid, 0.1)
            assert not bindable(name)
            refused(name)
            os.close(device)
            device = -1
            assert child.wait() == -signal.SIGKILL
            assert bindable(name)
    finally:
        if device >= 0:
            os.close(device)
    take(name)


@needs_root
def test_free_when_its_cgroup_is_empty(name: str, trials: int) -> None:
    """When a killed cgroup says that it is empty, the names of all that were in it are free."""

    def body(child: Child) -> None:
        (group / "cgroup.procs").write_text("0")
        hold(child, name, children="share", say=False)
        pid = os.fork()
        if not pid:
            child.say("held")
        signal.pause()

    late = 0
    with possible(), cgroup.cgroup(cgroup.unified(), name) as group:
        if not (group / "cgroup.kill").exists():
            pytest.skip("no cgroup.kill: Linux 5.14")
        for _ in range(trials):
            with Child(body) as child:
                child.expect("held")
                (group / "cgroup.kill").write_text("1")
                cgroup.wait_for(group, "populated 0")
                late += not bindable(name)
                child.wait()
        assert late == 0
        take(name)


# What outlives it.


def test_children_share_until_the_last(name: str) -> None:
    """With children="share" the name is held until the holder and all its forked children are gone."""

    def body(child: Child) -> None:
        lock = hold(child, name, children="share", say=False)
        for _ in range(2):
            pid = os.fork()
            if not pid:
                assert lock.held
                signal.pause()
            child.say(str(pid))
        child.say("held")
        signal.pause()

    with Child(body) as child:
        with process(int(child.hear())) as first, process(int(child.hear())) as second:
            child.expect("held")
            child.kill()
            for member in (first, second):
                assert not bindable(name)
                refused(name)
                signal.pidfd_send_signal(member, signal.SIGKILL)
                assert select.select([member], [], [], DEADLINE)[0]
        assert bindable(name)
        take(name)


def test_a_release_with_sharing_children_keeps_it(name: str) -> None:
    """With children="share" a release in the parent leaves the name to the child, whose release frees it."""

    def body(child: Child) -> None:
        lock = hold(child, name, children="share", say=False)
        pid = os.fork()
        if pid:
            lock.release()
            child.say(str(pid))
            os.waitpid(pid, 0)
            return
        child.hear()
        lock.release()
        child.say(f"released {lock.held}")
        signal.pause()

    with Child(body) as child, process(int(child.hear())):
        assert not bindable(name)
        assert not bindlock.Lock(name).try_acquire()
        child.say("")
        child.expect("released False")
        assert bindable(name)
        take(name)


@pytest.mark.parametrize("way", ["multiprocessing.Process", "ProcessPoolExecutor"])
def test_workers_of_multiprocessing_have_nothing(cast: Cast, name: str, way: str) -> None:
    """Forked workers that outlive a killed holder do not keep the name."""
    actor = cast.python(
        "import multiprocessing, os, signal, sys, time, bindlock\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "context = multiprocessing.get_context('fork')\n"
        "with bindlock.Lock(sys.argv[1]):\n"
        "    if sys.argv[2] == 'ProcessPoolExecutor':\n"
        "        pool = ProcessPoolExecutor(1, mp_context=context)\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "    else:\n"
        "        worker = context.Process(target=signal.pause)\n"
        "        worker.start()\n"
        "        print(worker.pid, flush=True)\n"
        "    signal.pause()",
        name,
        way,
    )
    with process(int(actor.read())) as worker:
        assert not bindable(name)
        actor.kill()
        # multiprocessing.Process is told of its parent's start only; that it has dropped the lock must be seen.
        take(name, DEADLINE)
        assert not select.select([worker], [], [], 0)[0]


def test_a_fork_behind_python_s_back_keeps_it(name: str) -> None:
    """A child of a bare C fork, which Python's hooks do not see, keeps the name until it is gone."""

    def body(child: Child) -> None:
        hold(child, name, say=False)
        pid = ctypes.PyDLL(None).fork()
        if pid:
            child.say(str(pid))
        signal.pause()

    with Child(body) as child:
        with process(int(child.hear())) as orphan:
            child.kill()
            assert not bindable(name)
            refused(name)
            holder = bindlock.holder(name)
            assert holder is not None
            signal.pidfd_send_signal(orphan, signal.SIGKILL)
            assert select.select([orphan], [], [], DEADLINE)[0]
            assert bindable(name)
        take(name)


def test_held_while_in_flight(name: str) -> None:
    """A lock sent to somebody who has not read it yet is held, though no process has it, until the carrier closes."""
    near, far = socket.socketpair()

    def body(child: Child) -> None:
        far.close()
        socket.send_fds(near, [b"x"], [hold(child, name, say=False).fileno()])
        child.say("held")
        signal.pause()

    with near, far, Child(body) as child:
        child.expect("held")
        near.close()
        child.kill()
        assert not bindable(name)
        refused(name)
        holder = bindlock.holder(name)
        assert holder is not None
        assert holder.pid is None
        far.close()
        assert bindable(name)
        take(name)


@pytest.mark.parametrize("what", ["accept", "poll"])
def test_a_waiter_is_woken_by_io_uring(name: str, what: str) -> None:
    """Whatever request is pending in an io_uring: when it frees the name, after the death, a waiter is woken."""

    def body(child: Child) -> None:
        lock = hold(child, name, say=False)
        os.set_blocking(lock.fileno(), True)
        io_uring.leave_pending(lock.fileno(), what)
        child.say("pending")
        child.hear()

    for _ in range(5):
        with possible(), Child(body) as child:
            child.expect("pending")
            assert not bindable(name)
            child.kill()
            take(name, DEADLINE)


# Closing it.


def test_free_after_release(name: str, trials: int) -> None:
    """When release returns, the name is free."""
    lock = bindlock.Lock(name)
    late = 0
    for _ in range(trials * 20):
        lock.acquire(timeout=0)
        lock.release()
        late += not bindable(name)
    assert late == 0


@pytest.mark.parametrize("call", ["accept", "poll"])
def test_held_while_another_thread_is_inside_the_socket(name: str, call: str) -> None:
    """A release while another thread is inside accept() or poll() on the socket frees the name when that returns."""

    def body(child: Child) -> None:
        lock = hold(child, name, say=False)
        thread = threading.Thread(target=accept_on if call == "accept" else poll_on, args=(lock,), daemon=True)
        thread.start()
        child.say("held")
        child.hear()
        lock.release()
        child.say(f"released {lock.held}")
        thread.join()
        child.say("returned")
        child.hear()

    with Child(body) as child:
        child.expect("held")
        until(lambda: in_call(child.pid, call) == 1)
        child.say("")
        child.expect("released False")
        assert not bindable(name)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(bindlock.names.parse(name).address)
            child.expect("returned")
        assert bindable(name)
        take(name)


def test_free_while_another_thread_is_inside_epoll(name: str) -> None:
    """A release while another thread waits for the socket with epoll frees the name at once."""

    def body(child: Child) -> None:
        lock = hold(child, name, say=False)
        waiting = select.epoll()
        waiting.register(lock.fileno(), select.EPOLLIN)
        threading.Thread(target=waiting.poll, daemon=True).start()
        child.say("held")
        child.hear()
        lock.release()
        child.say(f"released {lock.held}")
        child.hear()

    with Child(body) as child:
        child.expect("held")
        until(lambda: in_call(child.pid, "epoll_wait") == 1)
        assert not bindable(name)
        child.say("")
        child.expect("released False")
        assert bindable(name)
        take(name)


@pytest.mark.parametrize("reuse", ["nothing", "file", "socketpair"])
def test_lost_to_closerange(cast: Cast, name: str, reuse: str) -> None:
    """A lock whose descriptor other code closed is free and says so; dropped, it does not close what has the number."""
    actor = cast.python(
        "import os, socket, sys, bindlock\n"
        "lock = bindlock.Lock(sys.argv[1])\n"
        "lock.acquire()\n"
        "number = lock.fileno()\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()\n"
        "os.closerange(3, 256)\n"
        "if sys.argv[2] == 'file':\n"
        "    os.dup2(os.open(os.devnull, os.O_RDONLY), number)\n"
        "if sys.argv[2] == 'socketpair':\n"
        "    os.dup2(socket.socketpair()[0].detach(), number)\n"
        "print(lock.held, flush=True)\n"
        "sys.stdin.readline()\n"
        "if sys.argv[2] == 'nothing':\n"
        "    try:\n"
        "        lock.release()\n"
        "    except bindlock.Lost:\n"
        "        print('lost', flush=True)\n"
        "else:\n"
        "    del lock\n"
        "    os.fstat(number)\n"
        "    print('open', flush=True)\n",
        name,
        reuse,
    )
    actor.expect("held")
    assert not bindable(name)
    actor.write()
    actor.expect("False")
    assert bindable(name)
    with bindlock.Lock(name, timeout=0):
        actor.write()
        actor.expect("lost" if reuse == "nothing" else "open")
    assert actor.wait() == 0


# Holders.


def hold(
    child: Child, name: str, children: Literal["drop", "share"] = "drop", say: bool = True, timeout: float = 0
) -> bindlock.Lock:
    """In a child: hold the name, and say so."""
    lock = bindlock.Lock(name, children=children)
    lock.acquire(timeout)
    _kept.append(lock)
    if say:
        child.say("held")
    return lock


_kept: list[bindlock.Lock] = []


def idle(name: str) -> Body:
    """A child that holds the name and waits to be killed."""

    def body(child: Child) -> None:
        hold(child, name)
        child.hear()

    return body


def accept_on(lock: bindlock.Lock) -> None:
    """Block in accept(2) on the lock's own descriptor."""
    os.set_blocking(lock.fileno(), True)
    ctypes.CDLL(None).accept4(lock.fileno(), None, None, 0)


def poll_on(lock: bindlock.Lock) -> None:
    """Block in poll(2) on the lock's own descriptor."""
    poller = select.poll()
    poller.register(lock.fileno(), select.POLLIN)
    poller.poll()


def dumper(cast: Cast, name: str, directory: Path, megabytes: int) -> Actor:
    """A holder that has begun to die of SIGSEGV, and will dump its core into the directory."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if not pattern or pattern[0] == "|" or "/" in pattern:
        pytest.skip(f"core dumps do not go into the current directory: core_pattern is {pattern!r}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] >= 0 and os.geteuid():
        pytest.skip("core dumps are limited (ulimit -Hc)")
    actor = cast.python(
        "import os, resource, signal, sys, bindlock\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)\n"
        "memory = b'x' * (int(sys.argv[2]) << 20)\n"
        "lock = bindlock.Lock(sys.argv[1])\n"
        "lock.acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(os.getpid(), signal.SIGSEGV)",
        name,
        str(megabytes),
        cwd=directory,
    )
    actor.expect("held")
    actor.write()
    return actor


def remove_core(directory: Path) -> int:
    """Remove the core dump; its size."""
    (core,) = directory.glob("*core*")
    size = core.stat().st_size
    core.unlink()
    return size


# Deaths.


def kill(child: Child) -> None:
    child.signal(signal.SIGKILL)


def never_late(name: str, trials: int, body: Body, end: Callable[[Child], None]) -> None:
    """Let so many children hold the name and end: each time it must be free the moment that the death is told."""
    late = 0
    for trial in range(trials):
        with Child(body) as child:
            child.expect("held")
            assert not bindable(name)
            end(child)
            if trial % 2:
                assert gone(child.pid)
            else:
                child.reap()
            late += not bindable(name)
            child.wait()
    assert late == 0, f"{late} of {trials} were late"
    take(name)


def take(name: str, timeout: float = 0) -> None:
    """The lock, too, finds it free."""
    lock = bindlock.Lock(name)
    lock.acquire(timeout)
    assert lock.held
    lock.release()


def refused(name: str) -> None:
    """The lock says that it is held, after its grace."""
    with pytest.raises(bindlock.Held):
        bindlock.Lock(name).acquire(timeout=0)


@contextmanager
def possible() -> Iterator[None]:
    """Skip the test where the kernel does not offer what it is about."""
    try:
        yield
    except NotPossible as reason:
        pytest.skip(str(reason))


@contextmanager
def process(pid: int) -> Iterator[int]:
    """A pidfd of a process that is not our child; at the end it is killed, and dead."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], DEADLINE)[0]
        os.close(pidfd)


# What the kernel tells.


def dumping(pid: int) -> bool:
    """Whether it is writing its core dump."""
    return "CoreDumping:\t1" in Path(f"/proc/{pid}/status").read_text()


def bindlock_looked(name: str) -> bool:
    """Whether somebody has connected to the name's queue, so that a call that waits for it may have returned."""
    return any(bound.name == name and bound.queued for bound in bindlock.locks())


def in_call(pid: int, call: str) -> int:
    """How many threads of the process are inside that system call."""
    if call not in SYSCALLS:
        pytest.skip(f"the number of {call} is not known for {platform.machine()}")
    return sum(
        (task / "syscall").read_text().split()[0] == str(SYSCALLS[call]) for task in Path(f"/proc/{pid}/task").iterdir()
    )


def need(result: int, what: str) -> None:
    """In a child: a system call has worked."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def fuse_start(device: int) -> None:
    """Answer the kernel's first question to a FUSE file system, FUSE_INIT."""
    request = os.read(device, 1 << 18)
    length, opcode, unique = struct.unpack_from("=IIQ", request)
    assert (length, opcode) == (len(request), 26)
    body = struct.pack("=IIIIHHII", 7, 31, 0, 0, 1, 1, 4096, 1).ljust(64, b"\0")
    os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
