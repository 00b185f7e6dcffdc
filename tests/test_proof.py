"""The proof itself: it calls out locks that are broken, and only those; and it leaves nothing behind."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import signal
import stat
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bindlock.errors import InvalidArgument
from bindlock.proof import kind as kinds
from bindlock.proof import process
from bindlock.proof import run as conductor
from bindlock.proof.cell import Cell, Order, Times, measure
from bindlock.proof.errors import Fault, NotPossible, Stopped
from bindlock.proof.event import Event, event
from bindlock.proof.events import ALL
from bindlock.proof.kernel import cgroup, namespace
from bindlock.proof.kernel.call import adopt_orphans, call
from bindlock.proof.kernel.user import become_nobody
from bindlock.proof.kinds.flock import Flock
from bindlock.proof.report import Report, Row, Subject, machine, now
from bindlock.proof.run import Plan, run
from bindlock.proof.trial import Outcome
from tests.actors import DEADLINE, Child, until
from tests.broken_locks.frees_late import LATENESS
from tests.conftest import needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bindlock.proof.kind import Kind
    from bindlock.proof.trial import Trial

BROKEN = Path(__file__).with_name("broken_locks")
BY_KEY = {one.key: one for one in ALL}
MARK = "BINDLOCK_TEST_PROOF"


def cells_of(locks: Sequence[str], events: Iterable[str], trials: int, seed: int = 1) -> list[Cell]:
    """What these locks and events come to, with so many trials a cell."""
    plan = Plan(locks, [BY_KEY[key] for key in events], quick=True, seed=seed, trials=trials, jobs=2)
    return run(plan, lambda *_: None, lambda _: None)


def report_of(locks: dict[str, type[Kind]], events: Sequence[Event], cells: Sequence[Cell]) -> Report:
    """A report of a run."""
    subjects = [Subject.of(key, kind) for key, kind in locks.items()]
    return Report(subjects, [Row.of(one) for one in events], cells, {}, True, 1, 1.0, machine(), now())


def installed() -> dict[str, type[Kind]]:
    """The kinds of lock that can be had here."""
    return {key: kind for key, kind in kinds.known().items() if not isinstance(kind, ImportError)}


# Broken locks.

#: What each lock comes to, in this order of events.
EVENTS = ("released", "sigkill", "stopped", "subprocess", "directory-read-only", "no-locks", "crowd")
OUTCOMES = {
    # An honest one: it says what it cannot do.
    "flock": "right right right right cannot cannot right",
    "leaks": "right right right stale cannot cannot right",
    "never_frees": "stale stale stale stale cannot right right",
    "lets_two_in": "right right right right cannot cannot double",
    "open_to_all": "right right double right right right double",
    "swallows_errors": "right right right right stale stale right",
    "frees_late": "late late late late right right right",
    "raises": "fault fault fault fault fault fault fault",
    "raises_to_others": "fault fault fault fault cannot cannot fault",
}
TRIALS = 2


@pytest.fixture(scope="module")
def matrix() -> Report:
    """One run of all of them."""
    paths = {key: str(BROKEN / f"{key}.py") if key != "flock" else key for key in OUTCOMES}
    cells = cells_of(list(paths.values()), EVENTS, TRIALS)
    return report_of({key: kinds.load(path) for key, path in paths.items()}, [BY_KEY[key] for key in EVENTS], cells)


@pytest.mark.parametrize("lock", OUTCOMES)
def test_broken_locks_are_called_out(matrix: Report, lock: str) -> None:
    """Each cell of a broken lock is just what it must be: its defect is called out, and nothing else."""
    for key, outcome in zip(EVENTS, OUTCOMES[lock].split(), strict=True):
        cell = matrix.cell(lock, key)
        if cell.outcome is None:  # no mount namespaces here
            assert matrix.cell("flock", key).outcome is None
            continue
        assert cell.outcome == outcome, (key, cell)
        assert cell.counts == {outcome: 1 if outcome == "fault" else TRIALS}, (key, cell)


def test_remarks_say_what_is_the_matter(matrix: Report) -> None:
    """What a lock said, or how many had it, is told with the outcome."""
    assert matrix.cell("flock", "no-locks").remark == "[Errno 37] No locks available"
    assert matrix.cell("raises", "released").remark == "Fault: ValueError: a mistake"
    assert matrix.cell("raises_to_others", "released").remark == "ValueError: a mistake"
    assert matrix.cell("open_to_all", "crowd").remark == "50 of 50 had it at once"
    count, _, rest = matrix.cell("lets_two_in", "crowd").remark.partition(" ")
    assert 2 <= int(count) <= 50
    assert rest == "of 50 had it at once"


def test_no_answer_is_a_fault() -> None:
    """When who tries the lock dies of that, the cell is not right: nothing was said."""
    (cell,) = cells_of([str(BROKEN / "dies.py")], ["no-locks"], 1)
    assert cell.outcome == Outcome.FAULT
    assert cell.remark == "Fault: who was to try the lock ended without an answer"


def test_lateness_is_measured(matrix: Report) -> None:
    """How late it was is told: at least as late as the lock makes itself."""
    cell = matrix.cell("frees_late", "sigkill")
    assert cell.latency is not None
    assert cell.late is not None
    assert cell.late.count == cell.latency.count == TRIALS
    assert cell.latency.min >= LATENESS
    assert 0 < cell.late.min <= cell.late.max <= cell.latency.max
    assert matrix.cell("flock", "sigkill").late is None


def test_verdicts(matrix: Report) -> None:
    """The sentences on each lock name what it does wrong, and nothing that it does right."""
    possible = sum(matrix.cell("flock", key).outcome is not None for key in EVENTS)
    assert matrix.verdict("leaks").lower().startswith(f"right in 4 of {possible}")
    assert clause(matrix.verdict("leaks"), "stale") == ["subprocess outlives it"]
    assert clause(matrix.verdict("lets_two_in"), "two holders") == ["50 contenders, free lock"]
    late = [BY_KEY[key].title for key in ("released", "sigkill", "stopped", "subprocess")]
    assert clause(matrix.verdict("frees_late"), "late") == late
    assert len(clause(matrix.verdict("raises"), "not tested, for a fault of the proof")) == possible
    for words in ("stale", "two holders", "late"):
        assert clause(matrix.verdict("flock"), words) == []
    assert matrix.totals("open_to_all")[Outcome.DOUBLE] == 2


def clause(verdict: str, words: str) -> list[str]:
    """The events that a verdict has those words for."""
    found = re.search(rf"\b{words}: ([^.]*)\.", verdict, re.IGNORECASE)
    return found[1].split("; ") if found else []


# What is said of locks and events.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (str(BROKEN / "no_kind.py"), "no_kind defines 0 kinds of lock; it must be one"),
        (str(BROKEN / "two_kinds.py"), "two_kinds defines 2 kinds of lock; it must be one"),
        (str(BROKEN / "missing.py"), r"missing\.py: No such file or directory"),
        ("mutex", "'mutex' is no kind of lock: bindlock, abstract, "),
        ("", "'' is no kind of lock"),
    ],
)
def test_what_is_no_kind(text: str, said: str) -> None:
    """What is not just one kind of lock is refused, in words."""
    with pytest.raises(InvalidArgument, match=said):
        kinds.load(text)


def test_a_kind_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that is about a library says so when that is not installed, and is shown as known."""
    monkeypatch.delitem(sys.modules, "bindlock.proof.kinds.filelock", raising=False)
    monkeypatch.setitem(sys.modules, "filelock", None)
    error = kinds.known()["filelock"]
    assert isinstance(error, ImportError)
    assert error.name == "filelock"


