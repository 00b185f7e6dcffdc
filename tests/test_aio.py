"""The same lock for asyncio and trio: tasks are treated as threads and processes are, and can be cancelled anywhere."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from typing import Any

import pytest

anyio = pytest.importorskip("anyio", reason="needs anyio")

import bindlock  # noqa: E402
from bindlock.aio.lock import AsyncLock  # noqa: E402
from bindlock.lock import decide  # noqa: E402
from bindlock.names import parse  # noqa: E402
from tests.actors import Actor, Cast, Child, bindable  # noqa: E402
from tests.actors import until as ask_until  # noqa: E402
from tests.aio_stage import ACTOR, Task, in_line, nothing_left, opened, run, steps, until  # noqa: E402
from tests.aio_stage import on_either as on_either  # noqa: E402
from tests.conftest import needs_root  # noqa: E402
from tests.interrupts import Interrupter  # noqa: E402
from tests.steps import switches  # noqa: E402

PACKAGE = os.path.dirname(bindlock.__file__)


def waiter(cast: Cast, name: str, backend: str) -> Actor:
    """A process that waits for the name in an event loop, and sleeps by now."""
    actor = cast.python(ACTOR, name, backend)
    actor.expect("waits")
    ask_until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 1 and asleep(actor.pid))
    return actor


def asleep(pid: int) -> bool:
    """Whether a process sleeps in the poll of its event loop."""
    with open(f"/proc/{pid}/wchan") as file:
        return file.read() in ("ep_poll", "do_epoll_wait", "do_sys_poll")


# The lock.


def test_another_process_is_excluded_and_named(cast: Cast, name: str, backend: str) -> None:
    """A refused acquire says who is in the way, with the very error of a Lock."""
    actor = cast.holder(name)

    async def main() -> None:
        lock = AsyncLock(name)
        assert not await lock.try_acquire()
        with pytest.raises(bindlock.Held) as caught:
            await lock.acquire(timeout=0)
        with pytest.raises(bindlock.Held) as expected:
            bindlock.Lock(name).acquire(0)
        assert caught.value.holder is not None
        assert caught.value.holder.pid == actor.pid
        assert caught.value.holder == expected.value.holder
        assert str(caught.value).partition(",")[0] == str(expected.value).partition(",")[0]
        assert not lock.held

    run(backend, main)


def test_held_and_released(name: str, backend: str) -> None:
    """A lock is held from acquire to release, says so, and the kernel and a Lock say the same."""

    async def main() -> None:
        lock = AsyncLock(name)
        for acquire in (lock.acquire, lock.try_acquire, lock.__aenter__):
            assert (lock.held, lock.fileno()) == (False, -1)
            assert await acquire() in (None, True, lock)
            assert lock.held
            assert lock.fileno() >= 0
            assert not bindable(name)
            assert not bindlock.Lock(name).try_acquire()
            lock.release()
            assert bindable(name)
        with pytest.raises(bindlock.NotHeld, match=name):
            lock.release()

    run(backend, main)


def test_the_block(name: str, backend: str) -> None:
    """The block holds the lock, whatever ends it; releasing inside of it is no error; there is no plain `with`."""

    async def main() -> None:
        lock = AsyncLock(name)

        async def fail() -> None:
            async with lock as same:
                assert same is lock
                assert lock.held
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert bindable(name)
        async with lock:
            lock.release()
        with anyio.CancelScope() as scope:
            async with lock:
                scope.cancel()
                await anyio.sleep(1)
        assert scope.cancelled_caught
        assert bindable(name)
        assert not hasattr(lock, "__enter__")

    run(backend, main)


def test_every_acquire_is_a_checkpoint(name: str, backend: str) -> None:
    """Other tasks run at an acquire, also of a free name; one that is cancelled already takes nothing."""

    async def main() -> None:
        lock = AsyncLock(name)
        seen: list[int] = []

        async def other() -> None:
            seen.append(1)

        async with anyio.create_task_group() as group:
            group.start_soon(other)
            for _ in range(2):  # trio lets tasks run in an order of its own
                async with lock:
                    pass
            assert seen == [1]
        for acquire in (lock.acquire, lock.try_acquire):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await acquire()
                raise AssertionError("not cancelled")
            assert scope.cancelled_caught
            assert bindable(name)

    run(backend, main)


def test_the_timeout_is_kept(cast: Cast, name: str, backend: str) -> None:
    """An acquire that is refused has waited for its time-out, and hardly longer; an argument replaces the attribute."""
    cast.holder(name)

    async def main() -> None:
        lock = AsyncLock(name, timeout=600)
        for timeout in (0, 1e-9, 0.03, 0.3):
            lock.timeout = 600
            for own in (False, True):
                if own:
                    lock.timeout = timeout
                begun = time.monotonic()
                with pytest.raises(bindlock.Held):
                    await (lock.acquire() if own else lock.acquire(timeout))
                assert timeout <= time.monotonic() - begun < timeout + 1
        for wrong in (-1, float("nan")):
            with pytest.raises(bindlock.InvalidArgument):
                await lock.acquire(wrong)
            with pytest.raises(bindlock.InvalidArgument):
                lock.timeout = wrong

    run(backend, main)


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e300, 30])
def test_had_when_the_holder_is_killed(cast: Cast, name: str, backend: str, timeout: float | None) -> None:
    """Whoever waits has the lock when its holder is killed; `waiting` has been told who that was, once."""
    actor = cast.holder(name)
    seen: list[int | None] = []

    def waiting(holder: bindlock.Holder) -> None:
        seen.append(holder.pid)
        actor.process.kill()

    async def main() -> None:
        lock = AsyncLock(name)
        await lock.acquire(timeout, waiting=waiting)
        assert lock.held
        lock.release()
        await lock.acquire(waiting=waiting)
        lock.release()

    run(backend, main)
    assert seen == [actor.pid]
    actor.wait()


def test_free_after_sigkill(cast: Cast, name: str, backend: str) -> None:
    """A holder that was killed, and left a child between fork and exec, is given the grace; by many tasks at once."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name, children="share")
        lock.acquire()
        pid = os.fork()  # keeps the name for a moment
        if not pid:
            select.select([], [], [], 0.05)
            os._exit(0)
        child.say("held")
        child.hear()

    async def main() -> None:
        won: list[bool] = []

        async def attempt() -> None:
            won.append(await AsyncLock(name).try_acquire())

        before = opened()
        most = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # whoever has it just ends
            async with anyio.create_task_group() as group:
                for _ in range(100):
                    group.start_soon(attempt)
                while len(won) < 100:
                    most = max(most, opened())
                    await anyio.sleep(0)
        assert any(won)
        assert most <= before + 5

    with Child(body) as child:
        child.expect("held")
        os.kill(child.pid, signal.SIGKILL)
        run(backend, main)


