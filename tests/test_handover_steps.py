"""A lock is sent and received while both sides are killed, stopped and interrupted at every step of it.

The sender has the lock; the receiver wants it; a third tries to bind the name without end. What must hold depends only
on how far the sender and the receiver have come (`OUTCOMES`), whatever system calls they make on the way.
"""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import signal
import socket
import struct
import threading
import warnings
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest

import bindlock
import bindlock.lock.handover  # before the first step
from bindlock.linux import passing
from bindlock.linux.binding import fork_guard
from bindlock.names import parse
from tests.actors import DEADLINE, Child, bindable, until
from tests.interrupts import Interrupted, Interrupter, raised_by
from tests.steps import _MARK, Call, Traced, numbers_reason, queued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACKAGE = os.path.dirname(bindlock.__file__)
#: Seconds that each side is given, by a clock that the test sets; they look at it as often.
SHORT = 0.02
#: Seconds in which a name must be free that nobody has.
SOON = 5.0

# Killed and stopped.


class Outcome(NamedTuple):
    """What becomes of a hand-over when one side is harmed just there, and for good."""

    #: What the side that is not harmed says: it "has it", "has it not" (any more), or has "failed".
    killed: str
    #: The same, while the other side is stopped for longer than it is given.
    stopped: str


#: Side harmed, the last thing it did, and what then is the case with the *other* side. A sender that has failed still
#: has the lock; a receiver that has failed has not.
OUTCOMES = {
    ("sender", "begun"): Outcome("failed", "failed"),
    ("sender", "sent the descriptor"): Outcome("failed", "failed"),
    ("sender", "heard that it is there"): Outcome("failed", "failed"),
    ("sender", "sent the word"): Outcome("has it", "has it"),
    ("sender", "closed"): Outcome("has it", "has it"),
    ("receiver", "begun"): Outcome("failed", "failed"),
    ("receiver", "has the descriptor"): Outcome("failed", "failed"),
    ("receiver", "said so"): Outcome("has it not", "has it not"),
    ("receiver", "heard the word"): Outcome("has it not", "has it not"),
}
#: How far a side has come by which system call, from where it was.
MILESTONES = {
    ("sender", "begun", "sendmsg"): "sent the descriptor",
    ("sender", "sent the descriptor", "recvfrom"): "heard that it is there",
    ("sender", "heard that it is there", "sendto"): "sent the word",
    ("sender", "sent the word", "close"): "closed",
    ("receiver", "begun", "recvmsg"): "has the descriptor",
    ("receiver", "has the descriptor", "sendto"): "said so",
    ("receiver", "said so", "recvfrom"): "heard the word",
}
_RECVMSG = {47: "recvmsg", 212: "recvmsg"}


class Clock:
    """The time of a hand-over's two sides: it stands still until it is told to go on."""

    def __init__(self) -> None:
        self._seconds = mmap.mmap(-1, 8)

    def monotonic(self) -> float:
        seconds: float = struct.unpack_from("d", self._seconds)[0]
        return seconds

    def go_on(self) -> None:
        """By more than anybody is given."""
        struct.pack_into("d", self._seconds, 0, self.monotonic() + 1e6)


class Side(Child):
    """The sender, or the receiver: does it when told to, says what came of it, and lets go when told to."""

    def __init__(self, name: str, which: str, own: socket.socket, other: socket.socket, clock: Clock) -> None:
        def body(child: Child) -> None:
            other.close()
            vars(passing)["time"] = clock
            lock = bindlock.Lock(name)
            if which == "sender":
                lock.acquire()
            child.say("ready")
            child.hear()
            mark()
            try:
                lock.send(own, SHORT) if which == "sender" else lock.receive(own, SHORT)
            except bindlock.NotHandedOver:
                assert lock.held == (which == "sender")
                mark()
                child.say("failed")
            else:
                assert lock.held == (which == "receiver")
                mark()
                child.say("has it" if lock.held else "has it not")
            child.hear()
            if lock.held:
                lock.release()
            child.say("done")
            child.hear()

        super().__init__(body)
        self.which = which

    def settled(self) -> bool:
        """Whether it says something, or sleeps until the other side does."""
        return self.heard_within(0) or queued(self.pid)


def mark() -> None:
    """A place in the trace."""
    with suppress(OSError):
        os.close(_MARK)


