"""Who holds a name, what names there are, and waiting for the end of a holder."""

from __future__ import annotations

import os
import pickle
import pwd
import resource
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from socket import AF_UNIX, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, socket

import pytest

import bindlock
from bindlock.names import parse
from tests.actors import HOLD, Actor, Cast, Child, gone, until
from tests.conftest import needs_root

NOBODY = 65534


def seen(name: str, scope: str = "user") -> bindlock.Holder:
    """The holder of a name that is held."""
    holder = bindlock.holder(name, scope=scope)
    assert holder is not None
    return holder


def test_nobody(name: str) -> None:
    """A free name has no holder."""
    assert bindlock.holder(name) is None


def test_oneself(name: str) -> None:
    """The holder's fields are right for this very process."""
    with bindlock.Lock(name) as lock:
        holder = seen(name)
        assert holder.name == name
        assert (holder.pid, holder.uid, holder.gid) == (os.getpid(), os.geteuid(), os.getegid())
        assert holder.inode == os.fstat(lock.fileno()).st_ino
        assert holder.waiters == 0
        with open("/proc/self/cmdline", "rb") as file:
            assert holder.command == tuple(os.fsdecode(part) for part in file.read().rstrip(b"\0").split(b"\0"))
        assert bindlock.holder(name) == holder


def test_another_process(cast: Cast, name: str) -> None:
    """The holder's fields are right for another process, its start time and age included."""
    begun = time.time()
    actor = cast.holder(name)
    held = time.time()
    holder = seen(name)
    assert holder.pid == actor.pid
    assert holder.command[0] == sys.executable
    assert holder.command[-1] == name
    assert holder.started is not None
    assert holder.age is not None
    tick = 2 / os.sysconf("SC_CLK_TCK") + 0.05
    assert begun - tick <= holder.started <= held + tick
    assert abs(time.time() - holder.started - holder.age) < 0.05
    assert holder.as_dict() | {"age": 0, "started": 0} == {
        "name": name, "pid": actor.pid, "uid": os.geteuid(), "gid": os.getegid(),
        "trusted": True, "user": pwd.getpwuid(os.geteuid()).pw_name, "started": 0, "age": 0,
        "command": list(holder.command), "inode": holder.inode, "waiters": 0,
    }  # fmt: skip


def as_nobody(child: Child, name: str) -> None:
    """Become another user, and hold a name of scope host."""
    lock = bindlock.Lock(name, scope="host")
    bindlock.holder(name)  # loads all there is to load: the user might not be let at it later
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    lock.acquire()
    child.say("held")
    child.hear()


@needs_root
def test_another_user(name: str) -> None:
    """The holder's uid and gid are those it had when it took the lock."""
    with Child(lambda child: as_nobody(child, name)) as child:
        child.expect("held")
        holder = seen(name, "host")
        assert (holder.pid, holder.uid, holder.gid) == (child.pid, NOBODY, NOBODY)
        assert f"pid {child.pid} (" in str(holder)


@needs_root
def test_seen_by_another_user(name: str, cast: Cast) -> None:
    """Somebody else's lock can be looked at by any user: its holder is named, but not to be signalled."""
    actor = cast.python("import sys, bindlock\nwith bindlock.Lock(sys.argv[1], scope='host'):\n"
                        "    print('held', flush=True)\n    sys.stdin.readline()", name)  # fmt: skip
    actor.expect("held")

    def body(child: Child) -> None:
        str(seen(name, "host"))  # loads all there is to load, codecs included
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        holder = seen(name, "host")
        assert (holder.pid, holder.uid) == (actor.pid, 0)
        with pytest.raises(bindlock.CannotSignal) as caught:
            holder.signal(signal.SIGTERM)
        assert caught.value.errno == 1
        assert [bound.uid for bound in bindlock.locks() if bound.name == name] == [0]

    with Child(body) as child:
        assert child.wait() == 0


def test_a_holder_is_a_value(cast: Cast, name: str) -> None:
    """A Holder cannot be changed, can be pickled, compared and hashed."""
    cast.holder(name)
    holder = seen(name)
    for field in ("pid", "name", "_start", "nonsense"):
        with pytest.raises(AttributeError):
            setattr(holder, field, 1)
        with pytest.raises(AttributeError):
            delattr(holder, field)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(holder, protocol))
        assert copy == holder
        assert hash(copy) == hash(holder)
        assert copy.started is not None
    assert holder == seen(name)
    assert holder != object()
    assert len({holder, seen(name)}) == 1


