"""The semaphore: never more than so many, in order, whatever happens to whom; and all who use it agree how many."""

from __future__ import annotations

import copy
import errno
import fcntl
import gc
import json
import os
import pickle
import random
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from socket import AF_NETLINK, AF_UNIX, SOCK_STREAM, socket
from typing import TYPE_CHECKING

import pytest

import bindlock
import bindlock.lock.slot_attempt  # before anybody forks: no child imports it again
import bindlock.lock.waiter
from bindlock.linux.diag import Diag
from bindlock.lock import decide, tickets
from bindlock.lock.semaphore import Semaphore, holders
from bindlock.lock.slots import MOST, Slots, numbers
from bindlock.names import ROOM, parse
from tests.actors import DEADLINE, Cast, Child, until
from tests.confinement import refuse_sockets, seccomp_reason
from tests.conftest import needs_root
from tests.interrupts import Interrupted, Interrupter, raised_by
from tests.steps import Contender, Member, fill, inodes, queued, switches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
PACKAGE = os.path.dirname(bindlock.__file__)


class Worker(Contender):
    """A process that reaches for a slot when told to, holds it until told to let go, and stays."""

    def __init__(
        self, name: str, slots: int = 3, *, scope: str = "user", timeout: float | None = None,
        before: Callable[[], object] = lambda: None, patience: float = float("inf"),
    ) -> None:  # fmt: skip
        def body(child: Child) -> None:
            decide.PATIENCE = patience
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            semaphore = Semaphore(name, slots=slots, scope=scope)
            while child.hear() == "go":
                descriptors = len(os.listdir("/proc/self/fd"))
                error = raised_by(lambda: semaphore.acquire(timeout))
                outcome = type(error).__name__ if error is not None else "held"
                del error  # with its traceback, which may be the last to refer to a socket
                assert semaphore.held == (outcome == "held")
                more = len(os.listdir("/proc/self/fd")) - descriptors
                assert more == semaphore.held, f"{more} descriptors more than before"
                child.say(outcome)
                if outcome == "held":
                    child.hear()
                    semaphore.release()
                    child.say("released")

        super().__init__(body)

    def hold(self) -> None:
        """Have it reach for a slot, and see that it has one."""
        self.go()
        self.expect("held")


@contextmanager
def crowd(name: str, holding: int, waiting: int, slots: int = 3) -> Iterator[tuple[list[Worker], list[Worker]]]:
    """Some who hold, and some who wait, in order."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, slots)) for _ in range(holding + waiting)]
        for worker in workers[:holding]:
            worker.hold()
        for worker in workers[holding:]:
            worker.join()
        yield workers[:holding], workers[holding:]


def silent(workers: list[Worker]) -> bool:
    """Whether none of them says anything, once all sleep in a queue."""
    for worker in workers:
        until(partial(queued, worker.pid))
    return not any(worker.heard_within(0) for worker in workers)


def sockets(name: str, scope: str = "user") -> list[bytes]:
    """Every address that is bound for the sake of a semaphore."""
    start = tickets.stem(Slots(parse(name, scope), 1, False).queue)
    with Diag() as diag:
        return sorted(entry.address for entry in diag.bound(lambda address: address.startswith(start)))


@contextmanager
def stranger(*addresses: bytes) -> Iterator[int]:
    """Somebody else's process that has these addresses; its uid."""

    def body(child: Child) -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        bound = []
        for address in addresses:
            bound.append(socket(AF_UNIX, SOCK_STREAM))
            bound[-1].bind(address)
            bound[-1].listen()
        child.say("bound")
        child.hear()

    with Child(body) as child:
        child.expect("bound")
        yield NOBODY


# At most so many.


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_so_many_and_no_more(name: str, slots: int) -> None:
    """All slots can be held, by processes of any number, and not one more."""
    with crowd(name, slots, 0, slots) as (having, _):
        semaphore = Semaphore(name, slots=slots)
        assert not semaphore.try_acquire()
        with pytest.raises(bindlock.Held) as caught:
            semaphore.acquire(0.01)
        assert caught.value.holder is not None
        assert caught.value.holder.pid in [worker.pid for worker in having]
        assert [holder.pid for holder in holders(name)] == [worker.pid for worker in having]
        having[-1].let_go()
        with semaphore:
            assert (semaphore.held, semaphore.slot) == (True, slots)
        for worker in having[:-1]:
            worker.let_go()
    assert sockets(name) == []