class Hammer(Child):
    """Tries to bind a name without end, and counts."""

    def __init__(self, name: str) -> None:
        self._counts = mmap.mmap(-1, 16)
        address = parse(name).address

        def body(child: Child) -> None:
            tries = successes = 0
            while not child.heard_within(0) if not tries % 1000 else True:
                with socket.socket(socket.AF_UNIX) as own, suppress(OSError):
                    own.bind(address)
                    successes += 1
                tries += 1
                struct.pack_into("qq", self._counts, 0, tries, successes)

        super().__init__(body)

    def counts(self) -> tuple[int, int]:
        """Tries and successes."""
        tries, successes = struct.unpack_from("qq", self._counts)
        return tries, successes

    def tried(self) -> int:
        """Wait until it has tried twice more: the successes by now."""
        before, _ = self.counts()
        until(lambda: self.counts()[0] > before + 1)
        return self.counts()[1]

    def close(self) -> None:
        super().close()
        self._counts.close()


class Scene:
    """The three, and the side that is traced."""

    def __init__(self, name: str, harmed: str, stack: ExitStack) -> None:
        self.clock = Clock()
        ends = socket.socketpair()
        with ends[0], ends[1]:
            self.sides = {
                "sender": stack.enter_context(Side(name, "sender", ends[0], ends[1], self.clock)),
                "receiver": stack.enter_context(Side(name, "receiver", ends[1], ends[0], self.clock)),
            }
        for side in self.sides.values():
            side.expect("ready")
        self.hammer = stack.enter_context(Hammer(name))
        self.harmed = self.sides[harmed]
        self.other = self.sides["receiver" if harmed == "sender" else "sender"]
        self.traced = Traced(self.harmed.pid)
        self.harmed.say("go")
        self.come = "begun"

    def step(self, number: int) -> Call | None:
        """Let the harmed side go to just after its system call of that number; None when it makes not so many."""
        started = False
        for count, made in enumerate(self.traced.steps(lambda: None)):
            name = _RECVMSG.get(made.number, made.name)
            if not made.marks:
                self.come = MILESTONES.get((self.harmed.which, self.come, name), self.come)
            if not started:
                self.other.say("go")
                started = True
            if count == number:
                until(self.other.settled)
                return made
        return None

    def give_up(self, side: Side) -> None:
        """Have the time go on until a side has said what came of it."""
        while not side.heard_within(SHORT):
            self.clock.go_on()

    def nobody_else(self) -> None:
        """The third has not had the name so far."""
        assert self.hammer.tried() == 0, "the name was free"


def killed(scene: Scene) -> None:
    """The other side has the lock and the name was never free; or nobody has it, and it is."""
    expected = OUTCOMES[scene.harmed.which, scene.come].killed
    scene.nobody_else()
    scene.harmed.kill()
    scene.other.expect(expected)
    has = expected == "has it" or (expected == "failed" and scene.other.which == "sender")
    if has:
        scene.nobody_else()
    scene.other.say("let go")
    scene.other.expect("done")
    until(lambda: scene.hammer.counts()[1], SOON)


def stopped(scene: Scene) -> None:
    """As soon as the stopped side goes on, the lock changes hands, and nobody has had it in between."""
    scene.traced.stop()
    scene.nobody_else()
    scene.harmed.signal(signal.SIGCONT)
    said = {side.which: side.hear() for side in scene.sides.values()}
    assert said == {"sender": "has it not", "receiver": "has it"}
    scene.nobody_else()
    let_go(scene, "receiver")


def stopped_for_long(scene: Scene) -> None:
    """The other side gives up, or has done its part; in the end one of them has the lock, and both agree who."""
    expected = OUTCOMES[scene.harmed.which, scene.come].stopped
    scene.traced.stop()
    scene.give_up(scene.other)
    scene.other.expect(expected)
    scene.nobody_else()
    scene.harmed.signal(signal.SIGCONT)
    scene.give_up(scene.harmed)
    said = {scene.other.which: expected, scene.harmed.which: scene.harmed.hear()}
    handed_over = {"sender": "has it not", "receiver": "has it"}
    assert said in (handed_over, {"sender": "failed", "receiver": "failed"}), said
    scene.nobody_else()
    let_go(scene, "receiver" if said == handed_over else "sender")


def let_go(scene: Scene, which: str) -> None:
    """The one that has the lock, of the two that live, lets go: then it is free."""
    holder, other = scene.sides[which], scene.sides["receiver" if which == "sender" else "sender"]
    for side in (other, holder):
        if side is holder:
            scene.nobody_else()
        side.say("let go")
        side.expect("done")
    until(lambda: scene.hammer.counts()[1], SOON)


