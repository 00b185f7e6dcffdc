"""The commands beside ``bindlock run``: status, list, wait, stop, signal, completion; and what all have in common."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import bindlock
import bindlock.names
from tests.actors import DEADLINE, Child, bindable, bindlock_command, until
from tests.conftest import needs_root
from tests.terminal import CTRL_C, Terminal
from tests.test_run import NOBODY, REFUSE, SOCKET_CALL, USER, await_cat, start_cat, waiters

if TYPE_CHECKING:
    from pathlib import Path

    from tests.actors import Actor, Cast

COMMANDS = ("run", "status", "list", "wait", "stop", "signal", "prove", "completion")


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``bindlock`` with these arguments, to its end."""
    options = {"stdin": subprocess.DEVNULL, "timeout": DEADLINE, "capture_output": True, "text": True} | options
    return subprocess.run([bindlock_command(), *arguments], **options)


def start_command(cast: Cast, *arguments: str, **options: Any) -> Actor:
    """``bindlock`` with these arguments, going on."""
    return cast.start(bindlock_command(), *arguments, **options)


def said(ended: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """All that it has to say."""
    return ended.returncode, ended.stdout, ended.stderr


# status


def test_status(cast: Cast, name: str) -> None:
    """status says in a line who has a name, who waits, or that it is free; 0 is held, 3 is free."""
    assert said(command("status", name)) == (3, f"{name} is free\n", "")
    holder = start_cat(cast, name)
    held = command("status", name)
    line = rf"{name} is held by pid {holder.pid} \({USER}, cat\), running for \d+s"
    assert re.fullmatch(line + "\n", held.stdout)
    assert (held.returncode, held.stderr) == (0, "")
    queue = []
    for count in (1, 2):
        queue.append(start_command(cast, "run", name, "true"))
        until(lambda count=count: waiters(name) == count)  # type: ignore[misc]
    waiting = [
        rf"   {number}\. pid {waiter.pid} \({USER}, bindlock run {name} true\), waiting for \d+s\n"
        for number, waiter in enumerate(queue, 1)
    ]
    assert re.fullmatch(line + "; 2 waiting\n" + "".join(waiting), command("status", name).stdout)


def test_status_of_a_stopped_queue(cast: Cast, name: str) -> None:
    """status says when the one whose turn it is is stopped, also when nobody has the name, and what can be done."""
    holder = start_cat(cast, name)
    queue = []
    for count in range(1, 13):
        queue.append(start_command(cast, "run", name, "true"))
        until(lambda count=count: waiters(name) == count)  # type: ignore[misc]
    queue[0].signal(signal.SIGSTOP)
    os.waitid(os.P_PID, queue[0].pid, os.WSTOPPED | os.WNOWAIT)
    holder.kill()
    shown = command("status", name)
    assert shown.returncode == 3
    first, *lines = shown.stdout.splitlines()
    assert first == f"{name} is free; 12 waiting"
    assert lines[0].endswith(", stopped")
    assert lines[10:] == [
        "      and 2 more",
        f"The first is stopped: continue it (kill -CONT {queue[0].pid}), or end it.",
    ]
    told = json.loads(command("status", "--json", name).stdout)
    assert [waiter["pid"] for waiter in told["queue"]] == [waiter.pid for waiter in queue]
    assert [waiter["stopped"] for waiter in told["queue"]] == [True] + 11 * [False]
    queue[0].signal(signal.SIGCONT)
    assert [waiter.wait() for waiter in queue] == 12 * [0]


def test_status_as_json(cast: Cast, name: str) -> None:
    """status --json says the same to programs: always name, scope and held; with a holder all that is known of it."""
    free = command("status", "--json", name)
    assert free.returncode == 3
    assert json.loads(free.stdout) == {"name": name, "scope": "user", "held": False, "queue": []}
    actor = start_cat(cast, name, "--scope", "host")
    before = time.time()
    held = command("status", "--json", "--scope", "host", name)
    assert held.returncode == 0
    told = json.loads(held.stdout)
    expected = bindlock.holder(name, scope="host")
    assert expected is not None
    assert before - 60 < told.pop("started") <= time.time()
    assert 0 <= told.pop("age") < 60
    assert told == {
        "name": name, "scope": "host", "held": True, "pid": actor.pid, "uid": os.geteuid(), "gid": os.getegid(),
        "user": USER, "trusted": True, "command": ["cat"], "inode": expected.inode, "waiters": 0,
        "queue": [],
    }  # fmt: skip


def test_status_of_foreign_names(name: str) -> None:
    """status knows the sockets of other programs, by the spelling that says how they bind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as foreign:
        foreign.bind(f"\0{name}")
        held = command("status", f"datagram:@{name}")
        assert held.returncode == 0
        assert f"pid {os.getpid()} ({USER}, " in held.stdout
        assert command("status", f"@{name}").returncode == 3


# list


def rows(table: str) -> dict[str, list[str]]:
    """The lines of a table, by their first words: the names."""
    return {line.split()[0]: line.split() for line in table.splitlines()[1:] if line.strip()}


def test_list(cast: Cast, name: str) -> None:
    """list has a line for each lock: name, scope, holder, user, command, age, waiters."""
    first = start_cat(cast, f"{name}-a")
    second = start_cat(cast, f"{name}-b", "--scope", "host")
    start_command(cast, "run", f"{name}-a", "true")
    until(lambda: waiters(f"{name}-a") == 1)
    listed = command("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.splitlines()[0].split() == ["NAME", "SCOPE", "HOLDER", "USER", "COMMAND", "AGE", "WAITERS"]
    found = rows(listed.stdout)
    for row, scope, actor, queue in ((f"{name}-a", "user", first, "1"), (f"{name}-b", "host", second, "0")):
        *fields, age, queued = found[row]
        assert fields == [row, scope, str(actor.pid), USER, "cat"]
        assert re.fullmatch(r"\d+s", age)
        assert queued == queue
    names = [line.split()[0] for line in listed.stdout.splitlines()[1:] if line.startswith(name)]
    assert names == [f"{name}-a", f"{name}-b"]


def test_list_as_json(cast: Cast, name: str) -> None:
    """list --json has an object for each lock, with the same fields as status."""
    start_cat(cast, name)
    listed = {lock["name"]: lock for lock in json.loads(command("list", "--json").stdout)}
    status = json.loads(command("status", "--json", name).stdout)
    del status["held"]
    for moment in ("started", "age"):
        assert abs(listed[name].pop(moment) - status.pop(moment)) < 60
    assert listed[name] == status


def test_list_all(name: str) -> None:
    """list --all has the names of other programs, too, spelled so that every other command understands them."""
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(f"\0{name}/foreign")
        assert name not in command("list").stdout
        assert rows(command("list", "--all").stdout)[f"@{name}/foreign"][1:3] == ["verbatim", str(os.getpid())]
        assert command("status", f"@{name}/foreign").returncode == 0


@needs_root
def test_list_has_the_locks_of_others(name: str) -> None:
    """list has the locks of other users, under the name that means them for everybody, and says whose they are."""

    def hold(child: Child) -> None:
        os.setgroups([])
        os.setuid(NOBODY)
        with bindlock.Lock(name):
            child.say("held")
            child.hear()

    with Child(hold) as child:
        child.expect("held")
        text = f"@bindlock/{NOBODY}/{name}"
        user = pwd.getpwuid(NOBODY).pw_name
        assert rows(command("list").stdout)[text][1:4] == ["verbatim", str(child.pid), user]
        (lock,) = (lock for lock in json.loads(command("list", "--json").stdout) if lock["name"] == text)
        assert (lock["pid"], lock["uid"], lock["user"]) == (child.pid, NOBODY, user)
        assert command("status", text).returncode == 0


#: What strangers might call themselves, and how it is shown.
HOSTILE = {
    "\u202egnp": "\\u202egnp",
    "[red]": "[red]",
    "[/]": "[/]",
    "[link=http://x]": "[link=http://x]",
    ":boom:": ":boom:",
    "\u200b": "\\u200b",
    "\u2028": "\\u2028",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_list_of_hostile_names(cast: Cast, name: str, text: str) -> None:
    """Names and command lines are shown as they are, and what a terminal or a renderer would obey is escaped."""
    hostile = f"{name}{text}x"
    actor = start_command(cast, "run", hostile, "--", "sh", "-c", "echo; read line", f"{text}\x1b[31m\r\n")
    actor.expect("")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    with Terminal([bindlock_command(), "list"], columns=200, env=environment) as terminal:
        assert terminal.wait() == 0
    shown = without_style(terminal.shown)
    (line,) = (line for line in shown.split("\r\n") if line.startswith(name))
    assert line.isprintable()
    assert line.startswith(f"{name}{HOSTILE[text]}x ")
    assert f"sh -c echo; read line {HOSTILE[text]}\\x1b[31m\\r\\n " in line
    assert command("status", hostile, env=environment).stdout.startswith(f"{name}{HOSTILE[text]}x is held by")


def test_list_of_raw_bytes(name: str) -> None:
    """A name that is no UTF-8, or has control characters, is shown escaped, and disturbs nothing."""
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(b"\0" + name.encode() + b"\xff\x1b[2J\n\0")
        for environment in ({"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C"}):
            listed = command("list", "--all", env={**os.environ, **environment})
            assert (listed.returncode, listed.stderr) == (0, "")
            (line,) = (line for line in listed.stdout.splitlines() if name in line)
            assert line.startswith(f"@{name}\\xff\\x1b[2J\\n\\x00 ")
        (lock,) = (lock for lock in json.loads(command("list", "--all", "--json").stdout) if name in lock["name"])
        assert lock["pid"] == os.getpid()


@pytest.mark.parametrize("columns", [70, 80, 120])
def test_list_on_a_narrow_terminal(cast: Cast, name: str, network: list[str], columns: int) -> None:
    """On a narrow terminal it is the command that is cut, visibly, and no line is longer than the terminal is wide."""
    words = ["sh", "-c", "echo; read line", "argument" * 20]
    actor = cast.start(*network, bindlock_command(), "run", name, "--", *words)
    actor.expect("")
    with Terminal([*network, bindlock_command(), "list"], columns=columns) as terminal:
        assert terminal.wait() == 0
    lines = without_style(terminal.shown).split("\r\n")
    assert max(map(len, lines)) <= columns
    assert lines[0].split() == ["NAME", "SCOPE", "HOLDER", "USER", "COMMAND", "AGE", "WAITERS"]
    assert re.fullmatch(rf"{name} +user +{actor.pid} +\S+ +sh -c.*… +\d+s +0 *", lines[1])


@pytest.fixture
def network(cast: Cast) -> list[str]:
    """What to put before a command to run it in a network namespace where there are no names but the test's."""
    root = os.geteuid() == 0
    actor = cast.start("unshare", *([] if root else ["-r"]), "-n", "cat", stderr=subprocess.DEVNULL)
    try:
        await_cat(actor)
    except (AssertionError, BrokenPipeError):
        pytest.skip("network namespaces cannot be had here")
    user = [] if root else ["-U", "--preserve-credentials"]
    return ["nsenter", "-t", str(actor.pid), *user, "-n"]


def without_style(shown: str) -> str:
    """Without the control sequences that only say how it looks."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


def screen(shown: str) -> list[str]:
    """The lines of a terminal after all that was shown: the few control sequences that we use, carried out."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", without_style(shown)):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part in ("\x1b[?25l", "\x1b[?25h"):
            pass  # the cursor is hidden, and shown
        else:
            assert not part.startswith("\x1b"), f"not known here: {part!r}"
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def test_watch(cast: Cast, name: str, network: list[str]) -> None:
    """list --watch shows a lock that comes and goes: live on a terminal until Ctrl-C, without a trace of what is no
    more; through a pipe only what has changed."""
    lines = cast.start(*network, bindlock_command(), "list", "--watch", "--json")
    assert json.loads(lines.read()) == []
    with Terminal([*network, bindlock_command(), "list", "--watch"]) as terminal:
        terminal.read_until("WAITERS")
        actor = cast.start(*network, bindlock_command(), "run", name, "--", "cat")
        (lock,) = json.loads(lines.read())
        assert (lock["name"], lock["pid"]) == (name, actor.pid)
        for _ in range(3):  # as time goes on
            terminal.read_until(name)
        actor.kill()
        assert json.loads(lines.read()) == []  # the next line: the lock's age was no news
        while terminal.shown.rpartition(name)[2].count("WAITERS") < 2:
            terminal.read_until("WAITERS")
        terminal.press(CTRL_C)
        assert terminal.wait() == 0
        assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")
        (heading,) = (line for line in screen(terminal.shown.replace("^C", "")))
        assert heading.split()[0] == "NAME"
    lines.signal(signal.SIGINT)
    assert lines.wait() == 0


