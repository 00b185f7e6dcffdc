"""A lock does not change hands: the wrong descriptor, the wrong peer, no peer; who had it has it, and nothing leaks."""

from __future__ import annotations

import os
import select
import socket
import threading
from array import array
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import bindlock
import bindlock.lock.handover
from bindlock.names import parse
from tests.actors import DEADLINE, Child, bindable
from tests.conftest import needs_root
from tests.interrupts import raised_by
from tests.steps import limit_descriptors
from tests.test_handover import connected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.actors import Cast

NOBODY = 65534


@contextmanager
def at_the_other_end(function: Callable[[], object]) -> Iterator[list[BaseException | None]]:
    """A thread does that while the block runs; at its end, what it raised."""
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: outcome.append(raised_by(function)))
    thread.start()
    yield outcome
    thread.join(DEADLINE)
    assert outcome, "it does not end"


def test_the_other_side_is_never_there(name: str) -> None:
    """When nobody receives, or nobody sends, that is said when the time is over; the sender still has the lock."""
    with bindlock.Lock(name) as lock, connected("pair") as (end, other):
        with pytest.raises(bindlock.NotHandedOver, match="timed out"):
            lock.send(end, timeout=0.02)
        assert lock.held
        with pytest.raises(bindlock.NotHandedOver, match="timed out"):
            bindlock.Lock(name).receive(end, timeout=0.02)
        other.close()
        with pytest.raises(bindlock.NotHandedOver):
            lock.send(end)
        with pytest.raises(bindlock.NotHandedOver):
            bindlock.Lock(name).receive(end)
        assert lock.held


def test_the_wrong_way_round(name: str) -> None:
    """Who has no lock cannot send, who has one cannot receive or adopt."""
    with connected("pair") as (end, _):
        with pytest.raises(bindlock.NotHeld):
            bindlock.Lock(name).send(end)
        with pytest.raises(bindlock.NotHeld):
            bindlock.Lock(name).keep_for_exec()
        with bindlock.Lock(name) as lock:
            with pytest.raises(bindlock.AlreadyHeld):
                lock.receive(end)
            with pytest.raises(bindlock.AlreadyHeld):
                lock.adopt(lock.fileno())
            with pytest.raises(bindlock.InvalidArgument):
                lock.send(end, timeout=-1)


