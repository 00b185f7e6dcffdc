"""Slots for tasks: never more than so many among tasks and processes, in order, and nothing left of whoever goes."""

from __future__ import annotations

import asyncio
import copy
import fcntl
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from itertools import product
from typing import Any

import pytest

anyio = pytest.importorskip("anyio", reason="needs anyio")

import bindlock  # noqa: E402
from bindlock.aio.semaphore import AsyncSemaphore  # noqa: E402
from bindlock.lock.semaphore import Semaphore, holders  # noqa: E402
from tests.actors import Cast, Child  # noqa: E402
from tests.actors import until as ask_until  # noqa: E402
from tests.aio_stage import Task, in_line, opened, run, steps, until  # noqa: E402
from tests.aio_stage import on_either as on_either  # noqa: E402
from tests.interrupts import Interrupter  # noqa: E402
from tests.test_semaphore import Worker, crowd, sockets  # noqa: E402

PACKAGE = os.path.dirname(bindlock.__file__)


def of(name: str, slots: int, **options: Any) -> AsyncSemaphore:
    return AsyncSemaphore(name, slots=slots, **options)


def nothing_left(name: str, descriptors: int) -> None:
    """No slot and no ticket is bound, nobody is in line, and no more descriptors are open than there were."""
    assert sockets(name) == []
    assert not in_line()
    assert opened() == descriptors


# At most so many.


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_so_many_and_no_more(name: str, backend: str, slots: int) -> None:
    """Tasks, one task by many objects, and processes have all slots between them, and not one more."""

    async def main() -> None:
        before = opened()
        with ExitStack() as stack:
            worker = stack.enter_context(Worker(name, slots))
            worker.hold()
            having = [of(name, slots) for _ in range(slots - 1)]
            for number, semaphore in enumerate(having, 2):
                assert await semaphore.try_acquire()
                assert (semaphore.held, semaphore.slot, semaphore.slots) == (True, number, slots)
            one_more = of(name, slots)
            for timeout in (0, 0.01):
                with pytest.raises(bindlock.Held) as caught:
                    await one_more.acquire(timeout)
                assert caught.value.holder is not None
                assert str(caught.value).startswith(f"all {slots} slots of {name} are held")
            assert not await one_more.try_acquire()
            assert [holder.slot for holder in holders(name)] == [(number, slots) for number in range(1, slots + 1)]
            worker.kill()
            async with one_more:
                assert one_more.slot == 1
            for semaphore in having:
                semaphore.release()
        nothing_left(name, before)

    run(backend, main)


STORM = """
import os, random, signal, sys, time
import anyio, bindlock
name, backend, slots, seed, seconds, log = sys.argv[1:]
slots, seed, seconds, log = int(slots), int(seed), float(seconds), int(log)
chance = random.Random(seed)
end = time.monotonic() + seconds
async def inside():
    os.write(log, b"+%07d" % os.getpid())  # in one piece: a pipe
    await anyio.sleep(chance.choice((0, 0, 0.0005, 0.002)))
    os.write(log, b"-%07d" % os.getpid())
async def work():
    semaphore = bindlock.AsyncSemaphore(name, slots=slots)
    while time.monotonic() < end:
        with anyio.move_on_after(chance.choice((0.001, 0.01, None)) or float("inf")):
            try:
                await semaphore.acquire(chance.choice((0, 0.005, None, None)))
            except bindlock.Held:
                continue
            try:
                with anyio.CancelScope(shield=True):
                    await inside()
            finally:
                semaphore.release()
def block():
    semaphore = bindlock.Semaphore(name, slots=slots)
    while time.monotonic() < end:
        with semaphore:
            os.write(log, b"+%07d" % os.getpid())
            os.write(log, b"-%07d" % os.getpid())
async def main():
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(work)
        if seed % 2:
            group.start_soon(anyio.to_thread.run_sync, block)
sys.stdout.write("begins\\n"); sys.stdout.flush()
anyio.run(main, backend=backend)
assert len(os.listdir("/proc/self/fd")) < 20
"""


