"""Signal handlers that raise, at every instant: then either a lock is held and says so, or nothing is."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import AF_UNIX, SOCK_STREAM, socket
from types import FrameType

import pytest

import bindlock
import bindlock.lock.instance
import bindlock.lock.listing
from bindlock.names import parse
from tests.actors import Cast
from tests.interrupts import Interrupted, Interrupter

PACKAGE = os.path.dirname(bindlock.__file__)
TIMEOUT = 0.002


class Stage:
    """A name, a lock, a stranger that may hold the name, and an independent look at what is held."""

    def __init__(self, name: str) -> None:
        self.lock = bindlock.Lock(name)
        self.address = parse(name).address
        self.stranger: socket | None = None
        self.descriptors: set[str] = set()

    def occupy(self) -> None:
        """Somebody who is no bindlock takes the name; everything is ready to be interrupted now."""
        self.stranger = socket(AF_UNIX, SOCK_STREAM)
        self.stranger.bind(self.address)
        self.stranger.listen(4096)

    def leave(self) -> None:
        """The stranger goes."""
        if self.stranger is not None:
            self.stranger.close()
            self.stranger = None

    def check(self, label: object) -> None:
        """The lock says what the kernel says, and no descriptor is left open."""
        self.leave()
        held = self.lock.held
        with socket(AF_UNIX, SOCK_STREAM) as probe:
            try:
                probe.bind(self.address)
                bound = False
            except OSError:
                bound = True
        assert held == bound, f"{label}: held is {held}, but the name is {'bound' if bound else 'free'}"
        if held:
            self.lock.release()
        now = set(os.listdir("/proc/self/fd"))
        assert now <= self.descriptors, f"{label}: descriptors left open: {[link(n) for n in now - self.descriptors]}"


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """A stage; the collector of cycles is off, so that what only it would find counts as left open."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    stage = Stage(name)
    stage.descriptors = set(os.listdir("/proc/self/fd"))
    try:
        with warnings.catch_warnings():
            # A socket that was on its way into a variable is closed by its reference count, and says so.
            warnings.simplefilter("ignore", ResourceWarning)
            yield stage
    finally:
        stage.leave()
        if stage.lock.held:
            stage.lock.release()
        if collecting:
            gc.enable()