def test_a_signal_reaches_the_holder(cast: Cast, name: str) -> None:
    """signal() signals the process that holds the name."""
    actor = cast.holder(name)
    seen(name).signal(signal.SIGTERM)
    assert actor.wait() == -signal.SIGTERM


def test_a_signal_to_one_that_is_gone(cast: Cast, name: str) -> None:
    """signal() to a holder that has gone raises CannotSignal, whose errno is ESRCH."""
    actor = cast.holder(name)
    holder = seen(name)
    actor.kill()
    with pytest.raises(bindlock.CannotSignal) as caught:
        holder.signal(signal.SIGTERM)
    assert caught.value.errno == 3
    assert "ESRCH" in str(caught.value)
    assert caught.value.exit_status == 71


def test_no_signal_of_that_number(cast: Cast, name: str) -> None:
    """A number that is no signal's is refused with EINVAL, and the holder lives."""
    cast.holder(name)
    with pytest.raises(bindlock.CannotSignal) as caught:
        seen(name).signal(1000)
    assert caught.value.errno == 22
    seen(name).signal(0)


# Process 1 of a PID namespace of its own, where nobody else takes PIDs.
RECYCLED = """
import os, signal, sys, time
import bindlock
from bindlock.linux.process import age, started

name = sys.argv[1]
read, write = os.pipe()
first = os.fork()
if not first:
    lock = bindlock.Lock(name)
    lock.acquire()
    os.write(write, b"x")
    signal.pause()
os.read(read, 1)
holder = bindlock.holder(name)
assert holder.pid == first, holder
os.kill(first, signal.SIGKILL)
os.waitpid(first, 0)
begun = started(os.getpid())
while age(holder._start) < 0.1:  # PIDs cannot come round within one tick of the clock
    os.sched_yield()
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(first - 1))
second = os.fork()
if not second:
    signal.pause()
assert second == first, (first, second)
try:
    holder.signal(signal.SIGKILL)
except bindlock.CannotSignal as error:
    print("refused", error.errno, flush=True)
else:
    print("signalled", flush=True)
os.kill(second, 0)
os.kill(second, signal.SIGTERM)
print("ended by", os.WTERMSIG(os.waitpid(second, 0)[1]), flush=True)
"""


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_a_recycled_pid_is_not_signalled(cast: Cast, name: str) -> None:
    """Where another process has got the dead holder's PID, signal() raises ESRCH, and the other is left alone."""
    actor = cast.start(
        "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", RECYCLED, name
    )  # fmt: skip
    actor.expect("refused 3")
    actor.expect(f"ended by {int(signal.SIGTERM)}")
    assert actor.wait() == 0


def test_wait_ends_with_a_release(cast: Cast, name: str) -> None:
    """Holder.wait() returns when the holder releases."""
    actor = cast.holder(name)
    holder = seen(name)
    actor.write()
    holder.wait(30)
    assert bindlock.holder(name) is None
    holder.wait(0)


def test_wait_ends_with_a_death(cast: Cast, name: str) -> None:
    """Holder.wait() returns when the holder is killed."""
    actor = cast.holder(name)
    holder = seen(name)
    actor.signal(signal.SIGKILL)
    holder.wait(30)
    assert gone(actor.pid, 0) or bindlock.holder(name) is None


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_wait_ends_with_time(cast: Cast, name: str, timeout: float) -> None:
    """Holder.wait() raises Held, with that holder, when its time is over."""
    actor = cast.holder(name)
    holder = seen(name)
    begun = time.monotonic()
    with pytest.raises(bindlock.Held) as caught:
        holder.wait(timeout)
    assert time.monotonic() - begun >= timeout
    assert caught.value.holder is holder
    assert caught.value.name == name
    actor.write()
    holder.wait()


