"""When the name is free: every way to die, and everything that can outlive a holder.

"Free" is asked of the kernel twice: by a bare bind, the moment that waitpid or a pidfd says dead, and by the lock.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

import bindlock
from tests.actors import DEADLINE, Child, bindable, gone, until
from tests.conftest import needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.actors import Actor, Cast

    Body = Callable[[Child], object]

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWPID = 0x20000, 0x20000000
SYSCALLS = {
    "x86_64": {"accept": 288, "poll": 7, "epoll_wait": 232, "clock_nanosleep": 230},
    "aarch64": {"accept": 242, "poll": 73, "epoll_wait": 22, "clock_nanosleep": 115},
}.get(platform.machine(), {})


@pytest.fixture
def trials(long: bool) -> int:
    """How many deaths make "always"."""
    return 5000 if long else 100


# How it dies.


@pytest.mark.parametrize(
    ("last_words", "status"),
    [
        ("sys.exit(0)", 0),
        ("raise SystemExit(3)", 3),
        ("raise ZeroDivisionError", 1),
        ("os._exit(4)", 4),
        ("os.abort()", -signal.SIGABRT),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
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


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGABRT", "SIGSEGV", "exit"])
def test_free_when_told_of_the_death(name: str, trials: int, how: str) -> None:
    """When waitpid or a pidfd tells of a death, the name is free already: not once is it late."""

    def body(child: Child) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in (signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV):
            signal.signal(number, signal.SIG_DFL)
        hold(child, name)
        child.hear()

    def end(child: Child) -> None:
        if how == "exit":
            child.say("")
        else:
            child.signal(getattr(signal, how))

    never_late(name, trials * 2, body, end)


@pytest.mark.parametrize("threads", [1, 2, 9])
@pytest.mark.parametrize("doing", ["spin", "accept", "poll"])
def test_free_when_threads_were_at_work(name: str, trials: int, threads: int, doing: str) -> None:
    """However many threads a killed holder had, and whatever they did with the socket, the name is free with it."""

    def body(child: Child) -> None:
        sys.setswitchinterval(1e-4)
        lock = hold(child, name, say=False)
        works: dict[str, Callable[[], None]] = {
            "spin": spin,
            "accept": lambda: accept_on(lock),
            "poll": lambda: poll_on(lock),
        }
        for _ in range(threads - 1):
            threading.Thread(target=works[doing], daemon=True).start()
        child.say("held")
        works[doing]()

    def end(child: Child) -> None:
        if doing != "spin":
            # Not all of them: who lists all locks of the machine just now connects, and some calls return.
            until(lambda: in_call(child.pid, doing) >= 1 or bindlock_looked(name))
        child.signal(signal.SIGKILL)

    never_late(name, trials // 4, body, end)


def test_held_while_any_thread_lives(cast: Cast, name: str) -> None:
    """A holder whose main thread has ended is shown as a zombie, but holds the name until its last thread is gone."""
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
    assert not bindable(name)
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == actor.pid
    assert not bindlock.Lock(name).try_acquire()
    assert state(actor.pid) == "Z"
    assert actor.kill() == -signal.SIGKILL
    assert bindable(name)
    take(name)


def test_held_while_stopped(name: str, trials: int) -> None:
    """A stopped holder holds; SIGKILL frees the name without it being continued."""

    def end(child: Child) -> None:
        child.signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        assert not bindable(name)
        assert not bindlock.Lock(name).try_acquire()
        child.signal(signal.SIGKILL)

    never_late(name, trials, idle(name), end)


def test_held_while_traced(name: str, trials: int) -> None:
    """A holder that a debugger has stopped holds; SIGKILL frees the name."""

    def end(child: Child) -> None:
        assert ptrace(SEIZE, child.pid, 0) == 0
        assert ptrace(INTERRUPT, child.pid, 0) == 0
        assert os.WIFSTOPPED(os.waitpid(child.pid, 0)[1])
        assert state(child.pid) == "t"
        assert not bindable(name)
        child.signal(signal.SIGKILL)

    never_late(name, trials // 2, idle(name), end)


def test_held_in_a_tracer_s_exit_stop(name: str) -> None:
    """A killed holder that its debugger stops at the exit holds until it is continued."""
    with Child(idle(name)) as child:
        child.expect("held")
        assert ptrace(SEIZE, child.pid, TRACE_EXIT) == 0
        child.signal(signal.SIGKILL)
        assert os.waitpid(child.pid, 0)[1] >> 8 == signal.SIGTRAP | EVENT_EXIT << 8
        try:
            assert not bindable(name)
            refused(name)
        finally:
            ptrace(CONTINUE, child.pid, 0)
        assert child.wait() == -signal.SIGKILL
        assert bindable(name)
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


def test_free_with_300_mb(name: str, trials: int) -> None:
    """A holder with much memory holds until that is given back, and is free when its parent is told."""

    def body(child: Child) -> None:
        memory = b"x" * (300 << 20)
        hold(child, name)
        child.hear()
        assert memory

    never_late(name, max(3, trials // 30), body, kill)


def test_free_while_a_zombie_that_nobody_reaps(name: str) -> None:
    """A dead holder that its parent does not reap has nothing any more."""
    with Child(idle(name)) as child:
        child.expect("held")
        child.signal(signal.SIGKILL)
        assert gone(child.pid)
        assert state(child.pid) == "Z"
        assert bindable(name)
        assert bindlock.holder(name) is None
        take(name)
        assert state(child.pid) == "Z"


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


@needs_root
def test_free_when_out_of_memory(name: str) -> None:
    """A holder that the kernel kills for want of memory in its cgroup is free when its parent is told."""
    parent = Path("/sys/fs/cgroup/memory")
    limits, events = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "memory.oom_control"
    if not parent.is_dir():
        parent, limits, events = unified(), ("memory.max", "memory.swap.max"), "memory.events"

    def body(child: Child) -> None:
        hold(child, name)
        child.hear()
        (group / "cgroup.procs").write_text("0")
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 20))

    with cgroup(parent, name) as group:
        if not (group / limits[0]).exists():
            pytest.skip("the memory controller is not enabled here")
        for limit in limits:
            if (group / limit).exists():
                (group / limit).write_text(str(32 << 20))
        with Child(body) as child:
            child.expect("held")
            child.say("")
            assert child.wait() == -signal.SIGKILL
            assert bindable(name)
            assert "oom_kill 1" in (group / events).read_text()
        take(name)


def test_held_while_dumping_core(cast: Cast, name: str, tmp_path: Path) -> None:
    """A holder that crashes holds the name while its core dump is being written, and no longer."""
    actor = dumper(cast, name, tmp_path, megabytes=200)
    seen = 0
    while not os.waitid(os.P_PID, actor.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        before = dumping(actor.pid)
        free = bindable(name)
        if before and dumping(actor.pid):
            assert not free
            seen += 1
    assert bindable(name)
    assert seen
    assert actor.wait() == -signal.SIGSEGV
    assert remove_core(tmp_path) > 200 << 20
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


# Frozen and killed by cgroup.


@needs_root
def test_held_while_frozen_by_the_old_freezer(name: str) -> None:
    """A holder frozen by cgroup v1 holds, killed or not, until it is thawed."""
    with cgroup(Path("/sys/fs/cgroup/freezer"), name) as group, Child(idle(name)) as child:
        child.expect("held")
        (group / "cgroup.procs").write_text(str(child.pid))
        (group / "freezer.state").write_text("FROZEN")
        try:
            until(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
            assert not bindable(name)
            assert not bindlock.Lock(name).try_acquire()
            child.signal(signal.SIGKILL)
            assert not gone(child.pid, 0.1)
            assert not bindable(name)
            refused(name)
        finally:
            (group / "freezer.state").write_text("THAWED")
        assert child.wait() == -signal.SIGKILL
        assert bindable(name)
        take(name)


@needs_root
def test_held_while_frozen_until_killed(name: str) -> None:
    """A holder frozen by cgroup v2 holds; SIGKILL frees the name without a thaw."""
    with cgroup(unified(), name) as group, Child(idle(name)) as child:
        child.expect("held")
        (group / "cgroup.procs").write_text(str(child.pid))
        (group / "cgroup.freeze").write_text("1")
        until(lambda: "frozen 1" in (group / "cgroup.events").read_text())
        assert not bindable(name)
        assert not bindlock.Lock(name).try_acquire()
        assert child.kill() == -signal.SIGKILL
        assert bindable(name)
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
    with cgroup(unified(), name) as group:
        if not (group / "cgroup.kill").exists():
            pytest.skip("no cgroup.kill: Linux 5.14")
        for _ in range(trials):
            with Child(body) as child:
                child.expect("held")
                (group / "cgroup.kill").write_text("1")
                wait_empty(group)
                late += not bindable(name)
                child.wait()
        assert late == 0
        take(name)


# What outlives it.


def test_a_forked_child_has_nothing(name: str, trials: int) -> None:
    """A forked child drops the lock, so that it is free with the holder, the child still running."""

    def body(child: Child) -> None:
        lock = hold(child, name, say=False)
        told, tell = os.pipe()
        pid = os.fork()
        if pid:
            child.say(str(pid))
            os.write(tell, b"!")
        else:
            os.read(told, 1)
            child.say(f"held {lock.held}")
        signal.pause()

    late = 0
    for _ in range(trials):
        with Child(body) as child, process(int(child.hear())):
            child.expect("held False")
            child.kill()
            late += not bindable(name)
    assert late == 0
    take(name)


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


def test_a_subprocess_has_nothing(cast: Cast, name: str) -> None:
    """A program started with subprocess does not keep the name, even one told to keep all descriptors."""
    actor = cast.python(
        "import signal, subprocess, sys, bindlock\n"
        "with bindlock.Lock(sys.argv[1]):\n"
        "    print(subprocess.Popen(['cat']).pid, subprocess.Popen(['cat'], close_fds=False).pid, flush=True)\n"
        "    signal.pause()",
        name,
    )
    pids = [int(pid) for pid in actor.read().split()]
    with process(pids[0]), process(pids[1]):
        assert not bindable(name)
        actor.kill()
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


def test_freed_by_the_collector_when_in_a_cycle(name: str) -> None:
    """A lock in flight on a socket that is itself in flight on it is freed by the kernel's collector, a little late."""

    def body(child: Child) -> None:
        near, far = socket.socketpair()
        descriptor = hold(child, name, say=False).fileno()
        socket.send_fds(near, [b"x"], [descriptor, near.fileno(), far.fileno()])
        child.say("held")
        signal.pause()

    for _ in range(10):
        with Child(body) as child:
            child.expect("held")
            child.kill()
            take(name, DEADLINE)