class Bytes:
    """A witness: who is inside has a record lock on one of so many bytes. The kernel drops it before any socket."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._file = os.memfd_create("slots")

    def enter(self) -> list[str]:
        # One at a time: nobody can leave one byte and come back by another while we look.
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, self._count)
        try:
            for byte in range(self._count):
                with suppress(BlockingIOError, PermissionError):
                    fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                    return []
            return [f"bytes: {os.getpid()} entered while {self._count} were in"]
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, self._count)

    def leave(self) -> list[str]:
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return []

    def close(self) -> None:
        os.close(self._file)


STORM = """
import json, sys
from tests.storm import Storm
from tests.test_semaphore import Bytes, Semaphore
name, slots, seed, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
storm = Storm(lambda share: Semaphore(name, slots=slots, children="share" if share else "drop"), seed, 20, 20)
storm._witnesses.close()
storm._witnesses = Bytes(int(sys.argv[5]))
storm.run(seconds)
print(json.dumps([storm.violations, storm.places(), storm.counts]), flush=True)
"""


def storm(cast: Cast, name: str, seed: int, seconds: float, slots: int, seen: int) -> tuple[list[str], dict[str, int]]:
    """What the witness says while 20 processes are killed, stopped, interrupted and forked; what was done."""
    actor = cast.python(
        STORM, name, str(slots), str(seed), str(seconds), str(seen), cwd=Path(__file__).parent.parent
    )  # fmt: skip
    violations, places, counts = json.loads(actor.read(seconds + 60))
    actor.wait()
    return violations, {key: sum(place[key] for place in places) for key in places[0]} | counts


def test_a_storm(cast: Cast, name: str, seed: int, long: bool) -> None:
    """However processes are killed, stopped, interrupted and forked, there are never more than three inside."""
    violations, done = storm(cast, name, seed, 600 if long else 8, 3, 3)
    print(done)
    assert violations == []
    assert done["errors"] == 0
    for what in ("killed", "stopped", "acquired", "timed out", "interrupted", "shared", "dropped"):
        assert done[what] > 20, f"hardly a storm: {what}"
    assert sockets(name) == []


def test_the_witness_sees_one_too_many(cast: Cast, name: str, seed: int) -> None:
    """The storm's witness calls it out when one more is inside than there should be."""
    violations, _ = storm(cast, name, seed, 20, 3, 2)
    assert any(line.startswith("bytes: ") for line in violations)


# Order, and who wakes up.


def test_first_come_first_served(name: str) -> None:
    """Those who wait have a slot in order of arrival, whichever slot becomes free."""
    with crowd(name, 3, 9) as (having, waiting):
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [worker.pid for worker in waiting]
        while waiting:
            having.pop(random.randrange(len(having))).let_go()
            waiting[0].expect("held")
            having.append(waiting.pop(0))
            assert silent(waiting)
        for worker in having:
            worker.let_go()
    assert sockets(name) == []


def test_a_lock_of_the_same_name_has_a_queue_of_its_own(name: str) -> None:
    """Who waits for a slot is in nobody's way who waits for a lock that is called the same."""
    with crowd(name, 1, 2, 1), Member(name) as holder, Member(name) as waiter:
        holder.go()
        holder.expect("held")
        waiter.join()
        holder.let_go()
        waiter.expect("held")
        waiter.let_go()


def test_all_slots_are_used(name: str) -> None:
    """When several slots are released at once, as many of those who wait have one, the first ones."""
    with crowd(name, 3, 5) as (having, waiting):
        for worker in having:
            worker.say("let go")
        for worker in waiting[:3]:
            worker.expect("held")
        assert silent(waiting[3:])


def slept(pid: int, before: int) -> bool:
    """Whether a process has gone to sleep since its `switches` were that many."""
    return switches(pid) > before


