"""The policy *replace*: who has the name is asked to go, and made to; in the library, and by ``bindlock run``.

And the rest of what ``bindlock run`` does when others run: so many at a time (``--slots``).
"""

from __future__ import annotations

import errno
import gc
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import bindlock
import bindlock.lock.replace  # before we become somebody who may not be able to read it
import bindlock.names
from bindlock.cli.run import GRACE
from bindlock.proof.process import state
from tests.actors import DEADLINE, WITNESS, Child, bindable, bindlock_command, until
from tests.conftest import descriptors, needs_root
from tests.interrupts import Interrupted, Interrupter
from tests.test_run import NOBODY, USER, await_cat, is_command, planned, run, waiters

if TYPE_CHECKING:
    from tests.actors import Actor, Cast

#: Longer than any test: whoever waits for it fails.
NEVER = 600.0
#: Holds a name, and says which signals it gets; does what argument 2 says at SIGTERM. At a line it exits.
STUBBORN = """
def at_term():
    os.write(1, b"term\\n")
    if sys.argv[2] == "release":
        lock.release()
lock.acquire()
os.write(1, b"held\\n")
await_line(at_term)
"""
#: What it and others begin with. A handler is no way to answer: a signal that comes right before a system call has it
#: run when that returns.
ANSWERING = """
import os, select, signal, sys, bindlock
lock = bindlock.Lock(sys.argv[1])
arrived, arrival = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(arrival)
signal.signal(signal.SIGTERM, lambda number, frame: None)
def await_line(at_term):
    while 0 not in select.select([0, arrived], [], [])[0]:
        for _ in os.read(arrived, 64):
            at_term()
    return os.read(0, 64)
"""


def stubborn(cast: Cast, name: str, what: str = "ignore") -> Actor:
    """A process that holds a name and does not end by SIGTERM."""
    actor = cast.python(ANSWERING + STUBBORN, name, what)
    actor.expect("held")
    return actor


def replacing(cast: Cast, name: str, option: str = "--replace", *more: str) -> Actor:
    """``bindlock run --replace … cat``."""
    return cast.start(bindlock_command(), "run", option, *more, name, "--", "cat")


def holder_of(name: str) -> int | None:
    found = bindlock.holder(name)
    return None if found is None else found.pid


def waiting(name: str) -> list[int | None]:
    """Who waits, in order."""
    return [waiter.pid for waiter in bindlock.waiters(name)]


# In the library.


def test_free(name: str) -> None:
    """A name that is free is had, and nobody ended."""
    lock = bindlock.Lock(name)
    lock.acquire(replace=NEVER)
    assert lock.held
    lock.release()


def test_the_holder_ends(cast: Cast, name: str) -> None:
    """The holder is sent SIGTERM; when it ends by that we have the name, long before the grace is over."""
    holder = cast.holder(name)
    lock = bindlock.Lock(name)
    lock.acquire(replace=NEVER)
    assert holder.wait() == -signal.SIGTERM
    assert holder_of(name) == os.getpid()
    lock.release()


def test_the_holder_releases(cast: Cast, name: str) -> None:
    """A holder that releases the name at SIGTERM, and lives on, is left alone."""
    holder = stubborn(cast, name, "release")
    lock = bindlock.Lock(name)
    lock.acquire(replace=NEVER)
    holder.expect("term")
    lock.release()
    holder.write()
    assert holder.wait() == 0


@pytest.mark.parametrize("grace", [0.3, 0])
def test_a_stubborn_holder(cast: Cast, name: str, grace: float) -> None:
    """A holder that ignores SIGTERM is killed after the grace, and not before."""
    holder = stubborn(cast, name)
    lock = bindlock.Lock(name)
    start = time.monotonic()
    lock.acquire(replace=grace)
    assert time.monotonic() - start >= grace
    assert holder.wait() == -signal.SIGKILL
    assert lock.held
    lock.release()


def test_a_stopped_holder(cast: Cast, name: str) -> None:
    """A holder that is stopped cannot go by itself; it is killed after the grace."""
    holder = cast.holder(name)
    holder.signal(signal.SIGSTOP)
    until(lambda: state(holder.pid) == "T")
    with_it = bindlock.Lock(name)
    with_it.acquire(replace=0.2)
    assert holder.wait() == -signal.SIGKILL
    with_it.release()


