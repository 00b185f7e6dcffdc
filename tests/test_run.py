"""``bindlock run``: what the command gets, what the caller gets, and who waits for whom."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import pwd
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bindlock
import bindlock.names
from bindlock.cli import commands
from bindlock.cli.run import OPTIONS, Plan, scan
from tests.actors import DEADLINE, Child, bindable, bindlock_command, until
from tests.conftest import needs_root
from tests.terminal import CTRL_C, Terminal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.actors import Actor, Cast

USER = pwd.getpwuid(os.geteuid()).pw_name
NOBODY = 65534
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}.get(platform.machine())


def run(
    *arguments: str | bytes, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """``bindlock run`` with these arguments, to its end."""
    return subprocess.run(
        [bindlock_command(), "run", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE,
        env=env, cwd=cwd,
    )  # fmt: skip


def start_cat(cast: Cast, name: str, *options: str, **popen: Any) -> Actor:
    """``bindlock run … cat``, when it has become cat: a command that says when it runs, and goes on until told."""
    actor = cast.start(bindlock_command(), "run", *options, name, "--", "cat", **popen)
    await_cat(actor)
    return actor


def await_cat(actor: Actor) -> None:
    """Return when it is a cat that answers."""
    actor.write("miaow")
    actor.expect("miaow")


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of a process leads to."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            found[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def environment(pid: int) -> dict[bytes, bytes]:
    """The environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
    return {key: value for key, equals, value in (entry.partition(b"=") for entry in entries) if equals}


