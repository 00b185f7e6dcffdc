"""A task sleeps until somebody wants what it holds, and is not fooled by those who only look."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from socket import AF_NETLINK, AF_UNIX, SOCK_STREAM, socket
from typing import Any

import pytest

anyio = pytest.importorskip("anyio", reason="needs anyio")

import bindlock  # noqa: E402
from bindlock.aio.lock import AsyncLock  # noqa: E402
from bindlock.aio.semaphore import AsyncSemaphore  # noqa: E402
from bindlock.aio.watch import _watches  # noqa: E402
from tests.actors import Cast, Child  # noqa: E402
from tests.actors import until as ask_until  # noqa: E402
from tests.aio_stage import Task, opened, run, steps, until  # noqa: E402
from tests.aio_stage import on_either as on_either  # noqa: E402
from tests.confinement import refuse_sockets, seccomp_reason  # noqa: E402
from tests.steps import line  # noqa: E402


@pytest.fixture(params=["lock", "semaphore"])
def kind(request: pytest.FixtureRequest) -> str:
    """What is held."""
    return str(request.param)


def make(kind: str, name: str) -> Any:
    """The object: of a semaphore there is one slot."""
    return AsyncLock(name) if kind == "lock" else AsyncSemaphore(name, slots=1)


@contextmanager
def waiter(kind: str, name: str) -> Iterator[Child]:
    """A process that waits for it, as soon as it is told to."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name) if kind == "lock" else bindlock.Semaphore(name, slots=1)
        child.hear()
        with lock:
            child.say("held")
            child.hear()

    with Child(body) as child:
        yield child


class Watcher:
    """A task that says when the lock is wanted."""

    def __init__(self, lock: Any, group: Any) -> None:
        self.outcome: Any = None
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self._lock = lock
        group.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self.scope:
                await self._lock.wanted()
                self.outcome = "wanted"
        except bindlock.BindlockError as error:
            self.outcome = error
        finally:
            self.done.set()


def test_woken_when_somebody_comes(name: str, backend: str, kind: str) -> None:
    """All tasks that watch are woken when a process comes to wait, which has the name at the release."""

    async def main() -> None:
        before = opened()
        lock = make(kind, name)
        async with lock, anyio.create_task_group() as group:
            watchers = [Watcher(lock, group) for _ in range(3)]
            await until(lambda: len(_watches) == 3)
            await anyio.sleep(0.02)
            assert [watcher.outcome for watcher in watchers] == [None] * 3
            waiting.say("go")
            for watcher in watchers:
                await watcher.done.wait()
                assert watcher.outcome == "wanted"
            await lock.wanted()  # still
            lock.release()
            await anyio.to_thread.run_sync(waiting.expect, "held")
        assert opened() == before

    with waiter(kind, name) as waiting:
        run(backend, main)


def test_woken_by_a_task(name: str, backend: str, kind: str) -> None:
    """A task of the same loop that waits is somebody, too; when it is gone nobody wants it any more."""

    async def main() -> None:
        lock = make(kind, name)
        async with lock, anyio.create_task_group() as group:
            for _ in range(3):
                with anyio.move_on_after(0.02) as scope:
                    await lock.wanted()
                assert scope.cancelled_caught
                watcher = Watcher(lock, group)
                await steps(5)
                task = Task(name, group, make(kind, name))
                await watcher.done.wait()
                assert watcher.outcome == "wanted"
                task.scope.cancel()
                await task.done.wait()

    run(backend, main)


def test_a_look_is_no_wish(name: str, backend: str, kind: str) -> None:
    """Who looked, and who waited and is gone, leave the descriptor readable: no wish, and the loop does not spin."""

    async def main() -> None:
        lock = make(kind, name)
        async with lock, anyio.create_task_group() as group:
            address = lock._lock._binding.address
            watcher = Watcher(lock, group)
            await steps(5)
            used = time.thread_time()
            for _ in range(20):
                with socket(AF_UNIX, SOCK_STREAM) as looker:
                    looker.connect(address)
                await anyio.sleep(0.01)
            await anyio.sleep(0.5)
            assert time.thread_time() - used < 0.3
            assert watcher.outcome is None
            waiting.say("go")
            await watcher.done.wait()
            assert watcher.outcome == "wanted"

    with waiter(kind, name) as waiting:
        run(backend, main)