def test_untold_waiting_raises(cast: Cast, name: str, backend: str) -> None:
    """What `waiting` raises comes out of acquire, of the first in line and of others, and nothing is held."""
    cast.holder(name)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            first = Task(name, group)
            for _ in range(2):
                lock = AsyncLock(name)
                with pytest.raises(ZeroDivisionError):
                    await lock.acquire(waiting=lambda holder: 1 // 0)
                assert not lock.held
                await steps(5)
            first.scope.cancel()
            await first.done.wait()
            with pytest.raises(ZeroDivisionError):
                await AsyncLock(name).acquire(waiting=lambda holder: 1 // 0)

    before = opened()
    run(backend, main)
    assert opened() == before


# Errors.


def test_no_descriptor_left(cast: Cast, name: str, backend: str) -> None:
    """Without a descriptor to be had: CannotLock, for a free name and for a held one, and never Held."""
    cast.holder(name)

    async def main() -> None:
        lock, free = AsyncLock(name), AsyncLock(name + "-free")
        with pytest.raises(bindlock.Held):
            await lock.acquire(0)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            for acquire in (lock.acquire, free.acquire, lock.try_acquire, free.try_acquire, lock.__aenter__):
                with pytest.raises(bindlock.CannotLock, match="EMFILE"):
                    await acquire()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        async with free:
            assert free.held

    run(backend, main)


@needs_root
def test_a_stranger_is_not_trusted(name: str, backend: str) -> None:
    """A name of scope user in the hands of another user raises Untrusted, at once, waiting or not."""

    def body(child: Child) -> None:
        address = parse(name).address
        os.setresuid(65534, 65534, 65534)
        with socket(AF_UNIX, SOCK_STREAM) as stranger:
            stranger.bind(address)
            stranger.listen(8)
            child.say("bound")
            child.hear()

    async def main() -> None:
        lock = AsyncLock(name)
        for timeout in (0, 30, None):
            with pytest.raises(bindlock.Untrusted) as caught:
                await lock.acquire(timeout)
            assert caught.value.uid == 65534

    with Child(body) as child:
        child.expect("bound")
        run(backend, main)


def test_a_lost_lock_says_so(name: str, backend: str) -> None:
    """A lock whose descriptor was closed by others says Lost, at a release and at an acquire, once."""

    async def main() -> None:
        lock = AsyncLock(name)

        async def release() -> None:
            lock.release()

        for use in (release, lock.acquire):
            await lock.acquire()
            os.close(lock.fileno())
            assert not lock.held
            with pytest.raises(bindlock.Lost, match=name):
                await use()
            async with lock:
                assert lock.held

    run(backend, main)


def test_invalid_arguments() -> None:
    """Names, scopes, time-outs and kinds of children are those of a Lock, and so are the errors."""
    wrong: list[dict[str, Any]] = [{"name": ""}, {"scope": "world"}, {"timeout": -1}, {"children": "eat"}]
    for arguments in wrong:
        merged = {"name": "a", **arguments}
        with pytest.raises(bindlock.InvalidArgument) as caught:
            AsyncLock(**merged)
        with pytest.raises(bindlock.InvalidArgument) as expected:
            bindlock.Lock(**merged)
        assert str(caught.value) == str(expected.value)


# Tasks.


def test_the_same_object_again(name: str, backend: str) -> None:
    """A task that acquires the very object it holds gets AlreadyHeld, whatever the time-out, and holds it still."""

    async def main() -> None:
        async with AsyncLock(name) as lock:
            for timeout in (None, 0.0, 5.0):
                with pytest.raises(bindlock.AlreadyHeld, match="this task, by this very object"):
                    await lock.acquire(timeout)
            with pytest.raises(bindlock.AlreadyHeld):
                await lock.try_acquire()
            assert lock.held

    run(backend, main)


def test_another_object_of_the_same_task(name: str, backend: str) -> None:
    """A task that would wait without end for itself gets AlreadyHeld; with a time-out it is refused as anybody is."""

    async def main() -> None:
        async with AsyncLock(name) as lock:
            other = AsyncLock(name)
            for timeout in (None, float("inf")):
                with pytest.raises(bindlock.AlreadyHeld, match="this task, by another object"):
                    await other.acquire(timeout)
            for timeout in (0.0, 0.02):
                with pytest.raises(bindlock.Held):
                    await other.acquire(timeout)
            assert not await other.try_acquire()
            assert lock.held
            async with AsyncLock(name, scope="host"), AsyncLock(name + "-2"):
                pass

    run(backend, main)


@pytest.mark.parametrize("shared", [False, True], ids=["an object each", "one object"])
def test_another_task_waits(name: str, backend: str, shared: bool) -> None:
    """Two tasks exclude each other, with one object, too; and any task may release."""

    async def main() -> None:
        lock = AsyncLock(name)
        await lock.acquire()
        async with anyio.create_task_group() as group:
            task = Task(name, group, lock if shared else None)
            await steps(20)
            assert task.outcome is None
            lock.release()
            await task.done.wait()
            assert task.outcome == "held"
            assert task.lock.held
            task.lock.release()  # not the one that acquired it
            assert bindable(name)
            await lock.acquire()
            lock.release()
            await task.lock.acquire()
            task.leave()

    run(backend, main)


def test_a_task_that_is_gone_is_not_the_next(name: str, backend: str) -> None:
    """A lock that an ended task has acquired is waited for by later tasks: none of them is taken for that one."""

    async def main() -> None:
        lock = AsyncLock(name)

        async def leave_held() -> None:
            await lock.acquire()

        async def refused() -> None:
            for _ in range(2):
                with pytest.raises(bindlock.Held):
                    await lock.acquire(0)
                with anyio.move_on_after(0.001) as scope:
                    await AsyncLock(name).acquire()
                assert scope.cancelled_caught

        async with anyio.create_task_group() as group:
            group.start_soon(leave_held)
        gc.collect()
        for _ in range(50):
            async with anyio.create_task_group() as group:
                group.start_soon(refused)
        lock.release()

    run(backend, main)


def test_a_blocking_lock_in_the_loop(name: str, backend: str) -> None:
    """A blocking Lock that would stop the event loop for ever, for a name that one of its tasks holds, says so."""

    async def main() -> None:
        async with AsyncLock(name):
            with pytest.raises(bindlock.AlreadyHeld, match="this thread"):
                bindlock.Lock(name).acquire()
        with bindlock.Lock(name):
            assert not await AsyncLock(name).try_acquire()

    run(backend, main)


def test_another_thread_can_release(name: str, backend: str) -> None:
    """A worker thread can release what a task has acquired, and wait for it with a blocking Lock."""

    async def main() -> None:
        lock, blocking = AsyncLock(name), bindlock.Lock(name)
        await lock.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, blocking.acquire)
            await until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters)
            await anyio.to_thread.run_sync(lock.release)
        assert blocking.held
        blocking.release()

    run(backend, main)


