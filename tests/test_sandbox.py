"""Sandboxes that forbid half of what bindlock uses: it locks all the same, and reports no refusal as "held"."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from socket import AF_NETLINK, AF_UNIX, SOCK_DGRAM, SOCK_STREAM, socket

import pytest

import bindlock
from bindlock.names import parse
from tests import confinement
from tests.actors import Cast, Child, bindable
from tests.conftest import needs_root

needs_landlock = pytest.mark.skipif(
    confinement.landlock_reason() is not None, reason=str(confinement.landlock_reason())
)
needs_seccomp = pytest.mark.skipif(confinement.seccomp_reason is not None, reason=str(confinement.seccomp_reason))


def no_netlink() -> None:
    """No sock_diag, as under RestrictAddressFamilies=AF_UNIX."""
    confinement.refuse_sockets(AF_NETLINK, errno.EAFNOSUPPORT)


def neither() -> None:
    """Landlock's scope, and no sock_diag either."""
    confinement.landlock_scope()
    no_netlink()


SANDBOXES = [
    pytest.param(confinement.landlock_scope, id="landlock", marks=needs_landlock),
    pytest.param(no_netlink, id="no netlink", marks=needs_seccomp),
    pytest.param(neither, id="landlock, no netlink", marks=[needs_landlock, needs_seccomp]),
]
each_sandbox = pytest.mark.parametrize("enter", SANDBOXES)


def confined(enter: object, body: object) -> Child:
    """A child that enters a sandbox and does something there."""
    assert callable(enter)
    assert callable(body)

    def both(child: Child) -> None:
        enter()
        body(child)

    return Child(both)


@needs_landlock
def test_the_sandbox_is_one(name: str) -> None:
    """Inside of Landlock's scope a connection to the outside is refused, and a bind sees that the name is taken."""
    with socket(AF_UNIX, SOCK_STREAM) as outside:
        outside.bind(parse(name).address)
        outside.listen(8)

        def body(child: Child) -> None:
            with socket(AF_UNIX, SOCK_STREAM) as inside:
                with pytest.raises(PermissionError):
                    inside.connect(parse(name).address)
                with pytest.raises(OSError, match="in use"):
                    inside.bind(parse(name).address)

        with confined(confinement.landlock_scope, body) as child:
            assert child.wait() == 0


@each_sandbox
def test_locking(name: str, enter: object) -> None:
    """In the sandbox a free name is had, and excludes those outside."""

    def body(child: Child) -> None:
        with bindlock.Lock(name, timeout=0) as lock:
            child.say(f"held {lock.held}")
            child.hear()

    with confined(enter, body) as child:
        child.expect("held True")
        assert not bindlock.Lock(name).try_acquire()
        holder = bindlock.holder(name)
        assert holder is not None
        assert holder.pid == child.pid
        child.say("go")
        assert child.wait() == 0
    assert bindable(name)


@each_sandbox
def test_a_name_held_outside_is_held(name: str, enter: object) -> None:
    """In the sandbox a name that is held outside is reported as held, not as a refusal, and nothing is held."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name)
        for timeout in (0, 0.05):
            with pytest.raises(bindlock.Held) as caught:
                lock.acquire(timeout)
            assert str(caught.value)
        assert not lock.try_acquire()
        assert not lock.held
        with pytest.raises(bindlock.Held):
            bindlock.wait(name, 0.02)
        child.say(str(len(os.listdir("/proc/self/fd"))))
        with pytest.raises(bindlock.Held):
            lock.acquire(0)
        child.say(str(len(os.listdir("/proc/self/fd"))))

    with bindlock.Lock(name), confined(enter, body) as child:
        before, after = child.hear(), child.hear()
        assert child.wait() == 0
        assert before == after


@each_sandbox
def test_waiting_for_a_name_held_outside(name: str, enter: object) -> None:
    """In the sandbox a waiter has the name after the release, by the queue or by the slow timer."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name)
        lock.acquire(30, waiting=lambda holder: child.say("waiting"))
        child.say(f"held {lock.held}")
        child.hear()

    lock = bindlock.Lock(name)
    lock.acquire()
    with confined(enter, body) as child:
        child.expect("waiting")
        lock.release()
        child.expect("held True")
        assert not lock.try_acquire()


@each_sandbox
def test_bindlock_wait(name: str, enter: object) -> None:
    """In the sandbox wait() returns after the release, and at once for a free name; it never takes the name."""

    def body(child: Child) -> None:
        bindlock.wait(name + "-free", 0)
        child.say("begins")
        bindlock.wait(name, 30)
        child.say("free")
        child.hear()

    lock = bindlock.Lock(name)
    lock.acquire()
    with confined(enter, body) as child:
        child.expect("begins")
        lock.release()
        child.expect("free")
        assert bindable(name)


@needs_landlock
def test_the_holder_inside_of_landlock(name: str) -> None:
    """Inside of Landlock's scope the holder outside is not connected to; its uid and socket are known by sock_diag."""

    def body(child: Child) -> None:
        holder = bindlock.holder(name)
        assert holder is not None
        assert holder.uid == os.geteuid()
        assert holder.inode
        assert holder.pid in (None, os.getppid())
        child.say(str(holder.inode))

    with bindlock.Lock(name) as lock, confined(confinement.landlock_scope, body) as child:
        child.expect(str(os.fstat(lock.fileno()).st_ino))
        assert child.wait() == 0


