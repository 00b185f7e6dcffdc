"""Killed and stopped at each step of queueing: two never hold, nobody sleeps while the name is free, the order is kept.

Four stand in a queue: a holder, one *ahead*, the *subject*, one *behind*; a *newcomer* comes when the harm is done. The
subject is traced (ptrace(2)) from before its acquire until after its release, and harmed after its first system call;
in the next run after its second; and so on to its last, whatever they are. What must hold then depends on nothing but
what the kernel says of the subject at that point (`Standing`).
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import pytest

import bindlock
from bindlock.names import parse
from bindlock.proof.kernel.call import call as call_library
from tests.actors import DEADLINE, bindable, until
from tests.conftest import needs_root
from tests.steps import (
    Member,
    Traced,
    fill,
    inodes,
    line,
    nothing_left,
    numbers_reason,
    queued,
    serve,
    serve_all,
    sockets,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.steps import Call

pytestmark = pytest.mark.skipif(numbers_reason is not None, reason=str(numbers_reason))
#: Seconds behind a ticket, where the tests want somebody to lose patience.
SHORT = 0.02
#: Those who come after the subject.
LATER = ("behind", "newcomer")


class Standing(Enum):
    """How a process stands to a name, by the kernel's word."""

    OUT = "has no ticket that anybody could queue at"
    IN_LINE = "has a listening ticket, and not the name"
    HOLDS = "has the name"


class Scene:
    """The five; whoever holds says so, holds until told to let go, and two who say so at once are called out."""

    def __init__(self, name: str, stack: ExitStack, patience: float = float("inf")) -> None:
        self.name = name
        self.order: list[str] = []
        self.holder: str | None = None
        self.members = {
            label: stack.enter_context(
                Member(name, patience=patience if label in ("behind", "newcomer") else float("inf"))
            )
            for label in ("first", "ahead", "subject", "behind", "newcomer")
        }
        self.started: set[str] = set()
        self.done: set[str] = set()
        #: Traced or stopped.
        self.held_up: set[str] = set()
        self.start("first")
        self.until_held("first")

    def start(self, *labels: str) -> None:
        """Have them reach for the name, each when the one before sleeps in the queue, or has the name."""
        for label in labels:
            if label not in self.started:
                self.started.add(label)
                self.members[label].go()
                if label != "subject":
                    until(partial(self.settled, label))

    def hear(self) -> None:
        """Take in what they say."""
        for label, member in self.members.items():
            if label not in self.done and member.heard_within(0):
                line = member.hear()
                if line == "held":
                    assert self.holder is None, f"{label} has the name, and so has {self.holder}"
                    self.holder = label
                    self.order.append(label)
                else:
                    assert line == "released", f"{label}: {line}"
                    self.done.add(label)

    def settled(self, label: str) -> bool:
        """Whether that one sleeps in the queue, or says that it has the name."""
        self.hear()
        return self.holder == label or queued(self.members[label].pid)

    def all_done(self, labels: set[str]) -> bool:
        """Whether all of these have had the name, or are dead."""
        self.hear()
        return labels <= self.done

    def until_held(self, *labels: str) -> str:
        """Wait until somebody holds, who must be one of them."""
        while self.holder is None:
            ends = [member.ends()[0] for label, member in self.members.items() if label not in self.done]
            assert select.select(ends, [], [], DEADLINE)[0], f"nobody has the name, after {self.order}"
            self.hear()
        assert self.holder in labels, f"{self.holder} has the name, and not one of {labels}"
        return self.holder

    def let_go(self) -> None:
        """Have the holder release the name, and stay; wait until it has, if it can."""
        assert self.holder is not None
        label, self.holder = self.holder, None
        self.members[label].say("let go")
        if label not in self.held_up:
            until(partial(self.all_done, {label}))

    def pass_on(self, *labels: str) -> None:
        """The name goes from whoever has it to all of these, in that order."""
        for label in labels:
            if self.holder not in (None, label):
                self.let_go()
            self.until_held(label)

    def pass_on_to_all(self, *labels: str) -> None:
        """The name goes from whoever has it to all of these, in whatever order."""
        left = set(labels) - set(self.order)
        while left:
            if self.holder is not None:
                self.let_go()
            left.discard(self.until_held(*left))

    def rest(self) -> list[str]:
        """Those of the last two who have not had the name."""
        return [label for label in LATER if label not in self.order]

    def kill(self, label: str) -> None:
        """SIGKILL one of them."""
        self.hear()
        self.members[label].kill()
        self.done.add(label)
        if self.holder == label:
            self.holder = None
        # Whom that has woken sleeps again, or has the name, before anybody new comes.
        for other in self.started - self.done:
            until(partial(self.settled, other))

    def standing(self, label: str) -> Standing:
        """How one of them stands to the name."""
        theirs = inodes(self.members[label].pid)
        bound, places = sockets(self.name)
        if bound is not None and bound.inode in theirs:
            return Standing.HOLDS
        in_line = any(place.inode in theirs and place.listening for place in places)
        return Standing.IN_LINE if in_line else Standing.OUT

    def finish(self) -> None:
        """The holder lets go; then the name is free, and nothing else is left of anybody."""
        if self.holder is not None:
            self.let_go()
        until(partial(self.all_done, self.started))
        nothing_left(self.name)