# The line.


def test_first_come_first_served(name: str, backend: str, seed: int) -> None:
    """Tasks have the lock in the order in which they came, whoever of them gives up meanwhile."""
    chance = random.Random(seed)

    async def main() -> None:
        order: list[int] = []
        async with AsyncLock(name) as lock, anyio.create_task_group() as group:
            tasks = []
            for _ in range(60):
                tasks.append(Task(name, group))
                await until(lambda: in_line() == len(tasks))
            for task in chance.sample(tasks, 20):
                task.scope.cancel()
                await task.done.wait()
            lock.release()
            for number, task in enumerate(tasks):
                await task.done.wait()
                if task.outcome == "held":
                    assert [other for other in tasks if other.lock.held] == [task]
                    order.append(number)
                    task.leave()
            assert len(order) == 40

    run(backend, main)


def test_any_number_of_tasks(name: str, backend: str, long: bool) -> None:
    """Thousands of tasks that wait make progress, in order; they cost five descriptors at most, and the lock one."""
    count = 10_000 if long else 2_000

    async def main() -> None:
        had: list[int] = []
        before = opened()
        lock = AsyncLock(name)

        async def work(number: int) -> None:
            async with AsyncLock(name):
                had.append(number)
                await anyio.sleep(0)
                assert had[-1] == number

        async with lock, anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(work, number)
                await until(lambda: in_line() > number)  # noqa: B023
            await steps(5)
            assert opened() <= before + 6
            lock.release()
            lowest = opened()
            while len(had) < count:
                assert opened() <= lowest + 6
                await anyio.sleep(0.01)
        assert had == list(range(count))
        assert opened() == before

    run(backend, main)