# wait


def test_wait(cast: Cast, name: str) -> None:
    """wait returns when the name is free, whatever freed it, and does not take it."""
    assert said(command("wait", name)) == (0, "", "")
    for option in ((), ("-w", "60"), ("--json",)):
        holder = cast.holder(name)
        waiter = start_command(cast, "wait", *option, name)
        until(lambda: waiters(name) == 1)
        assert waiter.process.poll() is None
        holder.kill()
        if option == ("--json",):
            assert json.loads(waiter.read()) == {"name": name, "scope": "user", "held": False}
        assert waiter.wait() == 0
        assert bindable(name)


@pytest.mark.parametrize("option", ["-w", "--wait", "--timeout"])
def test_wait_for_too_long(cast: Cast, name: str, option: str) -> None:
    """wait is 75 when the time is over, and says who has it still."""
    actor = start_cat(cast, name)
    start = time.monotonic()
    ended = command("wait", option, "0.2", name)
    assert time.monotonic() - start >= 0.2
    assert (ended.returncode, ended.stdout) == (75, "")
    assert ended.stderr.startswith(f"bindlock: {name} is held by pid {actor.pid} ({USER}, cat), running for ")
    ended = command("wait", option, "0", "--json", name)
    assert (ended.returncode, ended.stderr) == (75, "")
    told = json.loads(ended.stdout)
    assert (told["name"], told["held"], told["pid"]) == (name, True, actor.pid)


