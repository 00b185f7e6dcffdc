"""A socket in a private descriptor table: no child has it, nobody else can close it, and it goes with the process."""

from __future__ import annotations

import concurrent.futures
import errno
import gc
import multiprocessing
import os
import platform
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain

import pytest

import bindlock
from bindlock.linux import table
from bindlock.linux.diag import Diag
from bindlock.linux.private import PrivateBinding, bindings
from bindlock.linux.table import PrivateTableRefused
from bindlock.names import parse
from tests.actors import Cast, Child, bindable, until
from tests.confinement import refuse_call
from tests.conftest import needs_root
from tests.interrupts import Interrupted, Interrupter
from tests.test_threads import Crew

PACKAGE = os.path.dirname(bindlock.__file__)
CLONE_NEWNET = 0x40000000
EX_FORK = "ignore:.*multi-threaded, use of fork:DeprecationWarning"

#: What programs in other processes begin with.
BIND = """
import gc, os, signal, sys, socket, threading, time
from bindlock.linux.private import PrivateBinding
from bindlock.names import parse
def private(text):
    name = parse(text)
    return PrivateBinding(name.address, name.kind)
binding = private(sys.argv[1])
"""
HELD = BIND + "binding.bind()\nprint('held', flush=True)\n"


def private_binding(name: str) -> PrivateBinding:
    """What is in the way of a `Lock` of that name."""
    parsed = parse(name)
    return PrivateBinding(parsed.address, parsed.kind)


@contextmanager
def bound(name: str) -> Iterator[PrivateBinding]:
    """A name that is had, and let go."""
    binding = private_binding(name)
    binding.bind()
    try:
        yield binding
    finally:
        binding.close()


def refusal(binding: PrivateBinding) -> int:
    """The errno that a bind fails with."""
    with pytest.raises(OSError, match=r".") as caught:
        binding.bind()
    assert caught.value.errno is not None
    return caught.value.errno


def threads() -> set[str]:
    """The threads of this process, as the kernel numbers them."""
    return set(os.listdir("/proc/self/task"))


def private_threads() -> set[str]:
    """Those with another descriptor table: in a private one 0 is the workbench, and here it is standard input."""
    return {thread for thread in threads() if not os.path.lexists(f"/proc/self/task/{thread}/fd/0")}


def private_thread() -> str:
    """The only one of them, when those have ended that are about to."""
    until(lambda: len(private_threads()) == 1)
    (thread,) = private_threads()
    return thread


def links(thread: str) -> dict[str, str]:
    """The descriptors of a thread, and what they lead to."""
    folder = f"/proc/self/task/{thread}/fd"
    found = {}
    for number in os.listdir(folder):
        with suppress(FileNotFoundError):  # the one that lists them
            found[number] = os.readlink(f"{folder}/{number}")
    return found


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """The thread ends with the last of its sockets."""
    before = threads()
    yield
    until(lambda: threads() <= before, 5)
    assert not bindings()


# Having a name.


def test_bind_excludes_everybody_else(name: str) -> None:
    """A name that is had is refused to all others, also in private tables, and free after close."""
    with bound(name) as binding:
        assert binding.bound
        assert binding.verify()
        assert not bindable(name)
        assert refusal(private_binding(name)) == errno.EADDRINUSE
        assert refusal(binding) == errno.EADDRINUSE
        assert bindings() == [binding]
        with pytest.raises(bindlock.Held):
            bindlock.Lock(name).acquire(timeout=0)
    assert not binding.bound
    assert not binding.verify()
    assert bindable(name)
    binding.close()
    with bindlock.Lock(name):
        assert refusal(private_binding(name)) == errno.EADDRINUSE


def test_the_table_has_nothing_but_the_socket(name: str) -> None:
    """The thread has the bound socket and no other descriptor, and the process does not have the socket."""
    with bound(name) as binding:
        thread = private_thread()
        socket_ = f"socket:[{binding.inode()}]"
        assert list(links(thread).values()) == [socket_]
        assert socket_ not in links(str(threading.get_native_id())).values()
        assert binding.fileno() == -1
        with Diag() as diag:
            (entry,) = diag.bound(lambda address: address == binding.address)
        assert entry.inode == binding.inode()
        assert entry.listening
    assert binding.inode() == 0