def signal_masks(pid: int) -> dict[str, str]:
    """The signals that a process ignores, blocks and catches."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: fields[key].strip() for key in ("SigIgn", "SigBlk", "SigCgt")}


def waiters(name: str) -> int:
    """How many wait for the holder of a name."""
    holder = bindlock.holder(name)
    return holder.waiters if holder else 0


def is_command(pid: int, program: str) -> bool:
    """Whether a process has become a program."""
    found = shutil.which(program)
    assert found is not None
    return os.readlink(f"/proc/{pid}/exe") == os.path.realpath(found)


# What it becomes.


def test_becomes_the_command(cast: Cast, name: str) -> None:
    """The process that was started is the command itself: nothing of ours is around it, and the kernel names it."""
    actor = start_cat(cast, name)
    assert is_command(actor.pid, "cat")
    assert Path(f"/proc/{actor.pid}/cmdline").read_bytes() == b"cat\0"
    assert Path(f"/proc/{actor.pid}/task/{actor.pid}/children").read_text() == ""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(bindlock.names.parse(name).address)
        peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    assert peer == (actor.pid, os.geteuid(), os.getegid())


def test_the_lock_is_as_long_as_the_command(cast: Cast, name: str) -> None:
    """While the command runs the name is held by it, and when it has exited the name is free."""
    actor = start_cat(cast, name)
    holder = bindlock.holder(name)
    assert holder is not None
    assert (holder.pid, holder.command) == (actor.pid, ("cat",))
    assert actor.process.stdin is not None
    actor.process.stdin.close()
    assert actor.wait() == 0
    assert bindable(name)


@pytest.mark.parametrize("status", [0, 1, 42, 75, 126, 255])
def test_exit_status(name: str, status: int) -> None:
    """The exit status is the command's own, whatever it is."""
    assert run(name, "--", "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGPIPE, signal.SIGINT])
def test_death_by_signal(name: str, number: signal.Signals) -> None:
    """A command that a signal ends has died by that signal for its parent, too: 128+N for a shell."""
    ended = run(name, "--", "sh", "-c", f"ulimit -c 0; kill -{int(number)} $$; sleep 60")
    assert ended.returncode == -number
    script = '"$@"; echo "status $?"'
    shell = subprocess.run(
        ["sh", "-c", script, "sh", bindlock_command(), "run", name, "-c", f"ulimit -c 0; kill -{int(number)} $$"],
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    if number != signal.SIGINT:  # of which the shell dies, too, as it should
        assert shell.stdout == f"status {128 + number}\n"
    assert bindable(name)


@pytest.mark.parametrize("trap", ["", "trap '' HUP;", "trap '' INT QUIT;", "trap '' USR1;"])
def test_signal_dispositions(cast: Cast, name: str, trap: str) -> None:
    """The command finds its signals as if we had not been there: what the caller ignored is ignored (nohup), and
    nothing else is."""
    plain = cast.start("sh", "-c", f"{trap} exec cat")
    await_cat(plain)
    ours = cast.start("sh", "-c", f'{trap} exec "$@"', "sh", bindlock_command(), "run", name, "--", "cat")
    await_cat(ours)
    assert signal_masks(ours.pid) == signal_masks(plain.pid)
    ignored = int(signal_masks(ours.pid)["SigIgn"], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))
    assert bool(ignored & 1 << (signal.SIGHUP - 1)) == ("HUP" in trap)


@pytest.mark.parametrize(
    "locale",
    [
        {},
        {"LC_ALL": "C"},
        {"LC_CTYPE": "C.UTF-8"},
        {"LC_CTYPE": "C"},
        {"LC_CTYPE": "POSIX"},
        {"LC_CTYPE": ""},
        {"LANG": "C.UTF-8"},
        {"LANG": "C", "LC_CTYPE": "C.UTF-8", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda locale: ",".join(f"{key}={value}" for key, value in locale.items()) or "no locale",
)
def test_environment(cast: Cast, name: str, locale: dict[str, str]) -> None:
    """The command's environment is its caller's, and BINDLOCK_NAME and BINDLOCK_FD: also where CPython would add
    LC_CTYPE (PEP 538), or replace the caller's."""
    given: dict[bytes, bytes] = {
        b"PATH": os.environb[b"PATH"], b"HOME": b"/nowhere", b"BYTES": b"\xff\xfe=\n", b"EMPTY": b"", b"SHLVL": b"3",
        b"PWD": os.getcwdb(), b"PYTHONHOME": b"/nowhere", b"PYTHONPATH": b"/nowhere",
    }  # fmt: skip
    given |= {key.encode(): value.encode() for key, value in locale.items()}
    # A shell may touch PWD, SHLVL and _; so the measure is a script of sh(1) that executes the same command.
    plain = cast.start("sh", "-c", "exec cat", env=given)
    await_cat(plain)
    ours = start_cat(cast, name, env=given)
    expected = environment(plain.pid)
    found = environment(ours.pid)
    assert found.pop(b"BINDLOCK_NAME") == name.encode()
    assert found.pop(b"BINDLOCK_FD").isdigit()
    found.pop(b"_", None)
    expected.pop(b"_", None)
    assert found == expected
    assert expected.get(b"LC_CTYPE", b"unset") == locale.get("LC_CTYPE", "unset").encode()


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare(1)")
def test_without_proc(name: str) -> None:
    """In a chroot without /proc, in the C locale, the command runs all the same, and without LC_CTYPE."""
    script = 'umount -l /proc && exec "$@"'
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", bindlock_command(), "run", name, "-c", 'echo "${LC_CTYPE-unset}"'],
        env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"unset\n", b"")


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}], ids=["none", "C", "UTF-8"])
def test_arguments_of_any_bytes(name: str, seed: int, locale: dict[str, str]) -> None:
    """Arguments reach the command byte by byte, valid UTF-8 or not, in every locale."""
    chance = random.Random(seed)
    wild = [bytes(chance.choices(range(1, 256), k=chance.randrange(40))) for _ in range(20)]
    arguments = [bytes(range(1, 256)), b"", b"\xff", "ä\N{GRINNING FACE}".encode(), b"-n", b"--", *wild]
    printed = run(
        name, "--", "printf", "%s\\0", *arguments, env={"PATH": os.environ["PATH"], **locale}
    )  # fmt: skip
    assert printed.stdout.split(b"\0")[:-1] == arguments


def test_descriptors(cast: Cast, name: str) -> None:
    """The command has the lock under the number BINDLOCK_FD, the descriptors that its caller left it, and no other."""
    read, write = os.pipe()
    try:
        actor = start_cat(cast, name, pass_fds=(write,))
        found = descriptors(actor.pid)
        assert found[write] == os.readlink(f"/proc/self/fd/{write}")
    finally:
        os.close(read)
        os.close(write)
    holder = bindlock.holder(name)
    assert holder is not None
    number = int(environment(actor.pid)[b"BINDLOCK_FD"])
    assert found[number] == f"socket:[{holder.inode}]"
    assert set(found) == {0, 1, 2, write, number}