def test_wait_interrupted(cast: Cast, name: str) -> None:
    """Ctrl-C ends wait by SIGINT, without a word."""
    cast.holder(name)
    with Terminal([bindlock_command(), "wait", name]) as terminal:
        until(lambda: waiters(name) == 1)
        terminal.press(CTRL_C)
        assert terminal.wait() == -signal.SIGINT
        assert terminal.shown in ("", "^C")
    assert waiters(name) == 0


# stop

#: Holds a name, and goes on when it is told to end.
STUBBORN = """
import signal, sys, bindlock
signal.signal(signal.SIGTERM, lambda *_: print("no", flush=True))
with bindlock.Lock(sys.argv[1]):
    print("held", flush=True)
    while True:
        signal.pause()
"""
#: Holds a name together with a child of it, which says its PID.
SHARED = """
import os, signal, sys, bindlock
lock = bindlock.Lock(sys.argv[1], children="share")
lock.acquire()
if os.fork():
    signal.pause()
print(os.getpid(), flush=True)
signal.pause()
"""


def test_stop(cast: Cast, name: str) -> None:
    """stop ends the holder by SIGTERM and returns when the name is free, at once."""
    actor = start_cat(cast, name)
    assert said(command("stop", name)) == (0, "", "")
    assert bindable(name)
    assert actor.wait() == -signal.SIGTERM


