"""A storm: processes acquire, release, time out, fork, are stopped, interrupted and killed, and two witnesses look on.

The invariant, and who looks after it, is in `tests.storm_witnesses`. What the processes do is in `tests.storm_sailors`,
in `tests.storm_doors` for those whose lock changes hands, and in `tests.storm_tasks` for those with an event loop.

Run it alone: ``python -m tests.storm --seconds 60 --seed 1``. It says what happened as JSON, and exits with status 1
when the witnesses called out anything.
"""

from __future__ import annotations

import argparse
import ctypes
import heapq
import json
import os
import random
import select
import signal
import sys
import time
import traceback
import uuid
from typing import TYPE_CHECKING

import bindlock
from tests.storm_sailors import Sailor
from tests.storm_witnesses import DOINGS, TALLIES, Log, Tally, Witnesses, Words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.storm_sailors import Lockable

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
#: How processes may end: by the storm, or a timer of their own; and after an exec: done; a supervisor's time-out.
_ENDS = (-signal.SIGKILL, -signal.SIGALRM, 0, 75)
#: What there is beside plain acquiring: `tests.storm_doors.DOORS`, and tasks. One process in seven has tasks.
KINDS = ("send", "exec", "supervise", "tasks", "never")
#: Not children="never": the kernel lets a private descriptor table go when its thread exits, and other threads of the
#: same killed process may still be on their way out of a system call. Both witnesses call that out, and rightly so.
USUAL = KINDS[:4]
_WITH_TASKS = 1 / 7


class Storm:
    """Starts the processes, and kills, stops, interrupts and replaces them."""

    def __init__(
        self, lock: Callable[[bool], Lockable], seed: int, processes: int, calls: int,
        kinds: Sequence[str] = (), name: str = "",
    ) -> None:  # fmt: skip
        self._lock = lock
        self._seed = seed
        self._processes = processes
        #: End after so many violations.
        self._calls = calls
        #: Of `KINDS`, with the lock `name` in place of `lock`.
        self._kinds = kinds
        self._name = name
        self._chance = random.Random(seed)
        self._words = Words(processes * Tally.WORDS)
        self._witnesses = Witnesses()
        self._heard, self._report = os.pipe()
        os.set_blocking(self._heard, False)
        self._crew: dict[int, int] = {}
        self._stopped: list[tuple[float, int]] = []
        self.counts = {"started": 0, "killed": 0, "stopped": 0, "signalled": 0}
        #: How many were killed in the middle of what.
        self.killed = dict.fromkeys(DOINGS, 0)
        self.violations: list[str] = []
        #: The longest time in which nobody acquired it, in seconds.
        self.stillest = 0.0
        self._acquired, self._acquired_at = 0, 0.0

    def run(self, seconds: float) -> None:
        # Children whose parent was killed become ours, so that we can tell when all are gone.
        _prctl(_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until a child has a handler of its own
        self._acquired_at = time.monotonic()
        end = self._acquired_at + seconds
        try:
            for place in range(self._processes):
                self._start(place)
            while time.monotonic() < end and len(self.violations) < self._calls:
                ready, _, _ = select.select([self._heard], [], [], self._chance.random() * 0.01)
                if ready:
                    self.violations += os.read(self._heard, 65536).decode().splitlines()
                self._harm()
                self._go_on(time.monotonic())
                self._reap()
                self._watch(time.monotonic())
        finally:
            self._end()

    def places(self) -> list[dict[str, int]]:
        """What was done in every place."""
        return [Tally(self._words, place).counts() for place in range(self._processes)]

    def _start(self, place: int) -> None:
        serial = self.counts["started"]
        self.counts["started"] += 1
        pid = os.fork()
        if pid:
            self._crew[pid] = place
            return
        try:
            _prctl(_SET_PDEATHSIG, signal.SIGKILL)
            os.close(self._heard)
            self._sail(Log(self._witnesses, self._report, Tally(self._words, place)), f"{self._seed} {serial}")
        except BaseException:  # noqa: BLE001 - nothing may get out into the storm's own code
            traceback.print_exc()
        finally:
            os._exit(70)

    def _sail(self, log: Log, seed: str) -> None:
        if not self._kinds:
            Sailor(self._lock, log, seed).run()
        if "tasks" in self._kinds and random.Random(f"{seed} kind").random() < _WITH_TASKS:
            from tests.storm_tasks import TaskSailor

            TaskSailor(self._name, log, seed).run()
        from tests.storm_doors import DOORS, Trader

        Trader(self._name, [door for door in DOORS if door in self._kinds], log, seed).run()

    def _harm(self) -> None:
        pid = self._chance.choice(list(self._crew))
        what = self._chance.random()
        if what < 0.4:
            os.kill(pid, signal.SIGKILL)
            self.counts["killed"] += 1
        elif what < 0.6:
            os.kill(pid, signal.SIGSTOP)
            self.counts["stopped"] += 1
            heapq.heappush(self._stopped, (time.monotonic() + self._chance.random() ** 4 * 0.1, pid))
        else:
            os.kill(pid, signal.SIGINT)
            self.counts["signalled"] += 1

    def _watch(self, now: float) -> None:
        acquired = sum(Tally(self._words, place)["acquired"] for place in range(self._processes))
        self.stillest = max(self.stillest, now - self._acquired_at)
        if acquired != self._acquired:
            self._acquired, self._acquired_at = acquired, now

    def _go_on(self, now: float) -> None:
        while self._stopped and self._stopped[0][0] <= now:
            _, pid = heapq.heappop(self._stopped)
            if pid in self._crew:  # else it was killed meanwhile, and reaped
                os.kill(pid, signal.SIGCONT)

    def _reap(self) -> None:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = found
            if pid not in self._crew:
                continue  # somebody's forked child
            end, place = os.waitstatus_to_exitcode(status), self._crew.pop(pid)
            if end not in _ENDS:
                self.violations.append(f"end: {pid} ended with {end}")
            elif end < 0:
                self.killed[Tally(self._words, place).doing] += 1
            self._start(place)

    def _end(self) -> None:
        """Kill and reap all, those too who lost their parent, and hear what they said."""
        for pid in self._crew:
            os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 30
        while True:
            try:
                found = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not found[0]:
                if time.monotonic() > end:
                    self.violations.append("end: some process does not go")
                    break
                os.sched_yield()
        os.close(self._report)
        while data := os.read(self._heard, 65536):
            self.violations += data.decode().splitlines()
        os.close(self._heard)
        self._witnesses.close()


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), *(ctypes.c_ulong(0),) * 3):
        raise OSError(ctypes.get_errno(), "prctl")