def test_two_wake_up_at_a_release(name: str) -> None:
    """A release wakes the first of the queue, which has the slot, and the second, which is the first then."""
    with crowd(name, 3, 8) as (having, waiting):
        before = {worker.pid: switches(worker.pid) for worker in waiting}
        for worker in having:
            worker.let_go()
            waiting[0].expect("held")
            assert silent(waiting[1:])
            # Each sleeps once more after it woke up: the one until it is told to let go, the other in the queue.
            for worker in waiting[:2]:
                until(partial(slept, worker.pid, before[worker.pid]))
            assert [switches(worker.pid) - before[worker.pid] for worker in waiting] == [1, 1, *[0] * len(waiting[2:])]
            before = {worker.pid: switches(worker.pid) for worker in waiting[1:]}
            waiting.pop(0)


def test_a_hundred(name: str) -> None:
    """A hundred who wait for three slots all have one, in order; three at a time but for those who come and go."""
    count = 100
    heard, said = os.pipe()
    go = os.eventfd(0, os.EFD_SEMAPHORE)
    pids = []
    try:
        with crowd(name, 3, 0) as (having, _):
            for number in range(count):
                pid = os.fork()
                if not pid:
                    _one_of_many(name, number, said, go)
                pids.append(pid)
                until(partial(queued, pid))
            assert len(bindlock.waiters(name)) == count
            for worker in having:
                worker.let_go()
            order: list[int] = []
            while len(order) < count:
                order.append(int(os.read(heard, 4)))
                assert len(holders(name)) <= 3
                # Of those that have slots any may be the first to speak; but nobody has one before those before him.
                assert not {waiter.pid for waiter in bindlock.waiters(name)} & set(pids[: order[-1]])
                os.eventfd_write(go, 1)
        assert sorted(order) == list(range(count))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for descriptor in (heard, said, go):
            os.close(descriptor)
    assert sockets(name) == []


def _one_of_many(name: str, number: int, said: int, go: int) -> None:
    try:
        with Semaphore(name, slots=3):
            os.write(said, b"%04d" % number)
            os.eventfd_read(go)
    finally:
        os._exit(1)


def test_descriptors_of_those_who_wait(name: str) -> None:
    """The first of the queue has its ticket and a connection for each slot, the others two in all."""
    with crowd(name, 4, 3, 4) as (_, waiting):
        assert [len(inodes(worker.pid)) for worker in waiting] == [1 + 4, 2, 2]


def test_connections_are_kept(name: str) -> None:
    """Who is woken in vain queues anew only where it was woken: it takes no second place in another holder's queue."""

    def places() -> int:
        with Diag() as diag:
            return diag.bound(frozenset({address}).__contains__)[0].queued

    address = Slots(parse(name), 2, False).address(1)
    with crowd(name, 2, 1, 2) as ((_, busy), (waiter,)):
        assert places() == 1
        waiter.signal(signal.SIGSTOP)
        for _ in range(20):
            busy.let_go()
            busy.hold()  # as a newcomer that is quicker
        waiter.signal(signal.SIGCONT)
        until(lambda: queued(waiter.pid))
        busy.let_go()
        waiter.expect("held")
        assert places() == 1
        waiter.let_go()


def test_a_full_queue(name: str) -> None:
    """Where a holder's queue is full the slow timer watches it, and the other holders wake who waits as ever."""
    with crowd(name, 2, 0, 2) as ((full, other), _), Worker(name, 2) as one, Worker(name, 2) as two:
        fill(Slots(parse(name), 2, False).address(1))
        one.join()
        two.go()
        until(lambda: len(bindlock.waiters(name)) == 2)
        other.let_go()
        one.expect("held")
        full.let_go()
        two.expect("held")


# Those who go.


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_holder(name: str, victim: int) -> None:
    """When a holder is killed the first who waits has its slot."""
    with crowd(name, 3, 2) as (having, waiting):
        having[victim].kill()
        waiting[0].expect("held")
        assert silent(waiting[1:])
        assert {holder.pid for holder in holders(name)} == {
            worker.pid for worker in [*having, waiting[0]] if worker is not having[victim]
        }


