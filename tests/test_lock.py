"""The lock object: exclusion, time-outs, misuse, what it says of itself."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from socket import AF_UNIX, SOCK_STREAM, socket

import pytest

import bindlock
from bindlock.names import parse
from tests.actors import Cast, Child, bindable, until
from tests.conftest import needs_root


def test_another_process_is_excluded_and_named(cast: Cast, name: str) -> None:
    """A refused acquire says who is in the way."""
    actor = cast.holder(name)
    lock = bindlock.Lock(name)
    assert not lock.try_acquire()
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == actor.pid
    with pytest.raises(bindlock.Held) as caught:
        lock.acquire(timeout=0)
    assert caught.value.name == name
    assert caught.value.holder == holder
    assert f"pid {actor.pid}" in str(caught.value)
    assert isinstance(caught.value, TimeoutError)
    assert not lock.held


def test_free_after_sigkill(cast: Cast, name: str) -> None:
    """When waitpid has reported the death, the name is free."""
    cast.holder(name).kill()
    with bindlock.Lock(name, timeout=0) as lock:
        assert lock.held


def test_held_and_released(name: str) -> None:
    """A lock is held from acquire to release, says so, and the kernel says the same."""
    lock = bindlock.Lock(name)
    assert (lock.held, lock.fileno()) == (False, -1)
    lock.acquire()
    assert lock.held
    assert lock.fileno() >= 0
    assert not bindable(name)
    lock.release()
    assert (lock.held, lock.fileno()) == (False, -1)
    assert bindable(name)


def test_used_again_and_again(name: str) -> None:
    """One object can be acquired and released any number of times."""
    lock = bindlock.Lock(name)
    for _ in range(1000):
        assert lock.try_acquire()
        lock.release()
    for _ in range(1000):
        with lock:
            pass


def test_released_in_the_block(name: str) -> None:
    """A lock that was released inside of its with statement is no error at the end of it."""
    with bindlock.Lock(name) as lock:
        lock.release()
    assert bindable(name)


def test_released_when_the_block_raises(name: str) -> None:
    """An exception in the block releases the lock and goes on."""
    with pytest.raises(ZeroDivisionError), bindlock.Lock(name):
        raise ZeroDivisionError
    assert bindable(name)


def test_release_of_what_is_not_held(name: str) -> None:
    """release() without acquire, and a second release(), raise NotHeld."""
    lock = bindlock.Lock(name)
    with pytest.raises(bindlock.NotHeld, match=name):
        lock.release()
    lock.acquire()
    lock.release()
    with pytest.raises(bindlock.NotHeld):
        lock.release()


def test_a_closed_descriptor_is_a_lost_lock(name: str) -> None:
    """When other code has closed the descriptor, `held` is False and release() raises Lost, once."""
    lock = bindlock.Lock(name)
    lock.acquire()
    os.close(lock.fileno())
    assert not lock.held
    assert bindable(name)
    with pytest.raises(bindlock.Lost, match=name):
        lock.release()
    with pytest.raises(bindlock.NotHeld):
        lock.release()
    with lock:
        assert lock.held


def test_a_descriptor_used_again_is_no_lock(name: str) -> None:
    """When the descriptor was closed and its number leads elsewhere, `held` is False; even where it is a socket."""
    lock = bindlock.Lock(name)
    lock.acquire()
    number = lock.fileno()
    os.close(number)
    with socket(AF_UNIX, SOCK_STREAM) as other:
        assert other.fileno() == number
        other.bind(parse(name + "-other").address)
        assert not lock.held
    with pytest.raises(bindlock.Lost):
        lock.release()


@pytest.mark.parametrize("timeout", [0, 0.0, 1e-9, 0.03, 0.25])
def test_the_timeout_is_kept(cast: Cast, name: str, timeout: float) -> None:
    """An acquire that is refused has waited for its time-out, and hardly longer."""
    cast.holder(name)
    for lock, argument in ((bindlock.Lock(name), (timeout,)), (bindlock.Lock(name, timeout=timeout), ())):
        begun = time.monotonic()
        with pytest.raises(bindlock.Held):
            lock.acquire(*argument)
        assert timeout <= time.monotonic() - begun < timeout + 1


def test_an_acquires_own_timeout_comes_first(cast: Cast, name: str) -> None:
    """A time-out given to acquire() replaces the constructor's, None included."""
    holder = cast.holder(name)
    lock = bindlock.Lock(name, timeout=600)
    with pytest.raises(bindlock.Held):
        lock.acquire(0)
    assert lock.timeout == 600
    patient = bindlock.Lock(name, timeout=0)
    patient.acquire(None, waiting=lambda seen: holder.write())
    patient.release()