def test_descriptors_after_waiting(cast: Cast, name: str) -> None:
    """A command that had to wait for its lock has no descriptor more than one that had not."""
    holder = cast.holder(name)
    actor = cast.start(bindlock_command(), "run", name, "--", "cat")
    until(lambda: waiters(name) == 1)
    holder.kill()
    await_cat(actor)
    assert set(descriptors(actor.pid)) == {0, 1, 2, int(environment(actor.pid)[b"BINDLOCK_FD"])}


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("verbose", [(), ("--verbose",)], ids=["", "verbose"])
def test_standard_streams_closed(cast: Cast, name: str, closed: tuple[int, ...], verbose: tuple[str, ...]) -> None:
    """Started with standard streams closed, the command has them closed, and never the lock in their place."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    actor = cast.start(
        "sh", "-c", f'exec "$@" {redirections}', "sh", bindlock_command(), "run", *verbose, name, "--", "sleep", "60",
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: is_command(actor.pid, "sleep") and b"BINDLOCK_FD" in environment(actor.pid))
    number = int(environment(actor.pid)[b"BINDLOCK_FD"])
    assert number > 2
    # sleep has its libraries open for a moment at its start.
    until(lambda: set(descriptors(actor.pid)) == {0, 1, 2, number} - set(closed))
    assert not bindable(name)


def test_the_descriptor_keeps_the_name(cast: Cast, name: str) -> None:
    """What the command leaves running with its descriptors keeps the name; what it starts without them does not."""
    actor = cast.start(
        bindlock_command(), "run", name, "-c",
        'sleep 60 & echo $!; eval "sleep 60 $BINDLOCK_FD>&- &"; echo $!',
    )  # fmt: skip
    with_it, without = int(actor.read()), int(actor.read())
    try:
        assert actor.wait() == 0
        assert not bindable(name)
        os.kill(with_it, signal.SIGKILL)
        until(lambda: bindable(name))
        os.kill(without, 0)
    finally:
        for pid in (with_it, without):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# Finding it.


def script(path: Path, text: str, mode: int = 0o755) -> None:
    """Write an executable file."""
    path.write_text(text)
    path.chmod(mode)


def test_script_without_interpreter(name: str, tmp_path: Path) -> None:
    """An executable file without ``#!`` is run by sh, with its arguments, as a shell and flock(1) do."""
    script(tmp_path / "job", 'printf "%s\\n" "$0" "$@"\n')
    ended = run(name, "--", str(tmp_path / "job"), "one", "two words")
    assert ended.stdout.decode().splitlines() == [str(tmp_path / "job"), "one", "two words"]


@pytest.mark.parametrize("path", ["", ":{0}/b", "{0}/b:", "{0}/b::{0}/c", ".", "{0}/missing:{0}/a", "{0}/x:{0}/a"])
def test_path_search(name: str, tmp_path: Path, path: str) -> None:
    """The command is looked for in PATH as execvp(3) does: an empty element is the current directory, and a file that
    cannot be executed does not end the search."""
    for directory in "abcx":
        (tmp_path / directory).mkdir()
    script(tmp_path / "a" / "job", "#!/bin/sh\necho found\n")
    script(tmp_path / "x" / "job", "not this one\n", 0o644)
    ended = run(name, "--", "job", env={"PATH": path.format(tmp_path)}, cwd=tmp_path / "a")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"found\n", b"")


def test_no_path(name: str) -> None:
    """Without PATH the directories of the system are searched."""
    assert run(name, "--", "echo", "found", env={}).stdout == b"found\n"


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("no-such-command", 127, "No such file or directory (ENOENT)"),
        ("./no-such-file", 127, "No such file or directory (ENOENT)"),
        ("./plain/job", 127, "Not a directory (ENOTDIR)"),
        ("", 127, "No such file or directory (ENOENT)"),
        ("./plain", 126, "Permission denied (EACCES)"),
        ("plain", 126, "Permission denied (EACCES)"),
        (".", 126, "Permission denied (EACCES)"),
        ("./loop", 126, "Too many levels of symbolic links (ELOOP)"),
        ("\x1b[31mred\n", 127, "No such file or directory (ENOENT)"),
    ],
)
def test_command_that_cannot_be_run(name: str, tmp_path: Path, command: str, status: int, reason: str) -> None:
    """A command that is not there is 127, one that cannot be executed 126, as for a shell; nothing is held then."""
    script(tmp_path / "plain", "#!/bin/sh\n", 0o644)
    (tmp_path / "loop").symlink_to("loop")
    ended = run(name, "--", command, cwd=tmp_path, env={"PATH": f"/usr/bin:/bin:{tmp_path}"})
    shown = command.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert (ended.returncode, ended.stderr.decode()) == (status, f"bindlock: cannot run {shown}: {reason}\n")
    assert bindable(name)


