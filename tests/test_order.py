"""First come, first served: who waits has the name in order of arrival, and one wakes up at a release.

The table "What can go wrong" of docs/design.md is told here and in test_steps.py, row by row.
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socket
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import bindlock
from bindlock.linux.process import with_socket
from bindlock.lock import tickets
from bindlock.names import ROOM, Name, parse
from bindlock.proof.process import hear
from tests.actors import Actor, Cast, Child, bindable, bindlock_command, until
from tests.conftest import needs_root
from tests.steps import (
    Crowd,
    Member,
    fill,
    forbid_long_addresses,
    inodes,
    limit_descriptors,
    line,
    nothing_left,
    numbers_reason,
    queued,
    serve,
    serve_all,
    sockets,
    switches,
    system_call,
    waits,
)
from tests.test_sandbox import each_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(numbers_reason is not None, reason=str(numbers_reason))
NOBODY = 65534


# Order.


@pytest.mark.parametrize("killed", [False, True], ids=["released", "killed"])
def test_hundreds(name: str, long: bool, killed: bool) -> None:
    """Hundreds have the name in order of arrival, woken once each, whether holders release it or are killed."""
    count = 1000 if long else 300
    with ExitStack() as stack:
        lock = stack.enter_context(bindlock.Lock(name))
        crowd = Crowd(name, count)
        stack.callback(crowd.close)
        assert [waiter.pid for waiter in bindlock.waiters(name)] == crowd.pids
        before = [switches(pid) for pid in crowd.pids]
        lock.release()
        for number in range(count):
            assert crowd.holder() == number
            # Once to sleep until told to let go; had it been woken before its turn, it would have slept once more.
            assert switches(crowd.pids[number]) == before[number] + 1
            if killed:
                os.kill(crowd.pids[number], signal.SIGKILL)
            else:
                crowd.let_go()
        if killed:
            until(lambda: bindable(name))
        else:
            until(lambda: system_call(crowd.pids[-1]))
            nothing_left(name)


def waiting(name: str, count: int) -> bool:
    """Whether so many wait for a name."""
    return len(bindlock.waiters(name)) == count


def test_threads_and_processes(name: str) -> None:
    """Threads of several processes have the name in order of arrival, as single processes do."""

    def body(child: Child) -> None:
        def work(go: threading.Event) -> None:
            with bindlock.Lock(name):
                child.say("held")
                go.wait()

        held: list[threading.Event] = []
        while (word := child.hear()) != "end":
            if word == "join":
                held.append(threading.Event())
                threading.Thread(target=work, args=(held[-1],)).start()
            else:
                held.pop(0).set()

    with bindlock.Lock(name) as lock, Child(body) as one, Child(body) as two, line(name + "-other", 0):
        order = [one, two, two, one, two, one, one]
        for number, child in enumerate(order):
            child.say("join")
            until(partial(waiting, name, number + 1))
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [child.pid for child in order]
        lock.release()
        for child in order:
            child.expect("held")
            assert not one.heard_within(0)
            assert not two.heard_within(0)
            child.say("let go")
        for child in (one, two):
            child.say("end")
            assert child.wait() == 0
    nothing_left(name)


@pytest.mark.skipif(not os.path.exists(bindlock_command()), reason="bindlock is not installed beside this Python")
def test_commands(cast: Cast, name: str) -> None:
    """Commands under `bindlock run` and Python programs have the name in order of arrival, with one descriptor."""
    with line(name, 0) as (holder, _), ExitStack() as stack:
        order: list[Actor | Member] = []
        for number in range(6):
            if number % 2:
                member = stack.enter_context(Member(name))
                member.join()
                order.append(member)
            else:
                order.append(cast.start(bindlock_command(), "run", name, "sh", "-c", "echo held; read line"))
                until(partial(queued, order[number].pid))
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [actor.pid for actor in order]
        holder.let_go()
        for actor in order:
            actor.expect("held")
            bound, _ = sockets(name)
            assert bound is not None
            assert inodes(actor.pid) == [bound.inode]
            if isinstance(actor, Member):
                actor.let_go()
            else:
                actor.write()
                assert actor.wait() == 0
    nothing_left(name)


# Those who do not stay.


@pytest.mark.parametrize("place", [0, 2, 4], ids=["head", "middle", "tail"])
@pytest.mark.parametrize("how", ["killed", "interrupted", "timed out"])
def test_one_leaves(name: str, how: str, place: int) -> None:
    """Who gives up or is killed, wherever in the queue, leaves the others in their order; all of them have the name."""
    with ExitStack() as stack:
        holder, *waiting = (
            stack.enter_context(Member(name, timeout=0.4 if how == "timed out" and number == place else None))
            for number in range(-1, 5)
        )
        holder.go()
        holder.expect("held")
        for member in waiting:
            member.join()
        leaver = waiting.pop(place)
        if how == "killed":
            leaver.kill()
        else:
            if how == "interrupted":
                leaver.signal(signal.SIGINT)
            leaver.expect({"interrupted": "KeyboardInterrupt", "timed out": "Held"}[how])
        until(lambda: all(queued(member.pid) for member in waiting))
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [member.pid for member in waiting]
        holder.let_go()
        serve(waiting)
        nothing_left(name)


def test_half_of_them_leave(name: str, seed: int, long: bool) -> None:
    """When half of the waiters are killed at once, the other half keep their order, and all of them have the name."""
    chance = random.Random(seed)
    with line(name, 200 if long else 60) as (holder, waiting):
        leaving = chance.sample(waiting, len(waiting) // 2)
        for member in leaving:
            member.signal(signal.SIGKILL)
        for member in leaving:
            member.wait()
        staying = [member for member in waiting if member not in leaving]
        until(lambda: all(queued(member.pid) for member in staying))
        holder.let_go()
        serve(staying)
        nothing_left(name)


# Addresses.


def spellings(name: str) -> list[tuple[str, str]]:
    """Names of every kind, with their scopes."""
    room = ROOM - len(name) - 1
    return [
        (name, "user"),
        (name, "host"),
        (f"@{name}", "user"),
        (f"@{name}".ljust(ROOM + 1, "x"), "user"),
        (f"@{name}" + "é" * (room // 2), "user"),
        (f"padded:@{name}", "user"),
        (f"padded:@{name}".ljust(len("padded:@") + ROOM - 1, "x"), "user"),
        (name.ljust(ROOM - len(parse("x").address) + 2, "x"), "user"),
        (name + "x" * 5000, "host"),
        (name + " a/b ~" + "é" * 90, "user"),
    ]


@pytest.mark.parametrize("kind", range(len(spellings("x"))))
def test_every_kind_of_name(name: str, kind: int) -> None:
    """A name of whatever kind and length has its queue."""
    text, scope = spellings(name)[kind]
    with line(text, 3, scope=scope) as (holder, waiting):
        bound, places = sockets(text, scope)
        assert bound is not None
        assert len(places) == 3
        assert all(len(place.address) <= ROOM + 1 for place in places)
        assert [waiter.pid for waiter in bindlock.waiters(text, scope=scope)] == [member.pid for member in waiting]
        holder.let_go()
        serve(waiting)
        nothing_left(text, scope)


def test_long_names_that_differ_at_the_end(name: str) -> None:
    """Two names that differ in their last letter only, however long, have queues of their own."""
    verbatim = [f"@{(name + 'x' * 100)[:size]}" for size in (85, 106)]
    for stem in (*verbatim, name + "x" * 200):
        texts = [stem + end for end in "ab"]
        with line(texts[0], 1) as (_, (one,)), line(texts[1], 1) as (holder, (other,)):
            assert [[waiter.pid for waiter in bindlock.waiters(text)] for text in texts] == [[one.pid], [other.pid]]
            holder.let_go()
            serve([other])
            assert queued(one.pid)


TEXTS = st.builds(
    lambda mark, text: mark + text,
    st.sampled_from(["", "@", "padded:@"]),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=130),
)


def parsed(text: str, scope: str) -> Name:
    """The name, if the text is one."""
    try:
        return parse(text, scope)
    except bindlock.InvalidArgument:
        assume(False)
        raise


@given(TEXTS, TEXTS, st.sampled_from(["user", "host"]), st.integers(0, 10**16 - 1))
def test_ticket_addresses(text: str, other: str, scope: str, value: int) -> None:
    """No name is spelled like a ticket; a ticket's address fits, says its number, and is of one name only."""
    name, another = parsed(text, scope), parsed(other, scope)
    address = tickets.stem(name) + b"%d" % value
    assert len(address) <= ROOM + 1
    assert tickets.number(address) == value
    assert tickets.of(name)(address)
    assert tickets.number(name.address) is None
    assert not tickets.of(another)(name.address)
    assert tickets.of(another)(address) == (another.key == name.key)


