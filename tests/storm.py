"""A storm: processes acquire, release, time out, fork, are stopped, interrupted and killed, and two witnesses look on.

The invariant: no two live processes are inside at once. Both witnesses know nothing of the lock:

* `Word`: every holder writes its identity (PID and start time) into shared memory, must find there nobody who lives,
  and must find itself again when it leaves.
* `Record`: every holder takes a POSIX record lock on a file, which must not be taken. The kernel drops it with the
  process (`exit_files`) before it frees any socket (`exit_task_work`), so the dead never stand in the way.

Run it alone: ``python -m tests.storm --seconds 60 --seed 1``. It says what happened as JSON, and exits with status 1
when the witnesses called out anything.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import json
import mmap
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
import uuid
from typing import TYPE_CHECKING, Protocol

import bindlock
import bindlock.lock.block  # what a refused try loads: before the fork rather than in each child

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_PF_EXITING = 0x4
_TICKET = struct.Struct("=Q")
_PID_SHIFT = 40
#: struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
TALLIES = ("acquired", "timed out", "interrupted", "shared", "dropped", "errors")


class Lockable(Protocol):
    """What the storm needs of a lock."""

    @property
    def held(self) -> bool: ...
    def acquire(self, timeout: float | None) -> None: ...
    def release(self) -> None: ...


# The witnesses.


def identity() -> int:
    """PID and start time of this process in one word: never the same as another's."""
    return os.getpid() << _PID_SHIFT | (_stat(os.getpid()) or (0, 0))[0]


def lives(who: int) -> bool:
    """Whether a process can still do anything, so can still be a holder: stopped ones can, exiting ones cannot."""
    found = _stat(who >> _PID_SHIFT)
    return found is not None and found[0] == who & (1 << _PID_SHIFT) - 1 and not found[1] & _PF_EXITING


def _stat(pid: int) -> tuple[int, int] | None:
    """Start time and flags."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # An exiting process whose parent does not reap it is a zombie: flagged as well.
    return (int(fields[19]), int(fields[6])) if fields else None


class Word:
    """The owner's identity in shared memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    def enter(self) -> str | None:
        """Say that we are in; what is wrong, if anything is."""
        me, before = identity(), self._read()
        self._write(me)
        if before and before != me and lives(before):
            return f"word: {me >> _PID_SHIFT} entered while {before >> _PID_SHIFT} was in"
        return None

    def leave(self) -> str | None:
        """Say that we are out."""
        me, now = identity(), self._read()
        if now != me:
            return f"word: {me >> _PID_SHIFT} leaves and finds {now >> _PID_SHIFT}"
        self._write(0)
        return None

    def _read(self) -> int:
        word: int = _TICKET.unpack_from(self._memory, 0)[0]
        return word

    def _write(self, word: int) -> None:
        _TICKET.pack_into(self._memory, 0, word)


class Record:
    """A record lock on a file that has no name."""

    def __init__(self, file: int) -> None:
        self._file = file

    def enter(self) -> str | None:
        """Take it; what is wrong, if anything is."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
            other = "somebody" if kind == fcntl.F_UNLCK else pid
            return f"record: {os.getpid()} entered while {other} was in"
        return None

    def leave(self) -> str | None:
        """Let it go."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return None