# The command line.


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("option", OPTIONS["shell"][0])
def test_string_for_the_shell(name: str, tmp_path: Path, order: str, option: str) -> None:
    """-c, before the name or right after it, has $SHELL run one string."""
    script(tmp_path / "shell", '#!/bin/sh\nprintf "%s|" "$@"\n')
    arguments = (option, "a b; c", name) if order == "before" else (name, option, "a b; c")
    assert run(*arguments, env={"SHELL": str(tmp_path / "shell")}).stdout == b"-c|a b; c|"


@pytest.mark.parametrize("shell", [{}, {"SHELL": ""}], ids=["unset", "empty"])
def test_no_shell(name: str, shell: Mapping[str, str]) -> None:
    """Without $SHELL, -c uses /bin/sh."""
    ended = run(name, "-c", 'readlink "/proc/$$/exe"', env={"PATH": os.environ["PATH"], **shell})
    assert ended.stdout.decode().rstrip() == os.path.realpath("/bin/sh")


def test_options_end_at_the_name(name: str) -> None:
    """What follows the name belongs to the command, whatever it looks like, but for one ``--``."""
    assert run(name, "echo", "-q", "--", "-w", "x").stdout == b"-q -- -w x\n"
    assert run(name, "--", "echo", "--verbose").stdout == b"--verbose\n"
    assert run("-q", "--", name, "--", "echo", "--", "-c", "x").stdout == b"-- -c x\n"
    assert run("--", f"-{name}", "echo", "held").stdout == b"held\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("{name}",),
        ("{name}", "--"),
        ("-x", "{name}", "true"),
        ("-w", "soon", "{name}", "true"),
        ("--timeout=-1", "{name}", "true"),
        ("-w", "nan", "{name}", "true"),
        ("-E", "256", "{name}", "true"),
        ("-c",),
        ("-c", "true", "{name}", "true"),
        ("{name}", "-c", "true", "false"),
        ("--scope", "moon", "{name}", "true"),
        ("", "true"),
        ("a\nb", "true"),
        ("{name}/", "true"),
        ("@abcde", "true"),
        (b"\xff", "true"),
    ],
    ids=str,
)
def test_usage_errors(name: str, arguments: Sequence[str | bytes]) -> None:
    """A command line that means nothing is 64, with the reason in words; no traceback, and nothing is run."""
    ended = run(*(a if isinstance(a, bytes) else a.format(name=name) for a in arguments))
    assert (ended.returncode, ended.stdout) == (64, b"")
    assert ended.stderr
    assert b"Traceback" not in ended.stderr
    assert all(line.isprintable() for line in ended.stderr.decode().splitlines())


WORDS = st.one_of(
    st.sampled_from([spelling for spellings, _ in OPTIONS.values() for spelling in spellings]),
    st.sampled_from(
        ["--", "-", "", "name", "command", "0", "2.5", "7", "256", "-1", "inf", "nan", "1e3", "user", "host"]
    ),
    st.sampled_from(
        ["--wait=2", "-w2", "-w", "-nq", "-qn", "-nqw1", "-E7", "-cx", "--command=x", "--scope=host", "-x"]
    ),
    st.sampled_from(["--no", "--verb", "--quiet=1", "-h", "--help", "--scope", "-E", "-c"]),
    st.text(max_size=3),
)


def planned(*arguments: str) -> Plan:
    """The plan for a command line, by the quick parser if it has one; click's must be the same."""
    plans: list[Plan] = []

    def take_down(self: Plan) -> int:
        plans.append(self)
        return 0

    words = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(words), contextlib.redirect_stdout(words):
        patch.setattr(Plan, "carry_out", take_down)
        status = commands.main(["run", *arguments])
    assert plans, f"status {status}: {words.getvalue()}"
    quick = scan(list(arguments))
    if quick is not None:
        for field in Plan.__slots__:
            assert getattr(quick, field) == getattr(plans[0], field)
    return plans[0]