def test_a_storm(cast: Cast, name: str, backend: str, seed: int, long: bool) -> None:
    """However tasks of many processes are cancelled and refused, and processes killed, never are too many inside."""
    slots, seconds = 3, 60.0 if long else 5.0
    heard, said = os.pipe()
    fcntl.fcntl(said, fcntl.F_SETPIPE_SZ, 1 << 20)
    killed: list[int] = []
    inside: list[int] = []
    entered = most = marked = 0
    with open(heard, "rb") as log, open(said, "wb", buffering=0) as mark:
        actors = []
        for number in range(5):
            arguments = (backend, str(slots), str(seed + number), str(seconds), str(said))
            actors.append(cast.python(STORM, name, *arguments, pass_fds=(said,)))
        for actor in actors:
            actor.expect("begins")
        begun = time.monotonic()
        while event := log.read(8):
            pid = int(event[1:])
            if event[:1] == b"x":
                # From here on those may be inside that its death has let in, whatever it has still said before.
                killed.append(pid)
                inside = [other for other in inside if other != pid]
                os.kill(pid, signal.SIGKILL)
            elif pid in killed:
                continue
            elif event[:1] == b"+":
                entered += 1
                inside.append(pid)
                most = max(most, len(inside))
                assert most <= slots
            else:
                inside.remove(pid)
            if not mark.closed and time.monotonic() - begun > (marked + 1) * seconds / 4:
                mark.write(b"x%07d" % actors[marked].pid)
                marked += 1
                if marked == 2:
                    mark.close()
    assert most == slots
    assert entered > 200
    assert [actor.wait() for actor in actors] == [-signal.SIGKILL] * 2 + [0] * 3
    assert sockets(name) == []


# Order.


def test_first_come_first_served(name: str, backend: str, seed: int) -> None:
    """Tasks have slots in the order in which they came, whichever slot becomes free, whoever gives up meanwhile."""
    chance = random.Random(seed)

    async def main() -> None:
        before = opened()
        async with anyio.create_task_group() as group:
            having: list[Any] = [of(name, 3) for _ in range(3)]
            for semaphore in having:
                await semaphore.acquire()
            tasks = []
            for _ in range(40):
                tasks.append(Task(name, group, of(name, 3)))
                await until(lambda: in_line() == len(tasks))
            for task in chance.sample(tasks, 10):
                task.scope.cancel()
                await task.done.wait()
                tasks.remove(task)
            for task in tasks:
                one = having.pop(chance.randrange(3))
                if isinstance(one, Task):
                    one.leave()
                else:
                    one.release()
                await task.done.wait()
                assert task.outcome == "held"
                having.append(task)
                await steps(3)
                assert [other for other in tasks if other.lock.held] == [other for other in tasks if other in having]
            for task in having:
                task.leave()
        nothing_left(name, before)

    run(backend, main)


def test_all_slots_are_used(name: str, backend: str) -> None:
    """When several slots are released at once, as many tasks have one, the first ones, and no more."""

    async def main() -> None:
        having = [of(name, 4) for _ in range(4)]
        for semaphore in having:
            await semaphore.acquire()
        async with anyio.create_task_group() as group:
            tasks = []
            for _ in range(7):
                tasks.append(Task(name, group, of(name, 4)))
                await until(lambda: in_line() == len(tasks))
            for semaphore in having:
                semaphore.release()
            for task in tasks[:4]:
                await task.done.wait()
                assert task.outcome == "held"
            await anyio.sleep(0.05)
            assert [task.outcome for task in tasks[4:]] == [None] * 3
            for task in tasks:
                task.leave()

    run(backend, main)


def test_no_more_turns_than_a_process_with_one(name: str, backend: str) -> None:
    """However many tasks of a process wait, another process that waits is the next but one."""

    async def main() -> None:
        having = [of(name, 2) for _ in range(2)]
        for semaphore in having:
            await semaphore.acquire()
        async with anyio.create_task_group() as group:
            tasks = []
            for _ in range(10):
                tasks.append(Task(name, group, of(name, 2)))
                await until(lambda: in_line() == len(tasks))
            await until(lambda: len(bindlock.waiters(name)) == 1)
            worker.go()
            await until(lambda: len(bindlock.waiters(name)) == 2)
            having.pop().release()
            await tasks[0].done.wait()
            assert not worker.heard_within(0.02)
            having.pop().release()
            await anyio.to_thread.run_sync(worker.expect, "held")
            await steps(5)
            assert tasks[1].outcome is None
            worker.say("let go")
            for task in tasks:
                await task.done.wait()
                task.leave()

    with Worker(name, 2) as worker:
        run(backend, main)