@pytest.mark.parametrize("text", ["@" + "x" * ROOM, "padded:@x", "y" * 300], ids=["long", "padded", "digest"])
def test_what_stands_for_a_long_name(text: str) -> None:
    """What stands for a long name in its tickets is not to be spelled: no other name has the same tickets."""
    name = parse(text)
    head = tickets.stem(name)[1:-1]
    assert head != name.address[1:]
    try:
        other = parse("@" + head.decode())
    except (bindlock.InvalidArgument, UnicodeDecodeError):
        return
    assert tickets.stem(other) != tickets.stem(name)


# Strangers, and others who are in the way.


def bind_at(name: Name, *numbers: int, listening: bool = True) -> list[socket]:
    """Sockets at the addresses of a name's tickets."""
    made = []
    for number in numbers:
        made.append(socket(AF_UNIX, SOCK_STREAM))
        made[-1].bind(tickets.stem(name) + b"%d" % number)
        if listening:
            made[-1].listen(8)
    return made


@contextmanager
def stranger(body: Callable[[], object]) -> Iterator[Child]:
    """Another user, who does something to us, and stays."""

    def both(child: Child) -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        kept = body()
        child.say("done")
        child.hear()
        del kept

    with Child(both) as child:
        child.expect("done")
        yield child


def hang_up(places: list[socket]) -> None:
    """Accept everybody, and hang up at once."""
    while True:
        for place in select.select(places, [], [])[0]:
            place.accept()[0].close()