def test_free_after_sigkill(name: str) -> None:
    """When waitpid has reported the death of a holder its slot is free, also for an acquire that does not wait."""
    with crowd(name, 3, 0) as (having, _):
        having[1].kill()
        with Semaphore(name, slots=3, timeout=0) as semaphore:
            assert semaphore.slot == 2


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1), (2, 3), (0, 2, 4)])
@pytest.mark.parametrize("end", ["killed", "interrupted"])
def test_waiters_that_go(name: str, victims: tuple[int, ...], end: str) -> None:
    """Whoever of those who wait is killed or gives up, the others have the slots in order, and nobody is forgotten."""
    with crowd(name, 3, 5) as (having, waiting):
        for victim in victims:
            if end == "killed":
                waiting[victim].kill()
            else:
                waiting[victim].signal(signal.SIGINT)
                waiting[victim].expect("KeyboardInterrupt")
        left = [worker for number, worker in enumerate(waiting) if number not in victims]
        assert silent(left)
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [worker.pid for worker in left]
        for worker in left:
            having.pop(0).let_go()
            worker.expect("held")
            having.append(worker)
        for worker in having:
            worker.let_go()
    assert sockets(name) == []


def test_a_stopped_waiter(name: str) -> None:
    """When the first who waits is stopped, those behind it lose their patience, and use the slot."""
    with crowd(name, 1, 0, 1) as ((holder,), _), Worker(name, 1) as first, Worker(name, 1, patience=0.02) as second:
        first.join()
        second.join()
        first.signal(signal.SIGSTOP)
        holder.let_go()
        second.expect("held")
        first.signal(signal.SIGCONT)
        second.let_go()
        first.expect("held")
        first.let_go()


@pytest.mark.parametrize("timeout", [0, 0.03, 0.4])
def test_the_timeout_is_kept(name: str, timeout: float) -> None:
    """An acquire that is refused has waited for its time-out, and hardly longer, at the holders or behind others."""
    with crowd(name, 3, 0) as (_, _), Worker(name) as waiter:
        for _ in range(2):
            for semaphore, argument in (
                (Semaphore(name, slots=3), (timeout,)),
                (Semaphore(name, slots=3, timeout=timeout), ()),
            ):
                begun = time.monotonic()
                with pytest.raises(bindlock.Held):
                    semaphore.acquire(*argument)
                assert timeout <= time.monotonic() - begun < timeout + 1
            waiter.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("contended", [False, True])
def test_a_signal_at_every_instant(name: str, contended: bool, long: bool) -> None:
    """Wherever in an acquire a signal handler raises, or two do, nothing is held and nothing left."""
    semaphore, others = Semaphore(name, slots=2), [Semaphore(name, slots=2) for _ in range(2)]

    def acquire() -> None:
        if not contended:
            semaphore.acquire(0)
            return
        with suppress(bindlock.Held):
            semaphore.acquire(0.001)

    with ExitStack() as stack, Interrupter(PACKAGE) as interrupter:
        if contended:
            for other in others:
                stack.enter_context(other)
        before = sockets(name)
        count = len(os.listdir("/proc/self/fd"))
        for second in (0, 1, 2, 3):
            instant = 0
            while True:
                # There are too many of them for all pairs.
                instant += 1 if long else random.randint(1, 40 if second else 3)
                error = interrupter.run(acquire, instant, *([second] if second else []))
                if semaphore.fileno() >= 0:
                    assert error is None, interrupter.raised
                    semaphore.release()
                assert sockets(name) == before, interrupter.raised
                if not interrupter.raised:
                    break
                assert isinstance(error, Interrupted), interrupter.raised
        error = None
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == count


# How many there are.


@pytest.mark.parametrize("others", [1, 2, 4, MOST])
def test_another_number_of_slots(name: str, others: int) -> None:
    """Who says another number of slots than those who have the name, or than whoever has it as a lock, is told so."""
    with Worker(name) as holder:
        holder.hold()
        semaphore = Semaphore(name, slots=others)
        for timeout in (0, None):
            with pytest.raises(bindlock.InvalidArgument, match=f"{others} slots here, and 3 slots to pid {holder.pid}"):
                semaphore.acquire(timeout)
        assert not semaphore.held
        assert [numbers(address) for address in sockets(name)] == [(1, 3)]
        holder.let_go()
        with semaphore:
            pass


def test_a_lock_of_that_name(cast: Cast, name: str) -> None:
    """A semaphore is not had while somebody has its name as a lock."""
    actor = cast.holder(name)
    with pytest.raises(bindlock.InvalidArgument, match=f"a lock, to pid {actor.pid}"):
        Semaphore(name, slots=2).acquire()
    actor.kill()
    with Semaphore(name, slots=2, timeout=0):
        pass