def test_no_more_turns_than_a_process_with_one(cast: Cast, name: str, backend: str, tmp_path: Path) -> None:
    """However many tasks of a process wait, another process that waits is the next but one, awaiting or blocking."""
    log = tmp_path / "log"
    code = (
        "import sys, bindlock\nlock = bindlock.Lock(sys.argv[1])\n"
        "lock.acquire(waiting=lambda holder: print('waits', flush=True))\n"
        "open(sys.argv[2], 'a').write('B')\nlock.release()"
    )

    async def main() -> None:
        async def work(pause: bool) -> None:
            async with AsyncLock(name):
                with log.open("a") as file:
                    file.write("A")
                if pause:
                    await anyio.sleep(0)

        async with AsyncLock(name) as lock, anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(work, number % 2 == 0)
            await until(lambda: in_line() == 50)
            await until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 1)
            actor = cast.python(code, name, str(log))
            await anyio.to_thread.run_sync(actor.expect, "waits")
            await until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 2)
            lock.release()
        assert actor.wait() == 0

    run(backend, main)
    assert sorted(log.read_text()) == ["A"] * 50 + ["B"]
    assert log.read_text().index("B") == 1


def test_refused_in_the_middle_of_the_line(cast: Cast, name: str, backend: str) -> None:
    """A task whose time is over before it is the first is told who holds the name; those behind it move up."""
    actor = cast.holder(name)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            first = Task(name, group)
            await until(in_line)
            impatient = [Task(name, group, timeout=timeout) for timeout in (0.02, 0.3)]
            last = Task(name, group)
            begun = time.monotonic()
            for task, timeout in zip(impatient, (0.02, 0.3), strict=True):
                await task.done.wait()
                assert timeout <= time.monotonic() - begun < timeout + 1
                assert isinstance(task.outcome, bindlock.Held)
                assert task.outcome.holder is not None
                assert task.outcome.holder.pid == actor.pid
            assert (first.outcome, last.outcome) == (None, None)
            actor.write()
            for task in (first, last):
                await task.done.wait()
                assert task.outcome == "held"
                task.leave()

    run(backend, main)