def test_the_grace_is_the_holders(cast: Cast, name: str) -> None:
    """A holder that takes its time, but less than the grace, is not killed."""
    holder = stubborn(cast, name)
    waiter = replacing(cast, name, f"--replace={NEVER:g}")
    holder.expect("term")
    until(lambda: waiters(name) == 1)
    holder.write()
    assert holder.wait() == 0
    await_cat(waiter)


def test_a_child_that_outlives_the_holder(cast: Cast, name: str) -> None:
    """When the holder has ended, and a child of it keeps the name, that is ended in its turn."""
    holder = cast.start(bindlock_command(), "run", name, "-c", "sleep 600 & echo $!; wait")
    child = int(holder.read())
    pidfd = os.pidfd_open(child)
    try:
        lock = bindlock.Lock(name)
        lock.acquire(replace=0.2)
        assert holder.wait() == -signal.SIGTERM
        assert holder_of(name) == os.getpid()
        lock.release()
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        pass  # somebody has reaped it already
    finally:
        os.close(pidfd)
    until(lambda: not os.path.exists(f"/proc/{child}") or state(child) == "Z")


def test_oneself(name: str) -> None:
    """A holder that is this very process, in another thread or another object, is never signalled: that is `Held`."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with bindlock.Lock(name) as mine:
            with pytest.raises(bindlock.Held) as refused:
                bindlock.Lock(name).acquire(replace=0)
            assert refused.value.holder is not None
            assert refused.value.holder.pid == os.getpid()
            with pytest.raises(bindlock.AlreadyHeld):
                mine.acquire(replace=0)
            caught: list[BaseException] = []

            def try_it() -> None:
                try:
                    mine.acquire(replace=0)
                except bindlock.Held as held:
                    caught.append(held)

            thread = threading.Thread(target=try_it)
            thread.start()
            thread.join(DEADLINE)
            assert len(caught) == 1
            assert mine.held
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == []
    assert waiters(name) == 0


def test_who_waits_first_is_ended_too(cast: Cast, name: str) -> None:
    """Who was in the queue before us has the name before us, and is asked to go as soon as it has it."""
    holder = stubborn(cast, name)
    before: list[Actor] = []
    while len(before) < 2:
        before.append(cast.python(ANSWERING + STUBBORN, name, "release"))
        until(lambda: waiters(name) == len(before))
    us = replacing(cast, name, f"--replace={NEVER:g}")
    until(lambda: us.pid in waiting(name))
    holder.expect("term")
    holder.write()
    for actor in before:
        actor.expect("held")
        actor.expect("term")
    await_cat(us)
    assert holder_of(name) == us.pid


@pytest.mark.parametrize("grace", [NEVER, 1.5])
def test_the_last_to_come_has_it(cast: Cast, name: str, grace: float) -> None:
    """Of several that replace, the last one to come has the name in the end, whether the holder goes or is killed."""
    holder = stubborn(cast, name)
    first = replacing(cast, name, f"--replace={grace:g}")
    holder.expect("term")
    assert waiting(name) == [first.pid]
    assert waiters(name) == 1
    last = replacing(cast, name, f"--replace={grace:g}")
    holder.expect("term")
    assert waiting(name)[:2] == [first.pid, last.pid]
    if grace == NEVER:
        holder.write()
    assert holder.wait() == (0 if grace == NEVER else -signal.SIGKILL)
    await_cat(last)
    assert first.wait() == -signal.SIGTERM
    assert holder_of(name) == last.pid


def one_is_left(actors: list[Actor]) -> bool:
    return sum(actor.process.poll() is None for actor in actors) == 1


def test_many_at_once(cast: Cast, name: str, long: bool) -> None:
    """Of many that replace each other at once one is left, which has the name; never two have it."""
    file = os.memfd_create("witness")
    command = (*WITNESS, str(file))
    try:
        for _ in range(10 if long else 2):
            actors = [
                cast.start(bindlock_command(), "run", "--replace", *fork, name, "--", *command, pass_fds=(file,))
                for fork in 4 * ([], ["--fork"])
            ]
            until(partial(one_is_left, actors))
            (left,) = (actor for actor in actors if actor.process.poll() is None)
            assert left.read() == "in"
            assert holder_of(name) == left.pid
            left.process.kill()
            for actor in actors:
                assert actor.process.stdout is not None
                assert b"two" not in actor.process.stdout.read()
                assert actor.wait() in (-signal.SIGTERM, -signal.SIGKILL)
    finally:
        os.close(file)


def test_timeout(cast: Cast, name: str) -> None:
    """A time-out is the limit of all of it: when it is over before the grace is, that is `Held`, and nobody killed."""
    holder = stubborn(cast, name)
    start = time.monotonic()
    with pytest.raises(bindlock.Held):
        bindlock.Lock(name).acquire(0.3, replace=NEVER)
    assert 0.3 <= time.monotonic() - start < 5
    holder.expect("term")
    holder.write()
    assert holder.wait() == 0


def test_no_time(cast: Cast, name: str) -> None:
    """Who does not wait at all cannot replace anybody, and does not ask anybody to go for nothing."""
    holder = stubborn(cast, name)
    with pytest.raises(bindlock.Held):
        bindlock.Lock(name).acquire(0, replace=0)
    holder.write()
    assert holder.wait() == 0
    assert holder.process.stdout is not None
    assert holder.process.stdout.read() == b""


@pytest.mark.parametrize("grace", [-1, -0.001, float("nan"), float("inf")])
def test_impossible_graces(cast: Cast, name: str, grace: float) -> None:
    """A grace that is no number of seconds is an error, whether or not the name is free, and nobody is signalled."""
    with pytest.raises(bindlock.InvalidArgument):
        bindlock.Lock(name).acquire(replace=grace)
    holder = stubborn(cast, name)
    with pytest.raises(bindlock.InvalidArgument):
        bindlock.Lock(name).acquire(replace=grace)
    holder.write()
    assert holder.wait() == 0
    assert holder.process.stdout is not None
    assert holder.process.stdout.read() == b""


def test_waiting_is_told_once(cast: Cast, name: str) -> None:
    """`waiting` is called once, with the holder, before that is asked to go."""
    holder = cast.holder(name)
    told: list[bindlock.Holder] = []

    def tell(who: bindlock.Holder) -> None:
        told.append(who)
        os.kill(holder.pid, 0)

    lock = bindlock.Lock(name)
    lock.acquire(replace=NEVER, waiting=tell)
    lock.release()
    assert [who.pid for who in told] == [holder.pid]


def test_an_interrupted_one_leaves_nothing(cast: Cast, name: str) -> None:
    """What a signal handler raises while the holder has its grace arrives; we are in no queue any more, and the holder
    is not killed."""
    holder = stubborn(cast, name)

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            bindlock.Lock(name).acquire(replace=NEVER)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    holder.expect("term")
    assert waiters(name) == 0
    holder.write()
    assert holder.wait() == 0
    assert bindable(name)


#: Releases its name at SIGTERM, and has it again at each line.
AGAIN = """
line = b"go"
while line:
    if not lock.held:
        lock.acquire()
    os.write(1, b"held\\n")
    line = await_line(lambda: lock.held and lock.release())