@pytest.mark.skipif(numbers_reason is not None, reason=str(numbers_reason))
@pytest.mark.parametrize(
    ("harmed", "harm"),
    [
        ("sender", killed),
        ("sender", stopped),
        ("sender", stopped_for_long),
        ("receiver", killed),
        ("receiver", stopped),
        ("receiver", stopped_for_long),
    ],
)
def test_harmed_at_every_step(name: str, harmed: str, harm: Callable[[Scene], None]) -> None:
    """Killed or stopped at any step, neither side makes two of one holder, nor lets the name go while one has it."""
    seen = set()
    steps = 0
    while True:
        with ExitStack() as stack:
            scene = Scene(f"{name}-{steps}", harmed, stack)
            made = scene.step(steps)
            if made is None:
                scene.traced.leave()
                break
            print(f"step {steps}, after {made.name}: the {harmed} has {scene.come}")
            seen.add((harmed, scene.come))
            harm(scene)
        steps += 1
    assert seen == {key for key in OUTCOMES if key[0] == harmed}, "these are not all"


# Interrupted.


class Stage:
    """Two locks of one name in this process, one of them held, and a connection between."""

    def __init__(self, name: str) -> None:
        self.locks = {"sender": bindlock.Lock(name), "receiver": bindlock.Lock(name)}
        self.descriptors = set(os.listdir("/proc/self/fd"))

    def run(self, which: str, signals: Interrupter, *instants: int) -> None:
        """Interrupt one side at those instants; the other, in a thread, goes on until the connection is closed."""
        ends = dict(zip(("sender", "receiver"), socket.socketpair(), strict=True))
        sender, receiver = self.locks.values()
        does = {
            "sender": lambda: sender.send(ends["sender"], DEADLINE),
            "receiver": lambda: receiver.receive(ends["receiver"], DEADLINE),
        }
        sender.acquire()
        other = next(side for side in does if side != which)
        outcome: list[type] = []
        thread = threading.Thread(target=lambda: outcome.append(type(raised_by(does[other]))))
        thread.start()
        error = signals.run(does[which], *instants)
        places = [f"{code.co_qualname}+{at}" for code, at in signals.raised]
        ends[which].close()
        thread.join(DEADLINE)
        ends[other].close()
        assert outcome
        assert outcome[0] in (type(None), bindlock.NotHandedOver)
        assert (error is None) == (not signals.raised), f"{error!r} at {places}"
        raised = error is not None
        del error
        held = self.check(places)
        assert not (raised and which in held and which == "receiver"), f"receive() has raised at {places}, and has it"

    def check(self, places: object) -> list[str]:
        """At most one holds; the name is bound while one does; and nothing else is left. Who has held it."""
        held = [side for side, lock in self.locks.items() if lock.held]
        bound = not bindable(self.locks["sender"].name)
        for side in held:
            self.locks[side].release()
        left = set(os.listdir("/proc/self/fd")) - self.descriptors
        for number in left:
            with suppress(OSError):  # the one that listed them
                os.close(int(number))
        lost = [side for side, lock in self.locks.items() if lock.fileno() >= 0]
        assert len(held) < 2, f"interrupted at {places}, both hold"
        assert bound == bool(held), f"interrupted at {places}: {held} hold, and bound is {bound}"
        assert not lost, f"interrupted at {places}, the {lost} still has the number of a descriptor that is closed"
        assert not [number for number in left if os.path.exists(f"/proc/self/fd/{number}")]
        return held


@contextmanager
def stage(name: str) -> Iterator[tuple[Stage, Interrupter]]:
    """A stage, with all loaded that is loaded once; the collector of cycles is off, so what it would find is a leak."""
    with warnings.catch_warnings(), Interrupter(PACKAGE) as signals:
        warnings.simplefilter("ignore", ResourceWarning)
        here = Stage(name)
        for which in here.locks:
            here.run(which, signals)
        gc.collect()
        gc.disable()
        try:
            yield here, signals
        finally:
            gc.enable()


@pytest.mark.parametrize("which", ["sender", "receiver"])
def test_every_instant(name: str, which: str) -> None:
    """An exception from a signal handler, at whatever instant, leaves the lock with one side that says so, or free."""
    with stage(name) as (here, signals):
        for instant in range(1, 100_000):
            here.run(which, signals, instant)
            if not signals.raised:
                break
        assert instant > 30, "these are not all"