class TwoDoors:
    """Broken: one time in a hundred it locks another name."""

    def __init__(self, name: str, share: bool) -> None:
        doors = ("", "-back") if random.Random(os.urandom(4)).random() < 0.01 else ("",)
        self._locks = [bindlock.Lock(name + door, children="share" if share else "drop") for door in doors]

    @property
    def held(self) -> bool:
        return self._locks[-1].held

    def acquire(self, timeout: float | None) -> None:
        self._locks[-1].acquire(timeout)

    def release(self) -> None:
        self._locks[-1].release()


class FallsOpen(TwoDoors):
    """Broken: one time-out in ten is taken for success."""

    def __init__(self, name: str, share: bool) -> None:
        self._lock = bindlock.Lock(name, children="share" if share else "drop")
        self._open = False

    @property
    def held(self) -> bool:
        return self._open or self._lock.held

    def acquire(self, timeout: float | None) -> None:
        try:
            self._lock.acquire(timeout)
        except bindlock.Held:
            if os.urandom(1)[0] > 25:
                raise
            self._open = True

    def release(self) -> None:
        if not self._open:
            self._lock.release()
        self._open = False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default=f"storm-{uuid.uuid4().hex[:12]}")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--processes", type=int, default=30)
    parser.add_argument("--calls", type=int, default=20, help="end after so many violations")
    parser.add_argument("--kinds", default=",".join(USUAL), help="what to do beside plain acquiring, with commas")
    parser.add_argument("--lock", choices=("bindlock", "two-doors", "falls-open"), default="bindlock")
    options = parser.parse_args()
    kinds = [kind for kind in options.kinds.split(",") if kind] if options.lock == "bindlock" else []
    if set(kinds) - set(KINDS):
        parser.error(f"of kinds there are {', '.join(KINDS)}")
    if kinds:  # before the forks rather than in each process
        import tests.storm_doors
    if "tasks" in kinds:
        import anyio._backends._asyncio  # noqa: F401

        import tests.storm_tasks  # noqa: F401

    def lock(share: bool) -> Lockable:
        if options.lock == "bindlock":
            return bindlock.Lock(options.name, children="share" if share else "drop")
        return (TwoDoors if options.lock == "two-doors" else FallsOpen)(options.name, share)

    storm = Storm(lock, options.seed, options.processes, options.calls, kinds, options.name)
    began = time.monotonic()
    storm.run(options.seconds)
    places = storm.places()
    totals = {what: sum(place[what] for place in places) for what in TALLIES}
    result = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        **storm.counts,
        **totals,
        "killed while": storm.killed,
        "idlest": min(place["acquired"] for place in places),
        "stillest": round(storm.stillest, 1),
        "violations": storm.violations,
        "free": bindlock.holder(options.name) is None,
    }
    print(json.dumps(result), flush=True)
    return 1 if storm.violations or not result["free"] else 0


if __name__ == "__main__":
    sys.exit(main())
