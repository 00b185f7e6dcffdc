"""``bindlock run --fork``: the command is a child of bindlock, and nothing else is changed; it does not outlive it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bindlock
import bindlock.names
from bindlock.linux.diag import Diag
from bindlock.linux.supervise import supervise
from bindlock.proof.process import state
from tests.actors import DEADLINE, WITNESS, Child, bindable, bindlock_command, until
from tests.conftest import needs_root
from tests.terminal import CTRL_C, Terminal
from tests.test_run import (
    NOBODY,
    USER,
    await_cat,
    descriptors,
    environment,
    is_command,
    run,
    script,
    signal_masks,
    waiters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.actors import Actor, Cast

CTRL_Z = b"\x1a"
PASSED_ON = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})
#: A command that says which signals it gets, one by one.
LISTEN = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.write(1, b"listening\\n")
while True:
    got = signal.sigwaitinfo(signal.valid_signals())
    os.write(1, b"%d\\n" % got.si_signo)
"""
LISTENER = (sys.executable, "-I", "-S", "-c", LISTEN)
needs_unshare = pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")


def start(cast: Cast, name: str, *command: str, **popen: Any) -> Actor:
    """``bindlock run --fork`` with a command."""
    return cast.start(bindlock_command(), "run", "--fork", name, "--", *command, **popen)


def start_cat(cast: Cast, name: str, **popen: Any) -> tuple[Actor, int]:
    """``bindlock run --fork … cat``, when there is a cat that answers; and the cat's PID."""
    actor = start(cast, name, "cat", **popen)
    await_cat(actor)
    return actor, child_of(actor.pid)


def child_of(pid: int) -> int:
    """The one child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def state_is(pid: int, letters: str) -> bool:
    return state(pid) in letters


def pending(pid: int) -> int:
    """The signals that wait for a process to take them."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["ShdPnd"], 16)


@contextlib.contextmanager
def watching(pid: int) -> Iterator[int]:
    """A pidfd of a process; one that is left at the end is killed."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def ended(pidfd: int, seconds: float = DEADLINE) -> bool:
    """Whether a process ends in that time."""
    return bool(select.select([pidfd], [], [], seconds)[0])


# What the command gets, and its caller.


def test_the_command_is_a_child(cast: Cast, name: str) -> None:
    """The command is the one child of the process that was started, which is the holder for everybody."""
    actor, cat = start_cat(cast, name)
    assert is_command(cat, "cat")
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == actor.pid
    refused = run("-n", name, "true").stderr.decode()
    said = rf"bindlock: {name} is held by pid {actor.pid} \({USER}, bindlock run --fork {name} -- cat\), .*\n"
    assert re.fullmatch(said, refused)
    assert actor.process.stdin is not None
    actor.process.stdin.close()
    assert actor.wait() == 0
    assert bindable(name)


@pytest.mark.parametrize("status", [0, 1, 42, 75, 126, 128, 143, 255])
def test_exit_status(name: str, status: int) -> None:
    """The exit status is the command's own, whatever it is."""
    ended = run("--fork", name, "--", "sh", "-c", f"exit {status}")
    assert (ended.returncode, ended.stderr) == (status, b"")


@pytest.mark.parametrize("number", [1, 2, 6, 9, 11, 13, 14, 15, 34, 64])
def test_death_by_signal(name: str, number: int) -> None:
    """When a signal ends the command we end by it, too: as without --fork for systemd, 128+N for a shell."""
    command = (bindlock_command(), "run", "--fork", name, "--", "sh", "-c", f"ulimit -c 0; kill -{number} $$; sleep 60")
    assert run(*command[2:]).returncode == -number
    shell = subprocess.run(
        ["sh", "-c", '"$@"; echo "status $?"', "sh", *command], capture_output=True, text=True, timeout=DEADLINE
    )
    if number != signal.SIGINT:  # of which the shell dies, too, as it should
        assert shell.stdout == f"status {128 + number}\n"
    assert bindable(name)