@pytest.mark.parametrize("key", installed())
def test_kinds_are_described(key: str) -> None:
    """Each kind says what it is called, how it is written, and what rule it goes by."""
    kind = kinds.load(key)
    subject = Subject.of(key, kind)
    assert subject.title
    assert subject.how.endswith(".")
    assert subject.rule.endswith(".")
    assert (kind.__doc__ or "").partition("\n")[0].endswith(".")
    assert kind.__doc__ is not inspect.getmro(kind)[1].__doc__
    assert subject.rule is not inspect.getmro(kind)[1].rule  # type: ignore[attr-defined]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.key)
def test_events_are_described(one: Event) -> None:
    """Each event says, in full sentences, what is done, what is expected, and what rule explains it."""
    for text in (one.done, one.expected, one.rule):
        assert text.endswith((".", ".)"))
        assert "  " not in text
    assert one.title
    quick, full = one.trials
    assert 1 <= quick < full


def test_events_are_told_apart() -> None:
    """No two have the same key or title; nor have two kinds."""
    for texts in (
        [one.key for one in ALL],
        [one.title for one in ALL],
        [kinds.title(kind) for kind in installed().values()],
    ):
        assert len(set(texts)) == len(texts)


# How it counts.


def test_a_run_is_what_was_asked_for(seed: int) -> None:
    """Just the cells that were asked for, in order, with just so many trials; each told of when begun and when done."""
    locks, events = ["pid-file-exclusive", "flock"], [BY_KEY[key] for key in ("zombie", "released", "stopped")]
    begun: list[tuple[str, str]] = []
    done: list[Cell] = []
    plan = Plan(locks, events, quick=True, seed=seed, trials=7, jobs=2)
    cells = run(plan, lambda lock, one: begun.append((lock, one.key)), done.append)
    wanted = [(lock, one.key) for one in events for lock in locks]
    assert [(cell.lock, cell.event) for cell in cells] == wanted
    assert [cell.trials for cell in cells] == [7] * 6
    assert sorted(begun) == sorted(wanted)
    assert sorted(map(id, done)) == sorted(map(id, cells))
    assert [cell.outcome for cell in cells] == [Outcome.STALE, *[Outcome.RIGHT] * 3, Outcome.STALE, Outcome.RIGHT]
    assert all(len(cell.samples) == 7 for cell in cells[1::2])
    report = report_of({lock: kinds.load(lock) for lock in locks}, events, cells)
    assert report.trials == 42
    assert report.headline == "3 events, 2 locks, 42 trials in 1 s; 0 rows not possible here"
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_trials_of_events() -> None:
    """When nobody says how many, it is as many as the event says: some when quick, more when not."""
    one = BY_KEY["sigkill"]
    assert [Plan([], [], quick, 1).trials_of(one) for quick in (True, False)] == [*one.trials] == [40, 10_000]
    assert Plan([], [], quick=False, seed=1, trials=3).trials_of(one) == 3