def test_one_thread_for_all(name: str) -> None:
    """Any number of names share one thread, which ends with the last of them; numbers are used again."""
    some = [private_binding(f"{name}-{number}") for number in range(20)]
    for _ in range(3):
        for binding in some:
            binding.bind()
        thread = private_thread()
        random.shuffle(some)
        for binding in some[:10]:
            binding.close()
        assert set(links(thread).values()) == {f"socket:[{binding.inode()}]" for binding in some[10:]}
        for binding in some[:10]:
            binding.bind()
        assert private_threads() == {thread}
        assert max(map(int, links(thread))) <= len(some)
        for binding in some:
            binding.close()
        until(lambda: not private_threads())


def test_what_is_refused_is_an_error_and_leaves_nothing(name: str) -> None:
    """Each step that the kernel refuses is an OSError with its errno, whether or not other names are had."""
    long = PrivateBinding(b"\0" + b"x" * 200, socket.SOCK_STREAM)
    unknown = PrivateBinding(parse(name).address, 77)
    for other in (None, private_binding(f"{name}-other")):
        if other is not None:
            other.bind()
        assert refusal(long) == errno.EINVAL
        assert refusal(unknown) in (errno.EINVAL, errno.ESOCKTNOSUPPORT)
        if other is not None:
            thread = private_thread()
            assert len(links(thread)) == 1
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (2, limits[1]))  # there is room for the workbench only
            try:
                assert refusal(private_binding(name)) == errno.EMFILE
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(links(thread)) == 1
            other.close()
    assert bindable(name)


def test_errors_are_right_under_load(name: str) -> None:
    """The errno of a refusal is right while other threads run Python code all the time."""
    done = threading.Event()

    def burn() -> None:
        while not done.is_set():
            with suppress(OSError):
                os.stat("/nonexistent")

    crew = Crew(burn, burn)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        with bound(name):
            for _ in range(200):
                assert refusal(private_binding(name)) == errno.EADDRINUSE
    finally:
        sys.setswitchinterval(interval)
        done.set()
        crew.join()


def test_datagram_names(name: str) -> None:
    """A name of another socket type is bound, and not listened on."""
    binding = PrivateBinding(parse(name).address, socket.SOCK_DGRAM)
    binding.bind()
    assert binding.verify()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe, pytest.raises(OSError, match="in use"):
        probe.bind(binding.address)
    binding.close()


def test_detach_keeps_the_name_until_the_end(cast: Cast, name: str) -> None:
    """A name that was detached is forgotten, had by the process while it lives, and free afterwards."""
    code = HELD + "print(binding.detach(), binding.bound, binding.verify(), flush=True)\nsys.stdin.readline()"
    actor = cast.python(code, name)
    actor.expect("held")
    actor.expect("-1 False False")
    assert not bindable(name)
    actor.write()
    assert actor.wait() == 0
    assert bindable(name)


# Waiters.


def test_waiters_are_hung_up_by_close(name: str) -> None:
    """A connection that is queued is hung up when the name is let go, and the name is free by then."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        with bound(name) as binding:
            client.connect(binding.address)
            poller = select.poll()
            poller.register(client, 0)
            assert not poller.poll(0)
        assert poller.poll(0)
        assert bindable(name)


def test_drop_dead_drops_the_dead_only(name: str) -> None:
    """Dead connections at the front of the queue are dropped, one who waits behind them is not."""
    with bound(name) as binding, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as alive:
        for _ in range(5):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                dead.connect(binding.address)
        alive.connect(binding.address)

        def queued() -> int:
            with Diag() as diag:
                (entry,) = diag.bound(lambda address: address == binding.address)
                return entry.queued

        assert queued() == 6
        binding.drop_dead(5)
        assert queued() == 1
        poller = select.poll()
        poller.register(alive, 0)
        assert not poller.poll(0)
        binding.drop_dead(7)  # more than there are
        assert queued() == 0
        thread = private_thread()
        assert len(links(thread)) == 1
    binding.drop_dead(1)


def test_a_followed_ticket_goes_with_the_lock(name: str) -> None:
    """A ticket that somebody is queued at has no descriptor once it is stowed, and is hung up with the lock."""
    ticket = private_binding(f"{name}-ticket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as follower:
        with bound(name) as binding:
            ticket.bind()
            follower.connect(ticket.address)
            poller = select.poll()
            poller.register(follower, 0)
            binding.stow(ticket)
            assert not ticket.bound
            thread = private_thread()
            assert len(links(thread)) == 1
            assert not poller.poll(0)
            assert not bindable(f"{name}-ticket")
            with Diag() as diag:
                (entry,) = diag.bound(lambda address: address == ticket.address)
            assert (entry.queued, entry.limit) == (1, 0)
        assert poller.poll(0)
        assert bindable(f"{name}-ticket")


def test_a_ticket_nobody_follows_goes_at_once(name: str) -> None:
    """A ticket that nobody is queued at is closed, and the lock's queue is empty."""
    ticket = private_binding(f"{name}-ticket")
    with bound(name) as binding:
        ticket.bind()
        binding.stow(ticket)
        assert not ticket.bound
        assert bindable(f"{name}-ticket")
        with Diag() as diag:
            (entry,) = diag.bound(lambda address: address == binding.address)
        assert entry.queued == 0


