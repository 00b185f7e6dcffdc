"""Bad names, options and circumstances: each a clear error, and nothing held or left open afterwards."""

from __future__ import annotations

import errno
import math
import os
import pickle
import resource
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bindlock
import bindlock.lock.block
import bindlock.lock.instance
import bindlock.lock.listing
from tests.actors import Cast, Child, bindable
from tests.conftest import descriptors

BAD_NAMES = ["", "a\0b", "\n", "\x1b]0;x\x07", "\ud800", "\udcff", "x/", "@", "@" + "x" * 10_000, "@x/", "datagram:@"]


@pytest.mark.parametrize(
    "call",
    [bindlock.Lock, bindlock.holder, bindlock.wait, bindlock.single_instance],
    ids=["Lock", "holder", "wait", "single_instance"],
)
def test_bad_names(call: Callable[[str], object]) -> None:
    """A name that cannot be one is InvalidArgument, a ValueError, in one printable line of reasonable length."""
    for text in BAD_NAMES:
        with pytest.raises(bindlock.InvalidArgument) as caught:
            call(text)
        assert isinstance(caught.value, ValueError)
        assert str(caught.value).isprintable()
        assert "is no name" in str(caught.value)
        assert len(str(caught.value)) < 250


def test_ten_thousand_characters() -> None:
    """A name of 10 000 characters is a name."""
    with bindlock.Lock("x" * 10_000 + str(os.getpid()), timeout=5) as lock:
        assert lock.held
        assert not bindlock.Lock(lock.name).try_acquire()


BAD_TIMES = [-1, -1e-9, -math.inf, math.nan]


@pytest.mark.parametrize("timeout", BAD_TIMES)
def test_bad_timeouts(name: str, timeout: float) -> None:
    """A negative time-out, and NaN, are InvalidArgument wherever they are given, needed or not."""
    lock = bindlock.Lock(name)
    for call in (
        lambda: bindlock.Lock(name, timeout=timeout),
        lambda: lock.acquire(timeout),
        lambda: lock.acquire(timeout=timeout),
        lambda: bindlock.wait(name, timeout),
    ):
        with pytest.raises(bindlock.InvalidArgument, match="time-out"):
            call()
    assert not lock.held
    assert bindable(name)


def test_minus_one_is_no_secret_word(name: str) -> None:
    """No number means "as the constructor said": -1 and -1.0 are refused as any negative time-out is."""
    lock = bindlock.Lock(name, timeout=0)
    for timeout in (-1, -1.0, float("-1"), 0.0 - 1.0):
        with pytest.raises(bindlock.InvalidArgument):
            lock.acquire(timeout)


@pytest.mark.parametrize("scope", ["", "User", "global", "verbatim", "host ", "\x1b[31m"])
def test_bad_scopes(name: str, scope: str) -> None:
    """An unknown scope is InvalidArgument, in printable characters."""
    for call in (bindlock.Lock, bindlock.holder, bindlock.wait, bindlock.single_instance):
        with pytest.raises(bindlock.InvalidArgument, match="scope") as caught:
            call(name, scope=scope)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("children", ["", "keep", None, True, 1])
def test_bad_children(name: str, children: Any) -> None:
    """Anything but drop and share is InvalidArgument."""
    with pytest.raises(bindlock.InvalidArgument, match="children"):
        bindlock.Lock(name, children=children)


WRONG_TYPES: list[Callable[[], object]] = [
    lambda: bindlock.Lock(None),  # type: ignore[arg-type]
    lambda: bindlock.Lock(5),  # type: ignore[arg-type]
    lambda: bindlock.Lock(b"bytes"),  # type: ignore[arg-type]
    lambda: bindlock.Lock(["x"]),  # type: ignore[arg-type]
    lambda: bindlock.Lock("x", timeout="5"),  # type: ignore[arg-type]
    lambda: bindlock.Lock("x", timeout=[]),  # type: ignore[arg-type]
    lambda: bindlock.Lock("x", timeout=1j),  # type: ignore[arg-type]
    lambda: bindlock.Lock("x").acquire("5"),  # type: ignore[arg-type]
    lambda: bindlock.Lock("x", 5),  # type: ignore[call-arg, arg-type]
    lambda: bindlock.Lock(),  # type: ignore[call-arg]
    lambda: bindlock.Lock("x", sope="host"),  # type: ignore[call-arg]
    lambda: bindlock.holder(5),  # type: ignore[arg-type]
    lambda: bindlock.holder(b"x"),  # type: ignore[arg-type]
    lambda: bindlock.wait(None),  # type: ignore[arg-type]
    lambda: bindlock.wait("x", "5"),  # type: ignore[arg-type]
    lambda: bindlock.locks(True),  # type: ignore[call-arg]
    lambda: bindlock.single_instance(None),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("call", WRONG_TYPES, ids=range(len(WRONG_TYPES)))
def test_wrong_types(call: Callable[[], object]) -> None:
    """An argument of a wrong type is a TypeError, at once, and says what is wrong."""
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value)