class Subject:
    """The one of the scene that is traced, and what is done whenever it sleeps, so that it goes on."""

    def __init__(self, scene: Scene, company: frozenset[str]) -> None:
        self.scene = scene
        self.company = company
        if "ahead" in company:
            scene.start("ahead")
        scene.held_up.add("subject")
        self.traced = Traced(scene.members["subject"].pid)
        scene.start("subject")
        self.queued = False

    def prod(self) -> None:
        """It sleeps: in the queue, or because it has the name and waits to be told to let go."""
        scene = self.scene
        scene.hear()
        if queued(self.traced.pid):
            if not self.queued:
                self.queued = True
                if "behind" in self.company:
                    scene.start("behind")
                if "ahead" in self.company:
                    scene.pass_on("ahead")
                scene.let_go()
        elif scene.holder == "subject":
            scene.let_go()

    def step(self, number: int) -> Call | None:
        """Go to just after its system call of that number; None when it makes not so many."""
        calls = self.traced.steps(self.prod)
        for count, made in enumerate(calls):
            if count == number:
                return made
        return None


def killed(scene: Scene, subject: Subject, ahead: list[str]) -> None:
    """Who is killed is out of the queue, or lets go: everybody else has the name, at once and in order."""
    scene.kill("subject")
    scene.start("behind", "newcomer")
    scene.pass_on(*ahead, "behind", "newcomer")


def stopped(scene: Scene, subject: Subject, ahead: list[str]) -> None:
    """Who is stopped outside of the line is in nobody's way; in it, those behind wait for it, as for a holder."""
    leave_stopped(scene, subject, ahead)
    standing = scene.standing("subject")
    if standing is Standing.OUT:
        scene.pass_on(*scene.rest())
        if scene.holder:
            scene.let_go()
    else:
        assert standing is Standing.HOLDS or bindable(scene.name)
        assert all(queued(scene.members[label].pid) for label in scene.rest())
    go_on(scene)
    scene.pass_on(*scene.rest())


def stopped_for_long(scene: Scene, subject: Subject, ahead: list[str]) -> None:
    """Whoever waits behind one that is stopped has the name while it still is, after a while, if that is free."""
    subject.traced.stop()
    scene.start("behind", "newcomer")
    if scene.standing("subject") is not Standing.HOLDS:
        scene.pass_on_to_all(*ahead, *scene.rest())
        if scene.holder not in (None, "subject"):
            scene.let_go()
    go_on(scene)
    scene.pass_on_to_all(*scene.rest())


def leave_stopped(scene: Scene, subject: Subject, ahead: list[str]) -> None:
    """Stop the subject; those before it have had the name, those behind it are there, and nobody else has it."""
    subject.traced.stop()
    scene.start("behind", "newcomer")
    scene.pass_on(*ahead)
    if scene.holder and scene.holder != "subject":
        scene.let_go()


def go_on(scene: Scene) -> None:
    """Continue the subject, which must have the name next, if it has not had it."""
    scene.members["subject"].signal(signal.SIGCONT)
    scene.held_up.clear()
    if "subject" not in scene.order:
        scene.pass_on("subject")


COMPANIES = ("", "ahead", "behind", "ahead behind")
HARMS = [
    *((harm, float("inf"), company) for harm in (killed, stopped) for company in COMPANIES),
    # Those with little patience come when the subject is stopped: before, they might pass at any release.
    *((stopped_for_long, SHORT, company) for company in COMPANIES if "behind" not in company),
]


@pytest.mark.parametrize(
    ("harm", "patience", "company"), HARMS, ids=[f"{harm.__name__}-{company or 'alone'}" for harm, _, company in HARMS]
)
def test_harmed_at_every_step(
    name: str, harm: Callable[[Scene, Subject, list[str]], None], patience: float, company: str
) -> None:
    """Killed or stopped at any step of its waiting, holding and releasing, a process costs the others nothing."""
    steps = 0
    while True:
        with ExitStack() as stack:
            scene = Scene(f"{name}-{steps}", stack, patience)
            subject = Subject(scene, frozenset(company.split()))
            call = subject.step(steps)
            if call is None:
                subject.traced.leave()
                break
            scene.hear()
            ahead = [label for label in ("ahead",) if label in company and label not in scene.order]
            print(f"step {steps}, after {call.name}: {scene.standing('subject').value}; {scene.order}")
            harm(scene, subject, ahead)
            scene.finish()
        steps += 1
    assert steps > 25, "these are not all"


# Instants of the table "What can go wrong" that need two at once, or more than the harm.


