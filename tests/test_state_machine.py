"""A lock in the hands of several real processes, against a model of who has it and who waits: hypothesis chooses what
they do, one thing after the other, and after each the kernel must say what the model says.

The model: one holder or none; a queue in the order of arrival; some processes are stopped. When the name gets free, the
first of the queue has it, unless that is stopped: then it stays free for whoever tries, until the first is continued.
"""

from __future__ import annotations

import os
import signal
import socket
import uuid

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import bindlock
import bindlock.lock.attempt
import bindlock.lock.block
from tests.actors import Child, bindable, until

_PROCESSES = 5


def door(name: str, place: int) -> socket.socket:
    """Where the process in that place can be reached with a lock."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"\0{name}-door-{place}")
    listener.listen()
    return listener


def live(child: Child, name: str, place: int) -> None:
    """Do what is asked for, and say what came of it, until killed, or until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    lock = bindlock.Lock(name)
    with door(name, place) as listener:
        child.say("ready")
        while words := child.hear(3600).split():
            try:
                match words:
                    case ["acquire", timeout]:
                        lock.acquire(None if timeout == "None" else float(timeout))
                    case ["release"]:
                        lock.release()
                    case ["send", other]:
                        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                            connection.connect(f"\0{name}-door-{other}")
                            lock.send(connection)
                    case ["receive"]:
                        connection, _ = listener.accept()
                        with connection:
                            lock.receive(connection)
            except bindlock.Held as held:
                child.say(f"refused, {held.holder.pid if held.holder else 0}")
            except KeyboardInterrupt:
                child.say("interrupted")
            else:
                child.say("held" if lock.held else "not held")


class Processes(RuleBasedStateMachine):
    """What the processes do, and what must be so after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.name = f"test-{uuid.uuid4().hex[:12]}"
        self.children: list[Child] = []
        self.holder: Child | None = None
        self.queue: list[Child] = []
        self.stopped: set[Child] = set()
        #: Stopped ones whose connection has hung up: they try the name as soon as they can.
        self.woken: set[Child] = set()

    # The model.

    def freed(self) -> None:
        """The holder is gone: the first one wakes up, and has the name unless it is stopped."""
        self.holder = None
        if self.queue:
            self.wake(self.queue[0])

    def wake(self, child: Child) -> None:
        """Its connection has hung up."""
        if child in self.stopped:
            self.woken.add(child)
        elif self.holder is None:
            child.expect("held")
            self.queue.remove(child)
            self.holder = child

    def leave(self, child: Child) -> None:
        """It is no longer in the queue: who was behind it wakes up."""
        place = self.queue.index(child)
        self.queue.remove(child)
        self.woken.discard(child)
        if place < len(self.queue):
            self.wake(self.queue[place])

    def idle(self) -> list[Child]:
        return [c for c in self.children if c is not self.holder and c not in self.queue and c not in self.stopped]

    def choose(self, data: st.DataObject, children: list[Child]) -> Child:
        return children[data.draw(st.integers(0, len(children) - 1))]

    # The rules.

    @initialize()
    def start(self) -> None:
        for place in range(_PROCESSES):
            self.start_one(place)

    def start_one(self, place: int) -> None:
        child = Child(lambda child: live(child, self.name, place))
        self.children.insert(place, child)
        child.expect("ready")

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), timeout=st.sampled_from(["0", "1e-6", "0.01"]))
    def acquire_for_a_moment(self, data: st.DataObject, timeout: str) -> None:
        child = self.choose(data, self.idle())
        child.say(f"acquire {timeout}")
        if self.holder is None:
            child.expect("held")
            self.holder = child
        else:
            child.expect(f"refused, {self.holder.pid}")

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        child = self.choose(data, self.idle())
        child.say("acquire None")
        if self.holder is None:
            child.expect("held")
            self.holder = child
        else:
            self.queue.append(child)
            until(lambda: len(bindlock.waiters(self.name)) == len(self.queue))
            until(lambda: asleep(child))

    @precondition(lambda self: self.holder is not None and self.holder not in self.stopped)
    @rule()
    def release(self) -> None:
        assert self.holder is not None
        self.holder.say("release")
        self.holder.expect("not held")
        self.freed()

    @precondition(lambda self: self.holder is not None and self.holder not in self.stopped and self.idle())
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        child = self.choose(data, self.idle())
        assert self.holder is not None
        child.say("receive")
        self.holder.say(f"send {self.children.index(child)}")
        child.expect("held")
        self.holder.expect("not held")
        self.holder = child

    @precondition(lambda self: set(self.queue) - self.stopped)
    @rule(data=st.data())
    def interrupt(self, data: st.DataObject) -> None:
        child = self.choose(data, [child for child in self.queue if child not in self.stopped])
        child.signal(signal.SIGINT)
        child.expect("interrupted")
        self.leave(child)

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        child = self.choose(data, self.children)
        assert child.kill() == -signal.SIGKILL
        self.stopped.discard(child)
        if child is self.holder:
            self.freed()
        elif child in self.queue:
            self.leave(child)
        place = self.children.index(child)
        self.children.remove(child)
        child.close()
        self.start_one(place)

    @precondition(lambda self: len(self.stopped) < _PROCESSES)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        child = self.choose(data, [child for child in self.children if child not in self.stopped])
        child.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        self.stopped.add(child)

    @precondition(lambda self: self.stopped)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        child = self.choose(data, [child for child in self.children if child in self.stopped])
        self.stopped.discard(child)
        child.signal(signal.SIGCONT)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED)
        if child in self.woken:
            self.woken.discard(child)
            self.wake(child)
            if child in self.queue:
                until(lambda: asleep(child))

    @invariant()
    def as_the_kernel_says(self) -> None:
        assert bindable(self.name) == (self.holder is None)
        if self.holder is not None:
            holder = bindlock.holder(self.name)
            assert holder is not None
            assert holder.pid == self.holder.pid
        waiters = bindlock.waiters(self.name)
        assert [waiter.pid for waiter in waiters] == [child.pid for child in self.queue]
        assert [waiter.stopped for waiter in waiters] == [child in self.stopped for child in self.queue]

    def teardown(self) -> None:
        for child in self.children:
            child.close()


def asleep(child: Child) -> bool:
    """Whether the process sleeps in poll(2): so it is in a queue."""
    with open(f"/proc/{child.pid}/syscall") as file:
        return file.read().split()[0] in ("7", "271", "73")


def test_processes_are_as_the_model_says(seed: int, long: bool) -> None:
    """Whatever five processes do with a lock, one after the other, holder and queue are what the model says."""
    run_state_machine_as_test(
        hypothesis.seed(seed)(Processes),
        settings=settings(
            max_examples=500 if long else 25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=False,
        ),
    )
