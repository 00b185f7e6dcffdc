"""A lock changes hands and its name is never free: through exec, fork, inheritance, and over a connection."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bindlock
from bindlock.linux.binding import BACKLOG
from bindlock.proof.kernel.call import call
from tests.actors import DEADLINE, Child, bindable, bindlock_command, until
from tests.confinement import refuse_sockets, seccomp_reason
from tests.steps import Member, line, nothing_left, numbers_reason, queued, serve, sockets, switches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.actors import Cast

NOBODY = 65534
AF_NETLINK = 16
PR_SET_CHILD_SUBREAPER = 36


def holder_pid(name: str) -> int | None:
    """Whom the kernel names."""
    holder = bindlock.holder(name)
    return None if holder is None else holder.pid


def owners(name: str) -> list[int]:
    """Every process that has the socket open."""
    bound, _ = sockets(name)
    assert bound is not None
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if any(os.readlink(link) == f"socket:[{bound.inode}]" for link in (folder / "fd").iterdir()):
                found.append(int(folder.name))
    return found


@contextmanager
def bystanders(name: str, waiting: list[Member]) -> Iterator[None]:
    """In the block the lock changes hands: these wait on in the same order, and do not wake up."""
    order = [waiter.pid for waiter in bindlock.waiters(name)]
    before = [switches(member.pid) for member in waiting]
    yield
    assert [switches(member.pid) for member in waiting] == before, "woken by a hand-over"
    assert all(queued(member.pid) for member in waiting)
    assert [waiter.pid for waiter in bindlock.waiters(name)] == order
    assert not bindable(name)


@pytest.fixture
def orphans() -> Iterator[None]:
    """Processes whose parents are gone become the test's own; none is left at its end."""
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    call("prctl", PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    with suppress(ChildProcessError):
        while True:
            with open("/proc/thread-self/children") as children:
                for pid in children.read().split():
                    os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


# Through exec.

#: Executes itself again as often as that, with the lock; then says so, and holds it until told.
EXEC = """
import os, sys, bindlock
code, name, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
lock = bindlock.Lock(name)
if "BINDLOCK_FD" in os.environ:
    lock.adopt()
else:
    lock.acquire()
assert lock.held and not os.get_inheritable(lock.fileno()) and "BINDLOCK_FD" not in os.environ
print("held", flush=True)
sys.stdin.readline()
if times:
    variables = lock.keep_for_exec()
    assert variables == {key: os.environ[key] for key in ("BINDLOCK_FD", "BINDLOCK_NAME")}
    os.execv(sys.executable, [sys.executable, "-c", code, code, name, str(times - 1)])
"""


def test_exec_and_exec_again(cast: Cast, name: str) -> None:
    """A program that executes the next one, and that the one after, keeps the lock; the waiter does not wake up."""
    actor = cast.python(EXEC, EXEC, name, "3")
    actor.expect("held")
    with line_behind(name, 1) as (waiter,):
        with bystanders(name, [waiter]):
            for _ in range(3):
                actor.write()
                actor.expect("held")
                assert (holder_pid(name), owners(name)) == (actor.pid, [actor.pid])
        actor.write()
        assert actor.wait() == 0
        serve([waiter])
    nothing_left(name)


@contextmanager
def line_behind(name: str, count: int) -> Iterator[list[Member]]:
    """So many who wait for a name that is held already."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(Member(name)) for _ in range(count)]
        for member in waiting:
            member.join()
        yield waiting


def test_an_exec_that_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the exec fails, adopt() takes the lock back: no child can have it, and nothing tells of it."""
    for variable in ("BINDLOCK_FD", "BINDLOCK_NAME"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    with bindlock.Lock(name) as lock:
        lock.keep_for_exec()
        with pytest.raises(FileNotFoundError):
            os.execv("/nowhere/to/be/found", ["found"])
        lock.adopt()
        assert lock.held
        assert not os.get_inheritable(lock.fileno())
        assert "BINDLOCK_FD" not in os.environ
        assert "BINDLOCK_NAME" not in os.environ


UNDER_RUN = """
import select, sys, bindlock
lock = bindlock.Lock(sys.argv[1])
lock.adopt()
poller = select.poll()
poller.register(lock, select.POLLIN)
print(lock.held, lock.wanted, poller.poll(0), flush=True)
while not lock.wanted:  # readable is it for those who look, too
    poller.poll()
print(lock.wanted, flush=True)
lock.release()
print("goes on", flush=True)
sys.stdin.readline()
"""


def test_a_program_under_bindlock_run(cast: Cast, name: str) -> None:
    """A program started by `bindlock run` adopts its lock, sees that somebody wants it, lets go and goes on."""
    actor = cast.start(bindlock_command(), "run", name, "--", sys.executable, "-c", UNDER_RUN, name)
    actor.expect("True False []")
    assert owners(name) == [actor.pid]
    with Member(name) as waiter:
        waiter.go()
        actor.expect("True")
        actor.expect("goes on")
        serve([waiter])
        nothing_left(name)


# Through fork, and through inheritance.

#: The recipe of docs/howto/daemonise.md; then the daemon forks, to show that its child has nothing.
START = """
import os, sys, bindlock
shared = bindlock.Lock(sys.argv[1], timeout=0, children="share")
try:
    shared.acquire()  # in the foreground
except bindlock.Held as held:
    print(held.summary, flush=True)
    sys.exit(held.exit_status)
def work():
    lock = bindlock.Lock(sys.argv[1])
    lock.adopt(shared.detach())
    if not os.fork():
        print(os.getppid(), lock.held, flush=True)
    sys.stdin.readline()
"""
DAEMONISE = """
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
work()
"""
DAEMON_CONTEXT = """
import daemon
with daemon.DaemonContext(files_preserve=[shared], stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr):
    work()
"""


@pytest.mark.parametrize("program", ["double fork", "python-daemon"])
@pytest.mark.usefixtures("orphans")
def test_daemonising(cast: Cast, name: str, program: str) -> None:
    """The daemon has the lock of its grandparent, and nobody else; a second start is refused in the foreground."""
    if program == "python-daemon":
        pytest.importorskip("daemon")
    code = START + (DAEMONISE if program == "double fork" else DAEMON_CONTEXT)
    actor = cast.python(code, name)
    pid, held = actor.read().split()
    daemon = int(pid)
    assert held == "False", "of the daemon's child"
    assert daemon != actor.pid
    assert actor.wait() == 0
    assert (holder_pid(name), owners(name)) == (daemon, [daemon])
    second = cast.python(code, name)
    assert second.read().startswith(f"{name} is held by pid {daemon} (")
    assert second.wait() == 75
    with line_behind(name, 1) as (waiter,):
        os.kill(daemon, signal.SIGKILL)
        serve([waiter])
    nothing_left(name)


INHERITED = """
import sys, bindlock
lock = bindlock.Lock(sys.argv[1])
lock.adopt(int(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_descriptor_passed_by_subprocess(cast: Cast, name: str) -> None:
    """A child that was given the descriptor has the lock as soon as the parent lets go, and without a gap."""
    with bindlock.Lock(name) as lock, line_behind(name, 1) as (waiter,):
        with bystanders(name, [waiter]):
            actor = cast.python(INHERITED, name, str(lock.fileno()), pass_fds=[lock.fileno()])
            actor.expect("held")
            lock.release()
            assert (holder_pid(name), owners(name)) == (actor.pid, [actor.pid])
        actor.kill()
        serve([waiter])


# Over a connection.

PAIRS = ["pair", "sequential pair", "path", "abstract", "sequential abstract"]


@contextmanager
def connected(kind: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    type_ = socket.SOCK_SEQPACKET if "sequential" in kind else socket.SOCK_STREAM
    with ExitStack() as stack:
        if "pair" in kind:
            ends = socket.socketpair(socket.AF_UNIX, type_)
            yield stack.enter_context(ends[0]), stack.enter_context(ends[1])
            return
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, type_))
        path = f"/tmp/bindlock-test-{os.getpid()}-{id(stack)}"
        listener.bind(path if kind == "path" else "")
        if kind == "path":
            stack.callback(os.unlink, path)
        listener.listen()
        one = stack.enter_context(socket.socket(socket.AF_UNIX, type_))
        one.connect(listener.getsockname())
        yield one, stack.enter_context(listener.accept()[0])


class Passer(Child):
    """Acquires the name, or is handed it; then hands it over, or lets it go, as told; stays until it is killed."""

    def __init__(self, name: str, end: socket.socket) -> None:
        def body(child: Child) -> None:
            lock = bindlock.Lock(name)
            doings: dict[str, Callable[[], None]] = {
                "acquire": lock.acquire,
                "send": lambda: lock.send(end),
                "receive": lambda: lock.receive(end),
                "release": lock.release,
            }
            while what := child.hear():
                doings[what]()
                child.say(f"{what}: {lock.held}")

        super().__init__(body)

    def do(self, what: str, held: bool) -> None:
        """Have it do that, and compare what comes of it."""
        self.say(what)
        self.expect(f"{what}: {held}")


@pytest.mark.skipif(numbers_reason is not None, reason=str(numbers_reason))
@pytest.mark.parametrize("kind", PAIRS)
def test_sent_and_received(name: str, kind: str) -> None:
    """A lock goes to and fro with its queue and its tickets: those who wait sleep on, and have it in order later."""
    with connected(kind) as (end, other), line(name, 0) as (first, _):
        with Passer(name, end) as one, Passer(name, other) as two:
            one.say("acquire")
            until(lambda: queued(one.pid))
            with line_behind(name, 2) as waiting:
                first.let_go()
                one.expect("acquire: True")
                assert [ticket.limit for ticket in sockets(name)[1]] == [0, BACKLOG, BACKLOG], "the first is spent"
                for sender, receiver in [(one, two), (two, one)] * 3:
                    with bystanders(name, waiting):
                        receiver.say("receive")
                        sender.do("send", False)
                        receiver.expect("receive: True")
                    assert (holder_pid(name), owners(name)) == (receiver.pid, [receiver.pid])
                one.kill()
                serve(waiting)
        nothing_left(name)


# Who wants it?


def readable(lock: bindlock.Lock, seconds: float = 0) -> bool:
    """Whether a loop that watches the lock would wake up."""
    poller = select.poll()
    poller.register(lock, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def test_wanted(name: str) -> None:
    """A lock is wanted while somebody waits; its descriptor becomes readable then, and looks leave no trace."""
    with bindlock.Lock(name) as lock:
        assert not lock.wanted
        with Child(lambda child: bindlock.holder(name)) as looker:
            looker.wait()
        assert readable(lock), "a look leaves a connection"
        assert not lock.wanted
        assert not readable(lock)
        with line_behind(name, 1) as (waiter,):
            assert readable(lock, DEADLINE)
            assert lock.wanted
            waiter.kill()
        assert not lock.wanted
        assert not readable(lock)
    with pytest.raises(bindlock.NotHeld):
        _ = lock.wanted


def test_a_look_under_way_is_no_wish(name: str) -> None:
    """Who is just looking, and so connected for an instant, is hardly ever taken for one who wants the lock: only when
    it is kept from going on just then.
    """
    with bindlock.Lock(name) as lock, Child(lambda child: look_for_ever(child, name)) as looker:
        looker.expect("looking")
        assert sum(lock.wanted for _ in range(500)) < 10


def look_for_ever(child: Child, name: str) -> None:
    """Look at a name again and again."""
    child.say("looking")
    while bindlock.holder(name):
        pass


def test_wanted_by_those_behind_a_ticket(name: str) -> None:
    """Who got the lock with a ticket knows of those who are queued behind that."""
    with line(name, 0) as (first, _), Child(lambda child: wanted(child, name)) as child:
        until(lambda: queued(child.pid))
        with line_behind(name, 1):
            first.let_go()
            child.expect("True True")
        child.say("it is gone")
        child.expect("False False")


def wanted(child: Child, name: str) -> None:
    """Have the lock, and say twice what is seen of the waiters."""
    with bindlock.Lock(name) as lock:
        child.say(f"{readable(lock, DEADLINE)} {lock.wanted}")
        child.hear()
        child.say(f"{lock.wanted} {readable(lock)}")


@pytest.mark.skipif(seccomp_reason is not None, reason=str(seccomp_reason))
def test_wanted_without_sock_diag(name: str) -> None:
    """Where sock_diag is forbidden, a lock is wanted as soon as anybody has come, be it to look."""

    def body(child: Child) -> None:
        refuse_sockets(AF_NETLINK, errno.EAFNOSUPPORT)
        with bindlock.Lock(name) as lock:
            child.say(str(lock.wanted))
            child.hear()
            child.say(str(lock.wanted))

    with Child(body) as child:
        child.expect("False")
        bindlock.holder(name)
        child.say("looked")
        child.expect("True")