def test_a_ticket_is_closed_in_any_case(name: str) -> None:
    """A ticket of whoever does not have the name is closed, too."""
    ticket = private_binding(f"{name}-ticket")
    ticket.bind()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as follower:
        follower.connect(ticket.address)
        private_binding(name).stow(ticket)
    assert bindable(f"{name}-ticket")


# Children, and other code.


def test_closing_all_descriptors_does_not_lose_it(cast: Cast, name: str) -> None:
    """After os.closerange() the name is had, and let go as ever."""
    code = HELD + "os.closerange(3, 256)\nprint(binding.verify(), flush=True)\nsys.stdin.readline()\nbinding.close()\n"
    code += "print(binding.bound, flush=True)\nsys.stdin.readline()"
    actor = cast.python(code, name)
    actor.expect("held")
    actor.expect("True")
    assert not bindable(name)
    actor.write()
    actor.expect("False")
    assert bindable(name)


@pytest.mark.filterwarnings(EX_FORK)
def test_close_with_a_living_child(name: str) -> None:
    """A forked child that lives on does not keep the name."""
    binding = private_binding(name)
    binding.bind()

    def body(child: Child) -> None:
        child.say(str(binding.bound))
        child.hear()

    with Child(body) as child:
        child.expect("False")
        assert not bindable(name)
        binding.close()
        assert bindable(name)


@pytest.mark.filterwarnings(EX_FORK)
def test_a_forked_child_has_nothing_and_can_have_its_own(name: str) -> None:
    """In a forked child nothing is bound or can be undone; it can have names, and its own end does not harm ours."""
    binding = private_binding(name)

    def body(child: Child) -> None:
        assert not binding.bound
        assert not binding.verify()
        assert binding.inode() == 0
        assert not bindings()
        assert not private_threads()
        binding.close()
        assert refusal(binding) == errno.EADDRINUSE
        with bound(f"{name}-child") as own:
            assert own.verify()
            assert bindings() == [own]
        binding.close()
        child.say("done")

    binding.bind()
    with Child(body) as child:
        child.expect("done")
        assert child.wait() == 0
    assert binding.verify()
    binding.close()


@pytest.mark.filterwarnings(EX_FORK)
def test_forks_while_other_threads_bind(name: str, long: bool) -> None:
    """A fork at any instant of other threads' binds leaves a child that has nothing, and no lock that stays taken."""
    done = threading.Event()

    def work(number: int) -> Callable[[], None]:
        def bind_and_close() -> None:
            binding = private_binding(f"{name}-{number}")
            while not done.is_set():
                binding.bind()
                binding.close()

        return bind_and_close

    def body(child: Child) -> None:
        assert not bindings()
        with bound(f"{name}-{os.getpid()}"):
            pass

    crew = Crew(*(work(number) for number in range(3)))
    try:
        for _ in range(500 if long else 30):
            with Child(body) as child:
                assert child.wait() == 0
    finally:
        done.set()
        crew.join()