def test_the_one_before_goes_between_the_list_and_the_connect(name: str) -> None:
    """Whose predecessor is killed when it has just been listed queues where that was."""
    with line(name, 1) as (holder, (ahead,)), Member(name) as subject, Member(name) as behind:
        traced = Traced(subject.pid)
        subject.go()
        traced.to("connect")
        ahead.kill()
        traced.leave()
        until(lambda: queued(subject.pid))
        behind.join()
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [subject.pid, behind.pid]
        holder.let_go()
        serve([subject, behind])
        nothing_left(name)


def test_two_arrive_at_the_same_instant(name: str) -> None:
    """When the lower number is bound after the higher has been listed, both may follow the same; all have the name."""
    with line(name, 1) as (holder, (ahead,)), ExitStack() as stack:
        low, high, behind = (stack.enter_context(Member(name)) for _ in range(3))
        traced = Traced(low.pid)
        low.go()
        traced.to("bind", 3)  # the name, once more, and its ticket
        high.join()
        traced.leave()
        until(lambda: queued(low.pid))
        behind.join()
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [one.pid for one in (ahead, low, high, behind)]
        holder.let_go()
        serve([ahead])
        serve_all([low, high, behind])
        nothing_left(name)


def test_a_newcomer_in_the_instant_of_a_release(name: str) -> None:
    """Who comes just when the name is free passes the head of the queue, which stays the head."""
    with line(name, 2) as (holder, (head, behind)), Member(name) as newcomer, Member(name) as last:
        traced = Traced(head.pid)
        traced.to("bind", asleep=once(holder.let_go))
        assert bindable(name)
        newcomer.go()
        newcomer.expect("held")
        last.join()
        traced.leave()
        until(lambda: queued(head.pid))
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [one.pid for one in (head, behind, last)]
        newcomer.let_go()
        serve([head, behind, last])
        nothing_left(name)


def test_the_lock_will_not_take_the_ticket(name: str) -> None:
    """A ticket that finds the lock's own queue full goes at once; who was behind it queues again, and is served."""
    with line(name, 2) as (holder, (head, behind)):
        traced = Traced(head.pid)
        traced.to("connect", asleep=once(holder.let_go))
        fill(parse(name).address)
        traced.leave()
        head.expect("held")
        until(lambda: len(sockets(name)[1]) == 1)
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [behind.pid]
        head.let_go()
        serve([behind])
        nothing_left(name)


def test_the_head_is_stopped(name: str) -> None:
    """A stopped head is told to be stopped; the name is free for who does not wait, and its own when it goes on."""
    with line(name, 3) as (holder, waiting):
        waiting[0].signal(signal.SIGSTOP)
        until(lambda: state(waiting[0].pid) == "T")
        assert [waiter.stopped for waiter in bindlock.waiters(name)] == [True, False, False]
        holder.let_go()
        assert bindlock.holder(name) is None
        assert [waiter.pid for waiter in bindlock.waiters(name)] == [member.pid for member in waiting]
        with bindlock.Lock(name, timeout=0):
            pass
        assert all(queued(member.pid) for member in waiting[1:])
        waiting[0].signal(signal.SIGCONT)
        serve(waiting)
        nothing_left(name)


def test_patience(name: str) -> None:
    """Who is behind a stopped head has the name after a while; the head, when it goes on, is the next to have it."""
    with line(name, 1) as (holder, (head,)), ExitStack() as stack:
        behind = [stack.enter_context(Member(name, patience=patience)) for patience in (SHORT, *[float("inf")] * 5)]
        for member in behind:
            member.join()
        head.signal(signal.SIGSTOP)
        until(lambda: state(head.pid) == "T")
        holder.let_go()
        behind[0].expect("held")
        head.signal(signal.SIGCONT)
        until(lambda: all(queued(member.pid) for member in (head, *behind[1:])))
        behind[0].let_go()
        serve([head, *behind[1:]])
        nothing_left(name)


@needs_root
def test_a_copy_of_a_ticket(name: str) -> None:
    """While somebody has a copy of a dead waiter's ticket, who is behind it has the name by patience only."""
    with line(name, 1) as (holder, (head,)), Member(name, patience=SHORT) as behind:
        (ticket,) = sockets(name)[1]
        copy = take_descriptor(head.pid, ticket.inode)
        try:
            behind.join()
            head.kill()
            assert [place.inode for place in sockets(name)[1]][:1] == [ticket.inode]
            holder.let_go()
            serve([behind])
        finally:
            os.close(copy)
        nothing_left(name)


def once(action: Callable[[], object]) -> Callable[[], None]:
    """The action, the first time that it is called."""
    left = [action]

    def act() -> None:
        if left:
            left.pop()()

    return act


def take_descriptor(pid: int, inode: int) -> int:
    """A copy of a socket of another process (pidfd_getfd(2), Linux 5.6)."""
    for descriptor in map(int, os.listdir(f"/proc/{pid}/fd")):
        if os.readlink(f"/proc/{pid}/fd/{descriptor}") == f"socket:[{inode}]":
            pidfd = os.pidfd_open(pid)
            try:
                return call_library("syscall", 438, pidfd, descriptor, 0)
            finally:
                os.close(pidfd)
    raise AssertionError("it has no such socket")