def test_the_wrong_number_harms_nobody(name: str) -> None:
    """Who tries again and again with the wrong number is never in the way of those who agree."""

    def body(child: Child) -> None:
        child.say("begin")
        while not child.heard_within(0):
            with pytest.raises(bindlock.InvalidArgument):
                Semaphore(name, slots=2).acquire(0)

    with Semaphore(name, slots=3), Child(body) as wrong:
        wrong.expect("begin")
        for _ in range(500):
            with Semaphore(name, slots=3, timeout=0):
                pass
        wrong.say("end")
        assert wrong.wait() == 0


def test_two_numbers_at_the_same_instant(name: str, long: bool) -> None:
    """Of those who start at the same instant with different numbers, never do two who disagree both have a slot."""
    rounds = 5000 if long else 500
    barrier = os.eventfd(0, os.EFD_SEMAPHORE)

    def body(slots: int, child: Child) -> None:
        semaphore = Semaphore(name, slots=slots)
        for _ in range(rounds):
            os.eventfd_read(barrier)
            try:
                semaphore.acquire(0)
            except bindlock.InvalidArgument:
                child.say("disagrees")
            except bindlock.Held:
                child.say("in use")
            else:
                child.say("held")
            child.hear()
            if semaphore.fileno() >= 0:
                semaphore.release()
            child.say("done")

    seen = set()
    try:
        with ExitStack() as stack:
            sizes = (1, 2, 2)
            children = [stack.enter_context(Child(partial(body, slots))) for slots in sizes]
            for _ in range(rounds):
                os.eventfd_write(barrier, len(sizes))
                said = [child.hear() for child in children]
                having = {slots for slots, word in zip(sizes, said, strict=True) if word == "held"}
                assert len(having) <= 1
                seen.add((*said[:1], *sorted(said[1:])))
                for child in children:
                    child.say("go on")
                for child in children:
                    child.expect("done")
    finally:
        os.close(barrier)
    print(seen)
    assert any("disagrees" in said for said in seen)
    assert any("held" in said for said in seen)


def test_numbers_that_make_no_sense(name: str) -> None:
    """A number of slots is an integer from 1 to 1000, and a name with slots one that can be waited for."""
    for slots in (0, -1, MOST + 1, 1.0, True, "3", None):
        with pytest.raises(bindlock.InvalidArgument, match="from 1 to 1000 slots"):
            Semaphore(name, slots=slots)  # type: ignore[arg-type]
    with pytest.raises(bindlock.InvalidArgument, match="datagram"):
        Semaphore(f"datagram:@{name}", slots=2)
    for arguments in ({"timeout": -1}, {"scope": "world"}, {"children": "adopt"}):
        with pytest.raises(bindlock.InvalidArgument):
            Semaphore(name, slots=2, **arguments)
    with pytest.raises(bindlock.InvalidArgument):
        Semaphore(name, slots=2).acquire(-1)


def test_a_thousand_slots(name: str) -> None:
    """The largest number of slots works, and is refused as others are."""
    with ExitStack() as stack:
        for number in range(1, 301):
            assert stack.enter_context(Semaphore(name, slots=MOST, timeout=0)).slot == number
        (bound,) = [bound for bound in bindlock.locks() if bound.name == name]
        assert (bound.taken, bound.slots) == (300, MOST)


# Strangers, sandboxes, names.


@needs_root
def test_strangers(name: str) -> None:
    """A stranger's slot is one less, which is said when no other is free; whatever else is a stranger's is ignored."""
    mine = Slots(parse(name), 3, False)
    others = (Slots(parse(name), 5, False).address(2), parse(name).address, tickets.stem(mine.queue) + b"7")
    with stranger(mine.address(2), *others) as uid, ExitStack() as stack:
        one, two = (stack.enter_context(Semaphore(name, slots=3, timeout=0)) for _ in range(2))
        assert (one.slot, two.slot) == (1, 3)
        for timeout in (0, 0.1, None):
            with pytest.raises(bindlock.Untrusted) as caught:
                Semaphore(name, slots=3).acquire(timeout)
            assert caught.value.uid == uid
        two.release()
        with Semaphore(name, slots=3) as three:
            assert three.slot == 3
        assert [holder.trusted for holder in holders(name)] == [True, False, False]
        assert [holder.slot for holder in holders(name)] == [(1, 3), (2, 3), (2, 5)]
    assert sockets(name) == []


