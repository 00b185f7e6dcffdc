"""Who shares a name: all of one network namespace, whatever else sets them apart; and who is to be trusted with it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

import bindlock
from tests.actors import DEADLINE, Child, bindable, until
from tests.conftest import needs_root
from tests.test_when_free import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    LIBC,
    die_with_parent,
    hold,
    idle,
    in_call,
    need,
    process,
    take,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Body = Callable[[Child], object]

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000
#: A user who is not us, and not root: nobody.
STRANGER = 65534

pytestmark = needs_root


# Network.


@pytest.mark.parametrize("spelling", ["{}", "@{}", "datagram:@{}"])
def test_each_network_namespace_has_names_of_its_own(name: str, spelling: str) -> None:
    """Two processes in two network namespaces hold the same name at the same time."""
    name = spelling.format(name)

    def body(child: Child) -> None:
        unshare(CLONE_NEWNET)
        assert bindlock.holder(name) is None
        hold(child, name)
        child.hear()
        assert bindlock.holder(name).pid == os.getpid()  # type: ignore[union-attr]
        child.say("still held")

    with bindlock.Lock(name, timeout=0) as lock, Child(body) as child:
        child.expect("held")
        assert lock.held
        child.say("")
        child.expect("still held")
        assert bindlock.holder(name).pid == os.getpid()  # type: ignore[union-attr]


def test_a_lock_stays_in_the_namespace_it_was_made_in(name: str) -> None:
    """A holder that moves to another network namespace holds the name where it was, and not where it is."""

    def body(child: Child) -> None:
        lock = hold(child, name, say=False)
        unshare(CLONE_NEWNET)
        assert lock.held
        with bindlock.Lock(name, timeout=0) as second:
            child.say(f"held {lock.held} {second.held}")
            child.hear()
        lock.release()
        child.say("released")
        child.hear()

    with Child(body) as child:
        child.expect("held True True")
        assert not bindlock.Lock(name).try_acquire()
        child.say("")
        child.expect("released")
        assert bindable(name)


# Processes.


def test_another_pid_namespace_shares_the_name(name: str) -> None:
    """A holder in a PID namespace below ours is seen, named, signalled and waited for like any other."""
    with Child(in_pid_namespace(idle(name))) as child, process(int(child.hear())):
        child.say("")
        child.expect("held")
        with pytest.raises(bindlock.Held) as refusal:
            bindlock.Lock(name).acquire(timeout=0)
        holder = refusal.value.holder
        assert holder is not None
        assert holder.pid is not None
        assert Path(f"/proc/{holder.pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[1] == "1"
        holder.signal(signal.SIGKILL)
        take(name, DEADLINE)


@pytest.mark.parametrize("where", ["outside", "in another"])
def test_a_holder_that_has_no_pid_here(name: str, where: str) -> None:
    """A holder outside of our PID namespace is "pid unknown", cannot be signalled, and still wakes who waits for it."""

    def look(child: Child) -> None:
        unshare(CLONE_NEWNS)
        need(LIBC.mount(b"none", b"/", None, 0x44000, None), "mount")
        need(LIBC.mount(b"proc", b"/proc", b"proc", 0, None), "mount")
        child.say(json.dumps(seen(name)))
        bindlock.Lock(name).acquire(timeout=DEADLINE)
        child.say("had")
        child.hear()

    with Child(idle(name) if where == "outside" else in_pid_namespace(idle(name))) as holder:
        if where == "in another":
            holder.hear()
            holder.say("")
        holder.expect("held")
        with Child(in_pid_namespace(look)) as child, process(int(child.hear())) as looker:
            child.say("")
            saw = json.loads(child.hear())
            assert saw["pid"] is None
            assert saw["uid"] == os.geteuid()
            assert "pid unknown" in saw["text"]
            assert saw["signal"] == errno.EINVAL
            until(lambda: in_call(pid_of(looker), "poll") == 1)
            assert bindlock.holder(name).waiters == 1  # type: ignore[union-attr]
            bindlock.holder(name).signal(signal.SIGKILL)  # type: ignore[union-attr]
            child.expect("had")


def test_a_pid_of_another_namespace_s_proc_is_not_signalled(name: str) -> None:
    """In a PID namespace that sees the /proc of another, no process is signalled that only has the holder's number."""

    def look(child: Child) -> None:
        number = int(child.hear())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
        ask, answer = os.pipe(), os.pipe()
        if not os.fork():
            os.read(ask[0], 1)
            os.write(answer[1], b"hit" if signal.sigpending() else b"spared")
            os._exit(0)
        saw = seen(name, number=signal.SIGTERM)
        os.write(ask[1], b"?")
        child.say(json.dumps(saw))
        child.say(os.read(answer[0], 10).decode())
        child.hear()

    with Child(idle(name)) as holder, Child(in_pid_namespace(look)) as child, process(int(child.hear())):
        holder.expect("held")
        child.say("")
        child.say(str(holder.pid))
        saw = json.loads(child.hear())
        child.expect("spared")
        assert saw["signal"] == errno.EINVAL
        assert saw["pid"] is None


