"""What becomes of a lock in a child process: nothing, unless it was made to be shared."""

from __future__ import annotations

import _socket
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

import bindlock
from bindlock.linux.binding import Binding, fork_guard
from bindlock.names import parse
from tests.actors import Cast, Child, bindable, until


def sockets(pid: int | str) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def inode(lock: bindlock.Lock) -> str:
    """The inode of a held lock's socket."""
    return str(os.fstat(lock.fileno()).st_ino)


def report(child: Child, lock: bindlock.Lock, own: str) -> None:
    """What a forked child says of the lock."""
    child.say(f"{lock.held} {lock.fileno() >= 0} {own in sockets('self')}")
    child.hear()


def test_a_forked_child_has_nothing(name: str) -> None:
    """After os.fork the parent holds the lock as before; the child does not, and has no descriptor of it."""
    lock = bindlock.Lock(name)
    lock.acquire()
    own = inode(lock)
    with Child(lambda child: report(child, lock, own)) as child:
        child.expect("False False False")
        assert lock.held
        assert not bindable(name)
        lock.release()
        assert bindable(name)


def test_the_child_of_a_child_has_nothing(name: str) -> None:
    """Grandchildren have no more than children."""
    lock = bindlock.Lock(name)
    lock.acquire()
    own = inode(lock)

    def body(child: Child) -> None:
        with Child(lambda grandchild: report(grandchild, lock, own)) as grandchild:
            child.say(grandchild.hear())
            child.hear()

    with Child(body) as child:
        child.expect("False False False")
        lock.release()
        assert bindable(name)


def test_a_child_that_outlives_its_parent_does_not_keep_the_name(cast: Cast, name: str) -> None:
    """When the parent is killed the name is free, though a forked child lives on."""
    code = """
    import bindlock, os, sys, signal
    lock = bindlock.Lock(sys.argv[1])
    lock.acquire()
    if not os.fork():
        print("child", flush=True)
        sys.stdin.readline()
        os._exit(0)
    signal.pause()
    """
    actor = cast.python(textwrap.dedent(code), name)
    actor.expect("child")
    actor.kill()
    with bindlock.Lock(name, timeout=0):
        actor.write()


def test_shared_with_children_until_the_last_is_gone(name: str) -> None:
    """Made with children="share", the name is held until parent and children all have released it or are gone."""
    lock = bindlock.Lock(name, children="share")
    lock.acquire()
    own = inode(lock)

    def before_and_after(child: Child) -> None:
        report(child, lock, own)
        lock.release()
        report(child, lock, own)

    with (
        Child(lambda child: report(child, lock, own)) as one,
        Child(before_and_after) as other,
    ):
        one.expect("True True True")
        other.expect("True True True")
        lock.release()
        assert not lock.held
        assert not bindlock.Lock(name).try_acquire()
        one.kill()
        assert not bindlock.Lock(name).try_acquire()
        other.say("go on")
        other.expect("False False False")
        assert bindable(name)
        other.say("end")
        assert other.wait() == 0


def test_in_the_child_release_raises(name: str) -> None:
    """In a child that has dropped the lock, release() raises NotHeld: it is not this process's to release."""
    lock = bindlock.Lock(name)
    lock.acquire()

    def body(child: Child) -> None:
        with pytest.raises(bindlock.NotHeld):
            lock.release()

    with Child(body) as child:
        assert child.wait() == 0
    assert lock.held
    lock.release()


def test_leaving_a_with_block_in_the_child_is_no_error(name: str) -> None:
    """A child that leaves the with statement it was forked in releases nothing and raises nothing."""
    code = """
    import bindlock, os, sys
    with bindlock.Lock(sys.argv[1]) as lock:
        pid = os.fork()
    if pid:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or lock.held)
    """
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code), name], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("children", ["drop", "share"])
def test_the_child_can_take_its_turn(name: str, children: str) -> None:
    """A child can wait for the lock of its parent, with the very same object, and has it after the parent."""
    lock = bindlock.Lock(name, children="share" if children == "share" else "drop")
    lock.acquire()

    def body(child: Child) -> None:
        if children == "share":
            lock.release()
        lock.acquire(timeout=30, waiting=lambda holder: child.say(f"waiting for {holder.pid}"))
        child.say(f"held {lock.held}")
        child.hear()

    with Child(body) as child:
        child.expect(f"waiting for {os.getpid()}")
        lock.release()
        child.expect("held True")
        holder = bindlock.holder(name)
        assert holder is not None
        assert holder.pid == child.pid
        assert not lock.held
        assert not lock.try_acquire()
        child.kill()
        with lock:
            pass


def say_and_wait(connection: Connection, lock: bindlock.Lock, own: str) -> None:
    """A child of multiprocessing: says what it sees of the lock, and waits for the other end."""
    connection.send((lock.held, own in sockets("self")))
    connection.recv()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork and threads of the test runner, since Python 3.12