def test_wait_is_for_one_holder_only(cast: Cast, name: str) -> None:
    """Holder.wait() returns though the next holder has the name at once."""
    first = cast.holder(name)
    holder = seen(name)
    next_ = cast.python(WAITER, name)
    next_.expect("waiting")
    until(lambda: seen(name).waiters == 1)
    first.kill()
    next_.expect("held")
    holder.wait(30)
    assert seen(name).pid == next_.pid


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_wait_takes_no_nonsense(cast: Cast, name: str, timeout: float) -> None:
    """A negative time-out and NaN are refused."""
    cast.holder(name)
    holder = seen(name)
    with pytest.raises(bindlock.InvalidArgument):
        holder.wait(timeout)
    with pytest.raises(bindlock.InvalidArgument):
        bindlock.wait(name, timeout)


WAITER = """
import sys, bindlock
lock = bindlock.Lock(sys.argv[1])
lock.acquire(waiting=lambda holder: print("waiting", flush=True))
print("held", flush=True)
sys.stdin.readline()
"""


def waiting(cast: Cast, name: str) -> Actor:
    """A process that waits in the queue."""
    before = seen(name).waiters
    actor = cast.python(WAITER, name)
    actor.expect("waiting")
    until(lambda: seen(name).waiters == before + 1)
    return actor


def test_waiters_are_counted(cast: Cast, name: str) -> None:
    """Holder.waiters counts who waits; a waiter that dies is counted no more."""
    cast.holder(name)
    actors = [waiting(cast, name) for _ in range(3)]
    assert seen(name).waiters == 3
    actors[1].kill()
    assert seen(name).waiters == 2


def test_a_waiter_costs_nothing(cast: Cast, name: str) -> None:
    """Between two events a waiter uses no CPU time and is not even scheduled."""
    cast.holder(name)
    actor = waiting(cast, name)
    until(lambda: "S (sleeping)" in status(actor.pid)["State"])
    before = activity(actor.pid)
    with pytest.raises(bindlock.Held):
        bindlock.wait(name, timeout=1.5)  # another waiter lets the time pass
    assert activity(actor.pid) == before


def activity(pid: int) -> tuple[str, ...]:
    """CPU ticks, and how often the process was put to sleep or interrupted."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    lines = status(pid)
    return (
        fields[11].decode(), fields[12].decode(), lines["voluntary_ctxt_switches"], lines["nonvoluntary_ctxt_switches"],
    )  # fmt: skip


def status(pid: int) -> dict[str, str]:
    """What /proc/PID/status says."""
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def test_bindlock_wait(cast: Cast, name: str) -> None:
    """wait() returns at once for a free name, after the release for a held one, and takes nothing."""
    bindlock.wait(name)
    bindlock.wait(name, 0)
    actor = cast.holder(name)
    with pytest.raises(bindlock.Held) as caught:
        bindlock.wait(name, 0.02)
    assert caught.value.holder is not None
    assert caught.value.holder.pid == actor.pid
    actor.write()
    bindlock.wait(name, 30)
    assert bindlock.holder(name) is None
    assert actor.wait() == 0


@needs_root
def test_waiting_for_a_stranger(name: str) -> None:
    """wait() waits for the end of a holder whom the scope does not trust, too: it takes nothing, so trusts nobody."""

    def body(child: Child) -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with socket(AF_UNIX, SOCK_STREAM) as stranger:
            stranger.bind(parse_for_root)
            if child.hear() == "listen":
                stranger.listen(8)
            child.say("bound")
            child.hear()

    parse_for_root = parse(name).address
    for mode in ("listen", "do not"):
        with Child(body) as child:
            child.say(mode)
            child.expect("bound")
            with pytest.raises(bindlock.Held) as caught:
                bindlock.wait(name, 0.05)
            assert caught.value.holder is not None
            assert caught.value.holder.uid == NOBODY
            with pytest.raises(bindlock.Untrusted) as untrusted:
                bindlock.Lock(name).acquire(timeout=30)
            assert untrusted.value.uid == NOBODY
            child.say("go")
            bindlock.wait(name, 30)


HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "two\nlines\r\x08",
    "\u202edesrever\u2066",
    "\udcff\udc80 not UTF-8",
    "x" * 5000,
    "\x9b31m\x07",
]


@pytest.mark.parametrize("argument", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_command_lines(cast: Cast, name: str, argument: str) -> None:
    """A command line is raw in the holder, and shown in one line of printable characters, not too long."""
    actor = cast.python(
        HOLD,
        name, argument,
    )  # fmt: skip
    actor.expect("held")
    holder = seen(name)
    assert holder.command[-1] == argument
    for text in (str(holder), repr(holder), str(bindlock.Held(name, holder)), bindlock.Held(name, holder).summary):
        assert text.isprintable()
        assert len(text) < 400


def test_a_program_without_a_command_line(cast: Cast, name: str) -> None:
    """A process that has no command line is shown by its name, in brackets."""
    code = """
    import ctypes, os, sys, bindlock
    lock = bindlock.Lock(sys.argv[1])
    lock.acquire()
    os.set_inheritable(lock.fileno(), True)
    ctypes.CDLL(None).execv(b"/bin/cat", (ctypes.c_char_p * 2)(b"", None))
    """
    actor = cast.python(textwrap.dedent(code), name)
    actor.write("become")
    actor.expect("become")
    assert seen(name).command == ("[cat]",)


# fork(2) of the C library runs no at-fork handler of Python: as a program in C, or a C extension, would do it.
ORPHAN = """
import ctypes, os, signal, sys, bindlock
lock = bindlock.Lock(sys.argv[1])
lock.acquire()
pid = ctypes.CDLL(None).fork()
if not pid:
    signal.pause()