@needs_root
@pytest.mark.parametrize("what", ["bound", "listening", "hanging up"])
def test_tickets_of_a_stranger(name: str, what: str) -> None:
    """Tickets that a stranger binds, lower than ours and higher, are nobody's: order kept, and nobody is disturbed."""
    parsed = parse(name)  # as this user spells it

    def body() -> list[socket]:
        made = bind_at(parsed, 1, 2, 10**15, 10**16 - 1, listening=what != "bound")
        if what == "hanging up":
            threading.Thread(target=hang_up, args=(made,), daemon=True).start()
        return made

    with stranger(body), line(name, 3) as (holder, waiting):
        before = [switches(member.pid) for member in waiting]
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [member.pid for member in waiting]
        assert [switches(member.pid) for member in waiting] == before
        holder.let_go()
        serve(waiting)
    nothing_left(name)


@needs_root
@pytest.mark.parametrize("taken", [50, 200])
def test_numbers_taken_by_a_stranger(name: str, taken: int) -> None:
    """Whose number a stranger has taken takes the next; with very many taken there are no tickets, and no order."""
    parsed = parse(name)
    arrival = 10**14

    def stand_still() -> None:
        clock = SimpleNamespace(CLOCK_BOOTTIME=time.CLOCK_BOOTTIME, clock_gettime_ns=lambda clock: arrival * 1000)
        vars(tickets)["time"] = clock

    with ExitStack() as stack:
        stack.enter_context(stranger(lambda: bind_at(parsed, *range(arrival, arrival + taken))))
        holder, *waiting = (stack.enter_context(Member(name, before=stand_still)) for _ in range(4))
        holder.go()
        holder.expect("held")
        for member in waiting:
            member.join()
        numbers = [tickets.number(place.address) for place in sockets(name)[1]]
        ours = list(range(arrival + taken, arrival + taken + 3)) if taken < 100 else []
        assert numbers == [*range(arrival, arrival + taken), *ours]
        holder.let_go()
        if ours:
            serve(waiting)
        else:
            serve_all(waiting)


def test_a_ticket_that_does_not_listen(name: str) -> None:
    """A ticket that is bound and does not listen, be it of our own user, is passed over."""
    with ExitStack() as stack:
        for place in bind_at(parse(name), 1, listening=False):
            stack.enter_context(place)
        holder, waiting = stack.enter_context(line(name, 1))
        (first,) = (tickets.number(place.address) or 0 for place in sockets(name)[1] if place.listening)
        for place in bind_at(parse(name), first + 1, listening=False):
            stack.enter_context(place)
        waiting.append(stack.enter_context(Member(name)))
        waiting[-1].join()
        holder.let_go()
        serve(waiting)
    nothing_left(name)