# Not the receiver: two exceptions within microseconds can leave open there what was received.
@pytest.mark.parametrize("which", ["sender"])
def test_every_instant_of_the_clean_up(name: str, which: str, seed: int, long: bool) -> None:
    """A second exception, a little later, does no more harm than the first."""
    random_ = random.Random(seed)
    with stage(name) as (here, signals):
        instant = 0
        while not instant or signals.raised:
            instant += 1
            laters = range(1, 25)
            for later in laters if long else random_.sample(laters, 3):
                here.run(which, signals, instant, later)


class AlarmingInterrupter(Interrupter):
    """Raises ETIMEDOUT where others raise an exception of the test's own."""

    def _handle(self, number: int, frame: object) -> None:
        try:
            super()._handle(number, frame)  # type: ignore[arg-type]
        except BaseException as error:
            raise TimeoutError(errno.ETIMEDOUT, "the handler's") from error


def test_a_handler_that_raises_an_errno(name: str) -> None:
    """A handler may raise an OSError with an errno: it is not taken for the kernel's answer."""
    with stage(name) as (here, _), AlarmingInterrupter(PACKAGE) as signals:
        for instant in range(1, 100_000):
            here.run("sender", signals, instant)
            if not signals.raised:
                break


def test_every_instant_of_adopting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adoption that is interrupted has the lock and says so, or has it not; the next one has it in any case."""
    with warnings.catch_warnings(), Interrupter(PACKAGE) as signals:
        warnings.simplefilter("ignore", ResourceWarning)
        for instant in range(1, 100_000):
            first, lock = bindlock.Lock(name), bindlock.Lock(name)
            first.acquire()
            inode = os.fstat(first.fileno()).st_ino
            monkeypatch.setenv("BINDLOCK_FD", str(first.detach()))
            error = signals.run(lock.adopt, instant)
            if error is not None:
                lock.adopt()
            assert lock.held
            assert os.fstat(lock.fileno()).st_ino == inode
            lock.release()
            assert bindable(name)
            if not signals.raised:
                break
    assert instant > 10


class ForkingInterrupter(Interrupter):
    """Forks where others raise, and notes whether the child has the socket `inode`."""

    inode = 0
    kept: list[int]

    def _handle(self, number: int, frame: object) -> None:
        with suppress(Interrupted):
            super()._handle(number, frame)  # type: ignore[arg-type]
            return
        child = os.fork()
        if not child:
            links = (os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd"))
            os._exit(any(link.endswith(f"socket:[{self.inode}]") for link in links))
        self.kept.append(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork and threads of the test runner, since Python 3.12
def test_a_fork_at_every_instant_of_keeping_what_was_received(name: str) -> None:
    """From when it has arrived, on to when it is the lock's: no child has the descriptor."""
    signals = ForkingInterrupter(PACKAGE)
    with signals:
        for instant in range(1, 100_000):
            first = bindlock.Lock(name)
            first.acquire()
            signals.inode, signals.kept = first._binding.inode(), []
            descriptor = first.detach()
            lock = bindlock.Lock(name)
            with fork_guard:
                lock._binding.hold(descriptor)
            signals.run(lambda: lock._binding.adopt(descriptor), instant)  # noqa: B023 - it is called here
            assert lock.held
            lock.release()
            assert not any(signals.kept), f"at {signals.raised}"
            if not signals.raised:
                break
    assert instant > 10


def stay_forked(child: Child) -> None:
    child.say("closed")
    child.hear()


@pytest.mark.skipif(numbers_reason is not None, reason=str(numbers_reason))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork and threads of the test runner, since Python 3.12
def test_a_fork_while_a_lock_is_received(name: str) -> None:
    """A child that another thread forks before receive() returns does not keep the name."""
    ours, theirs = socket.socketpair()
    receiver = bindlock.Lock(name)
    with ours, theirs, Side(name, "sender", ours, theirs, Clock()) as sender:
        ours.close()
        sender.expect("ready")
        traced = Traced(sender.pid)
        sender.say("go")
        thread = threading.Thread(target=lambda: receiver.receive(theirs))
        thread.start()
        traced.to("sendto")
        with Child(stay_forked) as child:
            child.expect("closed")  # the hook has run by then; it does so a moment after the fork
            traced.leave()
            thread.join(DEADLINE)
            sender.expect("has it not")
            receiver.release()
            assert bindable(name)
            child.say("end")