def listening(address: bytes, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket that listens at an address."""
    own = socket.socket(socket.AF_UNIX, kind)
    own.bind(address)
    own.listen()
    return own


WRONG: dict[str, Callable[[str], socket.socket]] = {
    "wrong address": lambda name: listening(parse(name + "-other").address),
    "padded address": lambda name: listening(parse(name).address.ljust(108, b"\0")),
    "sequential packets": lambda name: listening(parse(name).address, socket.SOCK_SEQPACKET),
    "not listening": lambda name: bound_only(name, socket.SOCK_STREAM),
    "datagrams": lambda name: bound_only(name, socket.SOCK_DGRAM),
    "not bound": lambda name: socket.socket(socket.AF_UNIX),
    "another family": lambda name: socket.create_server(("127.0.0.1", 0)),
}


def bound_only(name: str, kind: int) -> socket.socket:
    """A socket that has the address and does not listen."""
    own = socket.socket(socket.AF_UNIX, kind)
    own.bind(parse(name).address)
    return own


@pytest.mark.parametrize("door", ["number", "variable"])
@pytest.mark.parametrize("what", [*WRONG, "file", "closed"])
def test_what_cannot_be_adopted(monkeypatch: pytest.MonkeyPatch, name: str, what: str, door: str) -> None:
    """What is no listening socket of the name is refused, and left as it is."""
    with ExitStack() as stack:
        if what in WRONG:
            descriptor = stack.enter_context(WRONG[what](name)).fileno()
        else:
            descriptor = os.open("/dev/null", os.O_RDONLY)
            stack.callback(os.close, descriptor)
            if what == "closed":
                stack.pop_all()
                os.close(descriptor)
        inheritable = what != "closed"
        if inheritable:
            os.set_inheritable(descriptor, True)
        monkeypatch.setenv("BINDLOCK_FD", str(descriptor))
        lock = bindlock.Lock(name)
        with pytest.raises(bindlock.NotHeld, match="cannot be adopted"):
            lock.adopt(descriptor if door == "number" else None)
        assert not lock.held
        assert os.environ["BINDLOCK_FD"] == str(descriptor)
        assert not inheritable or os.get_inheritable(descriptor)


TOO_LONG = ["9" * digits for digits in (30, 5000)]


@pytest.mark.parametrize("value", ["", "x", "-1", "3.5", " 3", "\u0663", *TOO_LONG])
def test_a_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Whatever BINDLOCK_FD says, there is just nothing to be adopted."""
    monkeypatch.setenv("BINDLOCK_FD", value)
    with pytest.raises(bindlock.NotHeld, match="cannot be adopted"):
        bindlock.Lock(name).adopt()


@pytest.mark.parametrize("descriptor", [-1, -(2**40), 2**40])
def test_a_number_that_is_no_descriptor(name: str, descriptor: int) -> None:
    """A number that no descriptor has is refused as one that is closed."""
    with pytest.raises(bindlock.NotHeld):
        bindlock.Lock(name).adopt(descriptor)


def test_one_descriptor_is_adopted_once(name: str) -> None:
    """Two locks of one process never have the same socket, by whatever door it comes."""
    with bindlock.Lock(name) as lock:
        other = bindlock.Lock(name)
        refusal = raised_by(lambda: other.adopt(lock.fileno()))
        other.detach()
        assert isinstance(refusal, bindlock.BindlockError)
        assert lock.held


#: Makes itself what systemd would pass it, and has two locks want it.
LISTEN_FDS = """
import os, socket, sys, bindlock, bindlock.names
name = sys.argv[1]
first = socket.socket(socket.AF_UNIX)
first.bind(bindlock.names.parse(name).address)
first.listen()
number = first.detach()
if number != 3:
    os.dup2(number, 3)
    os.close(number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
lock, other = bindlock.Lock(name), bindlock.Lock(name)
lock.adopt()
def say(what):
    try:
        what()
        print(lock.held, other.held, flush=True)
    except bindlock.BindlockError as error:
        print(type(error).__name__, lock.held, other.held, flush=True)
say(other.adopt)
lock.release()
say(other.adopt)
"""


def test_what_systemd_passed_is_adopted_once(cast: Cast, name: str) -> None:
    """A second lock cannot adopt what the first has been passed; nor when that has been released."""
    actor = cast.python(LISTEN_FDS, name)
    assert actor.read() in ("NotHeld True False", "AlreadyHeld True False")
    actor.expect("NotHeld False False")


def rights(*descriptors: int) -> list[tuple[int, int, array[int]]]:
    """The ancillary data that sends these."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []


@pytest.mark.parametrize("kind", ["pair", "sequential pair"])
@pytest.mark.parametrize("what", [*WRONG, "file", "two", "many", "none", "garbage", "hang-up", "the right one"])
def test_what_cannot_be_received(name: str, what: str, kind: str) -> None:
    """Whatever else is sent is refused and closed; nothing is held, and no descriptor left."""
    with connected(kind) as (end, other), ExitStack() as stack:
        lock = bindlock.Lock(name)
        read, write = os.pipe()
        stack.callback(os.close, read)
        descriptors = {"two": [write] * 2, "many": [write] * 20, "file": [write], "garbage": [write]}.get(what, [])
        if what in WRONG:
            descriptors = [stack.enter_context(WRONG[what](name)).fileno()]
        if what == "the right one":  # and then the sender dies
            descriptors = [stack.enter_context(listening(parse(name).address)).fileno()]
        if what != "hang-up":
            end.sendmsg([b"\xff" if what == "garbage" else b"t"], rights(*descriptors))
        os.close(write)
        with at_the_other_end(lambda: lock.receive(other)) as outcome:
            end.close()
        assert isinstance(outcome[0], bindlock.NotHandedOver)
        assert not lock.held
        assert select.select([read], [], [], DEADLINE)[0], "what was sent is still open"
    assert bindable(name)


@pytest.mark.parametrize("what", ["garbage", "hang-up", "hang-up before"])
def test_what_makes_a_sender_keep_it(name: str, what: str) -> None:
    """Whatever the other side does but take it properly, the sender still has the lock, and alone."""
    with connected("pair") as (end, other), bindlock.Lock(name) as lock:
        if what == "hang-up before":
            other.close()
        with at_the_other_end(lambda: lock.send(end)) as outcome:
            if what == "garbage":
                other.send(b"\xff")
            elif what == "hang-up":
                other.close()
        assert isinstance(outcome[0], bindlock.NotHandedOver)
        assert lock.held


def test_a_receiver_without_room_for_a_descriptor(name: str) -> None:
    """A receiver that may open no more descriptors says so, and the sender keeps the lock."""

    def body(child: Child) -> None:
        end.close()
        lock = bindlock.Lock(name)
        limit_descriptors(0)
        try:
            lock.receive(other)
        except bindlock.BindlockError as error:
            other.close()
            child.say(type(error).__name__)

    with connected("pair") as (end, other), bindlock.Lock(name) as lock:
        with Child(body) as child:
            other.close()
            with pytest.raises(bindlock.NotHandedOver):
                lock.send(end)
            child.expect("NotHandedOver")
        assert lock.held


@needs_root
@pytest.mark.parametrize("side", ["send", "receive"])
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_another_user_at_the_other_end(name: str, kind: str, side: str) -> None:
    """Neither is a lock sent to another user, nor taken from one."""

    def body(child: Child) -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(listener.getsockname())
            child.hear()

    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        path = f"/tmp/bindlock-test-{os.getpid()}-stranger"
        listener.bind(path if kind == "path" else "")
        if kind == "path":
            stack.callback(os.unlink, path)
            os.chmod(path, 0o666)
        listener.listen()
        lock = bindlock.Lock(name)
        with Child(body) as child, listener.accept()[0] as end:
            if side == "send":
                lock.acquire()
            with pytest.raises(bindlock.NotHandedOver, match=f"stranger, uid {NOBODY}"):
                lock.send(end) if side == "send" else lock.receive(end)
            assert lock.held == (side == "send")
            if lock.held:
                lock.release()
            child.say("end")


@pytest.mark.parametrize("what", ["closed", "not connected", "another family"])
def test_what_is_no_connection(name: str, what: str) -> None:
    """What is no connected Unix socket can be sent and received through just as little."""
    with ExitStack() as stack:
        family = socket.AF_INET if what == "another family" else socket.AF_UNIX
        end = stack.enter_context(socket.socket(family))
        if what == "closed":
            end.close()
        with pytest.raises(bindlock.NotHandedOver):
            bindlock.Lock(name).receive(end, timeout=0)
        with bindlock.Lock(name) as lock:
            with pytest.raises(bindlock.NotHandedOver):
                lock.send(end, timeout=0)
            assert lock.held