@pytest.mark.parametrize("whose", ["holder", "ticket"])
def test_a_full_queue(name: str, whose: str) -> None:
    """Who finds the queue before it full keeps its ticket, and those behind it; a timer serves it."""
    with line(name, 1 if whose == "ticket" else 0) as (holder, waiting), ExitStack() as stack:
        bound, places = sockets(name)
        assert bound is not None
        fill(bound.address if whose == "holder" else places[0].address)
        waiting += [stack.enter_context(Member(name)) for _ in range(2)]
        for member in waiting[-2:]:
            member.go()
            until(partial(waits, member.pid))
        assert len(sockets(name)[1]) == len(waiting)
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [member.pid for member in waiting]
        holder.let_go()
        if whose == "holder":
            serve(waiting)
        else:
            serve_all(waiting)  # the timer of the second may be quicker than the first
        nothing_left(name)


@each_sandbox
def test_in_a_sandbox(name: str, enter: Callable[[], object]) -> None:
    """With some in a sandbox that forbids to connect, or to list tickets, everybody has the name, one at a time."""
    with line(name, 1) as (holder, waiting), ExitStack() as stack:
        for number in range(6):
            waiting.append(stack.enter_context(Member(name, before=enter if number % 2 else lambda: None)))
            waiting[-1].go()
            until(partial(waits, waiting[-1].pid))
        holder.let_go()
        serve_all(waiting)
        nothing_left(name)


def test_tickets_forbidden(name: str) -> None:
    """Where a policy allows the name but not a ticket, waiters queue at the holder: all have it, in no order."""
    with line(name, 1) as (holder, waiting), ExitStack() as stack:
        for _ in range(3):
            waiting.append(stack.enter_context(Member(name, before=partial(forbid_long_addresses, parse(name)))))
            waiting[-1].join()
        assert len(sockets(name)[1]) == 1
        assert len(bindlock.waiters(name)) == 4
        holder.let_go()
        serve_all(waiting)
        nothing_left(name)


# What is said of them.


def test_waiters(name: str) -> None:
    """Those who wait are told in order: who, since when, what; those with a place in no order, last; the others not."""

    def wait(child: Child) -> None:
        child.hear()
        bindlock.wait(name)
        child.say("free")
        child.hear()

    begun = time.time()
    with Child(wait) as other, line(name, 2) as (holder, waiting):
        other.say("go")
        until(lambda: queued(other.pid))
        seen = bindlock.waiters(name)
        assert [waiter.pid for waiter in seen] == [waiting[0].pid, waiting[1].pid, other.pid]
        first, second, third = (waiter.since for waiter in seen)
        assert first is not None
        assert second is not None
        assert begun - 0.1 <= first < second <= time.time() + 0.1
        assert third is None
        assert {(waiter.uid, waiter.stopped) for waiter in seen} == {(os.geteuid(), False)}
        assert seen[0].command == tuple(Path("/proc/self/cmdline").read_text().split("\0")[:-1])
        held = bindlock.holder(name)
        assert held is not None
        assert (held.pid, held.waiters) == (holder.pid, 3)
        (bound,) = [lock for lock in bindlock.locks(every=True) if name.encode() in lock.address]
        assert (bound.name, bound.waiters()) == (name, 3)
        other.kill()  # at the release it would see the name free, or be too late for that
        holder.let_go()
        waiting[0].expect("held")
        # The ticket of the new holder is there, spent.
        assert [place.limit > 0 for place in sockets(name)[1]] == [False, True]
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [waiting[1].pid]
        held = bindlock.holder(name)
        assert held is not None
        assert (held.pid, held.waiters) == (waiting[0].pid, 1)
        assert [lock.name for lock in bindlock.locks(every=True) if name.encode() in lock.address] == [name]
        waiting[0].let_go()
        serve(waiting[1:])
    nothing_left(name)