@pytest.mark.parametrize("number", ["INT", "SIGUSR1", "9"])
def test_stop_by_another_signal(cast: Cast, name: str, number: str) -> None:
    """stop -s sends another signal, by name or number."""
    actor = start_cat(cast, name)
    assert command("stop", "-s", number, name).returncode == 0
    assert -actor.wait() in (signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)


def test_stop_as_json(cast: Cast, name: str) -> None:
    """stop --json says whether there was somebody to stop, or who has it still."""
    ended = command("stop", "--json", name)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == {"name": name, "scope": "user", "held": False, "was_held": False}
    start_cat(cast, name)
    assert json.loads(command("stop", "--json", name).stdout)["was_held"] is True
    actor = cast.python(STUBBORN, name)
    actor.expect("held")
    ended = command("stop", "--json", "-w", "0", name)
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["held"], told["pid"]) == (75, True, actor.pid)


def test_stop_nobody(name: str) -> None:
    """stop without a holder is done already: 0, and it says so."""
    assert said(command("stop", name)) == (0, "", f"bindlock: {name} is free: nobody to stop\n")


def test_stop_one_that_goes_on(cast: Cast, name: str) -> None:
    """stop is 75 when the holder goes on, and says who that is; --kill ends it then."""
    actor = cast.python(STUBBORN, name)
    actor.expect("held")
    start = time.monotonic()
    ended = command("stop", "-w", "0.2", name)
    assert time.monotonic() - start >= 0.2
    actor.expect("no")
    assert (ended.returncode, ended.stdout) == (75, "")
    assert f"bindlock: {name} is held by pid {actor.pid} ({USER}, " in ended.stderr
    assert said(command("stop", "-w", "0.2", "--kill", name)) == (0, "", "")
    assert bindable(name)
    assert actor.wait() == -signal.SIGKILL