# Files.


def test_another_mount_namespace_shares_the_name(name: str) -> None:
    """A holder in another mount namespace excludes us."""

    def body(child: Child) -> None:
        unshare(CLONE_NEWNS)
        hold(child, name)
        child.hear()

    with Child(body) as child:
        child.expect("held")
        excluded(name, child.pid)


def test_a_changed_root_shares_the_name(name: str, tmp_path: Path) -> None:
    """A process in a chroot, without /proc, excludes and is excluded, and is told who is in the way."""

    def body(child: Child) -> None:
        warm_up(name)
        os.chroot(tmp_path)
        lock = hold(child, name)
        child.hear()
        lock.release()
        child.say("released")
        child.hear()
        child.say(json.dumps(seen(name)))
        lock.acquire(timeout=DEADLINE)
        child.say("had")
        child.hear()

    with Child(body) as child:
        child.expect("held")
        excluded(name, child.pid)
        child.say("")
        child.expect("released")
        with bindlock.Lock(name, timeout=0):
            child.say("")
            saw = json.loads(child.hear())
            assert saw["pid"] == os.getpid()
            until(lambda: bindlock.holder(name).waiters == 1)  # type: ignore[union-attr]
        child.expect("had")


def test_without_proc_a_holder_that_cannot_be_named_is_still_a_holder(name: str, tmp_path: Path) -> None:
    """Without /proc a name that is held by no visible process is refused as held, by nobody known."""
    near, far = socket.socketpair()

    def hide(child: Child) -> None:
        socket.send_fds(near, [b"x"], [hold(child, name, say=False).fileno()])
        child.say("sent")

    def body(child: Child) -> None:
        warm_up(name)
        os.chroot(tmp_path)
        with pytest.raises(bindlock.Held) as refusal:
            bindlock.Lock(name).acquire(timeout=0)
        assert refusal.value.holder is not None
        child.say(str(refusal.value.holder.pid))

    with near, far:
        with Child(hide) as child:
            child.expect("sent")
            assert child.wait() == 0
        with Child(body) as child:
            child.expect("None")


# Users.


def test_users_have_names_of_their_own(name: str) -> None:
    """Two users hold the same name of scope user at the same time."""
    with Child(as_user(STRANGER, idle(name))) as child:
        child.expect("held")
        take(name)
        assert not bindable(f"@bindlock/{STRANGER}/{name}")
        assert bindable(f"@bindlock/{os.geteuid()}/{name}")


def test_users_share_the_names_of_scope_host(name: str) -> None:
    """Users exclude each other in scope host, whoever comes first, and are told the other's uid and PID."""

    def body(child: Child) -> None:
        lock = bindlock.Lock(name, scope="host")
        lock.acquire(timeout=0)
        child.say("held")
        child.hear()
        lock.release()
        child.say("released")
        child.hear()
        child.say(json.dumps(seen(name, "host")))
        child.hear()

    with Child(as_user(STRANGER, body)) as child:
        child.expect("held")
        with pytest.raises(bindlock.Held) as refusal:
            bindlock.Lock(name, scope="host").acquire(timeout=0)
        holder = refusal.value.holder
        assert holder is not None
        assert (holder.pid, holder.uid, holder.gid) == (child.pid, STRANGER, STRANGER)
        child.say("")
        child.expect("released")
        with bindlock.Lock(name, scope="host", timeout=0):
            child.say("")
            saw = json.loads(child.hear())
        assert (saw["pid"], saw["uid"], saw["signal"]) == (os.getpid(), 0, errno.EPERM)


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize(
    "call", ["acquire(timeout=0)", "acquire(timeout=30)", "acquire(timeout=None)", "try_acquire()"]
)
def test_a_squatter_is_called_one(name: str, listening: bool, call: str) -> None:
    """Another user's socket at our address is neither "held" nor waited for: it is untrusted, and named."""

    def attempt(child: Child) -> None:
        with pytest.raises(bindlock.Untrusted) as refusal:
            eval(f"lock.{call}", {"lock": bindlock.Lock(name)})
        holder = refusal.value.holder
        child.say(json.dumps([refusal.value.uid, holder.pid if holder else None]))

    with Child(as_user(STRANGER, squat(name, listening))) as squatter:
        squatter.expect("squatting")
        with Child(attempt) as child:
            assert json.loads(child.hear()) == [STRANGER, squatter.pid]
        assert bindlock.holder(name).uid == STRANGER  # type: ignore[union-attr]
        squatter.kill()
        take(name)