def test_multiprocessing(name: str) -> None:
    """A child of multiprocessing does not have the lock, though it got the very object."""
    context = multiprocessing.get_context("fork")
    lock = bindlock.Lock(name)
    lock.acquire()
    here, there = context.Pipe()
    process = context.Process(target=say_and_wait, args=(there, lock, inode(lock)))
    process.start()
    try:
        assert here.poll(30)
        assert here.recv() == (False, False)
        assert lock.held
        lock.release()
        assert bindable(name)
    finally:
        here.send(None)
        process.join(30)
        assert process.exitcode == 0
        process.close()
        here.close()
        there.close()


# In a process of its own: the fork server and the resource tracker live as long as the one that started them.
POOL = """
import multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import bindlock
from tests.test_fork import inode, sockets

def look(own):
    return os.getpid() if own in sockets("self") else 0

if __name__ == "__main__":
    method, name = sys.argv[1:]
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        pool.submit(look, "0").result()
        with bindlock.Lock(name) as lock:
            assert list(pool.map(look, [inode(lock)] * 8)) == [0] * 8
            with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as later:
                assert list(later.map(look, [inode(lock)] * 8)) == [0] * 8
                lock.release()
                with bindlock.Lock(name, timeout=0):
                    pass
                print("free", flush=True)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_process_pools(cast: Cast, name: str, method: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Workers of a pool, started before or after the lock was taken, do not have it."""
    script = tmp_path_factory.mktemp("pool") / "pool.py"
    script.write_text(POOL)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    actor = cast.start(sys.executable, str(script), method, name, env={**os.environ, "PYTHONPATH": path})
    actor.expect("free")
    assert actor.wait() == 0


def test_a_killed_pool_leaves_a_free_name(cast: Cast, name: str) -> None:
    """Workers of a fork pool whose parent was killed live on for ever; the name is free all the same."""
    code = """
    import bindlock, os, signal, sys, time
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    with bindlock.Lock(sys.argv[1]):
        pool = ProcessPoolExecutor(2, get_context("fork"))
        pool.submit(os.getpid).result()
        print(*pool._processes, flush=True)
        signal.pause()
    """
    actor = cast.python(textwrap.dedent(code), name)
    workers = [os.pidfd_open(int(worker)) for worker in actor.read().split()]
    try:
        actor.kill()
        with bindlock.Lock(name, timeout=0) as lock:
            assert lock.held
    finally:
        for worker in workers:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
            os.close(worker)


def _nothing() -> None:
    pass