def test_stop_one_that_goes_meanwhile(cast: Cast, name: str) -> None:
    """stop of a holder that dies by itself at any moment is 0: what was wanted is so."""
    for _ in range(8):
        actor = cast.holder(name)
        stop = start_command(cast, "stop", name, stderr=subprocess.PIPE)
        actor.kill()
        assert stop.wait() == 0
        assert stop.process.stderr is not None
        assert stop.process.stderr.read() in (b"", f"bindlock: {name} is free: nobody to stop\n".encode())


def test_stop_where_a_child_has_it_too(cast: Cast, name: str) -> None:
    """stop does not return before the name is free: a forked child that has it, too, is named; --kill ends that."""
    parent = cast.python(SHARED, name)
    child = int(parent.read())
    pidfd = os.pidfd_open(child)
    try:
        ended = command("stop", "-w", "0.2", name)
        assert parent.wait() == -signal.SIGTERM
        assert ended.returncode == 75
        assert f"bindlock: {name} is held by pid {child} ({USER}, " in ended.stderr
        assert not bindable(name)
        assert command("stop", "--kill", name).returncode == 0
        assert bindable(name)
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


# signal

#: Holds a name, and says which signals it gets.
LISTENING = """
import signal, sys, bindlock
for number in {signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGRTMIN}:
    signal.signal(number, lambda number, _: print(number, flush=True))
with bindlock.Lock(sys.argv[1]):
    print("held", flush=True)
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("text", ["USR1", "SIGUSR1", "usr1", "HUP", "TERM", "RTMIN", "number"])
def test_signal(cast: Cast, name: str, text: str) -> None:
    """signal sends the holder any signal, by name, with or without SIG, or by number."""
    number = signal.SIGHUP if text == "number" else signal.Signals["SIG" + text.upper().removeprefix("SIG")]
    actor = cast.python(LISTENING, name)
    actor.expect("held")
    assert said(command("signal", name, str(int(number)) if text == "number" else text)) == (0, "", "")
    actor.expect(str(int(number)))


def test_signal_nobody(name: str) -> None:
    """signal without a holder is 3."""
    assert said(command("signal", name, "HUP")) == (3, "", f"bindlock: {name} is free: nobody to signal\n")


@pytest.mark.parametrize("text", ["NOPE", "", "0", "65", "-9", "SIG", "\N{SUPERSCRIPT TWO}"])
def test_no_signal(cast: Cast, name: str, text: str) -> None:
    """What is no signal is a usage error, and nothing is sent."""
    cast.holder(name)
    ended = command("signal", "--", name, text)
    assert (ended.returncode, ended.stdout) == (64, "")
    assert "Error: " in ended.stderr
    assert command("status", name).returncode == 0


# completion


def complete_in_bash(words: str) -> list[str]:
    """What bash, with our completion script, offers for the last of some words."""
    code = """
    eval "$(bindlock completion bash)"
    function=$(complete -p bindlock); function=${function#*-F }; function=${function%% *}
    COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    case $1 in *" ") COMP_WORDS+=("") COMP_CWORD=$((COMP_CWORD + 1));; esac
    $function bindlock
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{os.path.dirname(bindlock_command())}:{os.environ['PATH']}"
    shell = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", words], capture_output=True, text=True, timeout=DEADLINE,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert shell.stderr == ""
    return shell.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(cast: Cast, name: str) -> None:
    """In bash, sub-commands, options and the names of locks that are held are completed."""
    cast.holder(f"{name}-user")
    start_cat(cast, f"{name}-host", "--scope", "host")
    assert complete_in_bash("bindlock st") == ["status", "stop"]
    assert set(complete_in_bash("bindlock ")) == set(COMMANDS)
    assert complete_in_bash("bindlock stop --ki") == ["--kill"]
    assert complete_in_bash("bindlock run --scope ") == ["user", "host"]
    assert complete_in_bash("bindlock completion ") == ["bash", "zsh", "fish"]
    for words in ("status", "stop -w 5", "run", "wait", "signal"):
        assert complete_in_bash(f"bindlock {words} {name}") == [f"{name}-user"]
    assert complete_in_bash(f"bindlock status --scope host {name}") == [f"{name}-host"]
    assert complete_in_bash(f"bindlock status @{name}") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    """There is a completion script for each shell, which the shell, if there is one, can read."""
    ended = command("completion", shell)
    assert ended.returncode == 0
    assert "_BINDLOCK_COMPLETE" in ended.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here to read it")
    (tmp_path / "script").write_text(ended.stdout)
    read = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, timeout=DEADLINE)
    assert (read.returncode, read.stderr) == (0, b"")