def test_times() -> None:
    """Of a hundred times and one: the least, the one in the middle, the one that 1 % exceed, the most."""
    values = [float(value) for value in range(101)]
    random.Random(1).shuffle(values)
    assert Times.of(values) == Times(101, 0.0, 50.0, 99.0, 100.0)
    assert Times.of([3.0]) == Times(1, 3.0, 3.0, 3.0, 3.0)
    assert Times.of([]) is None


def test_samples(tmp_path: Path) -> None:
    """Of many latencies 200 are kept, sorted, evenly chosen, the least and the most among them; of few, all."""

    @event("takes its time", expected="", rule="")
    def taking(trial: Trial) -> None:
        trial.latency = float(trial.number * 7 % 401)
        trial.parameter = 1.0

    cell = measured(taking, tmp_path, trials=401)
    assert cell.samples[:3] == (0.0, 2.0, 4.0)
    assert (len(cell.samples), cell.samples[-1]) == (200, 400.0)
    assert list(cell.samples) == sorted(cell.samples)
    assert cell.latency == Times(401, 0.0, 200.0, 396.0, 400.0)
    assert len(cell.points) == cell.trials == 401
    assert measured(taking, tmp_path, trials=3).samples == (0.0, 7.0, 14.0)


def test_the_worst_is_the_outcome(tmp_path: Path) -> None:
    """A cell is as bad as its worst trial; its remark is of the first such; how many were what is told."""
    outcomes = [Outcome.RIGHT, Outcome.LATE, Outcome.STALE, Outcome.CANNOT, Outcome.STALE, Outcome.RIGHT]

    @event("goes worse", expected="", rule="")
    def worse(trial: Trial) -> None:
        trial.conclude(outcomes[trial.number], f"number {trial.number}")

    cell = measured(worse, tmp_path, trials=6)
    assert (cell.outcome, cell.remark) == (Outcome.STALE, "number 2")
    assert cell.counts == {"stale": 2, "late": 1, "cannot": 1, "right": 2}
    assert list(cell.counts) == ["stale", "late", "cannot", "right"]  # from the worst