def test_who_must_not_wait_stands_in_no_line(cast: Cast, name: str, backend: str) -> None:
    """An acquire without time is refused at once though many wait, and has a name that is free at once."""
    cast.holder(name)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            tasks = [Task(name, group) for _ in range(10)]
            await until(lambda: in_line() == 10)
            begun = time.monotonic()
            assert not await AsyncLock(name).try_acquire()
            with pytest.raises(bindlock.Held):
                await AsyncLock(name).acquire(0)
            assert time.monotonic() - begun < 2
            for task in tasks:
                task.scope.cancel()

    run(backend, main)


def test_two_loops(name: str, backend: str, seed: int, long: bool) -> None:
    """The tasks of two event loops in two threads, threads and processes exclude each other, by one object or many."""
    inside: list[object] = []
    count = 0
    shared = AsyncLock(name)
    rounds = 300 if long else 30

    def enter(who: object) -> None:
        inside.append(who)
        assert inside == [who]

    def leave(who: object) -> None:
        nonlocal count
        count += 1
        assert inside == [who]
        inside.clear()

    async def main(chance: random.Random) -> None:
        async def work() -> None:
            for _ in range(rounds):
                lock = shared if chance.random() < 0.5 else AsyncLock(name)
                who = object()
                async with lock:
                    enter(who)
                    await steps(chance.randrange(3))
                    leave(who)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(work)

    def loop(number: int) -> None:
        anyio.run(main, random.Random(seed + number), backend=backend)

    def block() -> None:
        lock = bindlock.Lock(name)
        for _ in range(rounds):
            with lock:
                who = object()
                enter(who)
                leave(who)

    errors: list[BaseException] = []

    def guarded(target: Any) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [
        threading.Thread(target=guarded, args=(target,)) for target in (partial(loop, 1), partial(loop, 2), block)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    assert count == 11 * rounds
    assert bindable(name)


# Sleeping.


def test_waiting_does_not_wake_up(cast: Cast, name: str, backend: str) -> None:
    """A process that waits in an event loop sleeps: not one wake-up in a second; and has the lock at the release."""
    holder = cast.holder(name)
    actor = waiter(cast, name, backend)
    before = switches(actor.pid)
    assert actor.process.stdout is not None
    assert not select.select([actor.process.stdout], [], [], 1.0)[0]
    assert switches(actor.pid) == before
    holder.write()
    actor.expect("held")
    assert not bindable(name)
    actor.write()
    actor.expect("released")
    assert actor.wait() == 0


def test_a_killed_waiter_leaves_nothing(cast: Cast, name: str, backend: str) -> None:
    """A process that is killed while it waits in an event loop is nobody's trouble: the next one has the lock."""
    holder = cast.holder(name)
    actor = waiter(cast, name, backend)
    actor.kill()
    actor = waiter(cast, name, backend)
    holder.kill()
    actor.expect("held")
    actor.kill()
    assert bindable(name)


def test_a_holder_that_accepts_and_talks(cast: Cast, name: str, backend: str) -> None:
    """A foreign holder that accepts and sends without end does not keep the loop busy; the lock is had when it goes."""
    code = (
        "import socket, sys, threading\ns = socket.socket(socket.AF_UNIX)\ns.bind(bytes.fromhex(sys.argv[1]))\n"
        "s.listen()\nprint('bound', flush=True)\nc, _ = s.accept()\nc.sendall(b'x')\nprint('sent', flush=True)\n"
        "threading.Thread(target=lambda: [c.sendall(bytes(1 << 16)) for _ in range(1000)], daemon=True).start()\n"
        "sys.stdin.readline()"
    )
    actor = cast.python(code, parse(f"@{name}").address.hex())
    actor.expect("bound")

    async def main() -> None:
        lock = AsyncLock(f"@{name}")
        async with anyio.create_task_group() as group:
            task = Task(name, group, lock)
            await anyio.to_thread.run_sync(actor.expect, "sent")
            before = time.thread_time()
            await anyio.sleep(1)
            assert time.thread_time() - before < 0.2
            assert task.outcome is None
            actor.process.kill()
            await task.done.wait()
            assert task.outcome == "held"
            task.leave()

    run(backend, main)
    actor.wait()


# Cancellation.

#: In which step of the loop the holder releases; when nobody does, the task is cancelled in any case.
RELEASES = (0, 1, 2, 3, 4, 6, 8, None)
STEPS = 16


@pytest.mark.parametrize("first", [True, False], ids=["the first in line", "behind another"])
def test_cancelled_at_every_step(name: str, backend: str, first: bool) -> None:
    """Cancelled at whatever step, a task has the lock and says so, or nothing is left of it, and the others go on."""
    outcomes: set[object] = set()

    async def scene(released: int | None, cancelled: int, timeout: float | None) -> None:
        before = opened()
        async with AsyncLock(name) as lock, anyio.create_task_group() as group:
            ahead = None if first else Task(name, group)
            if ahead is not None:
                ahead.leave()
                await until(in_line)
            task = Task(name, group, timeout=timeout)
            for step in range(STEPS):
                if step == released:
                    lock.release()
                if step == cancelled:
                    task.scope.cancel()
                await steps(1)
            behind = Task(name, group)
            await task.done.wait()
            outcomes.add(task.outcome)
            assert (task.outcome == "held") == task.lock.held
            task.leave()
            if released is None:
                lock.release()
            await behind.done.wait()
            assert behind.outcome == "held"
            behind.leave()
        nothing_left(name, before)

    async def main() -> None:
        for released, cancelled, timeout in product(RELEASES, range(STEPS), (None, 60.0)):
            await scene(released, cancelled, timeout)

    run(backend, main)
    assert outcomes == {"held", "cancelled"}


def test_a_free_name_cancelled_at_every_step(name: str, backend: str) -> None:
    """Cancelled at whatever step of an acquire of a free name: had, or nothing."""
    outcomes = set()

    async def main() -> None:
        for cancelled in range(5):
            before = opened()
            async with anyio.create_task_group() as group:
                task = Task(name, group)
                await steps(cancelled)
                task.scope.cancel()
                await task.done.wait()
                outcomes.add(task.outcome)
                assert (task.outcome == "held") == task.lock.held
                task.leave()
            nothing_left(name, before)

    run(backend, main)
    assert outcomes == {"held", "cancelled"}


@pytest.mark.parametrize("behind", [False, True], ids=["the first in line", "behind another"])
def test_asyncios_own_cancellation(name: str, behind: bool) -> None:
    """The same for `asyncio.Task.cancel`, which knows nothing of cancel scopes."""
    outcomes = set()

    async def ahead() -> None:
        async with AsyncLock(name):
            await asyncio.sleep(0)

    async def scene(released: int | None, cancelled: int) -> None:
        before = opened()
        holder, lock = AsyncLock(name), AsyncLock(name)
        await holder.acquire()
        others = [asyncio.create_task(ahead())] if behind else []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = asyncio.create_task(lock.acquire())
        for step in range(STEPS):
            if step == released:
                holder.release()
            if step == cancelled:
                task.cancel()
            await asyncio.sleep(0)
        if holder.held:
            holder.release()
        try:
            await task
            outcomes.add("held")
            assert lock.held
            lock.release()
        except asyncio.CancelledError:
            outcomes.add("cancelled")
            assert not lock.held
        for other in others:
            await other
        nothing_left(name, before)

    async def main() -> None:
        for released, cancelled in product(RELEASES, range(STEPS)):
            await scene(released, cancelled)

    asyncio.run(main())
    assert outcomes == {"held", "cancelled"}


def test_cancelled_in_the_grace(cast: Cast, name: str, backend: str) -> None:
    """Cancelled while a holder that is dying is given the grace, nothing is left of any."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name, children="share")
        lock.acquire()
        if not os.fork():
            child.hear()  # the end of the pipe: the test's end
            os._exit(0)
        child.say("held")
        child.hear()

    async def main() -> None:
        before = opened()
        for cancelled in range(8):
            async with anyio.create_task_group() as group:
                tasks = [Task(name, group, timeout=0) for _ in range(3)]
                await steps(cancelled)
                for task in tasks:
                    task.scope.cancel()
            assert opened() == before
            assert not in_line()

    with Child(body) as child:
        child.expect("held")
        os.kill(child.pid, signal.SIGKILL)
        run(backend, main)


def test_fail_after(cast: Cast, name: str, backend: str) -> None:
    """A time-out of the event loop's ends the wait, for the first in line and for others."""
    cast.holder(name)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            first = Task(name, group)
            for _ in range(2):
                with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.02):
                    await AsyncLock(name).acquire()
                assert not isinstance(caught.value, bindlock.BindlockError)
                first.scope.cancel()

    run(backend, main)