OPTIONS: list[dict[str, object]] = [
    {},
    {"close_fds": False},
    {"preexec_fn": _nothing},
    {"preexec_fn": _nothing, "close_fds": False},
    {"start_new_session": True, "close_fds": False},
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("children", ["drop", "share"])
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_a_program_never_has_it(cast: Cast, name: str, options: dict[str, object], children: str) -> None:
    """A program started with subprocess has no descriptor of the lock, shared with children or not."""
    with bindlock.Lock(name, children="share" if children == "share" else "drop") as lock:
        actor = cast.start("cat", **options)
        actor.write("started")
        actor.expect("started")
        assert inode(lock) not in sockets(actor.pid)
        assert lock.held


@pytest.mark.parametrize("start", [os.posix_spawnp, os.spawnvp, os.system], ids=["posix_spawn", "spawn", "system"])
def test_other_ways_to_start_a_program(name: str, start: Callable[..., int]) -> None:
    """Programs started without subprocess do not have it either."""
    with bindlock.Lock(name) as lock:
        script = f"ls -l /proc/self/fd | grep -q 'socket:.{inode(lock)}'"
        if start is os.posix_spawnp:
            pid = os.posix_spawnp("sh", ["sh", "-c", script], dict(os.environ))
            status = os.waitpid(pid, 0)[1]
        elif start is os.spawnvp:
            status = os.spawnvp(os.P_WAIT, "sh", ["sh", "-c", script]) << 8
        else:
            status = os.system(script)
        assert os.waitstatus_to_exitcode(status) == 1  # grep found nothing


def test_a_lock_closed_by_other_code_leaves_the_child_alone(name: str) -> None:
    """Where other code has closed the descriptor and its number leads elsewhere, a fork closes nothing in the child."""
    lock = bindlock.Lock(name)
    lock.acquire()
    number = lock.fileno()
    os.close(number)
    read, write = os.pipe()
    try:
        assert number in (read, write)

        def body(child: Child) -> None:
            os.fstat(number)

        with Child(body) as child:
            assert child.wait() == 0
        assert not lock.held
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(bindlock.Lost):
        lock.release()


# Threads that acquire and release as fast as they can, and a thread that forks as fast as it can; children say by
# their exit status whether they can see that they have a bound socket of ours.
STORM = """
import os, sys, threading, warnings
import bindlock
warnings.simplefilter("ignore", DeprecationWarning)
sys.setswitchinterval(1e-5)
name, forks, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stop = False
failures = []

def inodes():
    found = set()
    for n in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + n)
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1].encode())
    return found

def has_a_copy():
    ours = inodes()
    if not ours:
        return False
    with open("/proc/net/unix", "rb") as table:
        fields = [line.split() for line in table if name.encode() in line]
    # State 01 is bound or listening; accepted connections bear the name, too, and do not keep it bound.
    return any(field[5] == b"01" and field[6] in ours for field in fields)

def own():
    lock = bindlock.Lock(f"{name}-{threading.get_ident()}")
    while not stop:
        with lock:
            pass

def common():
    lock = bindlock.Lock(name)
    while not stop:
        lock.try_acquire() and lock.release()

def shared():
    lock = bindlock.Lock(f"{name}-{threading.get_ident()}", children="share")
    while not stop:
        with lock:
            pass

def guarded(function):
    try:
        function()
    except BaseException as error:
        failures.append(repr(error))
        raise

targets = {"own": [own, own], "common": [common, common], "mixed": [own, common]}[mode]
threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
for thread in threads:
    thread.start()
copies = 0
for _ in range(forks):
    pid = os.fork()
    if not pid:
        status = 2
        try:
            status = int(has_a_copy())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    copies += status == 1
    if status > 1:
        failures.append(status)
stop = True
for thread in threads:
    thread.join()
print(f"copies {copies} failures {failures}", flush=True)
"""


@pytest.mark.parametrize("mode", ["own", "common"])
def test_forks_beside_busy_threads(cast: Cast, name: str, long: bool, mode: str) -> None:
    """However often one thread forks while others acquire and release, no child ever keeps a copy of a lock."""
    actor = cast.python(STORM, name, str(30_000 if long else 500), mode)
    assert actor.read(1200 if long else 60) == "copies 0 failures []"
    assert actor.wait() == 0


# While the child lives, and as soon as it has come out of fork(), the name is free whenever the parent has released it.
LIVE = """
import os, sys, threading, warnings
import bindlock
from _socket import AF_UNIX, SOCK_STREAM, socket
from bindlock.names import parse
warnings.simplefilter("ignore", DeprecationWarning)
sys.setswitchinterval(1e-5)
name, rounds = sys.argv[1], int(sys.argv[2])
stop = False
pause, paused, go_on = threading.Event(), threading.Event(), threading.Event()

def work():
    lock = bindlock.Lock(name)
    while not stop:
        lock.acquire(10)
        lock.release()
        if pause.is_set():
            pause.clear()
            paused.set()
            go_on.wait()
            go_on.clear()

thread = threading.Thread(target=work)
thread.start()
kept = 0
for _ in range(rounds):
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(to_child)
        os.write(to_parent, b"x")
        os.read(from_parent, 1)  # until the parent kills it, or is gone
        os._exit(1)
    os.read(from_child, 1)
    pause.set()
    paused.wait()
    paused.clear()
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.bind(parse(name).address)
    except OSError:
        kept += 1
    probe.close()
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    for descriptor in (from_child, to_parent, from_parent, to_child):
        os.close(descriptor)
    go_on.set()
stop = True
go_on.set()
thread.join()
print(f"kept {kept}", flush=True)
"""


def test_free_though_children_live(cast: Cast, name: str, long: bool) -> None:
    """After release the name is free, whatever children another thread has forked meanwhile, and though they live."""
    actor = cast.python(LIVE, name, str(30_000 if long else 500))
    assert actor.read(1200 if long else 60) == "kept 0"
    assert actor.wait() == 0


def test_a_fork_beside_busy_threads_shares_what_is_to_be_shared(name: str) -> None:
    """A child forked while the lock is held has a shared one in full: it can look, hold on, and release."""
    with bindlock.Lock(name, children="share") as lock:
        for _ in range(50):
            with Child(lambda child: child.say(f"{lock.held}")) as child:
                child.expect("True")
                assert child.wait() == 0
        assert lock.held
    until(lambda: bindable(name))


def test_a_fork_while_a_waiter_closes_its_socket(name: str) -> None:
    """What is not bound yet is closed under the guard, too: between its number's being forgotten and close(2) there is
    no fork."""
    spare: list[_socket.socket] = []
    binding = Binding(parse(name).address, _socket.SOCK_STREAM, False)
    with bindlock.Lock(name):
        with pytest.raises(OSError, match="Address already in use"):
            binding.bind(spare)
        closer = threading.Thread(target=lambda: binding.discard(spare))
        with fork_guard:
            closer.start()
            closer.join(0.2)  # longer than it takes without a guard
            assert closer.is_alive()
            assert [own.fileno() >= 0 for own in spare] == [True]
        closer.join()
    assert not spare