@given(st.lists(WORDS, max_size=8))
@example(["--scope", "moon", "name", "command"])
@example(["-w", "-1", "name", "command"])
@example(["-c", "--", "name"])
@example(["name", "--command", "string", "--"])
@example(["-E", "\N{SUPERSCRIPT TWO}", "name", "command"])
@settings(max_examples=500, deadline=None, database=None)
def test_both_parsers_agree(arguments: list[str]) -> None:
    """What the quick parser understands it understands as click does; all else it leaves to click."""
    if scan(arguments) is not None:
        planned(*arguments)


def test_spellings_are_those_of_click() -> None:
    """The quick parser knows exactly the options that click knows."""
    of_click = {tuple(option.opts) for option in commands.run.params if option.param_type_name == "option"}
    assert {spellings for spellings, _ in OPTIONS.values()} == of_click


# Refused.


@pytest.mark.parametrize("option", [*OPTIONS["nonblock"][0], "-w0", "-nE75"])
def test_conflict(cast: Cast, name: str, option: str) -> None:
    """Without waiting, a name that is held is 75, and one line says by whom: name, PID, user, command, age."""
    holder = start_cat(cast, name)
    refused = run(option, name, "--", "echo", "ran")
    assert (refused.returncode, refused.stdout) == (75, b"")
    line = rf"bindlock: {name} is held by pid {holder.pid} \({USER}, cat\), running for \d+s\n"
    assert re.fullmatch(line, refused.stderr.decode())


@pytest.mark.parametrize("option", OPTIONS["quiet"][0])
def test_quiet_conflict(cast: Cast, name: str, option: str) -> None:
    """-q says nothing: the status does."""
    cast.holder(name)
    refused = run(option, "-n", name, "true")
    assert (refused.returncode, refused.stdout, refused.stderr) == (75, b"", b"")


@pytest.mark.parametrize("option", OPTIONS["conflict"][0])
@pytest.mark.parametrize("status", [0, 9, 255])
def test_chosen_status(cast: Cast, name: str, option: str, status: int) -> None:
    """-E chooses the status of a conflict, and no other."""
    cast.holder(name)
    assert run(option, str(status), "-nq", name, "true").returncode == status
    assert run(option, str(status), name + "-other", "no-such-command").returncode == 127


@pytest.mark.parametrize("option", OPTIONS["wait"][0])
def test_timeout(cast: Cast, name: str, option: str) -> None:
    """With a time-out, in seconds and fractions of them, it waits so long and no less; then it is a conflict."""
    cast.holder(name)
    start = time.monotonic()
    refused = run(option, "0.3", name, "true")
    assert time.monotonic() - start >= 0.3
    assert refused.returncode == 75
    assert b" is held by pid " in refused.stderr


def test_hostile_command_line(cast: Cast, name: str) -> None:
    """A holder's command line is shown in one line without anything that a terminal would obey."""
    hostile = ["\x1b]0;title\x07\x1b[2J", "\n\rbindlock: fine", "\u202etxt.exe", "[red]", "\x9b31m"]
    actor = cast.start(
        bindlock_command(), "run", name, "--", "sh", "-c", "echo; read line", *hostile, "\udcff", "x" * 1000
    )
    actor.expect("")
    refused = run("-n", name, "true", env={**os.environ, "LC_ALL": "C.UTF-8"}).stderr.decode()
    assert refused.endswith("\n")
    assert refused[:-1].isprintable()
    assert r"\x1b]0;title\x07\x1b[2J \n\rbindl" in refused
    assert len(refused) < 200


def test_hostile_name(cast: Cast, name: str) -> None:
    """A name is shown without anything that a terminal would obey, too."""
    hostile = f"{name}\u202e\u2066"
    cast.holder(hostile)
    refused = run("-n", hostile, "true", env={**os.environ, "LC_ALL": "C.UTF-8"}).stderr.decode()
    assert refused.startswith(f"bindlock: {name}\\u202e\\u2066 is held by ")


# Waiting.


