"""The conductor: orders every cell from the workers, some at a time, and leaves the machine as it was."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.cell import Cell
from bindlock.proof.errors import Fault
from bindlock.proof.kernel import cgroup
from bindlock.proof.kernel.user import NOBODY
from bindlock.proof.kind import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bindlock.proof.event import Event

#: Seconds after which a refusal with nobody there is called stale: quick, full.
_PATIENCE = (0.2, 1.0)
#: Stale trials of a cell that are given all of it, while the cell has no others: quick, full.
_PATIENT = (1, 3)
#: Seconds after which a cell of a quick run is left with what it has.
_BUDGET = 0.6
_START = (
    "import sys; lock, scratch, conductor, *sys.path[:] = sys.argv[1:]; "
    "from bindlock.proof.worker import main; sys.exit(main(lock, scratch, int(conductor)))"
)
_PREFIX = "bindlock-prove-"
#: Seconds for a worker to end the trial under way.
_FAREWELL = 60.0


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    locks: Sequence[str]
    events: Sequence[Event]
    quick: bool
    seed: int
    #: Trials a cell, when the events are not to say.
    trials: int | None = None
    #: How many workers there are at a time.
    jobs: int = field(default_factory=lambda: min(4, len(os.sched_getaffinity(0))))

    def trials_of(self, event: Event) -> int:
        """How many trials a cell of that event is to have."""
        return event.trials[not self.quick] if self.trials is None else self.trials


def run(plan: Plan, begun: Callable[[str, Event], object], done: Callable[[Cell], object]) -> list[Cell]:
    """Run it all, and tell of each cell as it begins and when it is done; the cells, in the order of the plan.

    Whatever is raised meanwhile, KeyboardInterrupt included, all workers are asked to stop, and waited for.
    """
    locks: queue.SimpleQueue[str] = queue.SimpleQueue()
    for lock in plan.locks:
        locks.put(lock)
    messages: queue.SimpleQueue[tuple[str, Event] | Cell | BaseException | None] = queue.SimpleQueue()
    cells: list[Cell] = []
    scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_fast_folder()))
    crew = _Crew(plan, scratch, locks, messages)
    try:
        if os.geteuid() == 0:
            # Folders in it are for everybody to write to: only we, and the other user of some events, get there.
            with suppress(OSError):  # no such group in this user namespace, and so no such user
                os.chown(scratch, 0, NOBODY)
                scratch.chmod(0o750)
        crew.start()
        working = plan.jobs
        while working:
            message = messages.get()
            if message is None:
                working -= 1
            elif isinstance(message, BaseException):
                raise message
            elif isinstance(message, Cell):
                cells.append(message)
                done(message)
            else:
                begun(*message)
    finally:
        crew.dismiss()
        try:
            cgroup.sweep(_short(scratch))  # of a worker that was killed
        finally:
            shutil.rmtree(scratch)
    place = {(key_of(lock), event.key): number for number, (lock, event) in enumerate(_all(plan))}
    return sorted(cells, key=lambda cell: place[cell.lock, cell.event])


class _Crew:
    """Threads that each have one worker process at a time, and ask it for one cell after the other."""

    def __init__(self, plan: Plan, scratch: Path, locks: queue.SimpleQueue[str], messages: queue.SimpleQueue) -> None:  # type: ignore[type-arg]
        self._plan = plan
        self._scratch = scratch
        self._locks = locks
        self._messages = messages
        self._stopping = False
        self._guard = threading.Lock()
        self._workers: set[subprocess.Popen[str]] = set()
        self._threads = [threading.Thread(target=self._serve) for _ in range(plan.jobs)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def dismiss(self) -> None:
        """Have all workers end what they do, and wait for them."""
        with self._guard:
            self._stopping = True
            for worker in self._workers:
                worker.terminate()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _serve(self) -> None:
        # Writing to a worker that is gone is an error here, and no end of us: the signal is for the thread that writes.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
        try:
            while True:
                try:
                    lock = self._locks.get_nowait()
                except queue.Empty:
                    return
                if not self._one(lock):
                    return
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._messages.put(error)
        finally:
            self._messages.put(None)

    def _one(self, lock: str) -> bool:
        """All cells of one lock; False when we are to stop."""
        with self._guard:
            if self._stopping:
                return False
            # In a session of its own: Ctrl-C is for us, and the worker ends in peace.
            worker = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, lock, str(self._scratch), str(os.getpid()), *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            self._workers.add(worker)
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            for event in self._plan.events:
                self._messages.put((lock, event))
                with suppress(BrokenPipeError):
                    print(json.dumps(self._order(event)), file=worker.stdin, flush=True)
                answer = worker.stdout.readline()
                if self._stopping:
                    return False
                if not answer:
                    raise Fault(f"the worker for {lock} ended with status {_farewell(worker)} at {event.key}")
                self._messages.put(Cell.from_dict(json.loads(answer)))
        finally:
            _farewell(worker)
            worker.stdout.close()
            with self._guard:
                self._workers.discard(worker)
        return True

    def _order(self, event: Event) -> dict[str, object]:
        plan = self._plan
        return {
            "event": event.key,
            "scratch": str(self._scratch),
            "prefix": _short(self._scratch),
            "seed": plan.seed,
            "trials": plan.trials_of(event),
            "budget": _BUDGET if plan.quick and plan.trials is None else None,
            "patience": _PATIENCE[not plan.quick],
            "patient": _PATIENT[not plan.quick],
        }


def _farewell(worker: subprocess.Popen[str]) -> int:
    """Let it go, and wait for its end: the status."""
    assert worker.stdin is not None
    with suppress(BrokenPipeError, ValueError):  # it is gone; it was bidden farewell already
        print(file=worker.stdin, flush=True)
    with suppress(BrokenPipeError):  # of what could not be written; it is closed all the same
        worker.stdin.close()
    try:
        return worker.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait()


def _all(plan: Plan) -> Iterator[tuple[str, Event]]:
    for event in plan.events:
        for lock in plan.locks:
            yield lock, event


def _short(scratch: Path) -> str:
    """What all names of the run begin with: the path of a Unix socket may have 107 bytes."""
    return scratch.name.removeprefix(_PREFIX)


def _fast_folder() -> str:
    """A folder beside the root file system, as /run is, and mostly in memory; else where temporary files are."""
    # Not root's XDG_RUNTIME_DIR, into which no other user can go.
    own = os.environ.get("XDG_RUNTIME_DIR", "") if os.geteuid() else ""
    for path in (own, "/run", "/dev/shm"):  # noqa: S108
        if path and os.access(path, os.W_OK | os.X_OK) and os.stat(path).st_dev != os.stat("/").st_dev:
            return path
    return tempfile.gettempdir()
