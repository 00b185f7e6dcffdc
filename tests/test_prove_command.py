"""``bindlock prove`` as a command: what it is asked, what it shows and writes, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bindlock
from bindlock.proof import kind as kinds
from bindlock.proof.events import ALL
from bindlock.proof.kernel.user import NOBODY
from bindlock.proof.report import Report
from bindlock.proof.trial import Outcome
from tests.actors import DEADLINE, until
from tests.terminal import CTRL_C, Terminal

if TYPE_CHECKING:
    from tests.actors import Actor, Cast

PROVE = (sys.executable, "-m", "bindlock", "prove")
#: A small run: three cells, a stale one among them.
FEW = ("--quick", "--trials", "3", "--only", "sigkill", "--lock", "bindlock", "--lock", "flock",
       "--lock", "pid-file-exclusive")  # fmt: skip
#: A run that does not end by itself while the test runs.
LONG = ("--trials", "1000000", "--only", "sigkill")
MARK = "BINDLOCK_TEST_RUN"
STOPPING = "bindlock: stopping: the trials under way end first"

#: A kind of one's own, that lets everybody in.
OPEN = '''
from bindlock.proof.kind import Kind

class Open(Kind):
    """No lock at all."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
'''

#: As flock(2); and writes where it is to a file.
TELLING = '''
import os
from bindlock.proof.kinds.flock import Flock

class Telling(Flock):
    """flock(2), and tells where it is."""

    def acquire(self) -> bool:
        with open(f"{path}-{{os.getpid()}}", "w") as file:
            file.write(str(self.site.directory))
        os.replace(file.name, {path!r})
        return super().acquire()