@needs_root
def test_a_stranger_who_comes_between(name: str) -> None:
    """Those who wait are told, all of them, when a stranger has taken the slot that became free."""
    address = Slots(parse(name), 1, False).address(1)
    with crowd(name, 1, 2, 1) as ((holder,), waiting):
        for worker in waiting:
            worker.signal(signal.SIGSTOP)
        holder.let_go()
        with stranger(address):
            for worker in waiting:
                worker.signal(signal.SIGCONT)
            for worker in waiting:
                worker.expect("Untrusted")


@needs_root
def test_everybody_is_trusted_with_a_name_of_the_host(name: str) -> None:
    """With scope `host` users share the slots, wait for each other, and must agree how many there are."""

    def other() -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)

    with ExitStack() as stack:
        theirs, wrong = (stack.enter_context(Worker(name, slots, scope="host", before=other)) for slots in (1, 2))
        theirs.hold()
        wrong.go()
        wrong.expect("InvalidArgument")
        mine = stack.enter_context(Worker(name, 1, scope="host"))
        mine.join()
        theirs.let_go()
        mine.expect("held")


@pytest.mark.skipif(seccomp_reason is not None, reason=str(seccomp_reason))
def test_no_listing_no_semaphore(name: str) -> None:
    """Where sock_diag is forbidden a semaphore cannot be had, be it free: nothing is bound, and the error says why."""

    def body(child: Child) -> None:
        refuse_sockets(AF_NETLINK, errno.EPERM)
        for timeout in (0, None):
            with pytest.raises(bindlock.CannotLock, match="listing its slots") as caught:
                Semaphore(name, slots=3).acquire(timeout)
            assert caught.value.errno == errno.EPERM
        assert bindlock.holder(name) is None
        with pytest.raises(bindlock.CannotLock):
            holders(name)
        child.say(str(len(os.listdir("/proc/self/fd"))))
        child.hear()

    with Child(body) as child:
        child.hear()
        assert sockets(name) == []


@pytest.mark.parametrize("length", [*range(60, ROOM + 1, 3), ROOM - 1, ROOM, 300])
@pytest.mark.parametrize("letter", ["x", "ä"])
@pytest.mark.parametrize("prefix", ["", "@", "padded:@"])
def test_names_of_any_length(name: str, length: int, letter: str, prefix: str) -> None:
    """A name of any length has slots; the list spells it so that it means them again, and other names do not."""
    text = (prefix + name).ljust(length, letter)
    while prefix and len(text.removeprefix(prefix).encode()) > ROOM:
        text = text[:-1]
    with Semaphore(text, slots=2, timeout=0) as one, Semaphore(text, slots=2, timeout=0) as two:
        assert (one.slot, two.slot) == (1, 2)
        assert all(len(address) <= 1 + ROOM for address in sockets(text))
        (bound,) = [bound for bound in bindlock.locks(every=True) if bound.inode == os.fstat(one.fileno()).st_ino]
        assert (bound.taken, bound.slots) == (2, 2)
        scope = "user" if bound.scope == "verbatim" else bound.scope
        assert not Semaphore(bound.name, slots=2, scope=scope).try_acquire()
        assert len(bindlock.lock.semaphore.holders(bound.name, scope=scope)) == 2
        with Semaphore(text[:-1], slots=2, timeout=0):
            pass
        with Worker(text, 2) as waiter:
            waiter.join()
            assert [one.pid for one in bindlock.waiters(text)] == [waiter.pid]
            assert bound.waiters() == 1


# What is said of it.


def test_the_list(name: str) -> None:
    """A semaphore is one row, with those who have it and those who wait."""
    with crowd(name, 2, 0) as (having, _):
        (bound,) = [bound for bound in bindlock.locks() if bound.name == name]
        assert (bound.taken, bound.slots, bound.scope, bound.trusted) == (2, 3, "user", True)
        assert bound.address == parse(name).address
        assert bound.waiters() == 0
        with Worker(name) as third, Worker(name) as fourth:
            third.hold()
            fourth.join()
            (bound,) = [bound for bound in bindlock.locks() if bound.name == name]
            pids = [worker.pid for worker in (*having, third)]
            assert (bound.taken, bound.slots, bound.waiters()) == (3, 3, 1)
            assert [waiter.pid for waiter in bound.queue()] == [fourth.pid]
            assert [holder.pid for holder in bound.holders()] == pids
            assert "slots=3/3" in repr(bound)
            one = bound.holder()
            assert one is not None
            assert (one.pid, one.slot, one.waiters) == (pids[0], (1, 3), 1)
    assert not [bound for bound in bindlock.locks() if bound.name == name]


