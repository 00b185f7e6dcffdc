"""A line: processes that wait for a lock one behind the other, and hold it once each. In what order, and at what cost?

`Line` is the other end of a process that has waited for the lock itself once, so that everything is loaded, and then
forks those who wait. Each is seen to sleep in the system call that its kind of lock waits by before the next one comes.
bindlock is asked for its queue, too, and who was in it at which place is the order of arrival. Everybody writes the
time at which he has the lock into memory shared by all, so that nothing but the lock wakes anybody up.

A forked process has its parent's memory until it writes to it, and then each page costs a page fault and a copy, more
than all that is to be measured. One that was started by itself has memory of its own. So all of them rehearse before
the first one comes: each waits, is followed, and has a lock, with children of its own for the others.

All of a line want one lock: it has one queue. In a *chain* each wants the lock of the one before him: there are as many
queues, of one process each, among as many other processes that have slept for as long. A processor has forgotten a
process that sleeps, whatever it sleeps for, and that takes longer than anything a lock does.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import mmap
import os
import sys
import tempfile
import time
from signal import SIGKILL

import bindlock
from benchmarks.actor import Program
from benchmarks.peers import LOCKS, OURS, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DEADLINE = 120.0
#: Seconds between two looks at whether one sleeps, and whether all have had it: who looks takes a processor.
_LOOK = 0.0002
_SELDOM = 0.002
#: A process that has been seen so often in a row in one system call sleeps in that.
_OFTEN = 50
_NUMBER_BYTES = 4
_REHEARSED = -1


@dataclasses.dataclass(frozen=True)
class Drain:
    """What became of one line. Times are in seconds."""

    #: Their numbers in the order of arrival, from 1 on, in the order in which they had the lock.
    order: list[int]
    #: From the end of each holder to the next one's holding.
    gaps: list[float]
    #: From the first release to the last, or to the last one's holding where nobody lives to release.
    seconds: float
    #: The longest time from anybody's asking for the lock to his having it.
    longest_wait: float
    #: What each has used of a processor, on the average, from before the first release until all have released; and how
    #: often each has slept in that time, the last sleep, in which all end, not being counted. None where all are dead.
    processor: float | None = None
    wake_ups: float | None = None

    @property
    def in_place(self) -> int:
        """How many had it at the very place at which they came."""
        return sum(number == place for place, number in enumerate(self.order, 1))


class Line(Program):
    """The process that forks those who wait for one kind of lock."""

    def __init__(self, kind: str) -> None:
        super().__init__("benchmarks.order", kind)
        self.read_line()

    def drain(self, count: int, ending: str = "release", *, chain: bool = False) -> Drain:
        """Have so many wait, and let them have it; `ending` is ``release``, or ``SIGKILL`` for every holder."""
        self.write(json.dumps([count, ending, chain]))
        return Drain(**json.loads(self.read_line()))


class _Waiters:
    """The forked processes of one line: a first holder, number 0, and all that come after him."""

    def __init__(self, kind: str, path: str, call: str, count: int, ending: str, chain: bool) -> None:
        self._kind, self._path, self._call, self._ending, self._chain = kind, path, call, ending, chain
        #: Of each, by number: three times (CLOCK_MONOTONIC, in nanoseconds), when it asks, has it, has released it; and
        #: its PID. 0 until then; but for the place of the PID, which has `_REHEARSED` once any has.
        self._known = memoryview(mmap.mmap(-1, 4 * 8 * (count + 1))).cast("q")
        self._turns = os.pipe()
        self._start = os.pipe()
        self._end = os.pipe()
        self._forked: list[int] = []

    def drain(self) -> Drain:
        """Let them come, then let the first holder go, and wait until the last has had it."""
        count = len(self._known) // 4
        for number in range(count):
            self._fork(number)
        _until(lambda: set(self._known[3::4].tolist()) == {_REHEARSED}, _SELDOM)
        for number in range(count):
            self._admit(number)
        arrived = self._in_line()
        pids = self._known[3::4].tolist()
        before = [_cost(pid) for pid in pids]
        os.write(self._start[1], b"x")
        last = 2 if self._ending == "release" else 1
        _until(lambda: 0 not in self._known[last::4].tolist(), _SELDOM)
        costs = []
        if self._ending == "release":
            _until(lambda: all(_sleeps_in(pid) == self._sleep for pid in pids))
            costs = [(a - c, b - d) for (a, b), (c, d) in zip(map(_cost, pids), before, strict=True)][1:]
        return self._judge(arrived, costs)

    def end(self) -> None:
        """Kill and reap them all; none has been reaped, so all PIDs are their own."""
        for pid in self._forked:
            os.kill(pid, SIGKILL)
        for pid in self._forked:
            os.waitpid(pid, 0)
        for descriptor in (*self._turns, *self._start, *self._end):
            os.close(descriptor)

    def _fork(self, place: int) -> None:
        pid = os.fork()
        if pid:
            self._forked.append(pid)
            return
        try:
            # It is the end of that pipe that ends us, should our parent be gone; or of this one.
            os.close(self._end[1])
            os.close(self._turns[1])
            _rehearse(self._kind, f"{self._path}-rehearsal-{place}", self._call)
            self._known[4 * place + 3] = _REHEARSED
            self._come()
        finally:
            os._exit(1)

    def _admit(self, number: int) -> None:
        """Have one of them come, whichever, as that number."""
        os.write(self._turns[1], number.to_bytes(_NUMBER_BYTES, sys.byteorder))
        _until(lambda: self._known[4 * number + 3] != _REHEARSED)
        pid = self._known[4 * number + 3]
        if number == 0:
            _until(lambda: self._known[0] and _sleeps_in(pid) not in (None, self._call))
            self._sleep = _sleeps_in(pid)  # in read(2), as they all do in the end
        else:
            _until(lambda: self._known[4 * number] and _sleeps_in(pid) == self._call)

    def _come(self) -> None:
        number = int.from_bytes(os.read(self._turns[0], _NUMBER_BYTES), sys.byteorder)
        mine = LOCKS[self._kind](f"{self._path}-{number if self._chain else 0}")
        wanted = mine
        if self._chain and number:
            mine[0]()
            wanted = LOCKS[self._kind](f"{self._path}-{number - 1}")
        self._known[4 * number + 3] = os.getpid()
        self._hold(4 * number, wanted[0], mine[1])

    def _hold(self, place: int, acquire: Callable[[], object], release: Callable[[], object]) -> None:
        known, killed, clock, me = self._known, self._ending == "SIGKILL", time.monotonic_ns, os.getpid()
        if place == 0:
            acquire()
            known[0] = clock()
            os.read(self._start[0], 1)
        else:
            known[place] = clock()
            acquire()
        known[place + 1] = clock()
        if killed:
            os.kill(me, SIGKILL)
        release()
        known[place + 2] = clock()
        os.read(self._end[0], 1)

    def _in_line(self) -> list[int]:
        """Their numbers in the order of arrival: ours as the queue has it, others' as they were seen to fall asleep."""
        pids = self._known[3::4].tolist()
        if self._kind != OURS or self._chain:
            return list(range(1, len(pids)))
        from bindlock.linux.process import with_sockets
        from bindlock.lock.look import in_line

        name = bindlock.names.parse(name_of(f"{self._path}-0"))
        queue = in_line(name)
        processes = with_sockets({ticket.inode: ticket.uid for ticket in queue})
        numbers = [pids.index(pid) for ticket in queue for pid in processes[ticket.inode]]
        assert sorted(numbers) == list(range(1, len(pids))), f"{len(numbers)} in line instead of {len(pids) - 1}"
        return numbers

    def _judge(self, arrived: list[int], costs: list[tuple[int, int]]) -> Drain:
        asked, held, released = (self._known[first::4].tolist() for first in range(3))
        place = {number: place for place, number in enumerate(arrived, 1)}
        order = sorted(place, key=held.__getitem__)
        times = sorted(held)
        return Drain(
            [place[number] for number in order],
            [(after - before) / 1e9 for before, after in itertools.pairwise(times)],
            (max(released) - held[0] if costs else times[-1] - held[0]) / 1e9,
            max(held[number] - asked[number] for number in order) / 1e9,
            sum(nanoseconds for nanoseconds, _ in costs) / len(costs) / 1e9 if costs else None,
            sum(sleeps for _, sleeps in costs) / len(costs) if costs else None,
        )