@needs_seccomp
def test_the_holder_without_netlink(name: str) -> None:
    """Without sock_diag the holder is known by a connection; the list of names cannot be had, and says why."""

    def body(child: Child) -> None:
        holder = bindlock.holder(name)
        assert holder is not None
        assert (holder.pid, holder.uid, holder.inode) == (os.getppid(), os.geteuid(), 0)
        with pytest.raises(bindlock.Held):
            holder.wait(0.02)
        assert bindlock.holder(name + "-free") is None
        with pytest.raises(bindlock.CannotLock) as caught:
            bindlock.locks()
        assert caught.value.exit_status == 69

    with bindlock.Lock(name), confined(no_netlink, body) as child:
        assert child.wait() == 0


@needs_landlock
@needs_seccomp
def test_nothing_to_look_with(name: str) -> None:
    """With neither connection nor sock_diag a held name has a holder of whom nothing is known; it is not "free"."""

    def body(child: Child) -> None:
        holder = bindlock.holder(name)
        assert holder is not None
        assert (holder.pid, holder.command) == (None, ())
        assert str(holder)

    with bindlock.Lock(name), confined(neither, body) as child:
        assert child.wait() == 0


@needs_seccomp
def test_bound_but_not_listening_without_netlink(name: str) -> None:
    """Without sock_diag, a name that is bound by somebody who does not listen is held as well, and waited for."""
    outside = socket(AF_UNIX, SOCK_STREAM)
    outside.bind(parse(name).address)

    def body(child: Child) -> None:
        outside.close()  # the child's copy of it
        lock = bindlock.Lock(name)
        assert not lock.try_acquire()
        child.say("refused")
        lock.acquire(30)
        child.say("held")
        child.hear()

    with outside, confined(no_netlink, body) as child:
        child.expect("refused")
        outside.close()
        child.expect("held")


@needs_seccomp
def test_datagram_names_without_netlink(name: str) -> None:
    """Without sock_diag a datagram name can be locked and refused, too: only bind decides."""
    text = f"datagram:@{name}"

    def body(child: Child) -> None:
        with bindlock.Lock(text, timeout=0), pytest.raises(bindlock.Held):
            bindlock.Lock(text).acquire(0)
        bindlock.wait(text, 0)
        child.say("free")
        child.hear()
        holder = bindlock.holder(text)
        assert holder is not None
        assert holder.pid is None
        with pytest.raises(bindlock.Held):
            bindlock.wait(text, 0.02)
        with pytest.raises(bindlock.Held):
            bindlock.Lock(text).acquire(0.05)

    with confined(no_netlink, body) as child:
        child.expect("free")
        with socket(AF_UNIX, SOCK_DGRAM) as outside:
            outside.bind(parse(text).address)
            child.say("go")
            assert child.wait() == 0


@needs_seccomp
@pytest.mark.parametrize(
    ("code", "status"), [(errno.EAFNOSUPPORT, 69), (errno.EPERM, 69), (errno.EACCES, 69), (errno.ENOMEM, 71)]
)
def test_no_unix_sockets_at_all(name: str, code: int, status: int) -> None:
    """Where socket(AF_UNIX) is refused, CannotLock says so, with the kernel's errno; it is neither held nor free."""

    def body(child: Child) -> None:
        confinement.refuse_sockets(AF_UNIX, code)
        before = os.listdir("/proc/self/fd")
        lock = bindlock.Lock(name)
        for timeout in (0, 5, None):
            with pytest.raises(bindlock.CannotLock) as caught:
                lock.acquire(timeout)
            assert (caught.value.errno, caught.value.exit_status) == (code, status)
            assert name in str(caught.value)
            assert errno.errorcode[code] in str(caught.value)
            assert not isinstance(caught.value, bindlock.Held)
        assert not lock.held
        assert os.listdir("/proc/self/fd") == before

    with Child(body) as child:
        assert child.wait() == 0


WITHOUT_PROC = """
import os, sys, bindlock
assert not os.path.exists("/proc/self")
name = sys.argv[1]
lock = bindlock.Lock(name)
assert not lock.try_acquire()
holder = bindlock.holder(name)
assert holder is not None and str(holder)
print("pid", holder.pid, "uid", holder.uid, "command", holder.command, flush=True)
lock.acquire(30, waiting=lambda holder: print("waiting", flush=True))
print("held", lock.held, flush=True)
sys.stdin.readline()
"""


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
@pytest.mark.parametrize("pid_namespace", [False, True], ids=["same PIDs", "other PIDs"])
def test_without_proc(cast: Cast, name: str, pid_namespace: bool) -> None:
    """Without /proc, names are had, refused and waited for; the holder has no command line, and perhaps no PID."""
    holder = cast.holder(name)
    script = 'mount -t tmpfs none /proc && exec "$@"'
    options = ["--mount", "--fork", "--kill-child"] + ["--pid"] * pid_namespace
    actor = cast.start(
        "unshare", *options, "sh", "-c", script, "sh", sys.executable, "-c", WITHOUT_PROC, name
    )  # fmt: skip
    actor.expect(f"pid {None if pid_namespace else holder.pid} uid {os.geteuid()} command ()")
    actor.expect("waiting")
    holder.kill()
    actor.expect("held True")
    actor.write()
    assert actor.wait() == 0