@pytest.mark.parametrize("what", ["accept", "poll"])
def test_freed_late_by_io_uring(name: str, what: str) -> None:
    """A pending io_uring request on the socket frees the name after the death, and a waiter is woken by it."""

    def body(child: Child) -> None:
        lock = hold(child, name, say=False)
        os.set_blocking(lock.fileno(), True)
        child.say(io_uring(lock.fileno(), what))
        child.hear()

    for _ in range(10):
        with Child(body) as child:
            answer = child.hear()
            if answer.startswith("no io_uring"):
                pytest.skip(answer)
            assert answer == "pending"
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


def spin() -> None:
    while True:
        pass


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
                child.status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
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


def state(pid: int) -> str:
    """The letter of its state: R, S, D, T, t, Z."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


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


SEIZE, INTERRUPT, CONTINUE, TRACE_EXIT, EVENT_EXIT = 0x4206, 0x4207, 7, 0x40, 6


def ptrace(request: int, pid: int, data: int) -> int:
    """ptrace(2)."""
    result: int = LIBC.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(0), ctypes.c_long(data))
    if result and request == SEIZE and ctypes.get_errno() == errno.EPERM:
        pytest.skip("tracing is not allowed here")
    return result


def need(result: int, what: str) -> None:
    """In a child: a system call has worked."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def die_with_parent() -> None:
    """In a child: be killed when the parent is gone."""
    need(LIBC.prctl(1, signal.SIGKILL, 0, 0, 0), "prctl")