def test_waiting_is_told_who_is_in_the_way(cast: Cast, name: str) -> None:
    """`waiting` is called once with the holder, before the wait; not at all when there is nobody to wait for."""
    seen: list[bindlock.Holder] = []
    lock = bindlock.Lock(name)
    lock.acquire(waiting=seen.append)
    lock.release()
    assert not seen
    actor = cast.holder(name)
    with pytest.raises(bindlock.Held):
        lock.acquire(0, waiting=seen.append)
    assert not seen
    with pytest.raises(bindlock.Held):
        lock.acquire(0.05, waiting=seen.append)
    assert [holder.pid for holder in seen] == [actor.pid]


def test_an_exception_of_waiting_ends_the_wait(cast: Cast, name: str) -> None:
    """What `waiting` raises comes out of acquire, and nothing is held."""
    cast.holder(name)
    lock = bindlock.Lock(name)
    with pytest.raises(ZeroDivisionError):
        lock.acquire(waiting=lambda holder: 1 // 0)
    assert not lock.held


def test_an_endless_timeout(cast: Cast, name: str) -> None:
    """An infinite time-out waits as None does."""
    holder = cast.holder(name)
    lock = bindlock.Lock(name)
    lock.acquire(float("inf"), waiting=lambda seen: holder.write())
    lock.release()
    holder = cast.holder(name)
    lock.acquire(1e18, waiting=lambda seen: holder.write())
    lock.release()


def test_the_next_in_the_queue_has_it(cast: Cast, name: str) -> None:
    """Whoever waits has the lock when the holder releases it, and each of many waiters in the end."""
    code = (
        "import sys, bindlock\nwith bindlock.Lock(sys.argv[1], timeout=60):\n    print('held', flush=True)\n"
        "    sys.stdin.readline()"
    )
    first = cast.holder(name)
    actors = [cast.python(code, name) for _ in range(5)]
    until(lambda: (holder := bindlock.holder(name)) is not None and holder.waiters == 5)
    first.write()
    for actor in actors:
        actor.write()
    for actor in actors:
        actor.expect("held")
        assert actor.wait() == 0


def test_a_dropped_lock_says_so_and_is_free(name: str) -> None:
    """A held Lock that is dropped gives a ResourceWarning, and the name is free."""
    locks = [bindlock.Lock(name)]
    locks[0].acquire()
    with pytest.warns(ResourceWarning, match=f"{name}.*dropped without being released"):
        locks.clear()
    assert bindable(name)


def test_a_dropped_lock_is_free_though_warnings_are_errors(name: str) -> None:
    """The name is free, too, where the warning is made an exception."""
    code = (
        "import bindlock, sys\n"
        "def f():\n    lock = bindlock.Lock(sys.argv[1])\n    lock.acquire()\n"
        "f()\nwith bindlock.Lock(sys.argv[1], timeout=0): print('free')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, name], capture_output=True, text=True, check=False
    )
    assert done.stdout == "free\n"
    assert "ResourceWarning" in done.stderr


def test_a_dropped_lock_closes_no_descriptor_of_others(name: str) -> None:
    """Where other code has closed the descriptor and has another file by its number, dropping the lock leaves it."""
    lock = bindlock.Lock(name)
    lock.acquire()
    number = lock.fileno()
    os.close(number)
    read, write = os.pipe()
    assert number in (read, write)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del lock
        gc.collect()
    os.write(write, b"x")
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)