# What it costs.


def test_descriptors_of_those_who_wait(name: str, backend: str) -> None:
    """Thousands of tasks that wait cost a connection for each slot, and three descriptors more at most."""
    slots, count = 20, 1000

    async def main() -> None:
        had: list[int] = []
        before = opened()

        async def work(number: int) -> None:
            async with of(name, slots):
                had.append(number)
                await anyio.sleep(0)

        async with anyio.create_task_group() as group:
            having = [of(name, slots) for _ in range(slots)]
            for semaphore in having:
                await semaphore.acquire()
            for number in range(count):
                group.start_soon(work, number)
                await until(lambda: in_line() > number)  # noqa: B023
            await steps(5)
            assert opened() <= before + slots + slots + 3
            for semaphore in having:
                semaphore.release()
            while len(had) < count:
                assert opened() <= before + slots + slots + 3
                await anyio.sleep(0.005)
        assert sorted(had) == list(range(count))
        nothing_left(name, before)

    run(backend, main)


@pytest.mark.parametrize("end", ["killed", "released"])
def test_waiting_does_not_wake_up(cast: Cast, name: str, backend: str, end: str) -> None:
    """A process whose task waits for one of three slots sleeps, and has the first that becomes free."""
    code = (
        "import sys, anyio, bindlock\nasync def main():\n"
        "    semaphore = bindlock.AsyncSemaphore(sys.argv[1], slots=3)\n"
        "    await semaphore.acquire(waiting=lambda holder: print('waits', flush=True))\n"
        "    print(semaphore.slot, flush=True)\n    await anyio.to_thread.run_sync(sys.stdin.readline)\n"
        "anyio.run(main, backend=sys.argv[2])"
    )
    with crowd(name, 3, 0) as (having, _):
        actor = cast.python(code, name, backend)
        actor.expect("waits")
        ask_until(lambda: len(bindlock.waiters(name)) == 1 and _asleep(actor.pid))
        before = _switches(actor.pid)
        time.sleep(0.5)
        assert _switches(actor.pid) == before
        if end == "killed":
            having[1].kill()
        else:
            having[1].let_go()
        actor.expect("2")
        actor.kill()
        with Semaphore(name, slots=3, timeout=0) as again:
            assert again.slot == 2


def _asleep(pid: int) -> bool:
    with open(f"/proc/{pid}/wchan") as file:
        return file.read() in ("ep_poll", "do_epoll_wait", "do_sys_poll")


