"""Looking at a lock never harms those who wait for it."""

from __future__ import annotations

import os
import resource
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import AF_UNIX, SOCK_STREAM, socket

import pytest

import bindlock
from bindlock.linux.diag import Diag, Entry
from bindlock.names import parse
from tests.actors import Actor, Cast, Child, gone, until
from tests.conftest import needs_root

NOBODY = 65534
HALF = 2048


def entry(name: str, scope: str = "user") -> Entry:
    """What the kernel says of a bound name and its queue."""
    with Diag() as diag:
        (found,) = diag.bound(frozenset({parse(name, scope).address}).__contains__)
        queues = diag.queues(found)
    assert queues is not None
    return queues


HOLD_HOST = """
import sys, bindlock
with bindlock.Lock(sys.argv[1], scope="host"):
    print("held", flush=True)
    sys.stdin.readline()
"""
WAIT = """
import sys, bindlock
lock = bindlock.Lock(sys.argv[1], scope=sys.argv[2], timeout=float(sys.argv[3]))
lock.acquire(waiting=lambda holder: print("waiting", flush=True))
print("held", flush=True)
sys.stdin.readline()
"""


def waiter(cast: Cast, name: str, scope: str = "user", timeout: float = 30.0) -> Actor:
    """A process that waits in the queue, as the kernel says."""
    before = live(name, scope)
    actor = cast.python(WAIT, name, scope, str(timeout))
    actor.expect("waiting")
    until(lambda: live(name, scope) == before + 1)
    return actor


def live(name: str, scope: str) -> int:
    """How many wait for the name."""
    return len(bindlock.waiters(name, scope=scope))


def look(name: str, rounds: int, uid: int | None) -> None:
    """Look at a name in all ways there are, as often as that."""
    lock = bindlock.Lock(name, scope="host")
    for number in range(rounds):
        if number == 40 and uid is not None:  # all modules are loaded by now: the user might not be let at them
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kind = number % 40
        if kind == 1:
            assert bindlock.holder(name, scope="host") is not None
        elif kind == 2:
            assert not lock.try_acquire()
        else:
            assert bindlock.locks()