def test_one_core_dump(name: str, tmp_path: Path) -> None:
    """A command that dumps core does, where it may; we, who end likewise, do not."""
    shell = ["sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh"]
    command = [*shell, bindlock_command(), "run", "--fork", name, "--", "sleep", "60"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        until(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        pid = child_of(process.pid)
        until(lambda: is_command(pid, "sleep"))
        os.kill(pid, signal.SIGQUIT)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGQUIT
    assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("no-such-command", 127, "No such file or directory (ENOENT)"),
        ("", 127, "No such file or directory (ENOENT)"),
        ("./plain", 126, "Permission denied (EACCES)"),
    ],
)
def test_command_that_cannot_be_run(name: str, tmp_path: Path, command: str, status: int, reason: str) -> None:
    """A command that is not there is 127, one that cannot be executed 126, said once; nothing is held then."""
    script(tmp_path / "plain", "#!/bin/sh\n", 0o644)
    ended = run("--fork", name, "--", command, cwd=tmp_path)
    assert (ended.returncode, ended.stderr.decode()) == (status, f"bindlock: cannot run {command}: {reason}\n")
    assert bindable(name)


def test_conflict(cast: Cast, name: str) -> None:
    """A name that is held is a conflict as ever, and there is no child."""
    cast.holder(name)
    refused = run("-nq", "--fork", name, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (75, b"")


def test_after_waiting(cast: Cast, name: str) -> None:
    """Who had to wait forks as well, and the command has no descriptor more."""
    holder = cast.holder(name)
    actor = start(cast, name, "cat")
    until(lambda: waiters(name) == 1)
    holder.kill()
    await_cat(actor)
    cat = child_of(actor.pid)
    assert set(descriptors(cat)) == {0, 1, 2, int(environment(cat)[b"BINDLOCK_FD"])}


@pytest.mark.parametrize("trap", ["", "trap '' HUP;", "trap '' INT QUIT;", "trap '' CHLD TSTP;", "trap '' PIPE USR1;"])
def test_as_without(cast: Cast, name: str, trap: str) -> None:
    """The command has the same environment, descriptors and signals as without --fork: what the caller ignored is
    ignored, nothing is blocked."""
    run = ("sh", "-c", f'{trap} exec "$@"', "sh", bindlock_command(), "run")
    plain = cast.start(*run, f"{name}-plain", "--", "cat")
    await_cat(plain)
    ours = cast.start(*run, "--fork", name, "--", "cat")
    await_cat(ours)
    cat = child_of(ours.pid)
    assert signal_masks(cat) == signal_masks(plain.pid)
    expected = environment(plain.pid) | {b"BINDLOCK_NAME": name.encode()}
    assert environment(cat) == expected
    number = int(expected[b"BINDLOCK_FD"])
    found, other = descriptors(cat), descriptors(plain.pid)
    assert set(found) == set(other) == {0, 1, 2, number}
    holder = bindlock.holder(name)
    assert holder is not None
    assert found[number] == f"socket:[{holder.inode}]"
    stdio = [os.readlink(f"/proc/{ours.pid}/fd/{number}") for number in range(3)]
    assert [found[number] for number in range(3)] == stdio
    assert os.getpgid(cat) == os.getpgid(ours.pid)
    assert os.getsid(cat) == os.getsid(ours.pid)


def test_the_caller_has_other_children(name: str) -> None:
    """Children that the caller had before it executed us are not taken for the command."""
    command = [bindlock_command(), "run", "--fork", name, "--", "sh", "-c", "sleep 0.1; exit 7"]
    shell = '(exit 5) & (exit 6) & exec "$@"'
    assert subprocess.run(["sh", "-c", shell, "sh", *command], timeout=DEADLINE).returncode == 7


def test_the_caller_ignores_its_children(cast: Cast, name: str) -> None:
    """Where the caller ignores SIGCHLD, the status is the command's all the same, and the command ignores it, too."""

    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    main = os.path.join(os.path.dirname(bindlock.__file__), "__main__.py")  # without sh, which may take it back
    start = (sys.executable, "-I", "-S", main, "run", "--fork", name, "--")
    assert subprocess.run([*start, "sh", "-c", "exit 7"], preexec_fn=ignore, timeout=DEADLINE).returncode == 7
    actor = cast.start(*start, "cat", preexec_fn=ignore)
    await_cat(actor)
    assert int(signal_masks(child_of(actor.pid))["SigIgn"], 16) & 1 << (signal.SIGCHLD - 1)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_standard_streams_closed(cast: Cast, name: str, closed: tuple[int, ...]) -> None:
    """Started with standard streams closed, the command has them closed, and never the lock in their place."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", bindlock_command(), "run", "--fork", name]
    actor = cast.start(*shell, "--", "sleep", "60", stderr=subprocess.DEVNULL)
    until(lambda: Path(f"/proc/{actor.pid}/task/{actor.pid}/children").read_text())
    command = child_of(actor.pid)
    until(lambda: is_command(command, "sleep") and b"BINDLOCK_FD" in environment(command))
    number = int(environment(command)[b"BINDLOCK_FD"])
    assert number > 2
    until(lambda: set(descriptors(command)) == {0, 1, 2, number} - set(closed))


def test_slots(cast: Cast, name: str) -> None:
    """With --slots so many commands run at a time, each a child of its own bindlock."""
    options = ("--slots", "2", "--fork", name, "--")
    actors = [cast.start(bindlock_command(), "run", *options, "cat") for _ in range(2)]
    for actor in actors:
        await_cat(actor)
    refused = run("-n", *options, "true")
    assert refused.returncode == 75
    assert actors[0].process.stdin is not None
    actors[0].process.stdin.close()
    assert actors[0].wait() == 0
    assert run("-n", *options, "echo", "ran").stdout == b"ran\n"


@needs_root
def test_cannot_fork(name: str) -> None:
    """Where there can be no other process that is an error, and nothing is run."""

    def limited(child: Child) -> None:
        become(NOBODY)
        _no_process()
        try:
            supervise(lambda: 0, lambda number, error: None)
        except OSError as error:
            child.say(errno.errorcode[error.errno or 0])

    with Child(limited) as child:
        child.expect("EAGAIN")


# The lock.


def test_a_command_that_closes_it(cast: Cast, name: str) -> None:
    """A command that closes all its descriptors keeps the name all the same, until it ends."""
    actor = cast.start(bindlock_command(), "run", "--fork", name, "-c", 'eval "exec $BINDLOCK_FD>&-"; exec cat')
    await_cat(actor)
    assert b"socket" not in b"".join(map(os.fsencode, descriptors(child_of(actor.pid)).values()))
    assert not bindable(name)
    assert actor.process.stdin is not None
    actor.process.stdin.close()
    assert actor.wait() == 0
    assert bindable(name)


ADOPT = """
import sys, bindlock
lock = bindlock.Lock(sys.argv[1])
lock.adopt()
print(bindlock.holder(sys.argv[1]).pid, flush=True)
sys.stdin.readline()
lock.release()
print(lock.held, flush=True)
sys.stdin.readline()
"""


def test_a_command_that_adopts_it(cast: Cast, name: str) -> None:
    """A command can adopt the lock, and is the holder then; what it releases early is free when both have ended."""
    actor = start(cast, name, sys.executable, "-c", ADOPT, name)
    pid = int(actor.read())
    assert pid == child_of(actor.pid)
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == pid
    actor.write()
    actor.expect("False")
    assert not bindable(name)
    assert waiters(name) == 0
    actor.write()
    assert actor.wait() == 0
    assert bindable(name)


def test_what_the_command_leaves_running(cast: Cast, name: str) -> None:
    """A child of the command has the lock, too: it keeps the name when the command has ended, or we are killed."""
    for end in ("exit", "kill"):
        actor = cast.start(bindlock_command(), "run", "--fork", name, "-c", "sleep 60 & echo $!; read line")
        with watching(int(actor.read())) as child:
            if end == "exit":
                actor.write()
                assert actor.wait() == 0
            else:
                command = os.pidfd_open(child_of(actor.pid))
                actor.kill()
                assert ended(command)
                os.close(command)
            assert not bindable(name)
            signal.pidfd_send_signal(child, signal.SIGKILL)
            assert ended(child)
        assert bindable(name)


# Signals.


def test_signals_are_passed_on(cast: Cast, name: str) -> None:
    """Every signal that can be caught, and that a process sends us, gets to the command: SIGCHLD alone is ours."""
    actor = start(cast, name, *LISTENER)
    actor.expect("listening")
    for number in PASSED_ON:
        actor.signal(number)
        actor.expect(str(int(number)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGSEGV])
def test_signals_end_both(cast: Cast, name: str, number: signal.Signals) -> None:
    """A signal that ends the command has us end by it; then the name is free."""
    actor, cat = start_cat(cast, name, preexec_fn=_no_core)
    with watching(cat) as pidfd:
        actor.signal(number)
        assert actor.wait() == -number
        assert ended(pidfd, 0)
    assert bindable(name)


def test_stop_ends_both(cast: Cast, name: str) -> None:
    """`bindlock stop` ends the command, and by force one that ignores it."""
    actor, cat = start_cat(cast, name)
    stop = [bindlock_command(), "stop", "--kill", "-w", "0.2", name]
    with watching(cat) as pidfd:
        assert subprocess.run(stop, timeout=DEADLINE).returncode == 0
        assert ended(pidfd, 0)
    assert actor.wait() == -signal.SIGTERM
    actor = cast.start("sh", "-c", 'trap "" TERM; exec "$@"', "sh", bindlock_command(), "run", "--fork", name, "cat")
    await_cat(actor)
    with watching(child_of(actor.pid)) as pidfd:
        assert subprocess.run(stop, timeout=DEADLINE).returncode == 0
        assert bindable(name)
        assert ended(pidfd)
    assert actor.wait() == -signal.SIGKILL


def test_an_ignored_hang_up(cast: Cast, name: str) -> None:
    """Under nohup neither we nor the command end by SIGHUP."""
    actor = cast.start("sh", "-c", 'trap "" HUP; exec "$@"', "sh", bindlock_command(), "run", "--fork", name, "cat")
    await_cat(actor)
    actor.signal(signal.SIGHUP)
    os.kill(child_of(actor.pid), signal.SIGHUP)
    await_cat(actor)
    actor.signal(signal.SIGTERM)
    assert actor.wait() == -signal.SIGTERM


def test_an_alarm_set_before(cast: Cast, name: str) -> None:
    """An alarm(2) that the caller has set before it executed us ends the command, as without --fork."""
    code = "import os, signal, sys; signal.alarm(1); os.execv(sys.argv[1], sys.argv[1:])"
    actor = cast.python(code, bindlock_command(), "run", "--fork", name, "cat")
    assert actor.wait() == -signal.SIGALRM


@needs_root
def test_a_signal_that_cannot_be_passed_on(name: str, tmp_path: Path) -> None:
    """A command that has become another user's is not ours to signal: we say so, go on, and still have the lock."""
    program = shutil.which("setpriv")
    if program is None or os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("needs setpriv(1), and a file system with set-user-ID programs")
    tool = shutil.copy(program, f"/tmp/{name}")  # nobody may not look into the folder of the test
    read, write = os.pipe()
    os.chmod(tool, 0o4755)

    def become_another(child: Child) -> None:
        os.close(write)
        become(NOBODY)
        os.dup2(read, 0)

        def execute() -> int:
            os.execv(tool, ["setpriv", "--reuid", "0", "--clear-groups", "sh", "-c", "read line; exit 7"])

        def refused(number: int, error: OSError) -> None:
            child.say(f"{number} {errno.errorcode[error.errno or 0]}")

        with bindlock.Lock(name):
            child.say(f"status {supervise(execute, refused)}")

    try:
        with Child(become_another) as child:
            os.close(read)
            until(lambda: Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
            command = child_of(child.pid)
            until(lambda: is_command(command, "sh"))
            child.signal(signal.SIGUSR1)
            child.expect(f"{int(signal.SIGUSR1)} EPERM")
            assert bindlock.holder(f"@bindlock/{NOBODY}/{name}") is not None
            os.write(write, b"\n")
            child.expect("status 7")
    finally:
        os.close(write)
        os.unlink(tool)


def become(uid: int) -> None:
    """Be another user, for good."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def _no_process() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# At a terminal.


def test_ctrl_c_comes_once(name: str) -> None:
    """Ctrl-C goes to the command by the terminal, not by us again; what a process sends us is passed on."""
    command = [bindlock_command(), "run", "--fork", name, "--", *LISTENER]
    with Terminal(command) as terminal:
        terminal.read_until("listening")
        for key, number in ((CTRL_C, signal.SIGINT), (b"\x1c", signal.SIGQUIT), (CTRL_Z, signal.SIGTSTP)):
            terminal.press(key)
            terminal.read_until(f"{int(number)}\r\n")
        # Passed on after whatever else we had to pass on.
        terminal.process.send_signal(signal.SIGRTMAX)
        terminal.read_until("64\r\n")
        assert re.findall(r"(\d+)\r\n", terminal.shown) == ["2", "3", "20", "64"]
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("2\r\n")


def test_ctrl_c_ends_both(name: str) -> None:
    """Ctrl-C ends a command that does nothing about it, and us by the same signal."""
    with Terminal([bindlock_command(), "run", "--fork", name, "--", "sh", "-c", "echo ready; exec cat"]) as terminal:
        terminal.read_until("ready")
        terminal.press(CTRL_C)
        assert terminal.wait() == -signal.SIGINT
    assert bindable(name)


def test_the_terminal_hangs_up(name: str) -> None:
    """When the terminal goes, the command is told, also where we are the leader of the session, and the only one whom
    the kernel tells."""
    command = [bindlock_command(), "run", "--fork", name, "--", "sh", "-c", "echo ready; exec sleep 600"]
    with Terminal(command) as terminal:
        terminal.read_until("ready")
        with watching(child_of(terminal.pid)) as pidfd:
            os.close(terminal._master)
            terminal._master = os.open(os.devnull, os.O_RDWR)
            assert ended(pidfd)
        assert terminal.process.wait(DEADLINE) == -signal.SIGHUP
    assert bindable(name)


@pytest.mark.parametrize("shell", ["bash --norc --noprofile -i", "zsh -f -i", "dash -i"])
def test_job_control(name: str, shell: str) -> None:
    """Ctrl-Z stops the command and us, so that the shell has its terminal back; so does reading in the background; fg
    has both go on."""
    program, *options = shell.split()
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    environment = {**os.environ, "PS1": "ready> ", "PROMPT": "ready> ", "HISTFILE": ""}
    with Terminal([program, *options], env=environment) as terminal:
        terminal.read_until("ready> ")
        terminal.press(f"{bindlock_command()} run --fork {name} -- sh -c 'echo begun; exec cat' &\r".encode())
        terminal.read_until(r"begun\r\n")
        supervisor = child_of(terminal.pid)
        cat = child_of(supervisor)
        for _ in range(3):
            until(lambda: state_is(cat, "T") and state_is(supervisor, "T"))
            assert not bindable(name)
            terminal.press(b"fg\r")
            until(lambda: state_is(cat, "S") and state_is(supervisor, "S"))
            terminal.press(b"miaow\r")
            terminal.read_until(r"miaow\r\n.*miaow\r\n")
            terminal.press(CTRL_Z)
            terminal.read_until(r"(?i)(stopped|suspended)[^\r]*\r\n(.*\r\n)*.*ready> ")
        terminal.press(b"fg\r")
        until(lambda: state_is(cat, "S") and state_is(supervisor, "S"))
        terminal.press(CTRL_C)
        terminal.read_until("ready> ")
        terminal.press(b"echo status $?\r")
        terminal.read_until(r"status 130\r\n")
    assert bindable(name)


def test_stopped_without_a_shell(cast: Cast, name: str) -> None:
    """Where no shell could continue us we do not stop with the command, and so miss nothing of it."""
    actor, cat = start_cat(cast, name, start_new_session=True)
    os.kill(cat, signal.SIGSTOP)
    until(lambda: state_is(cat, "T"))
    until(lambda: pending(actor.pid) == 0 and state_is(actor.pid, "S"))
    actor.signal(signal.SIGTERM)
    until(lambda: pending(cat))
    os.kill(cat, signal.SIGCONT)
    assert actor.wait() == -signal.SIGTERM


# As the first process of a PID namespace.


@needs_root
@needs_unshare
def test_first_process(name: str) -> None:
    """As the first process of a container it reaps orphans, and the status is the command's, or 128+N."""
    orphan = """
        orphan=$(sh -c 'sleep 0.1 >/dev/null & echo $!')
        while [ -e /proc/$orphan ]; do :; done
        echo "pid $$, parent $PPID"
        """
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", bindlock_command(), "run", "--fork", name, "--"]
    reaped = subprocess.run([*unshare, "sh", "-c", f"{orphan} exit 5"], capture_output=True, timeout=DEADLINE)
    assert (reaped.returncode, reaped.stderr) == (5, b"")
    assert re.fullmatch(rb"pid \d+, parent 1\n", reaped.stdout)
    assert subprocess.run([*unshare, "sh", "-c", "kill -TERM $$"], timeout=DEADLINE).returncode == 143


@needs_root
@needs_unshare
def test_first_process_is_signalled(cast: Cast, name: str) -> None:
    """As the first process of a container, which signals do not end by default, it passes them on."""
    actor = cast.start("unshare", "--pid", "--fork", bindlock_command(), "run", "--fork", name, "--", *LISTENER)
    actor.expect("listening")
    supervisor = child_of(actor.pid)
    with watching(supervisor) as first, watching(child_of(supervisor)) as command:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.pidfd_send_signal(first, number)
            actor.expect(str(int(number)))
        signal.pidfd_send_signal(first, signal.SIGKILL)
        assert ended(command)


@needs_root
@needs_unshare
def test_the_command_is_the_first_process(cast: Cast, name: str) -> None:
    """Where the command is the first process of a new PID namespace, and sees no parent, it is ended with us, too."""
    actor = cast.start("unshare", "--pid", bindlock_command(), "run", "--fork", name, "--", *LISTENER)
    actor.expect("listening")
    with watching(child_of(actor.pid)) as command:
        assert actor.kill() == -signal.SIGKILL
        assert ended(command)


# Killed.


def is_bound(name: str) -> bool:
    """Whether somebody has the name: without a try that could be in the way of another's."""
    address = bindlock.names.parse(name).address
    with Diag() as diag:
        return bool(diag.bound(lambda bound: bound == address))


def alone(file: int) -> bool:
    """Whether nobody else has the record lock; it is given back."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.lockf(file, fcntl.LOCK_UN)
    return True


def rest_of(actor: Actor) -> str:
    """What was said up to the end, when the last that has its output is gone: nobody is left of it."""
    assert actor.process.stdout is not None
    said = b""
    while True:
        ready, _, _ = select.select([actor.process.stdout], [], [], DEADLINE)
        assert ready, "the command has outlived us"
        data = os.read(actor.process.stdout.fileno(), 65536)
        if not data:
            return said.decode()
        said += data


def test_killed(cast: Cast, name: str, long: bool, seed: int) -> None:
    """Whenever we are killed, the command is killed with us, before anybody else can have the name: never two at a
    time, and nobody left."""
    chance = random.Random(seed)
    rounds = 1000 if long else 100
    file = os.memfd_create("witness")
    witness = (*WITNESS, str(file))
    told, slowest = 0, 0.0
    try:
        for turn in range(rounds):
            actor = start(cast, name, *witness, pass_fds=(file,))
            until(lambda: is_bound(name))
            out = actor.process.stdout
            assert out is not None
            select.select([out], [], [], chance.random() * 0.06)  # from just before the fork to long after the exec
            next_one = bindlock.Lock(name)
            killed = time.monotonic()
            actor.process.kill()
            if turn % 2:  # by a try at once, and over and over: no queue, no grace
                until(next_one.try_acquire)
            else:
                next_one.acquire(DEADLINE)
            assert alone(file), f"in turn {turn} the command lived when the name was free"
            slowest = max(slowest, time.monotonic() - killed)
            said = rest_of(actor)
            next_one.release()
            assert said in ("", "in\n"), f"turn {turn}: {said!r}"
            told += bool(said)
            assert actor.wait() == -signal.SIGKILL
            actor.close()
        print(f"killed {rounds} times, in {told} with the command at work; slowest {slowest * 1000:.1f} ms")
        assert told > rounds / 5
        assert told < rounds
    finally:
        os.close(file)


def test_killed_with_others_waiting(cast: Cast, name: str, long: bool) -> None:
    """One after the other is killed while the next waits: each runs alone, in order."""
    file = os.memfd_create("witness")
    witness = (*WITNESS, str(file))
    try:
        now = start(cast, name, *witness, pass_fds=(file,))
        now.expect("in")
        for _ in range(100 if long else 20):
            after = start(cast, name, *witness, pass_fds=(file,))
            until(lambda: waiters(name) == 1)
            now.process.kill()
            after.expect("in")
            assert rest_of(now) == ""
            now.close()
            now = after
    finally:
        os.close(file)


def test_killed_while_the_command_is_stopped(cast: Cast, name: str) -> None:
    """A command that is stopped goes with us, too."""
    actor, cat = start_cat(cast, name, start_new_session=True)
    os.kill(cat, signal.SIGSTOP)
    until(lambda: state_is(cat, "T"))
    with watching(cat) as pidfd:
        actor.kill()
        assert ended(pidfd)
    assert bindable(name)


def test_ended_before_the_command_is_executed(name: str) -> None:
    """A child that is not yet the command goes with us, too, and has the name as long as it is there."""

    def parent(child: Child) -> None:
        lock = bindlock.Lock(name, children="share")
        lock.acquire()

        def become() -> int:
            child.say(str(os.getpid()))
            return 0 if select.select([], [], [], DEADLINE) else 1

        supervise(become, lambda number, error: None)

    with Child(parent) as child, watching(int(child.hear())) as command:
        assert not bindable(name)
        child.kill()
        assert ended(command)
    assert bindable(name)