def _switches(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return sum(int(row.split()[1]) for row in file if "ctxt_switches" in row)


# Time, and cancellation.


def test_the_timeout_is_kept(name: str, backend: str) -> None:
    """An acquire that is refused has waited for its time-out, and hardly longer, first in line or behind others."""

    async def main() -> None:
        async with anyio.create_task_group() as group:
            tasks: list[Task] = []
            for _ in range(2):
                for timeout in (0, 0.03, 0.3):
                    begun = time.monotonic()
                    with pytest.raises(bindlock.Held):
                        await of(name, 2).acquire(timeout)
                    assert timeout <= time.monotonic() - begun < timeout + 1
                    with pytest.raises(bindlock.Held):
                        await of(name, 2, timeout=timeout).acquire()
                tasks.append(Task(name, group, of(name, 2)))
                await until(in_line)
            with pytest.raises(TimeoutError), anyio.fail_after(0.02):
                await of(name, 2).acquire()
            for task in tasks:
                task.scope.cancel()
        for wrong in (-1, float("nan")):
            with pytest.raises(bindlock.InvalidArgument):
                await of(name, 2).acquire(wrong)

    with crowd(name, 2, 0, 2):
        run(backend, main)


def test_free_after_sigkill(name: str, backend: str) -> None:
    """When waitpid has reported the death of a holder its slot is free, also for tasks that do not wait."""

    async def main() -> None:
        won = []

        async def attempt() -> None:
            semaphore = of(name, 2)
            if await semaphore.try_acquire():
                won.append(semaphore)

        having[0].kill()
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(attempt)
        (semaphore,) = won
        semaphore.release()

    with crowd(name, 2, 0, 2) as (having, _):
        run(backend, main)


@pytest.mark.parametrize("first", [True, False], ids=["the first in line", "behind another"])
def test_cancelled_at_every_step(name: str, backend: str, first: bool) -> None:
    """Cancelled at whatever step, a task has a slot and says so, or nothing is left of it, and the others go on."""
    outcomes: set[object] = set()

    async def scene(released: int | None, cancelled: int, timeout: float | None) -> None:
        before = opened()
        having = [of(name, 2) for _ in range(2)]
        async with anyio.create_task_group() as group:
            for semaphore in having:
                await semaphore.acquire()
            ahead = None if first else Task(name, group, of(name, 2))
            if ahead is not None:
                ahead.leave()
                await until(in_line)
            task = Task(name, group, of(name, 2), timeout=timeout)
            for step in range(14):
                if step == released:
                    having[0].release()
                if step == cancelled:
                    task.scope.cancel()
                await steps(1)
            behind = Task(name, group, of(name, 2))
            await task.done.wait()
            outcomes.add(task.outcome)
            assert (task.outcome == "held") == task.lock.held
            task.leave()
            if released is None:
                having[0].release()
            await behind.done.wait()
            assert behind.outcome == "held"
            behind.leave()
            having[1].release()
        nothing_left(name, before)

    async def main() -> None:
        for released, cancelled, timeout in product((0, 1, 2, 3, 5, 8, None), range(14), (None, 60.0)):
            await scene(released, cancelled, timeout)

    run(backend, main)
    assert outcomes == {"held", "cancelled"}


def test_asyncios_own_cancellation(name: str) -> None:
    """The same for `asyncio.Task.cancel`, also of a free slot."""
    outcomes = set()

    async def scene(busy: int, released: int | None, cancelled: int) -> None:
        before = opened()
        having = [of(name, 2) for _ in range(busy)]
        for one in having:
            await one.acquire()
        semaphore = of(name, 2)
        task = asyncio.create_task(semaphore.acquire())
        for step in range(10):
            if step == released and having:
                having[0].release()
            if step == cancelled:
                task.cancel()
            await asyncio.sleep(0)
        for one in having:
            if one.held:
                one.release()
        try:
            await task
            outcomes.add("held")
            assert semaphore.held
            semaphore.release()
        except asyncio.CancelledError:
            outcomes.add("cancelled")
            assert not semaphore.held
        nothing_left(name, before)

    async def main() -> None:
        for busy, released, cancelled in product((0, 2), (0, 1, 2, 4, None), range(10)):
            await scene(busy, released, cancelled)

    asyncio.run(main())
    assert outcomes == {"held", "cancelled"}


@pytest.mark.parametrize("contended", [False, True])
def test_signal_handlers_that_raise(name: str, backend: str, contended: bool, long: bool) -> None:
    """A handler that raises at whatever instant of an acquire: then a slot is held and says so, or nothing is."""
    semaphore, other = of(name, 2), Semaphore(name, slots=2, timeout=0)
    said: list[bool] = []

    async def acquire() -> None:
        said.clear()
        async with anyio.create_task_group() as group:

            async def go() -> None:
                await steps(4)
                if other.held:
                    other.release()

            group.start_soon(go)
            await semaphore.acquire()
            said.append(True)

    def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sockets that their reference counts have closed
            anyio.run(acquire, backend=backend)

    main()
    semaphore.release()
    before = opened()
    instant = 0
    with Semaphore(name, slots=2), Interrupter(PACKAGE) as interrupter:
        others = sockets(name)
        while not instant or interrupter.raised:
            instant += 1 if long else random.randint(1, 7)
            if contended:
                other.acquire()
            error = interrupter.run(main, instant)
            assert (error is not None) == bool(interrupter.raised), f"{instant}: {error!r}"
            assert semaphore.held == bool(said), f"{instant}: {interrupter.raised}"
            if said:
                semaphore.release()
            if other.held:
                other.release()
            assert sockets(name) == others, f"{instant}: {interrupter.raised}"
            assert not in_line(), instant
            del error
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
            assert opened() == before + 1, f"{instant}: {interrupter.raised}"
    assert instant > 20


# How many there are.


def test_another_number_of_slots(name: str, backend: str) -> None:
    """Whoever says another number, or has the name as a lock, is told at once, though many are in line."""

    async def main() -> None:
        before = opened()
        async with of(name, 2), of(name, 2), anyio.create_task_group() as group:
            tasks = [Task(name, group, of(name, 2)) for _ in range(5)]
            await until(lambda: in_line() == 5)
            for timeout in (0, None):
                with pytest.raises(bindlock.InvalidArgument, match=f"3 slots here, and 2 slots to pid {os.getpid()}"):
                    await of(name, 3).acquire(timeout)
            with pytest.raises(bindlock.InvalidArgument):
                await of(name, 3).try_acquire()
            for task in tasks:
                task.scope.cancel()
        async with bindlock.AsyncLock(name):
            with pytest.raises(bindlock.InvalidArgument, match=f"a lock, to pid {os.getpid()}"):
                await of(name, 1).acquire()
        nothing_left(name, before)

    run(backend, main)
    for arguments in ({"slots": 0}, {"slots": "3"}, {"slots": 2, "children": "never"}, {"slots": 2, "timeout": -1}):
        with pytest.raises(bindlock.InvalidArgument) as caught:
            AsyncSemaphore(name, **arguments)
        with pytest.raises(bindlock.InvalidArgument) as expected:
            Semaphore(name, **arguments)
        assert str(caught.value) == str(expected.value)


# Tasks, and the object.


def test_for_oneself(name: str, backend: str) -> None:
    """A task that would wait without end for itself gets AlreadyHeld: for its object, or when it has all slots."""

    async def main() -> None:
        async with of(name, 2) as one, of(name, 3, scope="host"):
            for timeout in (None, 0.0, 5.0):
                with pytest.raises(bindlock.AlreadyHeld, match="this task, by this very object"):
                    await one.acquire(timeout)
            async with of(name, 2):
                with pytest.raises(bindlock.AlreadyHeld, match="this task, by 2 other objects"):
                    await of(name, 2).acquire()
                with pytest.raises(bindlock.Held):
                    await of(name, 2).acquire(0.01)
            with Semaphore(name, slots=2):
                with anyio.move_on_after(0.01) as scope:
                    await of(name, 2).acquire()
                assert scope.cancelled_caught
            assert one.held

    run(backend, main)


def test_one_object_of_many_tasks(name: str, backend: str) -> None:
    """Tasks that share an object wait for each other, though there are other slots; any task may release."""

    async def main() -> None:
        shared = of(name, 3)
        await shared.acquire()
        async with anyio.create_task_group() as group:
            tasks = []
            for _ in range(3):
                tasks.append(Task(name, group, shared))
                await until(lambda: in_line() == len(tasks))
            await anyio.sleep(0.02)
            assert len(holders(name)) == 1
            shared.release()
            for task in tasks:
                await task.done.wait()
                assert task.outcome == "held"
                assert len(holders(name)) == 1
                task.leave()

    run(backend, main)


def test_lost(name: str, backend: str) -> None:
    """A slot whose descriptor was closed by others says Lost, once."""

    async def main() -> None:
        semaphore = of(name, 2)
        await semaphore.acquire()
        os.close(semaphore.fileno())
        assert not semaphore.held
        with pytest.raises(bindlock.Lost):
            await semaphore.acquire()
        async with semaphore:
            assert semaphore.held

    run(backend, main)


def test_the_object(name: str, backend: str) -> None:
    """It is called by its name, in errors and warnings, too; a copy wants the same, and has nothing."""

    async def main() -> None:
        semaphore = of(name, 2, scope="host", timeout=3, children="share")
        assert isinstance(semaphore, bindlock.AsyncLock)
        assert (semaphore.slots, semaphore.slot, semaphore.held, semaphore.fileno()) == (2, None, False, -1)
        with pytest.raises(bindlock.NotHeld, match="this AsyncSemaphore object"):
            semaphore.release()
        with pytest.raises(AttributeError):
            semaphore.slot = 3  # type: ignore[misc]
        async with semaphore:
            assert repr(semaphore) == f"<bindlock.AsyncSemaphore {name!r} slots=2 scope=host slot 1 held>"
            for other in (copy.copy(semaphore), copy.deepcopy(semaphore), pickle.loads(pickle.dumps(semaphore))):
                assert type(other) is AsyncSemaphore
                assert repr(other) == f"<bindlock.AsyncSemaphore {name!r} slots=2 scope=host not held>"
                assert (other.name, other.timeout, other.slots) == (name, 3, 2)
            async with other:
                assert other.slot == 2
        dropped = [of(name, 2)]
        await dropped[0].acquire()
        with pytest.warns(ResourceWarning, match=r"bindlock.AsyncSemaphore.*dropped without being released"):
            dropped.clear()
        assert sockets(name) == []

    run(backend, main)


@pytest.mark.parametrize("kind", ["AsyncLock", "AsyncSemaphore"])
def test_adopted_after_exec(name: str, backend: str, kind: str, cast: Cast) -> None:
    """What was held before an exec is adopted by the next program, in a task or before there is any."""
    make = "bindlock.AsyncLock(sys.argv[1])" if kind == "AsyncLock" else "bindlock.AsyncSemaphore(sys.argv[1], slots=2)"
    adopting = (
        f"import sys, anyio, bindlock\nlock = {make}\nlock.adopt()\nassert lock.held\n"
        "async def main():\n"
        "    with anyio.move_on_after(0.01):\n        await lock.acquire()\n"
        "    assert lock.held\n    lock.keep_for_exec()\n    lock.adopt()\n"
        "    try:\n        await lock.acquire()\n"
        "    except bindlock.AlreadyHeld:\n        print('adopted', lock.held, flush=True)\n"
        "    await anyio.to_thread.run_sync(sys.stdin.readline)\n    lock.release()\n"
        "anyio.run(main, backend=sys.argv[2])"
    )
    beginning = (
        f"import os, sys, anyio, bindlock\nasync def main():\n    lock = {make}\n    await lock.acquire()\n"
        "    assert lock.keep_for_exec()['BINDLOCK_NAME'] == sys.argv[1]\n"
        "    os.execv(sys.executable, [sys.executable, '-c', sys.argv[3], *sys.argv[1:3]])\n"
        "anyio.run(main, backend=sys.argv[2])"
    )
    actor = cast.python(beginning, name, backend, adopting)
    actor.expect("adopted True")
    assert len(holders(name)) == 1 if kind == "AsyncSemaphore" else bindlock.holder(name)
    actor.write()
    assert actor.wait() == 0


def test_a_forked_child_has_nothing(name: str, backend: str) -> None:
    """A child forked while a task has a slot, and others wait, has nothing."""

    async def main() -> None:
        async with of(name, 1) as semaphore, anyio.create_task_group() as group:
            task = Task(name, group, of(name, 1))
            await until(in_line)
            await steps(5)

            def body(child: Child) -> None:
                child.say(str(semaphore.held))
                child.hear()

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # anyio may have threads
                child = Child(body)
            with child:
                child.expect("False")
                semaphore.release()
                await task.done.wait()
                assert task.outcome == "held"
                task.leave()

    run(backend, main)


def test_asyncio_without_trio() -> None:
    """With asyncio, trio is not loaded."""
    code = (
        "import sys, bindlock\nimport asyncio\n"
        "async def main():\n    async with bindlock.AsyncSemaphore('test-aio-alone', slots=2): pass\n"
        "asyncio.run(main())\nassert 'trio' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