def test_a_seed_repeats_the_choices(tmp_path: Path) -> None:
    """The same seed makes the same random choices, in every trial others; another seed makes others."""

    @event("is random", expected="", rule="")
    def chance(trial: Trial) -> None:
        trial.parameter, trial.latency = trial.random.random(), 0.0

    first, again, other = (measured(chance, tmp_path, trials=5, seed=seed).points for seed in (1, 1, 2))
    assert first == again
    assert len({*first, *other}) == 10


def test_a_cell_is_the_same_after_json(matrix: Report) -> None:
    """What is sent by the worker, and written to files, is what was measured."""
    full = Cell(
        "a", "b", Outcome.LATE, "some", {"late": 2}, Times(2, 0.1, 0.2, 0.3, 0.4), Times(1, 1.0, 1.0, 1.0, 1.0),
        (0.1, 0.4), ((16.0, 0.1), (64.0, 0.4)), "a remark", 1.5, 0.2,
    )  # fmt: skip
    for cell in (Cell("a", "b"), full, *matrix.cells):
        assert Cell.from_dict(json.loads(json.dumps(cell.as_dict()))) == cell


# What it leaves behind.


def measured(one: Event, folder: Path, trials: int = 1, seed: int = 1) -> Cell:
    """A cell of that event, which need not be known, with flock; nothing of it is left."""
    answer = json.loads(left_nothing(folder, lambda order: json.dumps(measure(Flock, "flock", one, order).as_dict()),
                                     trials, seed))  # fmt: skip
    return Cell.from_dict(answer)


def left_nothing(folder: Path, measuring: Callable[[Order], str], trials: int, seed: int = 1) -> str:
    """What that says in a process of its own, when nothing is left of it."""
    prefix = f"test-proof-{os.getpid()}"

    def body(child: Child) -> None:
        # As a worker is; the process of the tests must not be: its children are not all the proof's.
        adopt_orphans()
        answer = measuring(Order(folder, prefix, seed, trials, None, 0.2))
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        child.say(answer)

    with Child(body) as child:
        answer = child.hear()
        assert child.wait() == 0
    assert list(folder.iterdir()) == []
    assert groups(prefix) == []
    return answer


def littering(error: Exception) -> Event:
    """An event that has left a lot when it goes wrong."""

    @event("litters", expected="", rule="")
    def litters(trial: Trial) -> None:
        (trial.site.directory / "file").write_text("left")

        def then(child: process.Child, _: Kind) -> None:
            if os.fork() == 0:
                child.say("forked")
            signal.pause()  # neither ends by itself

        trial.hold(then).expect("forked")
        with ExitStack() as stack:
            with suppress(NotPossible):  # no cgroups for an ordinary user
                group = stack.enter_context(cgroup.cgroup(cgroup.unified(), trial.site.name))
                assert groups(trial.site.name) == [group]
                cgroup.move(group, trial.child(process.hear).pid)
            raise error

    return litters


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("went wrong"), "ValueError: went wrong"),
        (Fault("went wrong"), "Fault: went wrong"),
        (OSError(5, "went wrong"), "OSError: [Errno 5] went wrong"),
        (NotPossible("not here"), None),
    ],
)
def test_a_trial_that_goes_wrong(tmp_path: Path, error: Exception, said: str | None) -> None:
    """Whatever a trial raises, no process, orphan, file or cgroup of it is left, and the cell says what it was."""
    cell = measured(littering(error), tmp_path, trials=3)
    if said is None:
        assert (cell.outcome, cell.reason, cell.counts) == (None, "not here", {})
    else:
        assert (cell.outcome, cell.remark, cell.counts) == (Outcome.FAULT, said, {"fault": 1})