"""


def test_interrupted_at_every_instant(cast: Cast, name: str, long: bool) -> None:
    """Wherever an exception comes from a signal handler, either we have the name, and say so, or nothing of us is left
    in any queue, nor any descriptor."""
    holder = cast.python(ANSWERING + AGAIN, name)
    lock = bindlock.Lock(name)
    holder.expect("held")
    lock.acquire(replace=NEVER)  # loads what there is to load
    lock.release()
    gc.collect()
    gc.disable()
    before = descriptors()
    point, step, interrupted = 1, 13 if long else 41, 0
    try:
        with Interrupter(os.path.dirname(bindlock.__file__)) as signals, warnings.catch_warnings():
            # A socket that was on its way into a variable is closed by its reference count, and says so.
            warnings.simplefilter("ignore", ResourceWarning)
            while not point > 1 or signals.raised:
                holder.write()
                holder.expect("held")
                kind = type(signals.run(lambda: lock.acquire(replace=NEVER), point))  # its traceback would refer to all
                assert kind in (type(None), Interrupted)
                assert (holder_of(name) == os.getpid()) == lock.held
                assert lock.held or kind is Interrupted
                if lock.held:
                    lock.release()
                assert waiters(name) == 0
                assert descriptors() == before, f"at instant {point}"
                interrupted += kind is Interrupted
                point += step
    finally:
        gc.enable()
        if lock.held:
            lock.release()
    print(f"interrupted at {interrupted} instants")
    assert interrupted > 5


# Who is not ours to end.


@needs_root
def test_another_users(name: str) -> None:
    """A holder that we may not signal is `CannotSignal`, status 71, and is not harmed; nor are we in its queue."""

    def nobody(child: Child) -> None:
        lock = bindlock.Lock(name, scope="host")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            lock.acquire(replace=0)
        except bindlock.CannotSignal as error:
            child.say(f"{errno.errorcode[error.errno]} {error.exit_status}")

    with bindlock.Lock(name, scope="host") as lock:
        with Child(nobody) as child:
            child.expect("EPERM 71")
            child.wait()
        assert lock.held
        assert not lock.wanted


def be_nobody_and_hold(name: str) -> Any:
    """What a Child does that has, as nobody, a host-wide name, and under a name of ours is a stranger."""
    ours = bindlock.names.parse(name).address

    def hold(child: Child) -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with bindlock.Lock(name, scope="host"), socket.socket(socket.AF_UNIX) as squat:
            squat.bind(ours)
            squat.listen()
            child.say("held")
            child.expect("still there?")
            child.say("yes")
            child.hear()

    return hold


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv(1)")
def test_another_users_by_command(name: str) -> None:
    """``bindlock run --replace`` exits with 71 where it may not signal the holder, and runs nothing."""
    command = [bindlock_command(), "run", "--replace", "--scope", "host", name, "--", "echo", "ran"]
    with Child(be_nobody_and_hold(name)) as child:
        child.expect("held")
        refused = subprocess.run(
            ["setpriv", "--bounding-set=-kill", "--inh-caps=-kill", *command], capture_output=True, timeout=DEADLINE
        )
        assert (refused.returncode, refused.stdout) == (71, b"")
        said = rf"bindlock: cannot signal pid {child.pid} \(.*\), .*: Operation not permitted \(EPERM\)\n"
        assert re.fullmatch(said, refused.stderr.decode())
        child.say("still there?")
        child.expect("yes")
        # Root may, where it has not given that away.
        assert subprocess.run(command, capture_output=True, timeout=DEADLINE).stdout == b"ran\n"
        assert child.wait() == -signal.SIGTERM


@needs_root
def test_a_stranger(name: str) -> None:
    """A stranger under a name of ours is 77, and never signalled, though we could."""
    with Child(be_nobody_and_hold(name)) as child:
        child.expect("held")
        for option in ("--replace", "--replace=0"):
            refused = run(option, name, "--", "echo", "ran")
            assert (refused.returncode, refused.stdout) == (77, b"")
            assert f"{name} is held by an untrusted user: pid {child.pid} " in refused.stderr.decode()
        child.say("still there?")
        child.expect("yes")


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_a_holder_outside_of_our_pid_namespace(cast: Cast, name: str) -> None:
    """A holder that has no number here cannot be signalled: 71, and it is not harmed. The other way round it can."""
    unshare = ("unshare", "--pid", "--fork", "--mount-proc")
    holder = cast.holder(name)
    inside = [*unshare, bindlock_command(), "run", "--replace", name, "--", "echo", "ran"]
    refused = subprocess.run(inside, capture_output=True, timeout=DEADLINE)
    assert (refused.returncode, refused.stdout) == (71, b"")
    holder.write()
    assert holder.wait() == 0
    first = cast.start(*unshare, bindlock_command(), "run", name, "--", "cat")
    await_cat(first)
    # The first process of a namespace does not end by a SIGTERM that it does nothing about.
    assert run("--replace=0.2", name, "--", "echo", "ran").stdout == b"ran\n"
    first.wait()


# The command.


def test_replaces(cast: Cast, name: str) -> None:
    """``bindlock run --replace`` ends the command that has the name, and becomes its own."""
    old = cast.start(bindlock_command(), "run", name, "--", "cat")
    await_cat(old)
    new = replacing(cast, name)
    await_cat(new)
    assert old.wait() == -signal.SIGTERM
    assert is_command(new.pid, "cat")
    assert holder_of(name) == new.pid


def test_replaces_with_its_supervisor(cast: Cast, name: str) -> None:
    """What runs under --fork is ended by way of its supervisor, in peace or by force, and both are gone then."""
    for shell, options in (("exec cat", ["--replace"]), ('trap "" TERM; cat', ["--replace=0.2"])):
        old = cast.start(bindlock_command(), "run", "--fork", name, "-c", shell)
        await_cat(old)
        new = cast.start(bindlock_command(), "run", *options, name, "--", "cat")
        await_cat(new)
        assert old.wait() in (-signal.SIGTERM, -signal.SIGKILL)
        assert old.process.stdout is not None
        assert old.process.stdout.read() == b""
        assert new.kill() == -signal.SIGKILL


def test_says_whom_it_waits_for(cast: Cast, name: str) -> None:
    """--verbose says whom it replaces, how long that took, and what is run."""
    old = cast.start(bindlock_command(), "run", name, "--", "cat")
    await_cat(old)
    said = run("--verbose", "--replace", name, "--", "true").stderr.decode()
    first = rf"bindlock: waiting for {name}, held by pid {old.pid} \({USER}, cat\), running for \d+s\n"
    assert re.fullmatch(first + r"bindlock: getting lock took [\d.]+ seconds\nbindlock: executing true\n", said)


def test_refused(cast: Cast, name: str) -> None:
    """With -w it is a conflict as any when the holder does not go in time, with the status that -E says."""
    holder = stubborn(cast, name)
    refused = run("-w", "0.2", "--replace=60", name, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (75, b"")
    assert f"{name} is held by pid {holder.pid} ".encode() in refused.stderr
    refused = run("-qE9", "-w0.2", "--replace=60", name, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout, refused.stderr) == (9, b"", b"")
    holder.expect("term")
    holder.expect("term")
    holder.write()
    assert holder.wait() == 0


# Its command line.


ORDERS = list(itertools.permutations([("--replace",), ("-q",), ("-w", "5"), ("--scope", "host")]))


@pytest.mark.parametrize("options", ORDERS, ids=lambda options: " ".join(sum(options, ())))
@pytest.mark.parametrize("grace", [None, "2.5", "0", "1e1"])
def test_wherever_it_stands(options: tuple[tuple[str, ...], ...], grace: str | None) -> None:
    """Before NAME it may stand anywhere among the options, with and without a grace, and never takes another's word."""
    given = "--replace" if grace is None else f"--replace={grace}"
    words = [given if word == "--replace" else word for option in options for word in option]
    expected = GRACE if grace is None else float(grace)
    for operands in (["name", "job", "--full"], ["name", "--", "job", "--full"], ["--", "name", "job", "--full"]):
        plan = planned(*words, *operands)
        assert (plan.replace, plan.timeout, plan.scope, plan.quiet) == (expected, 5.0, "host", True)
        assert (plan.name, plan.command) == ("name", ["job", "--full"])
    for operands in (["-c", "a b", "name"], ["name", "-c", "a b"], ["name", "--command", "a b"]):
        plan = planned(*words, *operands)
        assert (plan.replace, plan.name, plan.command[1:]) == (expected, "name", ["-c", "a b"])