def test_who_holds_it(name: str) -> None:
    """Each holder can be seen, signalled and waited for, by itself; who waits is seen in order."""
    with crowd(name, 3, 2) as (having, waiting):
        found = holders(name)
        assert [holder.pid for holder in found] == [worker.pid for worker in having]
        assert [holder.slot for holder in found] == [(1, 3), (2, 3), (3, 3)]
        assert {holder.waiters for holder in found} == {2}
        assert found[1].as_dict()["slot"] == 2
        assert bindlock.holder(name) == found[0]
        assert [waiter.pid for waiter in found[0].queue()] == [worker.pid for worker in waiting]
        with pytest.raises(bindlock.Held):
            found[1].wait(0.01)
        found[1].signal(signal.SIGKILL)
        found[1].wait(DEADLINE)
        waiting[0].expect("held")
        assert {holder.pid for holder in holders(name)} == {having[0].pid, having[2].pid, waiting[0].pid}


def test_waiting_is_told_who_is_in_the_way(name: str) -> None:
    """`waiting` is called once with one of the holders; not at all when a slot is free."""
    seen: list[bindlock.Holder] = []

    def tell(holder: bindlock.Holder) -> None:
        seen.append(holder)
        two.say("let go")

    with Worker(name, 2) as one, Worker(name, 2) as two:
        one.hold()
        with Semaphore(name, slots=2) as semaphore:
            semaphore.release()
            two.hold()
            semaphore.acquire(waiting=tell)
        assert [holder.pid for holder in seen] == [one.pid]


def test_wanted(name: str) -> None:
    """A holder can ask whether somebody waits for a slot."""
    semaphore = Semaphore(name, slots=1)
    with pytest.raises(bindlock.NotHeld):
        _ = semaphore.wanted
    with semaphore:
        assert not semaphore.wanted
        with Worker(name, 1) as waiter:
            waiter.join()
            assert semaphore.wanted


# The object.


def test_held_and_released(name: str) -> None:
    """A semaphore object is held from acquire to release, and says which slot it has."""
    semaphore = Semaphore(name, slots=2)
    assert (semaphore.held, semaphore.slot, semaphore.fileno()) == (False, None, -1)
    assert (semaphore.name, semaphore.slots, semaphore.timeout) == (name, 2, None)
    for _ in range(100):
        semaphore.acquire()
        assert (semaphore.held, semaphore.slot) == (True, 1)
        semaphore.release()
    assert sockets(name) == []
    with pytest.raises(bindlock.NotHeld):
        semaphore.release()
    with semaphore:
        assert repr(semaphore) == f"<bindlock.Semaphore {name!r} slots=2 scope=user slot 1 held>"
        os.close(semaphore.fileno())
        assert not semaphore.held
        with pytest.raises(bindlock.Lost):
            semaphore.acquire()
    assert repr(semaphore) == f"<bindlock.Semaphore {name!r} slots=2 scope=user not held>"


def test_for_oneself(name: str) -> None:
    """A thread that could only wait for itself is told so; one that need not may have several slots."""
    one, two, three = (Semaphore(name, slots=2) for _ in range(3))
    with one, two:
        for semaphore in (one, three):
            with pytest.raises(bindlock.AlreadyHeld):
                semaphore.acquire()
        with pytest.raises(bindlock.AlreadyHeld):
            one.acquire(0)
        with pytest.raises(bindlock.Held):
            three.acquire(0.01)


def test_copies_hold_nothing(name: str) -> None:
    """A copied, pickled or unpickled semaphore is another object for the same slots."""
    with Semaphore(name, slots=2, scope="host", timeout=7, children="share") as semaphore:
        for other in (copy.copy(semaphore), copy.deepcopy(semaphore), pickle.loads(pickle.dumps(semaphore))):
            assert (other.name, other.slots, other.timeout, other.held) == (name, 2, 7, False)
            assert other.try_acquire()
            assert other.slot == 2
            other.release()