def test_asked_to_stop(tmp_path: Path) -> None:
    """A worker that is asked to stop ends the trial under way, and begins no other."""
    begun = tmp_path.with_name("begun")

    @event("is stopped", expected="", rule="")
    def stopping(trial: Trial) -> None:
        trial.hold()
        with begun.open("a") as file:
            file.write("x")
        process.ask_to_stop()
        trial.expect_held()

    def measuring(order: Order) -> str:
        with pytest.raises(Stopped):
            measure(Flock, "flock", stopping, order)
        return "stopped"

    assert left_nothing(tmp_path, measuring, trials=3) == "stopped"
    assert begun.read_text() == "x"


#: A lock that takes its time when it is held: so the worker can be killed while its holder is stopped, or frozen.
SLOW = '''
import time
from bindlock.proof.kinds.flock import Flock as Fast

class Slow(Fast):
    """flock, slowly."""

    def acquire(self) -> bool:
        if self.site.path.exists():
            time.sleep(60)
        return super().acquire()
'''


@pytest.mark.parametrize(
    "key",
    [
        "crowd", "subprocess", "forked-child", "stopped",
        pytest.param("frozen", marks=needs_root), pytest.param("frozen-v1", marks=needs_root),
    ],
)  # fmt: skip
def test_a_worker_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """When a worker is killed in the midst of a trial all processes below it end, and the run cleans up after it."""
    runtime, lock = tmp_path / "runtime", tmp_path / "slow.py"
    runtime.mkdir()
    lock.write_text(SLOW)
    monkeypatch.setenv(MARK, str(tmp_path))
    monkeypatch.setattr(conductor, "_fast_folder", lambda: str(runtime))
    prefix = []
    if key == "frozen-v1":
        try:
            cgroup.version_1("freezer")
        except NotPossible as reason:
            pytest.skip(str(reason))

    def strike(*_: object) -> None:
        (scratch,) = runtime.iterdir()
        prefix.append(scratch.name.rpartition("-")[2])
        until(lambda: in_the_midst(key, marked(tmp_path), prefix[0]))
        (worker,) = [pid for pid in marked(tmp_path) if parent(pid) == os.getpid()]
        os.kill(worker, signal.SIGKILL)

    def sweep(prefix: str, sweep: Callable[[str], None] = cgroup.sweep) -> None:
        if key != "frozen-v1":  # the others end by themselves
            until(lambda: not marked(tmp_path), 2 * DEADLINE)
        sweep(prefix)

    monkeypatch.setattr(cgroup, "sweep", sweep)
    slow = key in ("stopped", "frozen", "frozen-v1")
    plan = Plan([str(lock) if slow else "flock"], [BY_KEY[key]], quick=True, seed=1, trials=1_000_000, jobs=1)
    with pytest.raises(Fault, match=f"ended with status -9 at {key}$"):
        run(plan, strike, lambda _: None)
    assert marked(tmp_path) == []
    assert list(runtime.iterdir()) == []
    assert groups(prefix[0]) == []


def in_the_midst(key: str, pids: Sequence[int], prefix: str) -> bool:
    """Whether those processes are where a trial of that event has most to leave."""
    match key:
        case "crowd":
            return len(pids) > 30
        case "subprocess":
            return any(told(pid, "cmdline") == "cat\0" for pid in pids)
        case "stopped":
            return any(told(pid, "stat").rpartition(") ")[2].startswith("T") for pid in pids)
        case "frozen":
            return any("frozen 1" in (group / "cgroup.events").read_text() for group in groups(prefix))
        case "frozen-v1":
            return any("FROZEN" in (group / "freezer.state").read_text() for group in groups(prefix))
    return len(pids) > 2


def marked(mark: Path) -> list[int]:
    """All processes that were started with that in their environment, and those they have forked."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(int(pid))
    return found


def told(pid: int, file: str) -> str:
    """What /proc says of a process; nothing when it is gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}", file).read_text()
    return ""


