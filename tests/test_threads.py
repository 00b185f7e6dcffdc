"""Threads are treated as processes are."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from socket import AF_UNIX, SOCK_STREAM, socket

import pytest

import bindlock
from bindlock.names import parse
from tests.actors import bindable, until


class Crew:
    """Threads whose exceptions are raised where they are joined."""

    def __init__(self, *targets: Callable[[], object]) -> None:
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self._run, args=(target,)) for target in targets]
        for thread in self.threads:
            thread.start()

    def _run(self, target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001
            self.errors.append(error)

    def join(self, deadline: float = 60.0) -> None:
        """Wait for all; raise what the first raised."""
        for thread in self.threads:
            thread.join(deadline)
            assert not thread.is_alive(), "still running"
        if self.errors:
            raise self.errors[0]


@pytest.mark.parametrize("shared", [False, True], ids=["an object each", "one object"])
@pytest.mark.parametrize("timeout", [60.0, None])
def test_threads_exclude_each_other(name: str, seed: int, long: bool, shared: bool, timeout: float | None) -> None:
    """Threads exclude each other, with one Lock object or with many; two witnesses agree."""
    threads, rounds = 6, 2000 if long else 150
    common = bindlock.Lock(name, timeout=timeout)
    inside: list[int] = []
    count = 0

    def work(number: int) -> None:
        nonlocal count
        chance = random.Random(seed + number)
        lock = common if shared else bindlock.Lock(name, timeout=timeout)
        for _ in range(rounds):
            with lock:
                inside.append(number)
                before = count
                for _ in range(chance.randrange(50)):
                    assert inside == [number]
                count = before + 1
                inside.remove(number)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        Crew(*(partial(work, n) for n in range(threads))).join()
    finally:
        sys.setswitchinterval(before)
    assert count == threads * rounds
    assert not inside
    assert bindable(name)


def test_another_thread_can_release(name: str) -> None:
    """A lock that one thread has acquired can be released by another, and is free then."""
    lock = bindlock.Lock(name)
    lock.acquire()
    Crew(lock.release).join()
    assert not lock.held
    assert bindable(name)
    Crew(lock.acquire).join()
    assert lock.held
    lock.release()
    assert bindable(name)


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_the_same_object_again(name: str, timeout: float | None) -> None:
    """A thread that acquires the very object it holds gets AlreadyHeld, whatever the time-out, and holds it still."""
    with bindlock.Lock(name) as lock:
        begun = time.monotonic()
        with pytest.raises(bindlock.AlreadyHeld, match="very object"):
            lock.acquire(timeout)
        with pytest.raises(bindlock.AlreadyHeld):
            lock.try_acquire()
        assert time.monotonic() - begun < 2
        assert lock.held
    assert bindable(name)


def test_another_object_without_end(name: str) -> None:
    """A thread that would wait without end for itself, through another object, gets AlreadyHeld."""
    with bindlock.Lock(name) as lock:
        other = bindlock.Lock(name)
        with pytest.raises(bindlock.AlreadyHeld, match="another Lock object"):
            other.acquire()
        assert not other.held
        assert lock.held


@pytest.mark.parametrize("timeout", [0.0, 0.02])
def test_another_object_with_a_timeout(name: str, timeout: float) -> None:
    """With a time-out, a thread that waits for itself through another object is refused as anybody is."""
    with bindlock.Lock(name):
        with pytest.raises(bindlock.Held):
            bindlock.Lock(name).acquire(timeout)
        assert not bindlock.Lock(name).try_acquire()


def test_another_name_is_another_lock(name: str) -> None:
    """A thread can hold as many locks as it has names, one in another scope included."""
    with bindlock.Lock(name), bindlock.Lock(name, scope="host"), bindlock.Lock(name + "-2"):
        pass


def test_another_thread_waits_for_the_same_object(name: str) -> None:
    """A thread that acquires an object which another thread holds waits, and has it after the release."""
    lock = bindlock.Lock(name)
    lock.acquire()
    waiting = threading.Event()
    held = threading.Event()

    def other() -> None:
        lock.acquire(waiting=lambda holder: waiting.set())
        held.set()

    crew = Crew(other)
    assert waiting.wait(30)
    assert not held.is_set()
    lock.release()
    assert held.wait(30)
    crew.join()
    assert lock.held
    lock.release()


def test_a_thread_that_ended_holds_on(name: str) -> None:
    """A lock outlives the thread that acquired it."""
    lock = bindlock.Lock(name)
    Crew(lock.acquire).join()
    assert lock.held
    assert not bindlock.Lock(name).try_acquire()
    lock.release()


def test_two_threads_release_at_once(name: str) -> None:
    """When two threads release one lock at once, nothing but NotHeld is raised, and the name is free."""
    lock = bindlock.Lock(name)
    raised = 0

    def release(start: threading.Barrier) -> None:
        nonlocal raised
        start.wait()
        try:
            lock.release()
        except bindlock.NotHeld:
            raised += 1

    for _ in range(100):
        lock.acquire()
        start = threading.Barrier(2)
        Crew(*[partial(release, start)] * 2).join()
        assert not lock.held
        assert bindable(name)
    print(f"NotHeld raised {raised} times")


def test_two_threads_acquire_one_object_at_once(name: str) -> None:
    """When two threads acquire one object at once, one has it, and the other is refused."""
    lock = bindlock.Lock(name)
    for _ in range(100):
        won: list[bool] = []
        start = threading.Barrier(2)

        def acquire(start: threading.Barrier = start, won: list[bool] = won) -> None:
            start.wait()
            won.append(lock.try_acquire())

        Crew(acquire, acquire).join()
        assert sorted(won) == [False, True]
        assert lock.held
        lock.release()


def test_waiters_in_threads_are_counted(name: str) -> None:
    """Threads that wait are seen in the queue as processes are."""
    with bindlock.Lock(name) as lock:
        crew = Crew(*[lambda: bindlock.Lock(name, timeout=60).__enter__().release()] * 4)
        until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 4)
        lock.release()
        crew.join()
    assert bindable(name)


def test_a_new_thread_is_not_taken_for_one_that_ended(name: str) -> None:
    """A thread that holds nothing is never told that it holds the name already, though its number was another's."""
    lock = bindlock.Lock(name)
    first = threading.Thread(target=lock.acquire)
    first.start()
    number = first.ident
    first.join()
    answers: list[type[BaseException]] = []

    def second() -> None:
        try:
            lock.acquire(0)
        except bindlock.BindlockError as error:
            answers.append(type(error))

    for _ in range(20):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        if thread.ident == number:
            break
    lock.release()
    assert set(answers) == {bindlock.Held}


def test_looking_beside_a_thread_that_releases(name: str) -> None:
    """A refused try is False, and nothing else, while another thread releases locks that have something queued."""
    stop = threading.Event()
    other = bindlock.Lock(name + "-other")

    def work() -> None:
        while not stop.is_set():
            with other, socket(AF_UNIX, SOCK_STREAM) as client:
                client.connect(parse(other.name).address)

    thread = threading.Thread(target=work)
    with bindlock.Lock(name):
        thread.start()
        try:
            assert not any(bindlock.Lock(name).try_acquire() for _ in range(500))
        finally:
            stop.set()
            thread.join()