def test_a_dropped_semaphore_says_so(name: str) -> None:
    """A held semaphore that is dropped gives a ResourceWarning at once, and its slot is free."""
    held = [Semaphore(name, slots=2)]
    held[0].acquire()
    with pytest.warns(ResourceWarning, match=f"{name}.*dropped without being released"):
        held.clear()
    assert sockets(name) == []


def test_a_slot_can_be_adopted(name: str) -> None:
    """A slot that was detached is had again by its descriptor, whichever it is, by who says the same number."""
    with Semaphore(name, slots=3), Semaphore(name, slots=3) as semaphore:
        descriptor = semaphore.detach()
        other = Semaphore(name, slots=3)
        for wrong in (Semaphore(name, slots=2), Semaphore(name + "x", slots=3)):
            with pytest.raises(bindlock.NotHeld):
                wrong.adopt(descriptor)
        other.adopt(descriptor)
        assert (other.held, other.slot) == (True, 2)
        other.release()


# Forks and threads.


@pytest.mark.parametrize("children", ["drop", "share"])
def test_forked_children(name: str, children: str) -> None:
    """A forked child has no slot; with `share` it has its parent's, until both have let go."""
    semaphore = Semaphore(name, slots=2, children=children)  # type: ignore[arg-type]
    shared = children == "share"

    def body(child: Child) -> None:
        assert (semaphore.held, semaphore.slot) == ((True, 1) if shared else (False, None))
        child.say("here")
        child.hear()

    semaphore.acquire()
    with Child(body) as child:
        child.expect("here")
        semaphore.release()
        assert len(sockets(name)) == shared
        child.say("end")
        assert child.wait() == 0
    assert sockets(name) == []


def test_a_fork_in_the_midst_of_it(name: str) -> None:
    """A child that is forked while another thread acquires, waits and releases never has a slot."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with suppress(bindlock.Held), Semaphore(name, slots=1, timeout=0.001):
                pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    try:
        for _ in range(100):
            pid = os.fork()
            if not pid:
                signal.pause()
            children.append(pid)
        stop.set()
        for thread in threads:
            thread.join()
        until(lambda: not sockets(name))  # the last children may not yet have come as far as the at-fork hook
    finally:
        stop.set()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if sys.version_info >= (3, 12):  # which warns of a fork with threads, and so it should
    test_a_fork_in_the_midst_of_it = pytest.mark.filterwarnings("ignore::DeprecationWarning")(
        test_a_fork_in_the_midst_of_it
    )


def inside(semaphores: list[Semaphore], turns: int) -> int:
    """How many threads, one for each of the objects given, are inside at a time, at most."""
    now: list[None] = []
    most = [0]

    def work(semaphore: Semaphore) -> None:
        for _ in range(turns):
            with semaphore:
                now.append(None)
                most.append(len(now))
                time.sleep(0)
                now.pop()

    threads = [threading.Thread(target=work, args=(semaphore,)) for semaphore in semaphores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    return max(most)


def test_threads_with_an_object_each(name: str) -> None:
    """Threads exclude each other as processes do: never more than so many at a time."""
    assert 1 <= inside([Semaphore(name, slots=3) for _ in range(8)], 15) <= 3
    assert sockets(name) == []


def test_threads_with_one_object(name: str) -> None:
    """Threads that share an object have one slot in all, one after the other, and none is in the way of others."""
    semaphore = Semaphore(name, slots=3)
    assert inside([semaphore] * 6, 15) == 1
    assert sockets(name) == []


def test_who_waits_for_its_own_object_is_in_nobodys_way(name: str) -> None:
    """A thread that waits for the slot of its own object does not keep others from the slots that become free."""
    semaphore = Semaphore(name, slots=2)
    done = threading.Event()
    told = threading.Event()

    def work() -> None:
        semaphore.acquire(waiting=lambda holder: told.set())
        done.wait(DEADLINE)
        semaphore.release()

    with Worker(name, 2) as one, Worker(name, 2) as two:
        one.hold()
        semaphore.acquire()
        thread = threading.Thread(target=work)
        thread.start()
        assert told.wait(DEADLINE)
        two.join()
        one.let_go()
        two.expect("held")
        semaphore.release()
        done.set()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        two.let_go()
    assert sockets(name) == []