def test_ctrl_c(cast: Cast, name: str, backend: str) -> None:
    """SIGINT ends a process that waits, and one that holds; the name is free."""
    holder = cast.holder(name)
    actor = waiter(cast, name, backend)
    actor.signal(signal.SIGINT)
    actor.wait()
    holder.kill()
    assert bindable(name)


@pytest.mark.parametrize("contended", [False, True])
def test_signal_handlers_that_raise(name: str, backend: str, contended: bool, long: bool) -> None:
    """A handler that raises at whatever instant of an acquire: then the lock is held and says so, or nothing is."""
    lock = AsyncLock(name)
    address = parse(name).address
    said: list[bool] = []

    async def acquire() -> None:
        said.clear()
        with socket(AF_UNIX, SOCK_STREAM) as stranger:
            if contended:
                stranger.bind(address)
                stranger.listen()
            async with anyio.create_task_group() as group:

                async def go() -> None:
                    await steps(4)
                    stranger.close()

                group.start_soon(go)
                await lock.acquire()
                said.append(True)

    def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sockets that their reference counts have closed
            anyio.run(acquire, backend=backend)

    main()
    lock.release()
    before = opened()
    instant = 0
    with Interrupter(PACKAGE) as interrupter:
        while not instant or interrupter.raised:
            instant += 1 if long else random.randint(1, 5)
            error = interrupter.run(main, instant)
            # Not always Interrupted: anyio's own scopes raise RuntimeError when they are interrupted.
            assert (error is not None) == bool(interrupter.raised), f"{instant}: {error!r}"
            assert lock.held == bool(said), f"{instant}: {interrupter.raised}"
            if said:
                lock.release()
            assert bindable(name), f"{instant}: {interrupter.raised}"
            assert not in_line(), instant
            del error
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            assert opened() == before, f"{instant}: {interrupter.raised}"
    assert instant > 20