@pytest.mark.filterwarnings(EX_FORK)
def test_a_signal_handler_that_forks(name: str, long: bool) -> None:
    """Code that was waiting for the thread when a signal handler forked goes on in the child, with nothing bound."""
    parent = os.getpid()
    children: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()) if os.getpid() == parent else None)
    chance = random.Random(1)
    in_child = 0
    try:
        for _ in range(1000 if long else 60):
            binding = private_binding(name)
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 250e-6))
            try:
                binding.bind()
            except OSError as error:
                # Whoever was forked before the name was asked for asks for it, too, and may be quicker.
                if os.getpid() == parent and (error.errno != errno.EADDRINUSE or not children):
                    raise
                if os.getpid() != parent:
                    os._exit(0 if error.errno in (errno.ECANCELED, errno.EADDRINUSE) and not binding.bound else 1)
            binding.close()
            signal.setitimer(signal.ITIMER_REAL, 0)
            if os.getpid() != parent:
                os._exit(2 if binding.bound else 0)
            while children:
                in_child += 1
                assert os.waitstatus_to_exitcode(os.waitpid(children.pop(), 0)[1]) == 0
            assert bindable(name)
    finally:
        if os.getpid() != parent:
            os._exit(3)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert in_child


def _popen(child: Child) -> None:
    while True:
        subprocess.Popen(["true"]).wait()


def _system(child: Child) -> None:
    while True:
        os.system("true")


def _posix_spawn(child: Child) -> None:
    while True:
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)


@pytest.mark.filterwarnings(EX_FORK)
@pytest.mark.parametrize("spawn", [_popen, _system, _posix_spawn])
def test_killed_between_fork_and_exec(name: str, seed: int, long: bool, spawn: Callable[[Child], None]) -> None:
    """The name is free when waitpid says dead, at whatever instant of starting children the process is killed."""
    chance = random.Random(seed)
    parsed = parse(name)
    late = 0

    def body(child: Child) -> None:
        binding = PrivateBinding(parsed.address, parsed.kind)
        binding.bind()
        child.say("held")
        spawn(child)

    for _ in range(1000 if long else 50):
        with Child(body) as child:
            child.expect("held")
            time.sleep(chance.uniform(0, 0.005))  # a random instant, not until anything
            child.signal(signal.SIGKILL)
            child.reap()
            late += not bindable(name)
            until(lambda: bindable(name))
    print(f"{late} late")
    assert not late


@pytest.mark.filterwarnings(EX_FORK)
def test_killed_with_a_fork_pool(name: str, long: bool) -> None:
    """Workers of a fork ProcessPoolExecutor, orphans that live on, do not keep the name of their killed parent."""
    parsed = parse(name)
    late = 0

    def body(child: Child) -> None:
        binding = PrivateBinding(parsed.address, parsed.kind)
        binding.bind()
        context = multiprocessing.get_context("fork")
        pool = concurrent.futures.ProcessPoolExecutor(2, mp_context=context)
        list(pool.map(abs, range(4)))
        child.say(" ".join(map(str, pool._processes)))
        child.hear(3600)

    for _ in range(1000 if long else 50):
        with Child(body) as child:
            orphans = [os.pidfd_open(int(pid)) for pid in child.hear().split()]
            try:
                assert orphans
                child.signal(signal.SIGKILL)
                child.reap()
                late += not bindable(name)
                assert not select.select(orphans, [], [], 0)[0], "no orphans: nothing was tried"
            finally:
                for orphan in orphans:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(orphan, signal.SIGKILL)
                    assert select.select([orphan], [], [], 30)[0]
                    os.close(orphan)
    print(f"{late} late")
    assert not late


@needs_root
def test_network_namespaces_have_names_of_their_own(cast: Cast, name: str) -> None:
    """A name is taken in the network namespace of the thread that asks, also when another is served already."""
    code = (
        HELD
        + f"""
import ctypes
assert ctypes.CDLL(None).unshare({CLONE_NEWNET}) == 0
other = private(sys.argv[1])
other.bind()
other.close()
print("both", binding.verify(), flush=True)
sys.stdin.readline()
"""
    )
    actor = cast.python(code, name)
    actor.expect("held")
    actor.expect("both True")
    assert not bindable(name)
    actor.kill()
    assert bindable(name)


# Signals.