@pytest.mark.parametrize("end", ["exit", "SIGTERM", "SIGKILL"])
def test_waits_and_is_woken(cast: Cast, name: str, end: str) -> None:
    """It waits for the holder, whatever ends that, says nothing where nobody watches, and then is the holder."""
    holder = start_cat(cast, name)
    waiter = cast.start(bindlock_command(), "run", name, "--", "cat", stderr=subprocess.PIPE)
    until(lambda: waiters(name) == 1)
    assert not is_command(waiter.pid, "cat")
    if end == "exit":
        assert holder.process.stdin is not None
        holder.process.stdin.close()
    else:
        holder.signal(signal.Signals[end])
    holder.wait()
    await_cat(waiter)
    now = bindlock.holder(name)
    assert now is not None
    assert now.pid == waiter.pid
    waiter.kill()
    assert waiter.process.stderr is not None
    assert waiter.process.stderr.read() == b""


def test_says_for_whom_it_waits(cast: Cast, name: str) -> None:
    """On a terminal it says at once for whom it waits; Ctrl-C ends it by SIGINT, as any command, and it is nowhere."""
    holder = start_cat(cast, name)
    with Terminal([bindlock_command(), "run", name, "--", "echo", "ran"]) as terminal:
        line = rf"^bindlock: waiting for {name}, held by pid {holder.pid} \({USER}, cat\), running for \d+s\r\n"
        terminal.read_until(line)
        until(lambda: waiters(name) == 1)
        terminal.press(CTRL_C)
        assert terminal.wait() == -signal.SIGINT
        assert re.fullmatch(line + r"(\^C)?", terminal.shown)
    assert waiters(name) == 0
    holder.kill()
    assert bindable(name)


def test_says_nothing_when_told_to(cast: Cast, name: str) -> None:
    """-q says nothing on a terminal either, and a lock that is free is no news."""
    holder = cast.holder(name)
    with Terminal([bindlock_command(), "run", "-q", name, "--", "echo", "ran"]) as terminal:
        until(lambda: waiters(name) == 1)
        holder.kill()
        assert terminal.wait() == 0
        assert terminal.shown == "ran\r\n"
    with Terminal([bindlock_command(), "run", name, "--", "echo", "ran"]) as terminal:
        assert terminal.wait() == 0
        assert terminal.shown == "ran\r\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_waiter(cast: Cast, name: str, number: signal.Signals) -> None:
    """A signal ends a waiter as it ends any program, and nothing is left of it."""
    holder = cast.holder(name)
    waiter = cast.start(bindlock_command(), "run", name, "--", "cat", stderr=subprocess.PIPE)
    until(lambda: waiters(name) == 1)
    waiter.signal(number)
    assert waiter.wait() == -number
    assert waiter.process.stderr is not None
    assert waiter.process.stderr.read() == b""
    assert waiters(name) == 0
    holder.kill()
    assert bindable(name)


def test_a_waiter_that_ignores_interrupts(cast: Cast, name: str) -> None:
    """Where SIGINT was ignored by the caller, as in the background of a script, it does not end a waiter."""
    holder = cast.holder(name)
    waiter = cast.start("sh", "-c", 'trap "" INT; exec "$@"', "sh", bindlock_command(), "run", name, "--", "cat")
    until(lambda: waiters(name) == 1)
    waiter.signal(signal.SIGINT)
    holder.kill()
    await_cat(waiter)


def test_verbose(cast: Cast, name: str) -> None:
    """--verbose says for whom it waits, how long it took and what is run, terminal or not."""
    holder = start_cat(cast, name)
    waiter = cast.start(bindlock_command(), "run", "--verbose", name, "--", "cat", stderr=subprocess.STDOUT)
    assert waiter.read().startswith(
        f"bindlock: waiting for {name}, held by pid {holder.pid} ({USER}, cat), running for "
    )  # fmt: skip
    holder.kill()
    assert re.fullmatch(r"bindlock: getting lock took \d+\.\d{6} seconds", waiter.read())
    waiter.expect("bindlock: executing cat")
    await_cat(waiter)


# Names and scopes.


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{} with  spaces", socket.SOCK_STREAM),
        ("{}-\N{LATIN SMALL LETTER A WITH DIAERESIS}\N{GRINNING FACE}/x", socket.SOCK_STREAM),
        ("{}" + "l" * 300, socket.SOCK_STREAM),
        ("@{}/verbatim", socket.SOCK_STREAM),
        ("padded:@{}", socket.SOCK_STREAM),
        ("datagram:@{}", socket.SOCK_DGRAM),
        ("'{}' \"; $(exit) *", socket.SOCK_STREAM),
    ],
)
def test_names(cast: Cast, name: str, text: str, kind: socket.SocketKind) -> None:
    """Names of every kind are held under the address that the library has for them, and handed on as written."""
    text = text.format(name)
    actor = start_cat(cast, text)
    with socket.socket(socket.AF_UNIX, kind) as probe, pytest.raises(OSError, match="in use"):
        probe.bind(bindlock.names.parse(text).address)
    assert environment(actor.pid)[b"BINDLOCK_NAME"] == text.encode()
    assert run("-nq", text, "true").returncode == 75
    actor.kill()
    assert run("-n", text, "true").returncode == 0