# The end of a loop.


def test_a_loop_that_is_closed_while_tasks_wait(cast: Cast, name: str) -> None:
    """A loop that was closed with tasks waiting is as a stopped process: others pass it when their patience ends."""
    holder = cast.holder(name)

    async def begin() -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(AsyncLock(name).acquire()) for _ in range(5)]
        await until(lambda: in_line() == 5)
        await steps(5)
        return tasks

    async def main() -> None:
        assert not await AsyncLock(name).try_acquire()
        async with anyio.create_task_group() as group:
            task = Task(name, group)
            await until(lambda: in_line() == 6)
            await steps(5)
            os.kill(holder.pid, signal.SIGKILL)
            await task.done.wait()
            assert task.outcome == "held"
            task.leave()

    def body(child: Child) -> None:
        decide.PATIENCE = 0.2
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()
        anyio.run(main, backend="asyncio")
        child.say("had")
        sys.stdout.flush()
        os._exit(0)  # without complaints of tasks that were dropped

    with Child(body) as child:
        child.expect("had")


def test_a_loop_that_ends_while_tasks_wait(cast: Cast, name: str) -> None:
    """asyncio.run() ends, with tasks waiting that nobody awaits: they are cancelled, and nothing is left."""
    cast.holder(name)
    before = opened()

    async def main() -> None:
        tasks = [asyncio.create_task(AsyncLock(name).acquire()) for _ in range(5)]
        await until(lambda: in_line() == len(tasks))

    asyncio.run(main())
    assert not in_line()
    assert opened() == before