class Witnesses:
    """Both of them, before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _TICKET.size)
        self._file = os.memfd_create("storm")
        self.all = (Word(self._memory), Record(self._file))

    def enter(self) -> list[str]:
        return [wrong for witness in self.all if (wrong := witness.enter())]

    def leave(self) -> list[str]:
        return [wrong for witness in self.all if (wrong := witness.leave())]

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)


# One process of the storm.


class Sailor:
    """Acquires and releases until it is killed. Everything it does is drawn from its seed."""

    def __init__(
        self, lock: Callable[[bool], Lockable], witnesses: Witnesses, report: int, tally: Tally, seed: str
    ) -> None:
        self._lock = lock
        self._witnesses = witnesses
        self._report = report
        self._tally = tally
        self._chance = random.Random(seed)
        #: While True a SIGINT is put by: the witnesses' books are being kept.
        self._busy = True

    def run(self) -> None:
        signal.signal(signal.SIGINT, self._interrupt)
        while True:
            try:
                self._turn()
            except KeyboardInterrupt:
                self._tally.add("interrupted")
            self._busy = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._busy:
            self._busy = True
            raise KeyboardInterrupt

    def _turn(self) -> None:
        share = self._chance.random() < 0.1
        lock = self._lock(share)
        try:
            self._busy = False
            lock.acquire(self._chance.choice((None, 0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)))
            self._busy = True
        except bindlock.Held:
            self._busy = True
            self._tally.add("timed out")
            return
        except KeyboardInterrupt:
            # It may have come the moment after acquire returned.
            if lock.held:
                lock.release()
            raise
        except Exception as error:
            self._tally.add("errors")
            self._call_out([f"error: {error!r}"])
            raise
        self._tally.add("acquired")
        if not lock.held:
            self._call_out(["held: acquire returned, but the lock says that it is not held"])
        self._inside(lock, share)

    def _inside(self, lock: Lockable, share: bool) -> None:
        self._call_out(self._witnesses.enter())
        try:
            self._busy = False
            self._dawdle()
            self._busy = True
            if share:
                self._share(lock)
                return
            if self._chance.random() < 0.1:
                self._drop(lock)
        finally:
            self._busy = True
            if lock.held:
                self._call_out(self._witnesses.leave())
                lock.release()

    def _dawdle(self) -> None:
        """Be inside for a little while, never the same."""
        what = self._chance.random()
        if what < 0.5:
            os.sched_yield()
        elif what < 0.9:
            for _ in range(self._chance.randrange(2000)):
                pass
        else:
            select.select([], [], [], self._chance.random() * 0.003)

    def _drop(self, lock: Lockable) -> None:
        """Fork a child that must have nothing, and may outlive us."""
        self._tally.add("dropped")
        if os.fork():
            return
        if lock.held:
            self._call_out(["drop: a forked child has the lock"])
        self._dawdle()
        os._exit(0)

    def _share(self, lock: Lockable) -> None:
        """Fork a child that has the lock, too, leave it to the child, and be out."""
        self._tally.add("shared")
        handed, hand = os.pipe()
        pid = os.fork()
        if pid:
            os.close(handed)
            self._call_out(self._witnesses.leave())
            os.write(hand, b"!")
            os.close(hand)
            lock.release()
            return
        os.close(hand)
        os.read(handed, 1)  # nothing comes when the parent was killed: then its marks are those of a dead one
        if not lock.held:
            self._call_out(["share: a forked child has no lock"])
        self._call_out(self._witnesses.enter())
        self._dawdle()
        self._call_out(self._witnesses.leave())
        if self._chance.random() < 0.5:
            lock.release()
        os._exit(0)

    def _call_out(self, wrong: list[str]) -> None:
        for line in wrong:
            os.write(self._report, line.encode() + b"\n")


class Tally:
    """Counters of one process and of those that came before it in its place."""

    def __init__(self, memory: mmap.mmap, place: int) -> None:
        self._memory = memory
        self._start = place * len(TALLIES) * _TICKET.size

    def add(self, what: str) -> None:
        at = self._start + TALLIES.index(what) * _TICKET.size
        _TICKET.pack_into(self._memory, at, _TICKET.unpack_from(self._memory, at)[0] + 1)

    def counts(self) -> list[int]:
        end = self._start + len(TALLIES) * _TICKET.size
        return [word for (word,) in _TICKET.iter_unpack(self._memory[self._start : end])]


# The storm.


class Storm:
    """Starts the processes, and kills, stops, interrupts and replaces them."""

    def __init__(self, lock: Callable[[bool], Lockable], seed: int, processes: int, calls: int) -> None:
        self._lock = lock
        self._seed = seed
        self._processes = processes
        #: End after so many violations.
        self._calls = calls
        self._chance = random.Random(seed)
        self._memory = mmap.mmap(-1, processes * len(TALLIES) * _TICKET.size)
        self._witnesses = Witnesses()
        self._heard, self._report = os.pipe()
        os.set_blocking(self._heard, False)
        self._crew: dict[int, int] = {}
        self._stopped: list[tuple[float, int]] = []
        self.counts = {"started": 0, "killed": 0, "stopped": 0, "signalled": 0}
        self.violations: list[str] = []

    def run(self, seconds: float) -> None:
        # Children whose parent was killed become ours, so that we can tell when all are gone.
        _prctl(_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until a child has a handler of its own
        end = time.monotonic() + seconds
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
        finally:
            self._end()

    def places(self) -> list[dict[str, int]]:
        """What was done in every place."""
        return [
            dict(zip(TALLIES, Tally(self._memory, place).counts(), strict=True)) for place in range(self._processes)
        ]

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
            Sailor(
                self._lock, self._witnesses, self._report, Tally(self._memory, place), f"{self._seed} {serial}"
            ).run()
        except BaseException:  # noqa: BLE001 - nothing may get out into the storm's own code
            traceback.print_exc()
        finally:
            os._exit(70)

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
            if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
                self.violations.append(f"end: {pid} ended with {os.waitstatus_to_exitcode(status)}")
            self._start(self._crew.pop(pid))

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
    parser.add_argument("--lock", choices=("bindlock", "two-doors", "falls-open"), default="bindlock")
    options = parser.parse_args()

    def lock(share: bool) -> Lockable:
        if options.lock == "bindlock":
            return bindlock.Lock(options.name, children="share" if share else "drop")
        return (TwoDoors if options.lock == "two-doors" else FallsOpen)(options.name, share)

    storm = Storm(lock, options.seed, options.processes, options.calls)
    began = time.monotonic()
    storm.run(options.seconds)
    places = storm.places()
    totals = {what: sum(place[what] for place in places) for what in TALLIES}
    result = {
        "seed": options.seed,
        "seconds": round(time.monotonic() - began, 1),
        **storm.counts,
        **totals,
        "idlest": min(place["acquired"] for place in places),
        "violations": storm.violations,
        "free": bindlock.holder(options.name) is None,
    }
    print(json.dumps(result), flush=True)
    return 1 if storm.violations or not result["free"] else 0


if __name__ == "__main__":
    sys.exit(main())