def parent(pid: int) -> int:
    """Its parent; 0 when it is gone."""
    fields = told(pid, "stat").rpartition(") ")[2].split()
    return int(fields[1]) if fields else 0


def groups(text: str) -> list[Path]:
    """All cgroups whose names have that in them."""
    lines = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    mounts = [fields[1] for fields in lines if fields[2] in ("cgroup", "cgroup2")]
    return [Path(path) for mount in mounts for path, _, _ in os.walk(mount) if text in Path(path).name]


# All of it.


def test_the_whole_matrix() -> None:
    """Every event with every kind of lock: the proof itself goes wrong nowhere, and what cannot be had says why."""
    check_whole(cells_of(list(installed()), BY_KEY, trials=1), list(installed()))


@needs_root
def test_the_whole_matrix_as_an_ordinary_user(long: bool) -> None:
    """So it is for an ordinary user; the rows that take root are counted on the first line."""
    locks = [lock for lock in installed() if long or lock in ("bindlock", "pathname", "pid-file", "flock", "tcp")]

    def body(child: Child) -> None:
        let_everybody_read([sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)])
        become_nobody()
        os.chdir("/")
        cells = cells_of(locks, BY_KEY, trials=1)
        child.say(json.dumps([cell.as_dict() for cell in cells]))

    with Child(body) as child:
        try:
            answer = child.hear(10 * DEADLINE)
        except NotPossible as reason:
            pytest.skip(str(reason))
        report = check_whole([Cell.from_dict(fields) for fields in json.loads(answer)], locks)
        assert child.wait() == 0
    assert report.rows_not_possible["another-user"] == "needs root, to become another user"
    count = len(report.rows_not_possible)
    assert report.headline.endswith(f"; {count} {'row' if count == 1 else 'rows'} not possible here")


def check_whole(cells: Sequence[Cell], locks: Sequence[str]) -> Report:
    """Each cell has an outcome, of one trial, which is no fault, or a reason why it could not be had."""
    assert [(cell.lock, cell.event) for cell in cells] == [(lock, key) for key in BY_KEY for lock in locks]
    assert [cell for cell in cells if cell.outcome is Outcome.FAULT] == []
    for cell in cells:
        assert (cell.outcome is None) == bool(cell.reason), cell
        assert cell.trials == (cell.outcome is not None), cell
    report = report_of({lock: kinds.load(lock) for lock in locks}, ALL, cells)
    print(report.headline, report.rows_not_possible, sep="\n")
    for key in BY_KEY:
        assert key in report.rows_not_possible or any(report.cell(lock, key).outcome for lock in locks)
    return report


def let_everybody_read(folders: Sequence[str]) -> None:
    """In a mount namespace of our own, let other users come to these folders by their usual paths.

    The interpreter may be in root's home directory, where only root may go. An empty file system that everybody may
    read is mounted over what is in the way, and in that the folders where they were.
    """
    wanted = {os.path.realpath(folder) for folder in folders}
    barriers = {barrier for folder in wanted for barrier in closed(folder)}
    if wanted & barriers:
        raise NotPossible(f"{(wanted & barriers).pop()} itself may be read by its owner only")
    namespace.enter("mount")
    hidden = {folder: os.open(folder, os.O_PATH) for folder in wanted if closed(folder)}
    for barrier in sorted(barriers):
        if not any(Path(barrier).is_relative_to(other) for other in barriers - {barrier}):
            namespace.mount_tmpfs(Path(barrier), "mode=755")
    for folder, descriptor in sorted(hidden.items()):
        os.makedirs(folder, exist_ok=True)
        call("mount", f"/proc/self/fd/{descriptor}".encode(), folder.encode(), None, _BIND, None)
        os.close(descriptor)


_BIND = 0x1000


def closed(folder: str) -> list[str]:
    """The folders on the way to that one, and itself, that not everybody may go through."""
    way = (folder, *map(str, Path(folder).parents))
    return [step for step in way if not os.stat(step).st_mode & stat.S_IXOTH]
