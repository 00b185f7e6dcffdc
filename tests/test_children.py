"""`Lock(children="never")`, as its users have it; the descriptor table itself is tested in tests/test_private.py."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import subprocess
import sys
import threading

import pytest

import bindlock
import bindlock.lock.attempt
from tests.actors import Cast, Child, bindable, until
from tests.confinement import refuse_call

#: close_range(2), by which the table is made; the same number everywhere.
CLOSE_RANGE = 436


def never(name: str) -> bindlock.Lock:
    return bindlock.Lock(name, children="never")


def test_no_child_has_it(name: str) -> None:
    """The name is free at the release, whatever children were made while it was held, and live on."""
    with never(name) as lock:
        assert lock.held
        holder = bindlock.holder(name)
        assert holder is not None
        assert holder.pid == os.getpid()
        started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)

        def body(child: Child) -> None:
            child.say(str(lock.held))
            child.hear()

        child = Child(body)
        child.expect("False")
    with started, child:  # in this order: the child has the other end of the input, too
        assert bindable(name)


def test_closing_all_descriptors_does_not_lose_it(cast: Cast, name: str) -> None:
    """os.closerange(), as daemons call it, does not reach the descriptor."""
    actor = cast.python(
        "import os, sys, bindlock\n"
        "lock = bindlock.Lock(sys.argv[1], children='never')\n"
        "lock.acquire()\n"
        "os.closerange(3, 256)\n"
        "print(lock.held, flush=True)\n"
        "sys.stdin.readline()",
        name,
    )
    actor.expect("True")
    assert not bindable(name)
    actor.kill()
    assert bindable(name)


def test_such_locks_wait_in_the_same_queue(name: str) -> None:
    """Locks of all three kinds wait for each other, in order, and a ticket is kept in the lock as with the others."""

    def body(child: Child) -> None:
        kind = child.hear()
        lock = bindlock.Lock(name, children=kind)  # type: ignore[arg-type]
        lock.acquire()
        child.say(kind)
        child.hear()
        lock.release()
        child.say("released")
        child.hear()

    kinds = ("never", "drop", "never", "never", "share", "never")
    queue = [Child(body) for _ in kinds]
    with never(name):
        for count, (child, kind) in enumerate(zip(queue, kinds, strict=True), 1):
            child.say(kind)
            until(lambda count=count: len(bindlock.waiters(name)) == count)  # type: ignore[misc]
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [child.pid for child in queue]
    for child, kind in zip(queue, kinds, strict=True):
        child.expect(kind)
        child.say("release")
        child.expect("released")
    for child in queue:
        child.close()


def test_a_thread_waits_for_another(name: str) -> None:
    """Threads of one process exclude each other; the one that holds, and would wait for itself, is told."""
    lock, other = never(name), never(name)
    lock.acquire()
    with pytest.raises(bindlock.AlreadyHeld):
        lock.acquire()
    with pytest.raises(bindlock.AlreadyHeld):
        other.acquire()
    assert not other.try_acquire()
    thread = threading.Thread(target=other.acquire)
    thread.start()
    until(lambda: bindlock.waiters(name))
    lock.release()
    thread.join(30)
    assert other.held
    other.release()


def test_it_does_not_change_hands(name: str) -> None:
    """Nobody else can have the descriptor: what would hand it over says so, and the lock is held as before."""
    ours, theirs = socket.socketpair()
    with ours, theirs, never(name) as lock:
        for call in (lock.keep_for_exec, lambda: lock.send(ours)):
            with pytest.raises(bindlock.InvalidArgument, match="cannot change hands"):
                call()
        assert lock.held
    other = never(name)
    for call in (lambda: other.receive(theirs), lambda: other.adopt(0)):
        with pytest.raises(bindlock.InvalidArgument, match="cannot change hands"):
            call()


def test_a_copy_is_of_the_same_kind(name: str) -> None:
    """A pickled lock comes back wanting the same, and holds nothing."""
    with never(name) as lock:
        copy = pickle.loads(pickle.dumps(lock))
        assert not copy.held
        assert copy.fileno() == -1
    with copy:
        assert copy.fileno() == -1


def test_where_there_can_be_no_such_table(name: str) -> None:
    """Where the system call is forbidden it says which, holds nothing, and other kinds of lock work."""

    def body(child: Child) -> None:
        refuse_call(CLOSE_RANGE, errno.EPERM)
        with pytest.raises(bindlock.CannotLock, match="making a private descriptor table") as caught:
            never(name).acquire()
        assert caught.value.errno == errno.EPERM
        with bindlock.Lock(name) as lock:
            child.say(str(lock.held))

    with Child(body) as child:
        child.expect("True")
        assert child.wait() == 0