# All of them.


@pytest.mark.parametrize(
    "words", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "bindlock"
)
def test_help(words: tuple[str, ...]) -> None:
    """Every help fits a terminal of 24 lines and 80 columns, says all it says in full, and has examples or exit
    statuses."""
    shown = command(*words, "--help", env={**os.environ, "COLUMNS": "80"})
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith("...") for line in lines[1:])
    assert re.search(r"Exit status|^  Examples?:|^    eval ", shown.stdout, re.MULTILINE)
    assert command(*words, "-h", env={**os.environ, "COLUMNS": "80"}).stdout == shown.stdout


def test_no_arguments() -> None:
    """The command alone shows its help, as an error."""
    ended = command()
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr.startswith("Usage: bindlock ")


def test_version() -> None:
    """--version says the package's."""
    assert said(command("--version")) == (0, f"bindlock, version {bindlock.__version__}\n", "")


def test_as_a_module(cast: Cast, name: str) -> None:
    """``python -m bindlock`` is the same command."""
    ours = [sys.executable, "-m", "bindlock"]
    actor = cast.start(*ours, "run", name, "--", "cat")
    await_cat(actor)
    assert os.readlink(f"/proc/{actor.pid}/exe") == os.path.realpath(shutil.which("cat") or "")
    status = subprocess.run([*ours, "status", "--json", name], capture_output=True, timeout=DEADLINE)
    assert (status.returncode, json.loads(status.stdout)["pid"]) == (0, actor.pid)
    assert subprocess.run([*ours, "run", "-nq", name, "true"]).returncode == 75
    assert subprocess.run([*ours, "--nonsense"], capture_output=True).returncode == 64