def _until(condition: Callable[[], object], pause: float = _LOOK) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not so for {_DEADLINE} s"
        time.sleep(pause)


def _sleeps_in(pid: int) -> str | None:
    """The system call that a process sleeps in (proc(5), syscall); None while it does not, or sleeps elsewhere."""
    with open(f"/proc/{pid}/syscall") as file:
        call = file.read().split()[0]
    return None if call in ("running", "-1") else call


def _cost(pid: int) -> tuple[int, int]:
    """The nanoseconds for which a process has had a processor, and how often it has given it up by itself."""
    with open(f"/proc/{pid}/schedstat") as file:
        nanoseconds = int(file.read().split()[0])
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return nanoseconds, int(status["voluntary_ctxt_switches"])


def _rehearse(kind: str, path: str, call: str) -> None:
    """Wait for a lock behind one child and before another, in the system call `call`; have it, and release it."""
    me = os.getpid()
    said, heard = os.pipe(), os.pipe()

    def follow() -> None:
        acquire, release = LOCKS[kind](path)
        for descriptor in (said[1], *heard):
            os.close(descriptor)  # what is ours to close ends the wait of others, should we be killed
        os.read(said[0], 1)
        acquire()
        release()

    def hold() -> None:
        acquire, release = LOCKS[kind](path)
        acquire()
        os.write(heard[1], b"x")
        _until(lambda: _sleeps_in(me) == call)
        os.write(said[1], b"x")
        _until(lambda: _sleeps_in(follower) == call)
        release()

    follower = _child(follow)
    holder = _child(hold)
    for descriptor in (said[1], heard[1]):
        os.close(descriptor)
    os.read(heard[0], 1)
    acquire, release = LOCKS[kind](path)
    acquire()
    release()
    for pid in (holder, follower):
        assert os.waitpid(pid, 0)[1] == 0
    for descriptor in (said[0], heard[0]):
        os.close(descriptor)


