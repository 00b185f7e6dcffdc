"""``kill -9; wait; start`` works: a holder that is gone is not "held", and one that lives is refused without delay."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import bindlock
from bindlock.lock.decide import GRACE
from tests.actors import DEADLINE, Child, bindable, bindlock_command, until
from tests.conftest import needs_root
from tests.test_when_free import dumper, dumping, hold, idle, remove_core, state, take

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.actors import Cast

    Body = Callable[[Child], object]

#: What a holder does when it is killed. Between fork and exec its children have the socket, too.
WORK: dict[str, Callable[[], object]] = {
    "os.system": lambda: os.system("true"),
    "Popen": lambda: subprocess.Popen(["true"]).wait(),
    "preexec_fn": lambda: subprocess.Popen(["true"], preexec_fn=int).wait(),
    "posix_spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0),
    "fork": lambda: os.waitpid(os.fork() or os._exit(0), 0),
}
#: Processes that kill and try at the same time.
HANDS = 2


def library(name: str) -> bool:
    """Try it with the library: whether we had it."""
    lock = bindlock.Lock(name)
    if not lock.try_acquire():
        return False
    lock.release()
    return True


def command(name: str) -> bool:
    """Try it with the command: whether it ran."""
    program = bindlock_command()
    pid = os.posix_spawn(program, [program, "run", "-n", name, "true"], os.environ)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 75), f"bindlock run ended with {status}"
    return status == 0


def false_refusals(
    name: str,
    kills: int,
    victim: Callable[[str], Body],
    attempt: Callable[[str], bool],
    seed: int,
    *,
    wait: bool = True,
) -> int:
    """Kill a holder at some instant and try for the name, so many times: how often it was said to be held."""

    def hand(number: int) -> Body:
        chance = random.Random(f"{seed} {number}")
        own = f"{name}-{number}"

        def body(child: Child) -> None:
            refused = late = 0
            for _ in range(kills // HANDS):
                with Child(victim(own)) as holder:
                    holder.expect("held")
                    time.sleep(chance.random() ** 2 * 0.004)
                    holder.signal(signal.SIGKILL)
                    if wait:
                        holder.status = os.waitstatus_to_exitcode(os.waitpid(holder.pid, 0)[1])
                    if chance.random() < 0.2:
                        late += not bindable(own)
                    refused += not attempt(own)
            child.say(f"{refused} {late}")

        return body

    with ExitStack() as stack:
        hands = [stack.enter_context(Child(hand(number))) for number in range(HANDS)]
        answers = [tuple(map(int, child.hear(600).split())) for child in hands]
    print(f"of {kills} kills {sum(late for _, late in answers) * 5} or so left the name bound for a moment")
    return sum(refused for refused, _ in answers)


def working(work: str) -> Callable[[str], Body]:
    """A holder that does nothing but start children."""

    def victim(name: str) -> Body:
        def body(child: Child) -> None:
            hold(child, name, timeout=DEADLINE)
            while True:
                WORK[work]()

        return body

    return victim


@pytest.mark.parametrize("work", WORK)
def test_kill_wait_acquire(name: str, seed: int, long: bool, work: str) -> None:
    """When a holder that starts children was killed and reaped, the name is never said to be held."""
    kills = 5000 if long else 200
    assert false_refusals(name, kills, working(work), library, seed) == 0


def test_kill_wait_run(name: str, seed: int, long: bool) -> None:
    """``kill -9; wait; bindlock run -n`` never fails."""
    kills = 10_000 if long else 200
    assert false_refusals(name, kills, working("os.system"), command, seed) == 0


@pytest.mark.parametrize("attempt", [library, command])
def test_kill_acquire(name: str, seed: int, long: bool, attempt: Callable[[str], bool]) -> None:
    """Even without a wait a holder that was killed is not said to hold."""
    kills = 2000 if long else 200
    assert false_refusals(name, kills, working("os.system"), attempt, seed, wait=False) == 0


def test_kill_acquire_with_300_mb(name: str) -> None:
    """A killed holder that has to give much memory back first is waited for; if it takes too long, that is said."""

    def body(child: Child) -> None:
        memory = b"x" * (300 << 20)
        hold(child, name)
        child.hear()
        assert memory

    for _ in range(5):
        with Child(body) as child:
            child.expect("held")
            child.signal(signal.SIGKILL)
            had_or_honest(name)
            child.wait()
            take(name)


@pytest.mark.parametrize("megabytes", [1, 500])
def test_crash_acquire(cast: Cast, name: str, tmp_path: Path, megabytes: int) -> None:
    """A holder that dumps core is waited for; if it takes too long, that is said, and its end can be waited for."""
    actor = dumper(cast, name, tmp_path, megabytes)
    until(lambda: dumping(actor.pid) or state(actor.pid) == "Z")
    if not had_or_honest(name):
        take(name, DEADLINE)
    assert actor.wait() == -signal.SIGSEGV
    remove_core(tmp_path)
    take(name)


def had_or_honest(name: str) -> bool:
    """Had at once or within the grace; or refused, but not before it was over."""
    lock = bindlock.Lock(name)
    began = time.monotonic()
    if lock.try_acquire():
        lock.release()
        return True
    assert time.monotonic() - began >= GRACE
    return False


# Those who live.

#: Refused, between two system calls that nothing else makes here.
REFUSED = """
import ctypes, os, sys, bindlock, bindlock.lock.block
name, looker, directory = sys.argv[1:]
with bindlock.Lock(name + "-warm", timeout=0):
    bindlock.Lock(name + "-warm").try_acquire()