@pytest.mark.parametrize(
    ("line", "replace"),
    [
        ("-qw5 --replace name job", GRACE),
        ("-qw 5 --replace name job", GRACE),
        ("-qw 5 --replace=3 name job", 3.0),
        ("--replace -qE 9 name job", GRACE),
        ("-E9 --replace --fork name job", GRACE),
        ("--wait=5 --replace --timeout 4 name job", GRACE),
        ("--replace=1 --replace=2 name job", 2.0),
        ("--replace --replace name job", GRACE),
        ("--replace=1 --replace name job", GRACE),
    ],
)
def test_among_other_spellings(line: str, replace: float) -> None:
    """Options that are written together, or twice, are understood beside it."""
    plan = planned(*line.split())
    assert (plan.replace, plan.name, plan.command) == (replace, "name", ["job"])


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("name job --replace", ["job", "--replace"]),
        ("name job --replace=3 --fork", ["job", "--replace=3", "--fork"]),
        ("name -- job --replace", ["job", "--replace"]),
        ("name -- --replace job", ["--replace", "job"]),
        ("-- name --replace", ["--replace"]),
        ("-qw 5 name job --replace", ["job", "--replace"]),
        ("-qw5 name --replace x", ["--replace", "x"]),
        ("- --replace x", ["--replace", "x"]),
        ("-q - --replace", ["--replace"]),
        ("--wait=5 - --replace=7 --fork", ["--replace=7", "--fork"]),
    ],
)
def test_not_of_the_command(line: str, command: list[str]) -> None:
    """What stands after NAME is the command's, and reaches it letter by letter."""
    plan = planned(*line.split())
    assert (plan.replace, plan.fork, plan.command) == (None, False, command)