def test_readable_for_ever(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is dead cannot be dropped, the descriptor stays readable: it is asked now and then, without haste."""
    asked = 0

    def is_wanted(*arguments: object) -> bool:
        nonlocal asked
        asked += 1
        return False

    async def main() -> None:
        async with AsyncLock(name) as lock:
            with socket(AF_UNIX, SOCK_STREAM) as looker:
                looker.connect(lock._lock._binding.address)
            with anyio.move_on_after(0.5):
                await lock.wanted()
        assert 2 <= asked <= 60

    monkeypatch.setattr("bindlock.lock.look.is_wanted", is_wanted)
    run(backend, main)


def test_no_wake_up_for_nothing(cast: Cast, name: str, kind: str) -> None:
    """A process that holds and watches in an event loop sleeps: not one wake-up in half a second."""
    code = (
        "import sys, anyio, bindlock\nasync def main():\n"
        "    kind = {'lock': bindlock.AsyncLock, 'semaphore': lambda name: bindlock.AsyncSemaphore(name, slots=1)}\n"
        "    async with kind[sys.argv[2]](sys.argv[1]) as lock:\n        print('held', flush=True)\n"
        "        await lock.wanted()\n        print('wanted', flush=True)\nanyio.run(main)"
    )
    actor = cast.python(code, name, kind)
    actor.expect("held")

    def count() -> int:
        with open(f"/proc/{actor.pid}/status") as file:
            return sum(int(row.split()[1]) for row in file if "ctxt_switches" in row)

    def asleep() -> bool:
        with open(f"/proc/{actor.pid}/wchan") as file:
            return file.read() in ("ep_poll", "do_epoll_wait", "do_sys_poll")

    ask_until(asleep)
    time.sleep(0.05)
    before = count()
    time.sleep(0.5)
    assert count() == before
    with waiter(kind, name) as waiting:
        waiting.say("go")
        actor.expect("wanted")
        waiting.expect("held")


def test_behind_a_ticket(name: str, backend: str) -> None:
    """A lock that was had with a ticket is wanted while somebody is queued behind that, and not when they are gone."""

    def body(child: Child) -> None:
        async def main() -> None:
            async with AsyncLock(name) as lock:
                await lock.wanted()
                child.say("wanted")
                child.hear()
                with anyio.move_on_after(0.1) as scope:
                    await lock.wanted()
                assert scope.cancelled_caught
                child.say("not wanted")

        anyio.run(main, backend=backend)

    with line(name, 0) as (first, _), Child(body) as child:
        ask_until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 1)
        with waiter("lock", name) as behind:
            behind.say("go")
            ask_until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 2)
            first.let_go()
            child.expect("wanted")
        child.say("they are gone")
        child.expect("not wanted")


def test_not_held(name: str, backend: str, kind: str) -> None:
    """Nobody can wait for it to be wanted who does not hold it: NotHeld; and Lost, when others closed it."""

    async def main() -> None:
        lock = make(kind, name)
        before = opened()
        with pytest.raises(bindlock.NotHeld, match=f"this {type(lock).__name__} object"):
            await lock.wanted()
        await lock.acquire()
        os.close(lock.fileno())
        with pytest.raises(bindlock.Lost):
            await lock.wanted()
        with pytest.raises(bindlock.Lost):
            await lock.acquire()
        assert opened() == before

    run(backend, main)


@pytest.mark.parametrize("how", ["release", "detach", "thread", "again"])
def test_released_meanwhile(name: str, backend: str, kind: str, how: str) -> None:
    """Whoever releases it, in whatever thread: those who watch get NotHeld, also when it is held again by then."""

    async def main() -> None:
        before = opened()
        lock = make(kind, name)
        await lock.acquire()
        async with anyio.create_task_group() as group:
            watchers = [Watcher(lock, group) for _ in range(2)]
            await until(lambda: len(_watches) == 2)
            await steps(5)
            if how == "thread":
                thread = threading.Thread(target=lock.release)
                thread.start()
                thread.join()
            elif how == "detach":
                os.close(lock.detach())
            else:
                lock.release()
                if how == "again":
                    lock._lock.acquire(0)
            for watcher in watchers:
                await watcher.done.wait()
                assert isinstance(watcher.outcome, bindlock.NotHeld)
        if how == "again":
            lock.release()
        assert opened() == before

    run(backend, main)


def test_cancelled_at_every_step(name: str, backend: str, kind: str) -> None:
    """Cancelled at whatever step, nothing is left of it, and the lock is held as before."""

    async def main() -> None:
        async with make(kind, name) as lock:
            before = opened()
            for cancelled in range(8):
                async with anyio.create_task_group() as group:
                    watcher = Watcher(lock, group)
                    await steps(cancelled)
                    watcher.scope.cancel()
                assert watcher.outcome is None
                assert opened() == before
                assert lock.held

    run(backend, main)


def test_a_forked_child_disturbs_nobody(name: str, backend: str) -> None:
    """What a child does with a lock that it shares does not wake the tasks of its parent."""

    async def main() -> None:
        lock = AsyncLock(name, children="share")
        async with lock, anyio.create_task_group() as group:
            watcher = Watcher(lock, group)
            await until(lambda: len(_watches))
            await steps(5)

            def body(child: Child) -> None:
                lock.release()
                child.say("released")
                child.hear()

            with Child(body) as child:
                child.expect("released")
                await anyio.sleep(0.05)
                assert watcher.outcome is None
                assert lock.held
                watcher.scope.cancel()

    run(backend, main)


def test_without_a_descriptor(name: str, backend: str) -> None:
    """With children="never" it is asked again and again, and noticed all the same."""

    async def main() -> None:
        async with AsyncLock(name, children="never") as lock, anyio.create_task_group() as group:
            watcher = Watcher(lock, group)
            await steps(5)
            assert watcher.outcome is None
            waiting.say("go")
            await watcher.done.wait()
            assert watcher.outcome == "wanted"

    with waiter("lock", name) as waiting:
        run(backend, main)


@pytest.mark.skipif(seccomp_reason is not None, reason=str(seccomp_reason))
def test_without_sock_diag(name: str, backend: str) -> None:
    """Where sock_diag is forbidden, whoever comes is taken for somebody who waits."""

    def body(child: Child) -> None:
        refuse_sockets(AF_NETLINK, errno.EAFNOSUPPORT)

        async def main() -> None:
            async with AsyncLock(name) as lock:
                child.say("held")
                await lock.wanted()
                child.say("wanted")

        anyio.run(main, backend=backend)

    with Child(body) as child:
        child.expect("held")
        bindlock.holder(name)
        child.expect("wanted")


def test_many_that_give_way(name: str, backend: str, kind: str) -> None:
    """Those who work until somebody else wants to, and give way then, all have their turns."""

    async def main() -> None:
        turns: list[int] = []

        async def work(number: int) -> None:
            lock = make(kind, name)
            for _ in range(10):
                async with lock:
                    turns.append(number)
                    with anyio.move_on_after(0.2):
                        await lock.wanted()

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(work, number)
        assert sorted(turns) == [0] * 10 + [1] * 10 + [2] * 10
        assert all(one != other for one, other in pairwise(turns[:20]))

    run(backend, main)