if looker == "no /proc":
    os.chroot(directory)
elif looker == "hidden processes":
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.unshare(0x20000)
    assert not libc.mount(b"none", b"/", None, 0x44000, None)
    assert not libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2")
    os.setgid(65534)
    os.setuid(65534)
lock = bindlock.Lock(name, scope="host")
os.getpgid(0)
had = lock.try_acquire()
os.getpgid(0)
if had:
    lock.release()
print(had)
"""
SLEEPING = "poll,ppoll,select,pselect6,nanosleep,clock_nanosleep,epoll_wait,epoll_pwait"


def sleeps(trace: str) -> list[str]:
    """The system calls that may have slept: any of them but a poll(2) with a time-out of nothing."""
    return [line for line in trace.splitlines() if "(" in line and not re.search(r"\bpoll\(.*, 0\) += ", line)]


def trace_refusal(cast: Cast, name: str, looker: str, directory: Path) -> list[str]:
    """Try for a name under strace: the sleeps of the refusal."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace here")
    output = directory / "trace"
    code = [sys.executable, "-c", REFUSED, name, looker, str(directory)]
    calls = [call for call in SLEEPING.split(",") if known(strace, call)]
    actor = cast.start(strace, "-qq", "-o", str(output), "-e", f"trace=getpgid,{','.join(calls)}", *code)
    actor.expect("False")
    assert actor.wait() == 0
    _, inside, _ = re.split(r"getpgid\(0\).*\n", output.read_text())[-3:]
    return sleeps(inside)


def known(strace: str, call: str) -> bool:
    """Whether this machine has that system call at all."""
    return not subprocess.run([strace, "-e", f"trace={call}", "true"], capture_output=True).returncode


HOLD_FOR_ALL = "import sys, bindlock\nwith bindlock.Lock(sys.argv[1], scope='host'):\n print('held', flush=True)\n {}"


@pytest.mark.parametrize("holder", ["idle", "stopped", "without its first thread", "foreign"])
def test_no_grace_for_the_living(cast: Cast, name: str, tmp_path: Path, holder: str) -> None:
    """A holder that lives is refused without any sleep."""
    last = {
        "without its first thread": "import ctypes, threading\n"
        " threading.Thread(target=threading.Event().wait).start()\n"
        " ctypes.CDLL(None).pthread_exit(None)",
    }.get(holder, "sys.stdin.readline()")
    code = HOLD_FOR_ALL.format(last)
    if holder == "foreign":
        code = (
            "import socket, sys\nown = socket.socket(socket.AF_UNIX)\nown.bind('\\0bindlock/host/' + sys.argv[1])\n"
            "print('held', flush=True)\nsys.stdin.readline()"
        )
    actor = cast.python(code, name)
    actor.expect("held")
    if holder == "stopped":
        actor.signal(signal.SIGSTOP)
        until(lambda: state(actor.pid) == "T")
    if holder == "without its first thread":
        until(lambda: state(actor.pid) == "Z")
    assert trace_refusal(cast, name, "plain", tmp_path) == []


@needs_root
@pytest.mark.parametrize("looker", ["no /proc", "hidden processes"])
def test_no_grace_for_the_living_that_cannot_be_seen(cast: Cast, name: str, tmp_path: Path, looker: str) -> None:
    """A holder that lives is refused without any sleep, also where /proc does not show it."""
    actor = cast.python(HOLD_FOR_ALL.format("sys.stdin.readline()"), name)
    actor.expect("held")
    assert trace_refusal(cast, name, looker, tmp_path) == []


def test_grace_for_the_dead(cast: Cast, name: str, tmp_path: Path) -> None:
    """For a holder that is gone, while its socket is not, a refusal comes after some sleep."""
    near, far = socket.socketpair()

    def body(child: Child) -> None:
        lock = bindlock.Lock(name, scope="host")
        lock.acquire(timeout=0)
        socket.send_fds(near, [b"x"], [lock.fileno()])
        child.say("sent")
        child.hear()

    with near, far:
        with Child(body) as child:
            child.expect("sent")
            child.kill()
        assert trace_refusal(cast, name, "plain", tmp_path)


def test_the_command_has_no_grace_for_the_living(cast: Cast, name: str, tmp_path: Path) -> None:
    """``bindlock run -n`` is refused by a holder that lives without any sleep, from its start to its end."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace here")
    output = tmp_path / "trace"
    calls = ",".join(call for call in SLEEPING.split(",") if known(strace, call))
    with Child(idle(name)) as child:
        child.expect("held")
        run = cast.start(
            strace, "-f", "-qq", "-o", str(output), "-e", f"trace={calls}", "-e", "signal=none",
            bindlock_command(), "run", "-n", name, "true", stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert run.wait() == 75
    assert sleeps(output.read_text()) == []