@pytest.mark.parametrize(
    "words",
    ["status {}", "status --json {}", "list", "list --json", "list --all", "list --watch", "list --watch --json",
     "wait --json {}", "stop --json {}", "completion bash", "--help", "run --help", "--version"],
)  # fmt: skip
def test_nobody_reads(name: str, words: str) -> None:
    """A reader that goes away (``| head -0``) ends any command, without a traceback."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = command(*words.format(name).split(), stdout=write, stderr=subprocess.PIPE, capture_output=False)
    finally:
        os.close(write)
    assert ended.returncode != 0
    assert ended.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", ["status {}", "list", "list --json", "--help"])
def test_nowhere_to_write(name: str, words: str) -> None:
    """An answer that cannot be written is an error, in words."""
    with open("/dev/full", "w") as full:
        ended = command(*words.format(name).split(), stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert ended.returncode == 71
    assert ended.stderr == "bindlock: cannot write: No space left on device (ENOSPC)\n"


@pytest.mark.parametrize(("words", "status"), [("status {}", 3), ("list", 0), ("status --json {}", 3), ("stop {}", 0)])
def test_without_standard_streams(name: str, words: str, status: int) -> None:
    """With standard output and error closed the exit status is the answer."""
    shell = ["sh", "-c", '"$@" >&- 2>&-', "sh", bindlock_command(), *words.format(name).split()]
    assert subprocess.run(shell, timeout=DEADLINE).returncode == status


@pytest.mark.parametrize(
    "words", ["status", "wait", "stop", "signal {} TERM {}", "list {}", "no-such-command", "status --x"]
)
def test_usage_errors_of_commands(name: str, words: str) -> None:
    """A command line that means nothing is 64, with the reason in words."""
    ended = command(*words.replace("{}", name).split())
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr.startswith("Usage: bindlock ")


@pytest.mark.parametrize("words", ["status", "wait", "stop"])
@pytest.mark.parametrize("text", ["", "a\nb", "end/", "@abcde"])
def test_names_that_are_none(words: str, text: str) -> None:
    """What cannot be a name is 64 for every command, and said in one line."""
    ended = command(words, text)
    assert (ended.returncode, ended.stdout) == (64, "")
    assert re.fullmatch(r"bindlock: .* is no name: .*\n", ended.stderr)


@pytest.mark.skipif(SOCKET_CALL is None, reason="the system call's number is not known for this processor")
@pytest.mark.parametrize("words", ["wait {}", "stop {}", "list"])
def test_commands_without_sockets(name: str, words: str) -> None:
    """Where the kernel may not be asked the answer is 69: not "free", and not "held"."""
    program = [sys.executable, "-c", REFUSE, str(SOCKET_CALL), str(errno.EPERM), "any"]
    ended = subprocess.run(
        [*program, bindlock_command(), *words.format(name).split()], capture_output=True, text=True, timeout=DEADLINE
    )
    assert (ended.returncode, ended.stdout) == (69, "")
    assert ended.stderr.startswith("bindlock: cannot lock ")


OBEYED_BY_SHELLS = ("$(touch${IFS}x)", "`x`", "a b", "x;y", "x|y", "x&y", "*", "~x", "\\x", "'x", '"x', "x>y")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_offers_nothing_a_shell_obeys(name: str) -> None:
    """Names with anything that a shell might obey are not completed: anybody can bind one."""
    with contextlib.ExitStack() as stack:
        for tail in OBEYED_BY_SHELLS:
            stack.enter_context(bindlock.Lock(f"@{name}{tail}"))
        stack.enter_context(bindlock.Lock(f"@{name}-good"))
        assert complete_in_bash(f"bindlock status @{name}") == [f"@{name}-good"]


@needs_root
def test_completion_offers_no_name_of_a_stranger(name: str) -> None:
    """A name of ours in the hands of a stranger is not completed."""

    def body(child: Child) -> None:
        address = bindlock.names.parse(name).address
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind(address)
            stranger.listen(8)
            child.say("bound")
            child.hear()

    with Child(body) as child:
        child.expect("bound")
        assert complete_in_bash(f"bindlock status {name}") == []
        for words in (["status", name], ["stop", name], ["signal", name, "TERM"], ["stop", "--kill", name]):
            ended = command(*words)
            assert (ended.returncode, ended.stdout) == (77, "")
            assert "untrusted user" in ended.stderr
        told = command("status", "--json", name)
        assert (told.returncode, json.loads(told.stdout)["trusted"]) == (77, False)
        child.signal(0)