def link(descriptor: str) -> str:
    """What a descriptor leads to."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return descriptor


Case = Callable[[Stage, Interrupter], Callable[[], object]]


def _uncontended(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    return stage.lock.acquire


def _with(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    def block() -> None:
        with stage.lock:
            pass

    return block


def _release(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.lock.acquire()
    return stage.lock.release


def _refused(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.occupy()

    def refused() -> None:
        with suppress(bindlock.Held):
            stage.lock.acquire(timeout=0)

    return refused


def _try(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.occupy()
    return stage.lock.try_acquire


def _freed(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.occupy()
    signals.on_call = lambda name: stage.leave() if name == "hung_up" else None
    return stage.lock.acquire


def _freed_without_queue(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.stranger = socket(AF_UNIX, SOCK_STREAM)
    stage.stranger.bind(stage.address)  # and never listens
    signals.on_call = lambda name: stage.leave() if name == "_sleep" else None
    return stage.lock.acquire


def _wait(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.occupy()
    signals.on_call = lambda name: stage.leave() if name == "hung_up" else None
    return lambda: bindlock.wait(stage.lock.name)


def _holder(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.occupy()
    return lambda: bindlock.holder(stage.lock.name)


def _signal(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.occupy()
    holder = bindlock.holder(stage.lock.name)
    assert holder is not None
    return lambda: holder.signal(0)


def _look_at_own(stage: Stage, signals: Interrupter) -> Callable[[], object]:
    stage.lock.acquire()
    for _ in range(3):  # dead connections, for the look to drop
        with socket(AF_UNIX, SOCK_STREAM) as client:
            client.connect(stage.address)
    return lambda: bindlock.holder(stage.lock.name)


CASES: list[Case] = [
    _uncontended, _with, _release, _refused, _try, _freed, _freed_without_queue, _wait, _holder, _signal, _look_at_own,
]  # fmt: skip

#: Those of which nothing is held when they raise: it takes a second exception to leave a lock that says it is held.
ACQUIRING: list[Case] = [_uncontended, _refused, _try, _freed, _freed_without_queue]


@pytest.mark.parametrize("error", [Interrupted, TimeoutError])
@pytest.mark.parametrize("case", CASES)
def test_every_instant(name: str, case: Case, error: type[BaseException]) -> None:
    """An exception from a signal handler, at whatever instant, leaves a held lock that says so, or nothing."""
    with stage(name) as here, Interrupter(PACKAGE) as signals:
        signals.error = error
        interrupt(here, signals, case)  # loads what is loaded once only
        for instant in range(1, 100_000):
            interrupt(here, signals, case, instant)
            if not signals.raised:
                break
        assert instant > 3, "nothing was interrupted"


@pytest.mark.parametrize("case", CASES)
def test_every_instant_of_the_clean_up(name: str, long: bool, case: Case) -> None:
    """A second exception, at whatever instant after the first, leaves no more behind than the first."""
    seen = set()
    with stage(name) as here, Interrupter(PACKAGE) as signals:
        interrupt(here, signals, case)
        for instant in range(1, 100_000):
            interrupt(here, signals, case, instant)
            if not signals.raised:
                break
            if not long and signals.raised[0] in seen:
                continue  # the same instruction, in a later round of a loop
            seen.add(signals.raised[0])
            for later in range(1, 100_000):
                interrupt(here, signals, case, instant, later)
                if len(signals.raised) < 2:
                    break
        assert seen


def interrupt(here: Stage, signals: Interrupter, case: Case, *instants: int) -> None:
    """Run a case with exceptions at those instants, and check."""
    signals.on_call = lambda name: None
    function = case(here, signals)
    error = signals.run(function, *instants)
    places = [f"{code.co_qualname}+{at}" for code, at in signals.raised]
    if not signals.raised:
        assert error is None, f"nothing raised by the handler, but {error!r}"
    else:
        assert error is not None, f"swallowed at {places}"
        if case in ACQUIRING and len(signals.raised) == 1:
            assert not here.lock.held, f"acquire has raised at {places}, but the lock is held"
    del error, function
    here.check(places)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork and threads of the test runner, since Python 3.12
def test_every_instant_of_a_fork(name: str) -> None:
    """A signal that reaches a forked child before anything else does not make it keep the lock."""
    with stage(name) as here, Interrupter(PACKAGE) as signals:
        here.lock.acquire()
        for instant in range(1, 1000):
            pid = fork(signals, here.lock, instant)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert not status & KEPT, f"the child keeps the lock when interrupted at instant {instant}"
            if not status & INTERRUPTED:
                break
        assert instant > 3
        assert here.lock.held


KEPT, INTERRUPTED = 1, 2


def fork(signals: Interrupter, lock: bindlock.Lock, instant: int) -> int:
    """Fork a child that is interrupted at that instant of its at-fork hooks, and exits with what came of it."""
    own = os.fstat(lock.fileno()).st_ino
    pids: list[int] = []
    unraisable, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        signals.run(lambda: pids.append(os.fork()), instant)
        if not pids[0]:
            kept = any(link(number) == f"socket:[{own}]" for number in os.listdir("/proc/self/fd"))
            os._exit(KEPT * kept + INTERRUPTED * bool(signals.raised))
    finally:
        sys.unraisablehook = unraisable
    return pids[0]


class Timer:
    """Raises `Interrupted` at real, random times, while armed."""

    armed = False

    def __enter__(self) -> Timer:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            raise Interrupted

    def interrupt(self, function: Callable[[], object], first: float, interval: float) -> bool:
        """Whether the function was interrupted, and not once only when there is an interval."""
        interrupted = False
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, first, interval)
                function()
                self.armed = False
            except Interrupted:
                self.armed = False
                interrupted = True
            except bindlock.Held:
                self.armed = False
        except Interrupted:  # in the clauses above
            self.armed = False
            interrupted = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        return interrupted


@pytest.mark.parametrize("burst", [0.0, 30e-6], ids=["once", "burst"])
def test_random_instants(name: str, seed: int, long: bool, burst: float) -> None:
    """Real signals at random microseconds of acquire, release and contended acquire do no harm either."""
    random_ = random.Random(seed)
    rounds = 100_000 if long else 4_000
    interrupted = {"alone": 0, "release": 0, "contended": 0}
    with stage(name) as here, Timer() as timer:
        lock = here.lock
        for number in range(rounds):
            case = random_.choice(list(interrupted))
            if case == "release":
                lock.acquire()
            elif case == "contended":
                here.occupy()
            function = {"release": lock.release, "alone": lock.acquire, "contended": lambda: lock.acquire(TIMEOUT)}[
                case
            ]
            span = {"release": 20e-6, "alone": 60e-6, "contended": TIMEOUT * 1.6}[case]
            first = max(1e-6, span * random_.random())
            interrupted[case] += timer.interrupt(function, first, burst)
            here.check((number, case))
    print(interrupted)
    assert interrupted["alone"]
    assert interrupted["contended"]


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "slow timer"])
def test_a_handler_that_returns_prolongs_nothing(name: str, queued: bool) -> None:
    """A handler that returns does not end the wait (PEP 475), and does not prolong it."""
    calls = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: calls.append(number))
    try:
        with socket(AF_UNIX, SOCK_STREAM) as stranger:
            stranger.bind(parse(name).address)
            if queued:
                stranger.listen()
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            begun = time.monotonic()
            with pytest.raises(bindlock.Held):
                bindlock.Lock(name).acquire(timeout=0.5)
            waited = time.monotonic() - begun
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(calls) >= 5
    assert 0.5 <= waited < 1.0


def test_a_handler_that_releases_lets_the_waiter_in(name: str) -> None:
    """A wait without a time-out goes on after a handler, and ends when the handler has let the name go."""
    stranger = socket(AF_UNIX, SOCK_STREAM)
    stranger.bind(parse(name).address)
    stranger.listen()
    before = signal.signal(signal.SIGALRM, lambda number, frame: stranger.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with bindlock.Lock(name, timeout=10) as lock:
            assert lock.held
    finally:
        signal.signal(signal.SIGALRM, before)
        stranger.close()


WAITER = """
import sys, bindlock
lock = bindlock.Lock(sys.argv[1])
try:
    lock.acquire(waiting=lambda holder: print("waiting", flush=True))
except KeyboardInterrupt:
    print("interrupted", lock.held, flush=True)
    sys.stdin.readline()
"""


def test_keyboard_interrupt_ends_a_wait(cast: Cast, name: str) -> None:
    """Control-C ends a wait at once; the waiter, still running, holds nothing when the holder is gone."""
    holder = cast.holder(name)
    waiter = cast.python(WAITER, name)
    waiter.expect("waiting")
    waiter.signal(signal.SIGINT)
    waiter.expect("interrupted False")
    holder.kill()
    with bindlock.Lock(name, timeout=0):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_deadly_signals_free_the_name(cast: Cast, name: str, number: int) -> None:
    """A holder that dies of a signal leaves a free name."""
    holder = cast.holder(name)
    holder.signal(number)
    assert holder.wait() == -number
    with bindlock.Lock(name, timeout=0):
        pass


def test_exit_status_of_control_c(name: str) -> None:
    """Python's own handling of Control-C, in a with statement, prints one traceback and nothing of ours."""
    code = f"import bindlock, os, signal\nwith bindlock.Lock({name!r}): os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert "ResourceWarning" not in done.stderr
    with bindlock.Lock(name, timeout=0):
        pass