def _child(body: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def _waiting_call(kind: str, path: str) -> str:
    """Wait for a lock once, for a child that watches us: the system call that we have slept in."""
    reader, writer = os.pipe()
    acquire, release = LOCKS[kind](path)
    me = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            holder = LOCKS[kind](path)
            holder[0]()
            os.write(writer, b"held")
            seen = [_sleeps_in(me)]
            while len(seen) < _OFTEN:
                call = _sleeps_in(me)
                seen = [*seen, call] if call == seen[0] and call is not None else [call]
                time.sleep(0.001)  # longer than anything else that we sleep in on the way there
            os.write(writer, str(seen[0]).encode())
        finally:
            os._exit(1)  # which releases it
    os.read(reader, 4)
    acquire()
    release()
    os.waitpid(child, 0)
    call = os.read(reader, 16).decode()
    os.close(reader)
    os.close(writer)
    return call


def _act(kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bindlock-benchmark-") as scratch:
        call = _waiting_call(kind, f"{scratch}/lock")
        # Children share our memory until they write to it, and a collector writes to all of it.
        gc.collect()
        gc.freeze()
        print(json.dumps(None), flush=True)
        for number, line in enumerate(iter(sys.stdin.readline, "")):
            waiters = _Waiters(kind, f"{scratch}/{number}", call, *json.loads(line))
            try:
                drain = waiters.drain()
            finally:
                waiters.end()
            print(json.dumps(dataclasses.asdict(drain)), flush=True)


if __name__ == "__main__":
    _act(*sys.argv[1:])