def test_no_signal_comes_to_the_thread(name: str) -> None:
    """All signals are blocked in the thread, and as they were in the caller's."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with bound(name):
        thread = private_thread()
        with open(f"/proc/self/task/{thread}/status") as status:
            (blocked,) = [int(line.split()[1], 16) for line in status if line.startswith("SigBlk:")]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    # 1 to 64 but for those that cannot be blocked, and the two (of musl: three) that libc keeps for itself.
    missing = {number for number in range(1, 65) if not blocked >> (number - 1) & 1}
    assert missing <= {signal.SIGKILL, signal.SIGSTOP, 32, 33, 34}


class Scene:
    """A binding, and an independent look at what is bound."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.binding = private_binding(name)
        self.ticket = private_binding(f"{name}-ticket")

    def check(self, label: object) -> None:
        """The bindings say what the kernel says; then nothing is bound, and the thread goes."""
        for one in tuple(table._live):
            one.perform(iter(()))  # after two exceptions the thread may still be at it
        for binding, name in ((self.binding, self.name), (self.ticket, f"{self.name}-ticket")):
            free = bindable(name)
            assert binding.bound != free, f"{label}: bound is {binding.bound}, but the name is free: {free}"
            assert binding.verify() != free
            if binding.bound:
                binding.close()
            assert bindable(name)
        assert not bindings()


def _bind(scene: Scene) -> Callable[[], object]:
    return scene.binding.bind


def _bind_second(scene: Scene) -> Callable[[], object]:
    scene.ticket.bind()
    return scene.binding.bind


def _close(scene: Scene) -> Callable[[], object]:
    scene.binding.bind()
    return scene.binding.close


def _close_second(scene: Scene) -> Callable[[], object]:
    scene.ticket.bind()
    scene.binding.bind()
    return scene.binding.close


def _stow(scene: Scene) -> Callable[[], object]:
    scene.binding.bind()
    scene.ticket.bind()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as follower:
        follower.connect(scene.ticket.address)
    return stow_and_close(scene)


def stow_and_close(scene: Scene) -> Callable[[], object]:
    """A stowed ticket is bound as long as the lock is: the check wants to see both let go."""

    def run() -> None:
        try:
            scene.binding.stow(scene.ticket)
        finally:
            assert not scene.ticket.bound
            scene.binding.close()

    return run


def _ask(scene: Scene) -> Callable[[], object]:
    scene.binding.bind()

    def run() -> None:
        scene.binding.verify()
        scene.binding.inode()
        scene.binding.drop_dead(1)

    return run


CASES = [_bind, _bind_second, _close, _close_second, _stow, _ask]


def interrupt(
    scene: Scene, signals: Interrupter, case: Callable[[Scene], Callable[[], object]], *instants: int
) -> BaseException | None:
    """Run a case with exceptions at those instants, and check."""
    function = case(scene)
    error = signals.run(function, *instants)
    places = [f"{code.co_qualname}+{at}" for code, at in signals.raised]
    assert (error is not None) == bool(signals.raised), f"{error!r} at {places}"
    if case in (_bind, _bind_second) and len(signals.raised) == 1:
        assert not scene.binding.bound, f"bind has raised at {places}, and the name is bound"
    if case in (_close, _close_second) and len(signals.raised) == 1 and signals.raised[0][0].co_name != "close":
        assert not scene.binding.bound, f"close has raised at {places}, and the name is bound"
    scene.check(places)
    return error


@pytest.mark.parametrize("case", CASES)
def test_interrupted_at_every_instant(name: str, case: Callable[[Scene], Callable[[], object]]) -> None:
    """A signal handler that raises, at whatever instant, leaves nothing bound that nobody knows of."""
    scene = Scene(name)
    before = threads()
    with Interrupter(PACKAGE) as signals:
        interrupt(scene, signals, case)
        for instant in range(1, 10_000):
            interrupt(scene, signals, case, instant)
            if not signals.raised:
                break
            until(lambda: threads() <= before)
    assert instant > 3


@pytest.mark.parametrize("case", CASES)
def test_interrupted_in_the_clean_up(name: str, long: bool, case: Callable[[Scene], Callable[[], object]]) -> None:
    """A second exception, at whatever instant after the first, leaves no more bound than the first."""
    scene = Scene(name)
    with Interrupter(PACKAGE) as signals:
        for instant in range(1, 10_000, 1 if long else 5):
            for later in range(1, 10_000, 1 if long else 3):
                interrupt(scene, signals, case, instant, later)
                if len(signals.raised) < 2:
                    break
            if not signals.raised:
                break
    table.end_idle()  # which a second exception may have prevented