def test_as_a_value() -> None:
    """As the value of another option it is just that."""
    plan = planned("-c", "--replace", "name")
    assert (plan.replace, plan.name, plan.command[1:]) == (None, "name", ["-c", "--replace"])
    plan = planned("-qc", "--replace", "name")
    assert (plan.replace, plan.name, plan.command[1:]) == (None, "name", ["-c", "--replace"])


def test_the_commands_own_argument(name: str) -> None:
    """The command gets an argument that is spelled so, by either parser."""
    for options in ((), ("-qw5",), ("--replace",)):
        assert run(*options, name, "echo", "--replace", "x").stdout == b"--replace x\n"
        assert run(*options, name, "--", "echo", "--replace=x").stdout == b"--replace=x\n"


@pytest.mark.parametrize(
    "line",
    [
        "--replace=soon {} true",
        "--replace=-1 {} true",
        "--replace=nan {} true",
        "--replace=inf {} true",
        "--replace= {} true",
        "-n --replace {} true",
        "--replace --nonblock {} true",
        "-nq --replace=5 {} true",
        "--slots 2 --replace {} true",
        "--replace=5 --slots=2 {} true",
        "--replace",
        "--replace {}",
        "--slots 0 {} true",
        "--slots -1 {} true",
        "--slots 1.5 {} true",
        "--slots many {} true",
        "--slots 1001 {} true",
        "--fork=1 {} true",
    ],
)
def test_usage_errors(cast: Cast, name: str, line: str) -> None:
    """What means nothing is 64, with the reason, whether the name is held or free; nobody is signalled."""
    for _ in range(2):
        ended = run(*line.format(name).split())
        assert (ended.returncode, ended.stdout) == (64, b"")
        assert ended.stderr
        assert b"Traceback" not in ended.stderr
        cast.holder(name) if bindable(name) else None
    assert holder_of(name) is not None