def test_those_without_a_place_are_counted(name: str) -> None:
    """Who finds the queue full waits, too: the holder's count is that of those told one by one."""
    with line(name, 0) as (_, _), Member(name) as member:
        bound, _ = sockets(name)
        assert bound is not None
        fill(bound.address)
        member.go()
        until(lambda: waits(member.pid))
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [member.pid]
        holder = bindlock.holder(name)
        assert holder is not None
        assert holder.waiters == 1


def test_a_process_that_waits_in_two_ways(name: str) -> None:
    """A process that waits to have the name, and in another thread to see it free, is told twice, by its PID."""

    def body(child: Child) -> None:
        thread = threading.Thread(target=bindlock.wait, args=(name,))
        thread.start()
        with bindlock.Lock(name):
            child.hear()
        thread.join()

    with line(name, 0) as (holder, _), Child(body) as child:
        until(lambda: len(bindlock.waiters(name)) == 2)
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [child.pid] * 2
        holder.let_go()


# Descriptors.


def test_a_spent_ticket(name: str) -> None:
    """The ticket of a holder that is followed is in flight: nobody has it open, and it goes with the lock."""
    with line(name, 2) as (holder, waiting):
        holder.let_go()
        for member, left in zip(waiting, (2, 0), strict=True):
            member.expect("held")
            places = sockets(name)[1]
            assert len(places) == left
            assert all((with_socket(place.inode, None) == []) == (place.limit == 0) for place in places)
            member.let_go()
        nothing_left(name)


@pytest.mark.parametrize("killed", [False, True], ids=["released", "killed"])
def test_a_lock_that_a_child_shares(name: str, killed: bool) -> None:
    """The ticket of a holder goes neither with its release nor with its death, but with the last child that shares."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name, children="share")
        child.hear()
        lock.acquire()
        with Child(hear):
            child.say("held")
            child.hear()
            lock.release()
            child.say("released")
            child.hear()

    with line(name, 0) as (holder, _), Child(body) as sharing, Member(name) as last:
        sharing.say("go")
        until(lambda: queued(sharing.pid))
        last.join()
        before = switches(last.pid)
        holder.let_go()
        sharing.expect("held")
        places = [place.inode for place in sockets(name)[1]]
        sharing.say("let go")
        sharing.expect("released")
        assert [place.inode for place in sockets(name)[1]] == places
        assert (queued(last.pid), switches(last.pid)) == (True, before)
        if killed:
            sharing.kill()
        else:
            sharing.say("end")
        serve([last])
        until(lambda: bindable(name))
        nothing_left(name)


@pytest.mark.parametrize("spare", range(8))
def test_few_descriptors(name: str, spare: int) -> None:
    """Who has descriptors enough to queue has enough to have the name, be it followed or not."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name)
        limit_descriptors(spare)
        child.hear()
        try:
            lock.acquire()
        except bindlock.CannotLock as error:
            child.say(str(error))
        else:
            child.say("held")
            child.hear()
            lock.release()
        child.hear()

    with line(name, 0) as (holder, _), Child(body) as scant, Member(name) as last:
        scant.say("go")
        until(lambda: queued(scant.pid) or scant.heard_within(0))
        if scant.heard_within(0):
            assert "EMFILE" in scant.hear()
            assert spare < 4
        last.join()
        holder.let_go()
        if queued(scant.pid) or scant.heard_within(1):
            scant.expect("held")
            scant.say("let go")
        serve([last])
        nothing_left(name)


def test_who_has_passed_the_first_lets_nobody_follow(name: str) -> None:
    """Who has the name though another is the first, and stopped, sends those behind him to the end of the queue."""
    with (
        line(name, 0) as (holder, _), Member(name) as first, Member(name, patience=0.05) as second,
        Member(name) as third,
    ):  # fmt: skip
        for member in (first, second, third):
            member.join()
        behind = switches(third.pid)
        first.signal(signal.SIGSTOP)
        os.waitpid(first.pid, os.WUNTRACED)
        holder.let_go()
        second.expect("held")  # its patience is over
        until(lambda: switches(third.pid) > behind and queued(third.pid))
        first.signal(signal.SIGCONT)
        until(lambda: queued(first.pid))
        behind = switches(third.pid)
        second.let_go()
        first.expect("held")
        assert (switches(third.pid), third.heard_within(0)) == (behind, False), "woken by a release that is not its own"
        first.let_go()
        serve([third])
        nothing_left(name)