def test_interrupted_at_random(name: str, seed: int, long: bool) -> None:
    """Real signals at random microseconds of bind and close, also while the thread works, do no harm."""
    chance = random.Random(seed)
    scene = Scene(name)
    armed = False
    interrupted = {"bind": 0, "close": 0}

    def ring(*_: object) -> None:
        if armed:
            raise Interrupted

    before = signal.signal(signal.SIGALRM, ring)
    try:
        scene.check("")
        with bound(name):
            pass  # loads what is loaded once only
        for number in range(20_000 if long else 1_500):
            action = chance.choice(["bind", "close"])
            if action == "close":
                scene.binding.bind()
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 250e-6))
                getattr(scene.binding, action)()
                armed = False
            except Interrupted:
                armed = False
                interrupted[action] += 1
                if action == "bind":
                    assert not scene.binding.bound
            signal.setitimer(signal.ITIMER_REAL, 0)
            scene.check((number, action))
    finally:
        signal.signal(signal.SIGALRM, before)
    print(interrupted)
    assert all(interrupted.values())


def test_a_handler_that_has_a_lock_of_its_own(name: str) -> None:
    """A signal handler may bind and close while the code that it interrupts does."""
    own = private_binding(f"{name}-handler")
    rounds = 0

    def ring(*_: object) -> None:
        nonlocal rounds
        if own.bound:
            own.close()
        else:
            own.bind()
        rounds += 1

    before = signal.signal(signal.SIGALRM, ring)
    chance = random.Random(2)
    try:
        for _ in range(500):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 250e-6))
            with bound(name) as binding:
                assert binding.verify()
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert bindable(name)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if own.bound:
            own.close()
    assert rounds > 10


# No Python code in the thread.


class Garbage:
    """A cycle with a finalizer that writes down where it ran."""

    ran_in: set[int]
    #: How many there are, or nearly so.
    count = 0

    def __init__(self) -> None:
        self.itself = self
        Garbage.count += 1

    def __del__(self) -> None:
        Garbage.ran_in.add(threading.get_native_id())
        Garbage.count -= 1


@pytest.mark.parametrize("threshold", [1, 50, 700])
def test_no_finalizer_runs_in_the_thread(name: str, long: bool, threshold: int) -> None:
    """Under a load of garbage the collector and its finalizers run in threads of the program, never in ours."""
    Garbage.ran_in, Garbage.count = set(), 0
    collected_in: set[int] = set()
    done = threading.Event()
    ours: set[int] = {threading.get_native_id()}

    def collected(phase: str, info: object) -> None:
        collected_in.add(threading.get_native_id())

    def litter() -> None:
        ours.add(threading.get_native_id())
        while not done.is_set():
            # While one thread collects, no other does: so many could be made meanwhile that there is never an end.
            if Garbage.count < 10_000:
                Garbage()
            else:
                time.sleep(0.0001)

    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(threshold, 5, 1000)
    sys.setswitchinterval(1e-5)
    crew = Crew(litter, litter)
    ticket = private_binding(f"{name}-ticket")
    try:
        for _ in range(1000 if long else 60):
            with bound(name) as binding:
                assert binding.verify()
                assert binding.inode()
                binding.drop_dead(1)
                assert refusal(private_binding(name)) == errno.EADDRINUSE
                ticket.bind()
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as follower:
                    follower.connect(ticket.address)
                    binding.stow(ticket)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)
        crew.join()
    assert collected_in
    assert Garbage.ran_in
    assert collected_in <= ours
    assert Garbage.ran_in <= ours