@pytest.mark.parametrize("words", ["run --replace", "run -q --replace", "run --replace -q", "run --replace=5"])
def test_completion(cast: Cast, name: str, words: str) -> None:
    """After it the name is completed, as after any option without a value."""
    cast.holder(name)
    completed = subprocess.run(
        [bindlock_command()], capture_output=True, text=True, timeout=DEADLINE,
        env={**os.environ, "_BINDLOCK_COMPLETE": "bash_complete", "COMP_WORDS": f"bindlock {words} {name[:8]}",
             "COMP_CWORD": str(len(words.split()) + 1)},
    )  # fmt: skip
    assert f"plain,{name}" in completed.stdout.splitlines()


# So many at a time.


def test_slots(cast: Cast, name: str) -> None:
    """--slots N runs N at a time: the next one is refused, or waits until one of them has ended."""
    running = [cast.start(bindlock_command(), "run", "--slots", "2", name, "--", "cat") for _ in range(2)]
    for actor in running:
        await_cat(actor)
    refused = run("-n", "--slots", "2", name, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (75, b"")
    assert b" by pid " in refused.stderr
    waiter = cast.start(bindlock_command(), "run", "--slots=2", name, "--", "cat")
    until(lambda: len(bindlock.waiters(name)) == 1)
    running[0].kill()
    await_cat(waiter)
    assert run("-nqE9", "--slots", "2", name, "true").returncode == 9


def test_slots_of_another_number(cast: Cast, name: str) -> None:
    """Who says another number of slots than the others is told so: 64, and nothing is run."""
    actor = cast.start(bindlock_command(), "run", "--slots", "2", name, "--", "cat")
    await_cat(actor)
    refused = run("--slots", "3", name, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (64, b"")
    assert refused.stderr.startswith(b"bindlock: ")


def test_slots_environment(name: str) -> None:
    """The command has its slot by the descriptor BINDLOCK_FD, and the name as it was given."""
    said = run("--slots", "3", name, "-c", 'echo "$BINDLOCK_NAME"; readlink "/proc/$$/fd/$BINDLOCK_FD"').stdout
    assert re.fullmatch(rf"{name}\nsocket:\[\d+\]\n", said.decode())