# The object.


def test_a_dropped_lock_says_so_and_is_free(name: str, backend: str) -> None:
    """A held AsyncLock that is dropped gives a ResourceWarning that names it, and the name is free."""

    async def main() -> None:
        locks = [AsyncLock(name)]
        await locks[0].acquire()
        with pytest.warns(ResourceWarning, match=f"bindlock.AsyncLock '{name}'.*dropped without being released"):
            locks.clear()
        assert bindable(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AsyncLock(name)

    run(backend, main)


def test_copies_hold_nothing(name: str, backend: str) -> None:
    """A copied or pickled AsyncLock is another object that wants the same name, with the same options."""

    async def main() -> None:
        lock = AsyncLock(name, scope="host", timeout=3, children="share")
        async with lock:
            for other in (copy.copy(lock), copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
                assert type(other) is AsyncLock
                assert (other.name, other.timeout, other.held) == (lock.name, 3, False)
                assert repr(other) == repr(lock).replace(" held>", " not held>")
                assert not await other.try_acquire()
        async with other:
            assert not await lock.try_acquire()

    run(backend, main)


def test_repr_and_attributes(name: str) -> None:
    """The representation says name, scope and state; there is no attribute by mistake."""
    lock = AsyncLock(name, scope="host")
    assert repr(lock) == f"<bindlock.AsyncLock {name!r} scope=host not held>"
    with pytest.raises(AttributeError):
        lock.timout = 3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        lock.held = True  # type: ignore[misc]


def test_detached(name: str, backend: str) -> None:
    """A detached lock is held until its descriptor is closed, and this object does not have it."""

    async def main() -> None:
        lock = AsyncLock(name)
        assert lock.detach() == -1
        await lock.acquire()
        descriptor = lock.detach()
        assert not lock.held
        assert not await lock.try_acquire()
        os.close(descriptor)
        async with lock:
            pass

    run(backend, main)


def test_a_forked_child_has_nothing(name: str, backend: str) -> None:
    """A child forked while a task holds the lock, and others wait, has nothing; it can start a loop of its own."""

    async def main() -> None:
        async with AsyncLock(name) as lock, anyio.create_task_group() as group:
            task = Task(name, group)
            await until(in_line)
            await steps(5)

            def body(child: Child) -> None:
                child.say(str(lock.held))
                child.hear()

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # anyio has threads
                child = Child(body)
            with child:
                child.expect("False")
                lock.release()
                await task.done.wait()
                assert task.outcome == "held"
                task.leave()
                await until(lambda: bindable(name))

    run(backend, main)


def test_asyncio_without_trio() -> None:
    """With asyncio, trio is not loaded, and nothing of this is by the package itself."""
    code = (
        "import sys, bindlock\nassert 'anyio' not in sys.modules\n"
        "import asyncio\nfrom bindlock.aio.lock import AsyncLock\n"
        "async def main():\n    async with AsyncLock('test-aio-alone'): pass\n"
        "asyncio.run(main())\nassert 'trio' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