def test_no_object_made_in_the_thread_starts_a_collection(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a collection is due at the next object that is made anywhere, the thread makes none (CPython 3.11)."""
    collected_in: list[int] = []
    junk: list[list[int]] = []
    perform = table.Table.perform

    def collection_due(self: table.Table, steps: Iterator[Callable[[], object]]) -> bool:
        gc.disable()
        junk[:] = [[] for _ in range(5000)]
        return perform(self, chain(iter((gc.enable,)), steps))  # by the thread itself: here one would come at once

    def collected(phase: str, info: object) -> None:
        collected_in.append(threading.get_native_id())

    monkeypatch.setattr(table.Table, "perform", collection_due)
    ticket = private_binding(f"{name}-ticket")
    gc.callbacks.append(collected)
    try:
        for _ in range(20):
            with bound(name) as binding:
                assert binding.verify()
                assert binding.inode()
                assert refusal(private_binding(name)) == errno.EADDRINUSE
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                    dead.connect(binding.address)
                binding.drop_dead(2)
                ticket.bind()
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as follower:
                    follower.connect(ticket.address)
                    binding.stow(ticket)
    finally:
        gc.callbacks.remove(collected)
        gc.enable()
    assert set(collected_in) == {threading.get_native_id()}


SPIED = """
import threading
seen = set()
def spy(*_):
    seen.add(threading.get_native_id())
sys.addaudithook(spy)
threading.settrace(spy)
threading.setprofile(spy)
if sys.version_info >= (3, 12):
    events = sys.monitoring.events
    sys.monitoring.use_tool_id(3, "spy")
    for event in (events.CALL, events.PY_START, events.C_RETURN, events.C_RAISE):
        try:
            sys.monitoring.register_callback(3, event, spy)
        except ValueError:
            pass
    sys.monitoring.set_events(3, events.CALL | events.PY_START)
binding.bind()
if sys.version_info >= (3, 12):
    threading.settrace_all_threads(spy)
    threading.setprofile_all_threads(spy)
for _ in range(5):
    binding.verify()
try:
    private(sys.argv[1]).bind()
except OSError:
    pass
binding.close()
print(seen == {threading.get_native_id()}, flush=True)
"""


def test_hooks_and_tracers_see_nothing_of_the_thread(cast: Cast, name: str) -> None:
    """Audit hooks, tracers, profilers and monitoring tools are not called in the thread."""
    cast.python(BIND + SPIED, name).expect("True")


def test_dropped_locks_are_closed_by_the_collector(name: str) -> None:
    """A finalizer may close a binding wherever the collector runs, also in the middle of another's bind."""

    class Owner:
        def __init__(self, number: int) -> None:
            self.itself = self
            self.binding = private_binding(f"{name}-{number}")
            self.binding.bind()

        def __del__(self) -> None:
            self.binding.close()

    thresholds = gc.get_threshold()
    gc.set_threshold(3, 1, 1)
    try:
        for number in range(200):
            Owner(number)
            with bound(name) as binding:
                assert binding.verify()
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()


# The end of the process.


@pytest.mark.parametrize(
    "ending",
    ["", "sys.exit(0)", "os._exit(0)", "os.execv('/bin/true', ['true'])", "binding.close()", "binding.detach()",
     "raise SystemExit(0)", "threading.Thread(target=lambda: os._exit(0)).start()",
     "class Late:\n    def __del__(self, close=binding.close): close()\nsys.late = Late()",
     "class Late:\n    def __del__(self, b=binding): b.bound, b.verify(), b.inode(), b.close()\nsys.late = Late()",
     ("class Late:\n    def __del__(self, o=private(sys.argv[1] + 'x')):\n        try: o.bind()\n"
      "        except OSError: pass\nsys.late = Late()")],
)  # fmt: skip
def test_every_end(name: str, ending: str) -> None:
    """A process that has a name ends without a word and without waiting for the thread, and the name is free."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", HELD + ending, name],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\n", "")
    assert bindable(name)


def test_held_until_the_interpreter_has_ended(cast: Cast, name: str) -> None:
    """The name is had while exit handlers run, and standard output, which has a number of its own here, is flushed."""
    code = HELD + "import atexit\natexit.register(lambda: (print('ending', flush=True), sys.stdin.readline()))\n"
    actor = cast.python(code + "sys.stdout.write('last')\nsys.exit(0)", name)
    actor.expect("held")
    actor.expect("lastending")
    assert not bindable(name)
    actor.write()
    assert actor.wait() == 0
    assert bindable(name)


def test_a_daemon_does_not_take_it_along(cast: Cast, name: str) -> None:
    """A name that was had before daemonising goes with the parent."""
    code = HELD + "if os.fork(): os._exit(0)\nprint('daemon', binding.bound, flush=True)\nsys.stdin.readline()"
    actor = cast.python(code, name, stderr=subprocess.DEVNULL)
    actor.expect("held")
    assert actor.wait() == 0
    actor.expect("daemon False")
    assert bindable(name)
    actor.write()


# Where it cannot be had.


@pytest.mark.skipif(platform.machine() == "alpha", reason="close_range(2) has another number on alpha")
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_forbidden_by_a_policy(name: str, code: int) -> None:
    """Where close_range(2) is refused there is an error with its errno, no descriptor is lost, and nothing is bound."""

    def body(child: Child) -> None:
        refuse_call(436, code)
        before = links(str(threading.get_native_id()))
        for _ in range(3):
            with pytest.raises(PrivateTableRefused) as caught:
                private_binding(name).bind()
            assert caught.value.errno == code
        after = links(str(threading.get_native_id()))
        assert before == after
        until(lambda: len(threads()) == 1)
        assert bindable(name)
        child.say("done")

    with Child(body) as child:
        child.expect("done")


def test_green_threads(cast: Cast, name: str) -> None:
    """Where threads are replaced by what runs in this very one, that is said, and no descriptor is closed."""
    green = "import _thread\n_thread.start_new_thread = lambda function, arguments: function(*arguments)\n"
    code = green + BIND + "try: binding.bind()\nexcept OSError as error: print(error.errno, flush=True)"
    cast.python(code, name).expect(str(errno.ENOTSUP))
    assert bindable(name)


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
code = '''
import sys
sys.path[:] = {path!r}
from bindlock.linux.private import PrivateBinding
binding = PrivateBinding(bytes.fromhex("{address}"), 1)
try:
    binding.bind()
except OSError as error:
    print(error.errno, flush=True)
'''
one = interpreters.create("legacy") if sys.version_info >= (3, 13) else interpreters.create(isolated=False)
failure = interpreters.run_string(one, code)
assert failure is None, failure
interpreters.destroy(one)
print("destroyed", flush=True)
"""


def test_subinterpreters(name: str) -> None:
    """In a subinterpreter, whose end such a thread would make a fatal error, it is refused."""
    code = SUBINTERPRETER.format(path=sys.path, address=parse(name).address.hex())
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (f"{errno.ENOTSUP}\ndestroyed\n", "", 0)
    assert bindable(name)


def test_no_thread_can_be_had(name: str) -> None:
    """Where no thread can be started that is an OSError, and nothing is bound."""

    def body(child: Child) -> None:
        with bound(name):
            pass  # loads modules, which others may not be allowed to read
        until(lambda: len(threads()) == 1)
        if os.geteuid() == 0:
            os.setuid(65534)  # root has no limit
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        with pytest.raises(PrivateTableRefused) as caught:
            private_binding(name).bind()
        assert caught.value.errno == errno.EAGAIN
        assert bindable(name)
        child.say("done")

    with Child(body) as child:
        child.expect("done")


def test_it_is_never_shared() -> None:
    """A socket that no child can have cannot be shared with children."""
    with pytest.raises(ValueError, match="shared"):
        PrivateBinding(b"\0x", socket.SOCK_STREAM, True)


def test_many_threads(name: str, long: bool) -> None:
    """Threads that bind and close the same names exclude each other, and end no thread that another one needs."""
    inside: dict[int, int] = {0: 0, 1: 0}

    def work() -> None:
        mine = [private_binding(f"{name}-{number}") for number in range(2)]
        for turn in range(2000 if long else 150):
            binding = mine[turn % 2]
            try:
                binding.bind()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            inside[turn % 2] += 1
            assert inside[turn % 2] == 1
            assert binding.verify()
            inside[turn % 2] -= 1
            binding.close()

    shared = private_binding(f"{name}-shared")

    def work_shared() -> None:
        for _ in range(1000 if long else 100):
            with suppress(OSError):
                shared.bind()
            shared.close()

    Crew(work, work, work, work_shared, work_shared).join()
    shared.close()


def test_the_price(name: str) -> None:
    """To have a name and let it go costs less than a millisecond, the start of the thread included."""
    binding = private_binding(name)
    times = []
    for _ in range(300):
        begun = time.perf_counter()
        binding.bind()
        binding.close()
        times.append(time.perf_counter() - begun)
    times.sort()
    print(f"median {times[150] * 1e6:.0f} us")
    assert times[150] < 1e-3