def test_an_unheld_lock_is_dropped_in_silence(name: str) -> None:
    """A Lock that is not held, or could not even be made, is dropped without a word."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bindlock.Lock(name)
        with pytest.raises(bindlock.InvalidArgument):
            bindlock.Lock("")
        gc.collect()
    assert not caught


@pytest.mark.parametrize("text", ["{}", "@{}", "padded:@{}", "datagram:@{}"])
@pytest.mark.parametrize("scope", ["user", "host"])
def test_copies_hold_nothing(name: str, text: str, scope: str) -> None:
    """A copied or pickled Lock is another object that wants the same name, with the same options, and holds nothing."""
    lock = bindlock.Lock(text.format(name[-20:]), scope=scope, timeout=3, children="share")
    with lock:
        for other in (copy.copy(lock), copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            assert (other.name, other.timeout, other.held) == (lock.name, 3, False)
            assert repr(other) == repr(lock).replace(" held>", " not held>")
            assert not other.try_acquire()
    with other:
        assert not lock.try_acquire()


def test_repr(name: str) -> None:
    """The representation says name, scope and state, in printable characters."""
    lock = bindlock.Lock(name, scope="host")
    assert repr(lock) == f"<bindlock.Lock {name!r} scope=host not held>"
    with lock:
        assert repr(lock) == f"<bindlock.Lock {name!r} scope=host held>"
    assert repr(bindlock.Lock("\u202e")).isprintable()


def test_few_attributes(name: str) -> None:
    """A Lock takes no attribute by mistake."""
    lock = bindlock.Lock(name)
    with pytest.raises(AttributeError):
        lock.timout = 3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        lock.held = True  # type: ignore[misc]


def test_bound_before_listening(cast: Cast, name: str) -> None:
    """A name that is bound by somebody who does not listen is held; the wait ends when it is let go."""
    code = (
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind(bytes.fromhex(sys.argv[1]))\n"
        "print('bound', flush=True)\nsys.stdin.readline()"
    )
    actor = cast.python(code, parse(name).address.hex())
    actor.expect("bound")
    lock = bindlock.Lock(name)
    assert not lock.try_acquire()
    lock.acquire(30, waiting=lambda holder: actor.write())
    assert lock.held
    lock.release()


@needs_root
@pytest.mark.parametrize("listens", [True, False])
def test_a_stranger_is_not_trusted(name: str, listens: bool) -> None:
    """A name of scope user in the hands of another user raises Untrusted, at once, waiting or not; never Held."""

    def body(child: Child) -> None:
        address = parse(name).address
        os.setresuid(65534, 65534, 65534)
        with socket(AF_UNIX, SOCK_STREAM) as stranger:
            stranger.bind(address)
            if listens:
                stranger.listen(8)
            child.say("bound")
            child.hear()

    with Child(body) as child:
        child.expect("bound")
        lock = bindlock.Lock(name)
        for timeout in (0, 30, None):
            with pytest.raises(bindlock.Untrusted) as caught:
                lock.acquire(timeout)
            assert (caught.value.uid, caught.value.exit_status, caught.value.name) == (65534, 77, name)
            assert not isinstance(caught.value, TimeoutError)
        with pytest.raises(bindlock.Untrusted):
            lock.try_acquire()
        assert not lock.held


@needs_root
def test_root_is_trusted(cast: Cast, name: str) -> None:
    """A name of a user's scope that root holds is held, not untrusted."""
    lock_of_nobody = parse(name).address.replace(b"bindlock/0/", b"bindlock/65534/")
    with socket(AF_UNIX, SOCK_STREAM) as root:
        root.bind(lock_of_nobody)
        root.listen(8)

        def body(child: Child) -> None:
            bindlock.holder(name)
            with pytest.raises(bindlock.Held), bindlock.Lock(name + "-2", scope="host"):
                bindlock.Lock(name + "-2", scope="host").acquire(0)  # loads what the user might not be let at later
            os.setresuid(65534, 65534, 65534)
            assert not bindlock.Lock(name).try_acquire()

        with Child(body) as child:
            assert child.wait() == 0


def test_a_lost_lock_cannot_be_acquired_unnoticed(name: str) -> None:
    """Acquiring through an object that has lost its lock says Lost, once, and does not wait for a name that is free."""
    for timeout in (None, 0, 5):
        lock = bindlock.Lock(name)
        lock.acquire()
        os.close(lock.fileno())
        with pytest.raises(bindlock.Lost, match=name):
            lock.acquire(timeout)
        with lock:
            assert lock.held


def test_a_lost_lock_does_not_take_the_next_one_for_itself(name: str) -> None:
    """A lock got anew under the descriptor of one that was lost is not released by, nor ascribed to, the lost one."""
    lost, new = bindlock.Lock(name), bindlock.Lock(name)
    lost.acquire()
    os.close(lost.fileno())
    with new:
        assert (lost.held, new.held) == (False, True)
        del lost
        assert new.held
        assert not bindable(name)


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGUSR1])
def test_what_a_signal_handler_raises_arrives(cast: Cast, name: str, number: signal.Signals) -> None:
    """An OSError without an errno, such as TimeoutError, is a signal handler's, and no answer of the kernel's."""

    def handler(*_: object) -> None:
        raise TimeoutError("time is up")

    cast.holder(name)
    before = signal.signal(number, handler)
    try:
        with pytest.raises(TimeoutError, match="time is up") as caught:
            bindlock.Lock(name).acquire(waiting=lambda holder: signal.raise_signal(number))
        assert not isinstance(caught.value, bindlock.BindlockError)
    finally:
        signal.signal(number, before)


def test_an_os_error_of_waiting_arrives(cast: Cast, name: str) -> None:
    """What `waiting` raises is the caller's own, an OSError, too."""

    def waiting(holder: bindlock.Holder) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody listens")

    cast.holder(name)
    with pytest.raises(BrokenPipeError, match="nobody listens"):
        bindlock.Lock(name).acquire(waiting=waiting)


def test_a_very_long_timeout(cast: Cast, name: str) -> None:
    """A time-out beyond what poll(2) can count is as good as any."""
    actor = cast.holder(name)
    lock = bindlock.Lock(name)
    lock.acquire(1e300, waiting=lambda holder: actor.process.kill())
    lock.release()
    actor.wait()