def unified() -> Path:
    """Where cgroup v2 is mounted."""
    for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        if Path(path, "cgroup.controllers").exists():
            return Path(path)
    pytest.skip("no cgroup v2 here")


@contextmanager
def cgroup(parent: Path, name: str) -> Iterator[Path]:
    """A cgroup of our own, removed afterwards."""
    group = parent / f"bindlock-{name}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made in {parent}: {error.strerror}")
    try:
        yield group
    finally:
        if (group / "cgroup.kill").exists():
            (group / "cgroup.kill").write_text("1")
        until(lambda: removed(group))


def removed(group: Path) -> bool:
    """Whether the cgroup could be removed: that works a moment after its last process is gone."""
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def wait_empty(group: Path) -> None:
    """Sleep until the cgroup says that nobody is in it."""
    with (group / "cgroup.events").open() as events:
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        end = time.monotonic() + DEADLINE
        while "populated 1" in events.read():
            assert poller.poll(1000 * DEADLINE)
            assert time.monotonic() < end
            events.seek(0)


def fuse_start(device: int) -> None:
    """Answer the kernel's first question to a FUSE file system, FUSE_INIT."""
    request = os.read(device, 1 << 18)
    length, opcode, unique = struct.unpack_from("=IIQ", request)
    assert (length, opcode) == (len(request), 26)
    body = struct.pack("=IIIIHHII", 7, 31, 0, 0, 1, 1, 4096, 1).ljust(64, b"\0")
    os.write(device, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)


def io_uring(descriptor: int, what: str) -> str:
    """Leave an accept, or a poll, on the descriptor pending in an io_uring: "pending", or why not."""
    setup, enter, sqes, accept_, poll_ = 425, 426, 0x10000000, 13, 6
    parameters = (ctypes.c_uint32 * 30)()
    ring = LIBC.syscall(setup, 4, parameters)
    if ring < 0:
        return f"no io_uring here: {os.strerror(ctypes.get_errno())}"
    tail, mask, array = parameters[11], parameters[12], parameters[16]
    done, cqes = parameters[21], parameters[25]
    size = max(array + 4 * parameters[0], cqes + 16 * parameters[1])
    with mmap.mmap(ring, size) as rings, mmap.mmap(ring, 64 * parameters[0], offset=sqes) as entries:
        entry = struct.pack("=BBHiQQII", accept_ if what == "accept" else poll_, 0, 0, descriptor, 0, 0, 0, 0)
        if what == "poll":
            entry = entry[:28] + struct.pack("=I", select.POLLIN)
        entries[: len(entry)] = entry
        index = struct.unpack_from("=I", rings, tail)[0]
        struct.pack_into("=I", rings, array + 4 * (index & struct.unpack_from("=I", rings, mask)[0]), 0)
        struct.pack_into("=I", rings, tail, index + 1)
        if LIBC.syscall(enter, ring, 1, 0, 0, None, 0) != 1:
            return f"no io_uring here: {os.strerror(ctypes.get_errno())}"
        return "completed" if struct.unpack_from("=I", rings, done)[0] else "pending"