@pytest.mark.parametrize("uid", [None, pytest.param(NOBODY, marks=needs_root)], ids=["same user", "another user"])
def test_a_hundred_thousand_looks(cast: Cast, name: str, long: bool, uid: int | None) -> None:
    """After 100 000 looks the queue is at most half full, and a waiter still gets a place, is woken, and has the lock.

    The short form looks less often as the same user; by then the queue has long been as full as looks make it.
    """
    holder = cast.python(HOLD_HOST, name)
    holder.expect("held")
    first = waiter(cast, name, "host")
    rounds = 100_000 if long or uid else 50_000
    with (
        Child(lambda child: look(name, rounds // 2, uid)) as one,
        Child(lambda child: look(name, rounds // 2, uid)) as other,
    ):
        for child in (one, other):
            assert gone(child.pid, 300)
            assert child.wait() == 0
    assert entry(name, "host").queued <= HALF + 2  # two lookers may both see it just under half full
    second = waiter(cast, name, "host")
    assert live(name, "host") == 2
    for actor in (first, second):
        assert sleeps_until_told(actor)
    holder.kill()
    held = next_holder([first, second])
    held.kill()
    next_holder([first if held is second else second])


def sleeps_until_told(actor: Actor) -> bool:
    """Whether the process sleeps in poll(2), for the kernel to wake it, rather than in a timer of its own."""
    until(lambda: state(actor.pid) == "S")
    with open(f"/proc/{actor.pid}/syscall") as file:
        number = file.read().split()[0]
    return number in ("7", "271", "73")  # poll, ppoll on x86-64, ppoll on arm64


def state(pid: int) -> str:
    """The state of a process: S is asleep."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()


def next_holder(actors: list[Actor]) -> Actor:
    """The one of them that says that it holds."""
    outputs = {actor.process.stdout.fileno(): actor for actor in actors if actor.process.stdout is not None}
    ready, _, _ = select.select(list(outputs), [], [], 30)
    assert ready, "nobody has been woken"
    actor = outputs[ready[0]]
    actor.expect("held")
    return actor


def clients(name: str, count: int) -> list[socket]:
    """Connections in the queue of a name, made by nobody in particular."""
    made = []
    for _ in range(count):
        client = socket(AF_UNIX, SOCK_STREAM)
        client.setblocking(False)
        client.connect(parse(name).address)
        made.append(client)
    return made


def test_a_holder_that_looks_drops_the_dead_in_front(name: str) -> None:
    """When the holder's own process looks, dead connections before the first live one leave its queue; no other."""
    with bindlock.Lock(name):
        for client in clients(name, 20):
            client.close()
        alive = clients(name, 2)
        for client in clients(name, 18):
            client.close()
        assert entry(name).queued == 40
        bindlock.locks()
        now = entry(name)
        assert [bool(inode) for inode in now.clients] == 2 * [True] + 18 * [False]
        assert all(not hung_up(client) for client in alive)
        bindlock.locks()
        assert entry(name).clients == now.clients
        for client in alive:
            client.close()
        bindlock.locks()
        assert entry(name).queued == 0


def hung_up(client: socket) -> bool:
    """Whether the other end has closed a connection."""
    poller = select.poll()
    poller.register(client, 0)
    return bool(poller.poll(0))


def test_a_holder_that_looks_often_has_an_empty_queue(name: str) -> None:
    """A holder that looks at itself as often as it likes is never out of places."""
    with bindlock.Lock(name):
        for _ in range(500):
            holder = bindlock.holder(name)
            assert holder is not None
            assert holder.pid == os.getpid()
        assert entry(name).queued < 20


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Room for that many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fill(name: str) -> int:
    """Fill the queue of a name with connections that are closed again; how many places it had."""
    places = 0
    while True:
        with socket(AF_UNIX, SOCK_STREAM) as client:
            client.setblocking(False)
            try:
                client.connect(parse(name).address)
            except BlockingIOError:
                return places
            places += 1


def test_a_full_queue(cast: Cast, name: str) -> None:
    """With not one place left in the queue the holder is still named, a try refused, and a waiter served by a timer."""
    holder = cast.holder(name)
    places = fill(name)
    with open("/proc/sys/net/core/somaxconn") as file:
        assert places == min(int(file.read()), 4096) + 1
    seen = bindlock.holder(name)
    assert seen is not None
    assert (seen.pid, seen.uid, seen.waiters) == (holder.pid, os.geteuid(), 0)
    lock = bindlock.Lock(name)
    assert not lock.try_acquire()
    with pytest.raises(bindlock.Held):
        lock.acquire(timeout=0.01)
    with pytest.raises(bindlock.Held):
        bindlock.wait(name, timeout=0.01)
    waiting = cast.python(WAIT, name, "user", "30")
    waiting.expect("waiting")
    holder.kill()
    waiting.expect("held")


def test_a_full_queue_of_live_clients(name: str, cast: Cast) -> None:
    """Thousands of live waiters are counted, each of them."""
    with descriptors(6000):
        cast.holder(name)
        made = clients(name, 4097)
        try:
            seen = bindlock.holder(name)
            assert seen is not None
            assert seen.waiters == 4097
        finally:
            for client in made:
                client.close()
        seen = bindlock.holder(name)
        assert seen is not None
        assert seen.waiters == 0


class Closer(threading.Thread):
    """A stranger who has the name, accepts every connection, and closes it at once."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.socket = socket(AF_UNIX, SOCK_STREAM)
        self.socket.bind(parse(name).address)
        self.socket.listen(64)
        self.accepted = 0
        self.stop = False

    def run(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            connection.close()
            self.accepted += 1
            if self.stop:
                break
        self.socket.close()

    def end(self, name: str) -> None:
        self.stop = True
        with socket(AF_UNIX, SOCK_STREAM) as client:
            client.connect(parse(name).address)
            self.join(30)


def test_a_stranger_that_hangs_up_at_once_makes_nobody_spin(cast: Cast, name: str) -> None:
    """Somebody who closes every waiter's connection at once costs the waiter some hundred tries a second, no more."""
    closer = Closer(name)
    closer.start()
    try:
        actor = cast.python(WAIT, name, "user", "30")
        actor.expect("waiting")
        until(lambda: closer.accepted > 20)
        before, begun, used = closer.accepted, time.monotonic(), ticks(actor.pid)
        until(lambda: closer.accepted >= before + 100)
        took = time.monotonic() - begun
        assert took > 0.1, "more than 1000 tries a second: ten times that is what it would be without a pause"
        assert ticks(actor.pid) - used <= 0.3 * took * os.sysconf("SC_CLK_TCK")
    finally:
        closer.end(name)
    actor.expect("held")


def ticks(pid: int) -> int:
    """CPU time of a process, in clock ticks."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_stranger_that_accepts_and_keeps(cast: Cast, name: str) -> None:
    """Somebody who accepts the waiter's connection and talks to it does not wake it; the end of the name does."""
    listener = socket(AF_UNIX, SOCK_STREAM)
    listener.bind(parse(name).address)
    listener.listen(8)
    actor = cast.python(WAIT, name, "user", "30")
    actor.expect("waiting")
    kept = []
    try:
        while True:  # the looks at the holder, closed by now, come before the waiter itself
            kept.append(listener.accept()[0])
            if not hung_up(kept[-1]):
                break
        assert sleeps_until_told(actor)
        before = switches(actor.pid)
        for _ in range(20):
            kept[-1].send(b"wake up")
        assert sleeps_until_told(actor)
        assert switches(actor.pid) == before
        listener.close()
        for connection in kept:
            connection.close()
        actor.expect("held")
    finally:
        listener.close()
        for connection in kept:
            connection.close()


def switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))


def test_looking_connects_to_nobody_half_full(cast: Cast, name: str) -> None:
    """From half full on looking leaves the queue as it is, and tells the holder all the same."""
    holder = cast.holder(name)
    for client in clients(name, HALF):
        client.close()
    for _ in range(20):
        seen = bindlock.holder(name)
        assert seen is not None
        assert seen.pid == holder.pid
        assert not bindlock.Lock(name).try_acquire()
    assert entry(name).queued == HALF