'''

#: Where Python finds no library of that name, whatever is installed.
WITHOUT = (
    "import sys; sys.modules[sys.argv.pop(1)] = None; import bindlock.cli.run as run; sys.exit(run.main(sys.argv[1:]))"
)


def prove(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``bindlock prove`` with these arguments, to its end."""
    options = {"stdin": subprocess.DEVNULL, "timeout": DEADLINE, "capture_output": True, "text": True} | options
    return subprocess.run([*PROVE, *arguments], **options)


def report_of(*arguments: str, **options: Any) -> Report:
    """What it came to."""
    ended = prove(*arguments, "--json", "-", **options)
    assert (ended.returncode, ended.stderr) == (0, "")
    return Report.from_dict(json.loads(ended.stdout))


# What it shows.


def test_text() -> None:
    """Headline first; then the machine, the matrix, its legend, totals, times, counts, and a verdict for each lock."""
    ended = prove(*FEW, "--seed", "7")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert re.fullmatch(r"1 events?, 3 locks, 9 trials in \d+ s; 0 rows not possible here", lines[0])
    assert lines[2].endswith(", seed 7")
    matrix = lines[lines.index("Matrix") + 1 :]
    assert matrix[0].split() == ["bindlock", "flock", "pid-file-exclusive"]
    assert matrix[1].split() == ["SIGKILL", "✓", "right", "✓", "right", "✗", "stale"]
    assert "✗ stale: held by nobody" in matrix[3]
    assert ["pid-file-exclusive", "0", "1"] in [line.split() for line in lines]
    times = lines[lines.index("From SIGKILL to a new holder, in milliseconds") + 2 :]
    assert re.fullmatch(r"bindlock( +\d+\.\d\d){4} +3", times[0])
    assert "\nTrials a cell\n3\n" in ended.stdout
    assert re.search(r"^  pid-file-exclusive: .*\b0 of 1\b.*: SIGKILL\.$", ended.stdout, re.MULTILINE)
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize(
    ("columns", "row"),
    [(46, "SIGKILL ✓ ✓ ✗S"), (47, "SIGKILL ✓ right ✓ right ✗ stale"), (200, "SIGKILL ✓ right ✓ right ✗ stale")],
)
def test_on_a_terminal(columns: int, row: str) -> None:
    """A bar that is gone at the end; then the same, in colour, no line wider than the terminal, words if they fit."""
    with Terminal([*PROVE, *FEW], columns=columns) as terminal:
        assert terminal.wait() == 0
    bar, erased, shown = terminal.shown.rpartition("\x1b[2K")
    assert "SIGKILL (" in bar
    assert re.search(r"\d/3\x1b", bar)
    assert erased
    lines = without_style(shown).split("\r\n")
    assert lines[0].lstrip("\r").startswith("1 event")
    assert max(map(len, lines)) <= columns
    assert row.split() in [line.split() for line in lines]
    assert "\x1b[1;31m✗" in shown


def test_many_locks_on_a_narrow_terminal() -> None:
    """All locks there are fit 80 columns: numbers, with a key, for their names."""
    with Terminal([*PROVE, "--quick", "--trials", "1", "--only", "released"]) as terminal:
        assert terminal.wait() == 0
    lines = without_style(terminal.shown).split("\r\n")
    there = [key for key, kind in kinds.known().items() if not isinstance(kind, ImportError)]
    assert len(there) >= 11
    matrix = lines[lines.index("Matrix") + 1 :]
    key = matrix[: matrix.index("")]
    assert " ".join(key).split() == [word for number, name in enumerate(there, 1) for word in (str(number), name)]
    heading, row, footing = matrix[len(key) + 1 : len(key) + 4]
    numbers = [str(number) for number in range(1, len(there) + 1)]
    assert (heading.split(), footing.split()) == (numbers, numbers)
    assert row.split() == ["released", *["✓"] * len(there)]


def test_no_color() -> None:
    """NO_COLOR is respected."""
    with Terminal(["env", "NO_COLOR=1", *PROVE, *FEW]) as terminal:
        assert terminal.wait() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][;m]", terminal.shown)
    assert "✗ stale" in terminal.shown


def test_terminals_of_other_alphabets() -> None:
    """Where the marks cannot be written there are others."""
    ended = prove(*FEW, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert "\nSIGKILL  . right   . right  x stale\n" in ended.stdout


def without_style(shown: str) -> str:
    """Without the control sequences."""
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown)


def test_what_strangers_write_is_escaped(tmp_path: Path) -> None:
    """What a lock says of itself is shown, and nothing of it obeyed."""
    (tmp_path / "hostile.py").write_text(
        OPEN.replace("return True", 'raise OSError("\\x1b[31m[red]no\\nlock")').replace("No lock", "[b]No\\x1b lock")
    )
    hostile = str(tmp_path / "hostile.py")
    ended = prove("--quick", "--trials", "1", "--only", "released", "--lock", hostile)
    assert ended.returncode == 70
    assert "\\x1b[31m[red]no" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_list() -> None:
    """--list has a line for each event and each kind of lock."""
    ended = prove("--list")
    assert (ended.returncode, ended.stderr) == (0, "")
    first = [line.split()[0] for line in ended.stdout.splitlines() if line]
    assert first == ["EVENT", *(event.key for event in ALL), "LOCK", *kinds.known()]


# What it is asked.


def test_json_on_standard_output() -> None:
    """--json - prints JSON and nothing else, and a report made of it is the same again."""
    ended = prove(*FEW, "--json", "-", "--seed", "11")
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    report = Report.from_dict(told)
    assert json.loads(json.dumps(report.as_dict())) == told
    assert (report.seed, report.quick, report.bindlock) == (11, True, bindlock.__version__)
    assert report.cell("pid-file-exclusive", "sigkill").outcome is Outcome.STALE
    assert report.cell("bindlock", "sigkill").outcome is Outcome.RIGHT
    assert report.seconds > sum(cell.seconds for cell in report.cells) / os.cpu_count()  # type: ignore[operator]


def test_json_in_a_file(tmp_path: Path) -> None:
    """--json FILE writes the file at the end, in place of what was there, through links, and prints the text, too."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    ended = prove(*FEW, "--json", str(tmp_path / "link"))
    assert (ended.returncode, ended.stderr) == (0, "")
    report = Report.load(tmp_path / "real")
    assert ended.stdout.startswith(report.headline + "\n")
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_json_in_a_pipe() -> None:
    """--json may be a pipe, as of the shell's >(…)."""
    read, write = os.pipe()
    with open(read) as pipe:
        try:
            ended = prove(*FEW, "--trials", "1", "--json", f"/dev/fd/{write}", pass_fds=[write])
        finally:
            os.close(write)
        assert ended.returncode == 0
        assert json.load(pipe)["format"] == 1


def test_only_these() -> None:
    """--only and --lock choose, --trials says how many; events are in the order of the tables, locks as given."""
    report = report_of(
        "--only", "sigkill", "--only", "released", "--lock", "udp", "--lock", "flock", "--lock", "udp", "--trials", "2"
    )
    assert [row.key for row in report.events] == ["released", "sigkill"]
    assert [lock.key for lock in report.locks] == ["udp", "flock"]
    assert [(cell.event, cell.lock) for cell in report.cells] == [
        ("released", "udp"), ("released", "flock"), ("sigkill", "udp"), ("sigkill", "flock")
    ]  # fmt: skip
    assert [cell.trials for cell in report.cells] == [2] * 4
    assert not report.quick


def test_all_locks_by_default() -> None:
    """Without --lock it is all that are there; those that are not are named, with the reason."""
    code = [sys.executable, "-c", WITHOUT, "filelock", "prove", "--trials", "1", "--only", "released"]
    ended = subprocess.run(code, capture_output=True, text=True, timeout=DEADLINE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"^not installed: (.*, )?filelock\b", ended.stdout, re.MULTILINE)
    there = [key for key, kind in kinds.known().items() if not isinstance(kind, ImportError) and key != "filelock"]
    verdicts = ended.stdout.partition("\nVerdicts\n")[2].splitlines()
    assert [line.split(":")[0].strip() for line in verdicts] == there


def test_a_lock_that_is_not_installed() -> None:
    """A kind that was asked for, and whose library is missing, is 69, before anything is run."""
    code = [sys.executable, "-c", WITHOUT, "filelock", "prove", "--lock", "filelock"]
    ended = subprocess.run(code, capture_output=True, text=True, timeout=DEADLINE)
    assert (ended.returncode, ended.stdout, ended.stderr) == (69, "", "bindlock: filelock is not installed\n")


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_page_without_its_libraries(library: str, tmp_path: Path) -> None:
    """--html without the libraries for it is 69, and says what to do, before anything is run."""
    arguments = [*LONG, "--html", str(tmp_path / "page.html")]
    code = [sys.executable, "-c", WITHOUT, library, "prove", *arguments]
    ended = subprocess.run(code, capture_output=True, text=True, timeout=DEADLINE)
    assert (ended.returncode, ended.stdout) == (69, "")
    assert re.fullmatch(rf"bindlock: --html needs .*{library}.*: install .* 'prove', .*\n", ended.stderr)
    assert os.listdir(tmp_path) == []


def test_a_page(tmp_path: Path) -> None:
    """--html FILE writes a page, beside the text."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    ended = prove(*FEW, "--html", str(tmp_path / "page.html"))
    assert ended.returncode == 0
    page = (tmp_path / "page.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "O_EXCL" in page
    assert ended.stdout.startswith("1 event")
    assert os.listdir(tmp_path) == ["page.html"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--only sigkil", r"no event is called 'sigkil'; there are: .*\bsigkill\b"),
        ("--lock flok", r"no kind of lock is called 'flok'; there are: .*\bflock\b.*\.py"),
        ("--lock ./not-there.py", "not-there.py: No such file or directory"),
        ("--trials 0", "0 is not in the range"),
        ("--trials some", "'some' is not a valid integer"),
        ("--json - --html -", "the same file"),
        ("--nonsense", "No such option"),
        ("sigkill", "unexpected extra argument"),
    ],
)
def test_usage_errors(words: str, said: str) -> None:
    """What makes no sense is 64, in words that say what would."""
    ended = prove(*words.split())
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr.startswith("Usage: bindlock prove ")
    assert re.search(said, ended.stderr)


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("path", ["missing/file", ".", "", "\n/x", "/proc/version"])
def test_files_that_cannot_be_written(option: str, path: str, tmp_path: Path) -> None:
    """A file that cannot be written is 71, in one line, before any trial."""
    ended = prove(*LONG, option, path, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (71, "")
    assert re.fullmatch(r"bindlock: cannot write .*: .* \(E\w+\)\n", ended.stderr)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("--only sigk", ["sigkill"]),
        ("--lock pid", ["pid-file", "pid-file-exclusive"]),
        ("--quick --lock flock --lock tcp-reusep", ["tcp-reuseport"]),
    ],
)
def test_completion(words: str, offered: list[str]) -> None:
    """Events and kinds of lock are completed."""
    words = f"bindlock prove {words}"
    variables = {"_BINDLOCK_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = subprocess.run(
        [sys.executable, "-m", "bindlock"], env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=DEADLINE,
    )  # fmt: skip
    assert ended.stdout.split() == [f"plain,{word}" for word in offered]


# A kind of one's own.


def test_a_kind_of_ones_own(tmp_path: Path) -> None:
    """A file with a kind is put to the proof as any other, and found out."""
    (tmp_path / "no-lock.py").write_text(OPEN)
    report = report_of(
        "--trials", "2", "--only", "stopped", "--lock", "flock", "--lock", "./no-lock.py", cwd=tmp_path
    )  # fmt: skip
    assert [(lock.key, lock.title) for lock in report.locks][1] == ("no-lock", "No lock at all")
    assert report.cell("no-lock", "stopped").outcome is Outcome.DOUBLE
    assert report.cell("flock", "stopped").outcome is Outcome.RIGHT
    assert sorted(os.listdir(tmp_path)) in (["no-lock.py"], ["__pycache__", "no-lock.py"])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "defines 0 kinds of lock"),
        ("x = 1\ny = x.z\n", r"own\.py, line 2: AttributeError: "),
        ("import not_there", "No module named 'not_there'"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_file_that_is_none(code: str, said: str, tmp_path: Path) -> None:
    """A file that cannot be used is a usage error that says why."""
    (tmp_path / "own.py").write_text(code)
    ended = prove("--lock", "./own.py", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (64, "")
    assert re.search(said, ended.stderr)
    assert "Traceback" not in ended.stderr


def test_two_of_one_name(tmp_path: Path) -> None:
    """Two kinds that could not be told apart in the tables are a usage error."""
    (tmp_path / "flock.py").write_text(OPEN)
    ended = prove("--lock", "flock", "--lock", str(tmp_path / "flock.py"))
    assert (ended.returncode, ended.stdout) == (64, "")
    assert "'flock'" in ended.stderr


def test_a_fault_of_the_proof(tmp_path: Path) -> None:
    """A cell in which the proof itself went wrong is 70, shown as that, with the seed to repeat it."""
    (tmp_path / "closed.py").write_text(OPEN.replace("return True", "return False"))
    ended = prove("--quick", "--only", "released", "--lock", str(tmp_path / "closed.py"), "--seed", "4711")
    assert ended.returncode == 70
    assert ended.stderr == "bindlock: the proof itself went wrong in 1 cell; to repeat it: --seed 4711\n"
    assert re.search(r"^released +! fault$", ended.stdout, re.MULTILINE)
    assert "the first to try the lock was refused" in ended.stdout


# What it leaves behind.


class Traces:
    """What a run makes, and whether any of it is there."""

    def __init__(self, name: str, directory: Path) -> None:
        self._told = directory / "told"
        (directory / "telling.py").write_text(TELLING.format(path=str(self._told)))
        #: Two kinds of lock, one of which tells us where it is.
        self.locks = ("--lock", "bindlock", "--lock", str(directory / "telling.py"))
        #: Empty, for the run to work in: a core file would come here.
        self.directory = directory / "empty"
        self.directory.mkdir()
        #: All processes of the run have a variable that no others have.
        self.env = {**os.environ, MARK: name}
        self._mark = f"{MARK}={name}".encode()
        self._before = settings()

    def processes(self) -> list[int]:
        """All processes of the run."""
        found = []
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(int(pid))
        return found

    def scratch(self) -> Path:
        """The run's folder, once one of its trials is under way."""
        until(lambda: self._told.exists())
        return Path(self._told.read_text()).parent

    def check(self, scratch: Path) -> None:
        """Fails when anything is left."""
        assert self.processes() == []
        assert not scratch.exists()
        assert os.listdir(self.directory) == []
        assert settings() == self._before
        name = scratch.name.removeprefix("bindlock-prove-")  # what all that is made is called by
        assert name not in Path("/proc/self/mountinfo").read_text()
        for mount in cgroup_mounts():
            assert not [path for path, _, _ in os.walk(mount) if name in path]


def settings() -> list[str]:
    """Those of the kernel that somebody might change for a core dump, a PID or a namespace."""
    files = ("kernel/core_pattern", "kernel/core_uses_pid", "kernel/pid_max", "fs/suid_dumpable")
    return [Path("/proc/sys", file).read_text() for file in files]


def cgroup_mounts() -> list[str]:
    """Where hierarchies of control groups are mounted."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [fields[1] for fields in lines if fields[2] in ("cgroup", "cgroup2")]


@pytest.fixture
def traces(name: str, tmp_path: Path) -> Traces:
    """For one run."""
    return Traces(name, tmp_path)


def start(cast: Cast, traces: Traces, *arguments: str) -> Actor:
    """Start a run."""
    return cast.start(*PROVE, *traces.locks, *arguments, env=traces.env, cwd=traces.directory, stderr=subprocess.PIPE)


def test_a_whole_run_leaves_nothing(cast: Cast, traces: Traces) -> None:
    """After a run to its end nothing is left."""
    actor = start(cast, traces, "--trials", "20", "--only", "sigkill", "--json", "/dev/null")
    scratch = traces.scratch()
    assert actor.wait() == 0
    traces.check(scratch)


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c(traces: Traces, presses: int) -> None:
    """Ctrl-C says at once what it does, ends the run by SIGINT, and nothing is left; more of it does no harm."""
    arguments = [*PROVE, *traces.locks, *LONG, "--json", "report"]
    with Terminal(["env", "-C", str(traces.directory), *arguments], env=traces.env) as terminal:
        terminal.read_until(r"SIGKILL \(")
        scratch = traces.scratch()
        for _ in range(presses):
            terminal.press(CTRL_C)
        terminal.read_until(re.escape(STOPPING))
        assert terminal.wait() == -signal.SIGINT
        assert "Traceback" not in terminal.shown
        assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")
    traces.check(scratch)


def test_strangers_stay_out(cast: Cast, traces: Traces) -> None:
    """Folders of trials may be for everybody to write to: nobody else gets to them, whatever they are called."""
    actor = start(cast, traces, *LONG)
    scratch = traces.scratch()
    there = scratch.stat()
    assert there.st_uid == os.geteuid()
    assert stat.S_IMODE(there.st_mode) == (0o750 if os.geteuid() == 0 else 0o700)
    assert os.geteuid() or there.st_gid == NOBODY
    actor.signal(signal.SIGTERM)
    actor.wait()
    traces.check(scratch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_signals(cast: Cast, traces: Traces, number: int) -> None:
    """So do SIGTERM and SIGHUP, and where there is no terminal."""
    actor = start(cast, traces, *LONG)
    scratch = traces.scratch()
    actor.signal(number)
    assert actor.wait() == -number
    assert actor.process.stderr is not None
    assert actor.process.stderr.read().decode() == f"{STOPPING}\n"
    traces.check(scratch)


def test_the_terminal_goes(traces: Traces) -> None:
    """When the terminal is closed under it, it ends by SIGHUP, and nothing is left."""
    with Terminal(["env", "-C", str(traces.directory), *PROVE, *traces.locks, *LONG], env=traces.env) as terminal:
        terminal.read_until(r"SIGKILL \(")
        scratch = traces.scratch()
        with open(os.devnull) as null:
            os.dup2(null.fileno(), terminal._master)
        assert terminal.process.wait(DEADLINE) == -signal.SIGHUP
    traces.check(scratch)


def test_hangup_that_is_ignored(cast: Cast, traces: Traces) -> None:
    """Under nohup a hang-up does not end it."""
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *PROVE, *traces.locks, *LONG]
    actor = cast.start(*ignoring, env=traces.env, cwd=traces.directory, stderr=subprocess.PIPE)
    scratch = traces.scratch()
    actor.signal(signal.SIGHUP)
    actor.signal(signal.SIGTERM)
    assert actor.wait() == -signal.SIGTERM
    traces.check(scratch)


def test_the_conductor_is_killed(cast: Cast, traces: Traces) -> None:
    """When the command itself is killed, all of its processes end, and clean up, by themselves."""
    actor = start(cast, traces, *LONG)
    scratch = traces.scratch()
    actor.kill()
    until(lambda: not traces.processes())
    traces.check(scratch)
    assert actor.process.stderr is not None
    assert actor.process.stderr.read().decode() == ""


@pytest.mark.parametrize("key", ["oom-killed", "frozen", "core-dump", "pid-reused"])
def test_events_with_more_to_clean_up(cast: Cast, traces: Traces, key: str) -> None:
    """Interrupted in the midst of events with cgroups, namespaces and core dumps, nothing of those is left."""
    if prove("--quick", "--trials", "1", "--only", key, "--lock", "flock").stdout.count("not possible here") > 1:
        pytest.skip("not possible here")
    actor = start(cast, traces, "--trials", "1000000", "--only", key)
    scratch = traces.scratch()
    actor.signal(signal.SIGINT)
    assert actor.wait() == -signal.SIGINT
    traces.check(scratch)