def test_scope_host(cast: Cast, name: str) -> None:
    """--scope host is another lock than the user's own of the same name."""
    start_cat(cast, name, "--scope", "host")
    assert not bindable(name, "host")
    assert run("-nq", "--scope", "host", name, "true").returncode == 75
    assert run("-nq", name, "true").returncode == 0
    assert run("-nq", "--scope=user", name, "true").returncode == 0


@needs_root
def test_other_users(name: str) -> None:
    """A host-wide lock of another user is a conflict as any; a stranger under a name of ours is 77, not "held"."""
    ours = bindlock.names.parse(name).address
    nobody = pwd.getpwuid(NOBODY).pw_name

    def hold(child: Child) -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with bindlock.Lock(name, scope="host"), socket.socket(socket.AF_UNIX) as squat:
            squat.bind(ours)
            squat.listen()
            child.say("held")
            child.hear()

    with Child(hold) as child:
        child.expect("held")
        refused = run("-n", "--scope", "host", name, "true")
        assert refused.returncode == 75
        assert f" is held by pid {child.pid} ({nobody}, " in refused.stderr.decode()
        for option in ("-n", "-w5", "-E9"):
            squatted = run(option, name, "true")
            line = f"bindlock: {name} is held by an untrusted user: pid {child.pid} ({nobody}, "
            assert (squatted.returncode, squatted.stderr.decode()[: len(line)]) == (77, line)


# Where it cannot be tried.

#: Refuses system call number (argument 1), socket(2), with an errno (2): for AF_UNIX, or "any" family (3). Executes the
#: rest.
REFUSE = """
import ctypes, os, struct, sys
number, errno = map(int, sys.argv[1:3])
any = sys.argv[3] == "any"
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 0 if any else 1, 1),
        (0x06, 0, 0, 0x50000 | errno), (0x06, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[4], sys.argv[4:])
"""


@pytest.mark.skipif(SOCKET_CALL is None, reason="the system call's number is not known for this processor")
@pytest.mark.parametrize(
    ("refusal", "status"),
    [(errno.EAFNOSUPPORT, 69), (errno.EPERM, 69), (errno.EACCES, 69), (errno.ENFILE, 71), (errno.ENOMEM, 71)],
    ids=lambda value: errno.errorcode.get(value) if value not in (69, 71) else "",
)
def test_no_unix_sockets(name: str, refusal: int, status: int) -> None:
    """Where Unix sockets are refused, by seccomp say, the status is 69, for other trouble 71, and nothing is run:
    a lock never falls open, and a refusal is not "held"."""
    ended = subprocess.run(
        [sys.executable, "-c", REFUSE, str(SOCKET_CALL), str(refusal), "unix", bindlock_command(), "run", "-E9",
         name, "--", "echo", "ran"],
        capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (status, b"")
    line = f"bindlock: cannot lock {name}: binding its name: {os.strerror(refusal)} ({errno.errorcode[refusal]})"
    assert ended.stderr.decode().startswith(line)


def test_out_of_descriptors(cast: Cast, name: str) -> None:
    """Out of descriptors is 71 with advice, not "held"; the two that a command needs are enough for a free lock."""
    main = os.path.join(os.path.dirname(bindlock.__file__), "__main__.py")  # without sh, which needs more

    def run_narrow() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["sh", "-c", 'ulimit -n 5; exec "$@"', "sh", sys.executable, "-I", "-S", main, "run", "-n", name, "--",
             "echo", "ran"],
            capture_output=True, timeout=DEADLINE,
        )  # fmt: skip

    ended = run_narrow()
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"ran\n", b"")
    cast.holder(name)
    ended = run_narrow()
    assert (ended.returncode, ended.stdout) == (71, b"")
    assert "Too many open files (EMFILE)" in ended.stderr.decode()
    assert "ulimit -n" in ended.stderr.decode()