def test_a_squatter_that_comes_while_we_wait_is_called_one(name: str) -> None:
    """Who waits for a friend, and finds that a stranger has followed him, is told."""

    def wait(child: Child) -> None:
        with pytest.raises(bindlock.Untrusted) as refusal:
            bindlock.Lock(name).acquire()
        child.say(str(refusal.value.uid))

    holder = bindlock.Lock(name)
    holder.acquire(timeout=0)
    try:
        with Child(wait) as child, Child(as_user(STRANGER, squat(name, listening=True))) as squatter:
            until(lambda: bindlock.holder(name).waiters == 1)  # type: ignore[union-attr]
            child.signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            holder.release()
            squatter.expect("squatting")
            child.signal(signal.SIGCONT)
            child.expect(str(STRANGER))
    finally:
        if holder.held:
            holder.release()


def test_root_is_trusted(name: str) -> None:
    """Root, who could do anything, may hold a user's name: held, not untrusted."""

    def body(child: Child) -> None:
        with pytest.raises(bindlock.Held) as refusal:
            bindlock.Lock(name).acquire(timeout=0)
        child.say(str(refusal.value.holder))

    with bindlock.Lock(f"@bindlock/{STRANGER}/{name}", timeout=0), Child(as_user(STRANGER, body)) as child:
        assert child.hear().startswith(f"pid {os.getpid()} (root")


def test_a_user_namespace_shares_the_name(name: str) -> None:
    """The same user in a user namespace excludes us, and is named."""

    def body(child: Child) -> None:
        in_user_namespace(os.geteuid())
        hold(child, name)
        child.hear()

    with Child(body) as child:
        child.expect("held")
        excluded(name, child.pid)


def test_root_of_a_user_namespace_is_a_stranger(name: str) -> None:
    """Who is root only in a user namespace of his own can bind root's address, and is a stranger; he calls us one."""

    def body(child: Child) -> None:
        in_user_namespace(STRANGER)
        lock = hold(child, name)
        child.hear()
        lock.release()
        child.say("released")
        child.hear()
        with pytest.raises(bindlock.Untrusted):
            lock.acquire(timeout=0)
        child.say("untrusted")
        child.hear()

    with Child(as_user(STRANGER, body)) as child:
        child.expect("held")
        with pytest.raises(bindlock.Untrusted) as refusal:
            bindlock.Lock(name).acquire(timeout=0)
        assert refusal.value.uid == STRANGER
        child.say("")
        child.expect("released")
        with bindlock.Lock(name, timeout=0):
            child.say("")
            child.expect("untrusted")


# In the children.


def unshare(flags: int) -> None:
    need(LIBC.unshare(flags), "unshare")


def in_pid_namespace(body: Body) -> Body:
    """The first process of a new PID namespace: its PID out here is said, a line is waited for, and then it begins."""

    def outer(child: Child) -> None:
        unshare(CLONE_NEWPID)
        first = os.fork()
        if first:
            child.say(str(first))
            os.waitpid(first, 0)
            return
        die_with_parent()
        child.hear()
        body(child)

    return outer


def as_user(uid: int, body: Body) -> Body:
    """A child of another user."""

    def changed(child: Child) -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        need(LIBC.prctl(4, 1, 0, 0, 0), "prctl")  # PR_SET_DUMPABLE: /proc/self is ours again
        body(child)

    return changed


def in_user_namespace(uid: int) -> None:
    """Be root in a user namespace of our own, where only we are mapped."""
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {uid} 1")


def squat(name: str, listening: bool) -> Body:
    """Bind root's address for the name, as soon as it is free."""
    address = b"\0bindlock/0/" + name.encode()

    def body(child: Child) -> None:
        with socket.socket(socket.AF_UNIX) as own:
            until(lambda: bound(own))
            if listening:
                own.listen()
            child.say("squatting")
            child.hear()

    def bound(own: socket.socket) -> bool:
        try:
            own.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True

    return body


def warm_up(name: str) -> None:
    """Load what a refusal needs, while it can be loaded."""
    with bindlock.Lock(f"{name}-warm", timeout=0):
        seen(f"{name}-warm")


def seen(name: str, scope: Literal["user", "host"] = "user", number: int = 0) -> dict[str, Any]:
    """What a refused try sees of the holder, and the errno of sending it a signal, 0 when that worked."""
    with pytest.raises(bindlock.Held) as refusal:
        bindlock.Lock(name, scope=scope).acquire(timeout=0)
    holder = refusal.value.holder
    assert holder is not None
    code = 0
    try:
        holder.signal(number)
    except bindlock.CannotSignal as error:
        code = error.errno
    return {"pid": holder.pid, "uid": holder.uid, "text": str(holder), "signal": code}


def excluded(name: str, pid: int) -> None:
    """We are refused, and told by whom."""
    with pytest.raises(bindlock.Held) as refusal:
        bindlock.Lock(name).acquire(timeout=0)
    assert refusal.value.holder is not None
    assert refusal.value.holder.pid == pid


def pid_of(pidfd: int) -> int:
    return int(Path(f"/proc/self/fdinfo/{pidfd}").read_text().split("Pid:")[1].split()[0])