print(pid, flush=True)
signal.pause()
"""


def test_a_dead_listener_with_a_living_child(cast: Cast, name: str) -> None:
    """Where the process that listened is dead, and a child of it has the socket, the child is named and signalled."""
    actor = cast.python(ORPHAN, name)
    child = int(actor.read())
    pidfd = os.pidfd_open(child)
    try:
        assert seen(name).pid == actor.pid
        actor.kill()
        holder = seen(name)
        assert holder.pid == child
        begun = time.monotonic()
        assert not bindlock.Lock(name).try_acquire()
        assert 0.2 < time.monotonic() - begun < 2  # the grace: its listener is gone
        holder.signal(signal.SIGTERM)
        holder.wait(30)
        with bindlock.Lock(name, timeout=0):
            pass
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_a_socket_that_nobody_shows(name: str, cast: Cast) -> None:
    """A lock whose socket is in flight is held by a process that cannot be named, and says so."""
    code = """
    import array, os, socket, sys, bindlock
    lock = bindlock.Lock(sys.argv[1])
    lock.acquire()
    one, other = socket.socketpair()
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [lock.fileno()]))])
    lock.release()
    pid = os.fork()
    if pid:
        os._exit(0)  # the child has the pair of sockets, with the lock in flight between them
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    """
    actor = cast.python(textwrap.dedent(code), name)
    child = int(actor.read())
    actor.wait()
    pidfd = os.pidfd_open(child)
    try:
        holder = seen(name)
        assert holder.pid is None
        assert holder.uid == os.geteuid()
        assert holder.command == ()
        assert (holder.started, holder.age) == (None, None)
        assert "pid unknown" in str(holder)
        with pytest.raises(bindlock.CannotSignal):
            holder.signal(0)
        actor.write()
        holder.wait(30)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL) if not gone_already(pidfd) else None
        os.close(pidfd)


def gone_already(pidfd: int) -> bool:
    """Whether the process of a pidfd is dead and reaped."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_exec_keeps_the_pid(cast: Cast, name: str) -> None:
    """A holder that has given its lock to the program it became is named as that program."""
    code = (
        "import os, sys, bindlock\nlock = bindlock.Lock(sys.argv[1])\nlock.acquire()\n"
        "os.set_inheritable(lock.fileno(), True)\nos.execvp('sh', ['sh', '-c', 'echo held; read line'])"
    )
    actor = cast.python(code, name)
    actor.expect("held")
    holder = seen(name)
    assert holder.pid == actor.pid
    assert holder.command[0] == "sh"


def test_locks(cast: Cast, name: str) -> None:
    """locks() lists the names of all scopes and users, each spelled so that it means that name again."""
    actor = cast.holder(name)
    with bindlock.Lock(name, scope="host"), bindlock.Lock("@" + name):
        found = {(bound.name, bound.scope): bound for bound in bindlock.locks() if name in bound.name}
        assert set(found) == {(name, "user"), (name, "host")}
        everything = {(b.name, b.scope) for b in bindlock.locks(every=True) if name in b.name}
        assert everything == {(name, "user"), (name, "host"), ("@" + name, "verbatim")}
        bound = found[name, "user"]
        assert bound.address == parse(name).address
        assert bound.uid == os.geteuid()
        assert bound.queued == 0
        holder = bound.holder()
        assert holder is not None
        assert holder.pid == actor.pid
        assert holder.inode == bound.inode
        actor.kill()
        assert bound.holder() is None
    assert not [b for b in bindlock.locks(every=True) if name in b.name]