def without_descriptors(spare: int) -> None:
    """Leave room for so many descriptors more."""
    used = max(int(number) for number in descriptors()) + 1
    holes = [os.open("/dev/null", os.O_RDONLY)]
    while holes[-1] < used:
        holes.append(os.open("/dev/null", os.O_RDONLY))
    os.close(holes[-1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + spare, holes[-1] + spare))


def test_no_descriptor_left(cast: Cast, name: str) -> None:
    """Without a descriptor to be had: CannotLock with EMFILE, status 71 and advice, for a free name and a held one."""
    cast.holder(name)

    def body(child: Child) -> None:
        lock, other = bindlock.Lock(name), bindlock.Lock(name + "-free")
        with pytest.raises(bindlock.Held):
            lock.acquire(0)  # loads all there is to load: that takes descriptors, too
        without_descriptors(0)
        for call in (lock.acquire, other.acquire, lock.try_acquire, lambda: bindlock.holder(name), bindlock.locks,
                     lambda: bindlock.wait(name, 1)):  # fmt: skip
            with pytest.raises(bindlock.CannotLock) as caught:
                call()
            assert caught.value.errno == errno.EMFILE
            assert caught.value.exit_status == 71
            assert "ulimit -n" in str(caught.value)
        assert not lock.held
        assert not other.held

    with Child(body) as child:
        assert child.wait() == 0
    assert bindable(name + "-free")


@pytest.mark.parametrize("spare", range(1, 6))
def test_few_descriptors_left(cast: Cast, name: str, spare: int) -> None:
    """With a few descriptors left a refused try is Held or CannotLock, never anything else, and leaves them all."""
    cast.holder(name)

    def body(child: Child) -> None:
        lock = bindlock.Lock(name)
        with pytest.raises(bindlock.Held):
            lock.acquire(0.01)
        without_descriptors(spare)
        for _ in range(20):
            for timeout in (0, 0.001):
                with pytest.raises((bindlock.Held, bindlock.CannotLock)):
                    lock.acquire(timeout)
        assert not lock.held
        kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(spare)]
        assert len(kept) == spare

    with Child(body) as child:
        assert child.wait() == 0


ERRORS = [
    bindlock.InvalidArgument("x is no name"),
    bindlock.Held("some name"),
    bindlock.Untrusted("some name", 1234),
    bindlock.CannotLock("some name", errno.EMFILE, "binding its name"),
    bindlock.CannotLock("some name", errno.EAFNOSUPPORT, "binding its name"),
    bindlock.CannotLock("some name", 0, "binding its name"),
    bindlock.AlreadyHeld("some name is already held"),
    bindlock.NotHeld("some name is not held"),
    bindlock.Lost("some name was lost"),
    bindlock.CannotSignal("cannot signal some name", errno.ESRCH),
]


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
def test_errors_can_be_pickled(error: bindlock.BindlockError) -> None:
    """Every error survives a process pool, with its message, attributes and status."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert again.exit_status == error.exit_status
        for attribute in ("name", "errno", "uid", "holder", "action"):
            assert getattr(again, attribute, None) == getattr(error, attribute, None)


def test_errors_with_a_holder_can_be_pickled(name: str) -> None:
    """A Held and an Untrusted that name a holder take it with them."""
    with bindlock.Lock(name):
        holder = bindlock.holder(name)
    for error in (bindlock.Held(name, holder), bindlock.Untrusted(name, 5, holder)):
        again = pickle.loads(pickle.dumps(error))
        assert again.holder == holder
        assert again.name == name


STATUSES: dict[type[bindlock.BindlockError], int] = {
    bindlock.InvalidArgument: 64, bindlock.Held: 75, bindlock.Untrusted: 77, bindlock.AlreadyHeld: 70,
    bindlock.NotHeld: 70, bindlock.Lost: 70, bindlock.CannotSignal: 71,
}  # fmt: skip


def test_the_family() -> None:
    """All errors are BindlockErrors, and what a caller who knows no bindlock would catch; statuses as documented."""
    family = [
        value for value in vars(bindlock.errors).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert all(issubclass(member, bindlock.BindlockError) for member in family)
    assert {member.__name__ for member in family} <= set(bindlock.__all__)
    assert {member: member.exit_status for member in STATUSES} == STATUSES
    for member, base in (
        (bindlock.InvalidArgument, ValueError), (bindlock.Held, TimeoutError), (bindlock.CannotLock, OSError),
        (bindlock.AlreadyHeld, RuntimeError), (bindlock.NotHeld, RuntimeError), (bindlock.Lost, RuntimeError),
    ):  # fmt: skip
        assert issubclass(member, base)
    assert not issubclass(bindlock.Untrusted, (TimeoutError, bindlock.Held))
    assert not issubclass(bindlock.CannotLock, bindlock.Held)


def test_statuses_of_cannot_lock() -> None:
    """69 for what a policy or the kernel's build forbids, 71 for any other trouble; the message has name and errno."""
    forbidden = {errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EPROTONOSUPPORT}
    for code, symbol in errno.errorcode.items():
        error = bindlock.CannotLock("some name", code, "binding its name")
        assert error.exit_status == (69 if code in forbidden else 71)
        assert error.errno == code
        assert "some name" in str(error)
        assert symbol in str(error)


def test_messages_name_the_lock(cast: Cast, name: str) -> None:
    """Every error that a lock raises says which lock it is."""
    lock = bindlock.Lock(name)
    with pytest.raises(bindlock.NotHeld, match=name):
        lock.release()
    with lock, pytest.raises(bindlock.AlreadyHeld, match=name):
        lock.acquire()
    cast.holder(name)
    with pytest.raises(bindlock.Held, match=name):
        lock.acquire(0)
    with pytest.raises(bindlock.Held, match=name):
        bindlock.wait(name, 0)


@pytest.mark.parametrize("text", ["\u202egnp", "\u2066x", "a\u200bb", "\U000e0001"])
def test_messages_are_printable(text: str) -> None:
    """Names with invisible or direction-changing characters are names, and are escaped in every message."""
    lock = bindlock.Lock(text + str(os.getpid()))
    errors: list[BaseException] = []
    for call in (lock.release, lambda: bindlock.Lock(lock.name).acquire(0), lock.acquire):
        with lock if call != lock.release else _nothing(), pytest.raises(bindlock.BindlockError) as caught:
            call()
        errors.append(caught.value)
    errors.append(bindlock.Untrusted(text, 7))
    errors.append(bindlock.CannotLock(text, 1, "binding its name"))
    for error in errors:
        assert str(error).isprintable()
        assert text[0] not in str(error) or text[0] == "a"


class _nothing:  # noqa: N801
    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.floats(), st.text(max_size=5), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.just("drop"), st.just("host"), st.just(""),
)  # fmt: skip


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(st.text(max_size=150), anything),
    scope=st.one_of(st.sampled_from(["user", "host"]), anything),
    timeout=st.one_of(st.sampled_from([0, 0.001]), anything),
    children=st.one_of(st.sampled_from(["drop", "share"]), anything),
)
def test_any_arguments(text: Any, scope: Any, timeout: Any, children: Any) -> None:
    """Whatever is given, there is a lock, or InvalidArgument, or TypeError; and no descriptor is left in any case."""
    before = descriptors()
    try:
        lock = bindlock.Lock(text, scope=scope, timeout=timeout, children=children)
    except (bindlock.InvalidArgument, TypeError):
        pass
    else:
        assert lock.try_acquire() in (True, False)
        if lock.held:
            lock.release()
        repr(lock)
    assert descriptors() == before