def test_locks_are_sorted(name: str) -> None:
    """locks() is sorted by name."""
    with ExitStack() as stack:
        for letter in "cab":
            stack.enter_context(bindlock.Lock(f"{name}-{letter}"))
        names = [bound.name for bound in bindlock.locks()]
    assert names == sorted(names)
    assert [n for n in names if n.startswith(name)] == [f"{name}-{letter}" for letter in "abc"]


@contextmanager
def bound(*addresses: bytes, kind: int = SOCK_STREAM) -> Iterator[None]:
    """Bare sockets with those addresses, made by a stranger."""
    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(socket(AF_UNIX, kind)).bind(address)
        yield


def test_hostile_names(name: str) -> None:
    """Names that strangers have bound, whatever their bytes, are listed, and never as somebody else's name."""
    tag = name.encode()
    raw = [
        b"\0bindlock/host/" + tag + b"\nbindlock/0/root",
        b"\0bindlock/host/" + tag + b"\x1b[2J",
        b"\0bindlock/host/" + tag + b"\xff\xfe",
        b"\0bindlock/0/" + tag,
        b"\0bindlock/00/" + tag,
        b"\0bindlock/-1/" + tag,
        b"\0bindlock/" + tag,
        b"\0bindlock//" + tag,
        b"\0" + tag + b"\0",
        b"\0" + tag,
        b"\0@" + tag,
        b"\0padded:@" + tag,
        (b"\0" + tag).ljust(108, b"\0"),
    ]
    with bound(*raw), bound(b"\0" + tag, kind=SOCK_DGRAM), bound(b"\0" + tag, kind=SOCK_SEQPACKET):
        found = [b for b in bindlock.locks(every=True) if tag in b.address]
        assert sorted(b.address for b in found) == sorted([*raw, b"\0" + tag, b"\0" + tag])
        spelled = {(b.name, b.scope) for b in found}
        assert len(spelled) == len(found), "two names are spelled alike"
        assert {b.name for b in found if b.address == b"\0" + tag} == {
            f"@{name}",
            f"datagram:@{name}",
            f"seqpacket:@{name}",
        }
        for each in found:
            assert repr(each).isprintable()
            try:
                meant = parse(each.name, each.scope if each.scope != "verbatim" else "user")
            except bindlock.InvalidArgument:
                continue
            assert meant.address == each.address or "\\" in each.name


def test_ten_thousand_names(name: str) -> None:
    """Ten thousand names are listed completely, at a cost that grows in proportion."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 10_500:
        pytest.skip("needs 10 500 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 10_500), hard))
    try:
        with bound(*(f"\0bindlock/host/{name}-{number}".encode() for number in range(1000))):
            few = cost(name, 1000)
        with bound(*(f"\0bindlock/host/{name}-{number}".encode() for number in range(10_000))):
            many = cost(name, 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"1 000 names {few * 1e3:.1f} ms, 10 000 names {many * 1e3:.1f} ms")
    assert many < 25 * few + 0.02


def cost(name: str, count: int) -> float:
    """CPU seconds of a list, the best of three."""
    best = float("inf")
    for _ in range(3):
        begun = time.thread_time()
        found = bindlock.locks()
        best = min(best, time.thread_time() - begun)
    ours = {b.name for b in found if b.name.startswith(name)}
    assert ours == {f"{name}-{number}" for number in range(count)}
    return best


def test_looking_while_another_thread_releases(name: str) -> None:
    """A look is right whatever locks other threads of the process take and release meanwhile."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        lock = bindlock.Lock(f"{name}-{number}")
        while not stop.is_set():
            with lock:
                pass

    def dead_clients() -> None:
        while not stop.is_set():
            for number in range(2):
                with socket(AF_UNIX, SOCK_STREAM) as client:
                    client.connect_ex(parse(f"{name}-{number}").address)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)] + [threading.Thread(target=dead_clients)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            try:
                bindlock.locks()
                bindlock.holder(f"{name}-0")
            except bindlock.BindlockError as error:
                failures.append(error)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(before)
    assert not failures
