"""What a queue of waiting processes costs until all of them have had the lock once, and whether they have it in order.

Wake-ups are counted by the kernel, as voluntary context switches of the waiters. CPU is their time on a processor, as
the scheduler has it (/proc/PID/schedstat), in kernel and Python: from before the first release until each has released.

Two ratios need the same state of the machine, so what is compared is measured in turns, many short drains for a long
one. A queue of 1 is measured among as many sleeping processes as the queue of 1 000 has: see `benchmarks.order`.
"""

from __future__ import annotations

import contextlib
import statistics

from benchmarks.order import Drain, Line
from benchmarks.peers import OURS
from benchmarks.result import Row, at_most, seconds

FEW, SOME, MANY = 10, 100, 1000
PEERS = ["flock(2)", "filelock", "portalocker", "fasteners"]
_BARE = "bare system calls"
_CPU_LIMIT = 1.5
_BARE_LIMIT = 1.25
_LENGTH_LIMIT = 1.2
#: Short drains beside each long one: together they should be as many releases as decide a median.
_SHORT = {FEW: 20, SOME: 3}


def measure(quick: bool) -> list[Row]:
    """Drain ours at all lengths, with both endings; then the same hundred with all others."""
    with contextlib.ExitStack() as stack:
        ours, bare = (stack.enter_context(Line(kind)) for kind in (OURS, _BARE))
        ours.drain(SOME)
        longest = SOME if quick else MANY
        drains = _drain_all(ours, longest, 2 if quick else 5)
        rows = [_wake_ups(count, drains[count]) for count in drains]
        rows.append(_processor(longest, drains))
        rows.append(_machine(bare, longest, 1 if quick else 3))
        killed = [ours.drain(longest, "SIGKILL") for _ in range(1 if quick else 3)]
        rows += [_order("released by each", drains[longest]), _order("every holder SIGKILLed", killed)]
        for ending in ("release", "SIGKILL"):
            rows += _next_holder(ours, bare, ending, longest, 1 if quick else 2)
    return rows + _beside(1 if quick else 5)


def _drain_all(line: Line, longest: int, rounds: int) -> dict[int, list[Drain]]:
    drains: dict[int, list[Drain]] = {count: [] for count in (FEW, SOME, MANY) if count <= longest}
    for _ in range(rounds):
        # Half of the short ones before the long one, half after: what slows down for a while does so for both.
        for half in range(2):
            for count, times in _SHORT.items():
                if count < longest:
                    drains[count] += [line.drain(count) for _ in range((times + half) // 2)]
            if half == 0:
                drains[longest].append(line.drain(longest))
    return drains


def _wake_ups(count: int, drains: list[Drain]) -> Row:
    mean = statistics.fmean(_known(drain.wake_ups) for drain in drains)
    return Row(
        f"drain {count}: wake-ups per release",
        f"{mean:.3f}",
        target="1.0",
        reached=round(mean, 1) == 1.0,
        repetitions=len(drains),
        numbers={"wake_ups": [drain.wake_ups for drain in drains]},
    )


def _processor(longest: int, drains: dict[int, list[Drain]]) -> Row:
    long = [_known(drain.processor) for drain in drains[longest]]
    # One figure for those beside each long one.
    every = [_known(drain.processor) for drain in drains[FEW]]
    width = len(every) // len(long)
    short = [statistics.median(every[first : first + width]) for first in range(0, len(every), width)]
    # What is promised is promised of the thousand: fewer reach it too easily.
    limit = _CPU_LIMIT if longest == MANY else None
    return at_most(f"drain {longest}: CPU per release", long, f"drain {FEW}", short, limit)


def _machine(bare: Line, longest: int, rounds: int) -> Row:
    """What the machine alone adds with so many processes: memory that each needs is in no cache any more."""
    long, short = [], []
    for _ in range(rounds):
        short += [_known(bare.drain(FEW, chain=True).processor) for _ in range(_SHORT[FEW])]
        long.append(_known(bare.drain(longest, chain=True).processor))
    short = [statistics.median(short)] * len(long)
    return at_most(f"{longest} bare waits, each for a lock of its own: CPU per release", long, f"{FEW} of them", short)


def _order(how: str, drains: list[Drain]) -> Row:
    count = sum(len(drain.order) for drain in drains)
    in_place = sum(drain.in_place for drain in drains)
    return Row(
        f"order of arrival: {len(drains[0].order)} waiting, {how}",
        f"{in_place} of {count}",
        target="all",
        reached=in_place == count,
        repetitions=len(drains),
        numbers={"in_place": in_place, "of": count},
    )


def _next_holder(ours: Line, bare: Line, ending: str, count: int, rounds: int) -> list[Row]:
    queue, alone, system_calls = [], [], []
    for _ in range(rounds):
        queue += _gaps(ours.drain(count, ending))
        alone += _gaps(ours.drain(count, ending, chain=True))
        system_calls += _gaps(bare.drain(count, ending, chain=True))
    what = f"from {ending} to the next one's holding, among {count}"
    return [
        at_most(f"{what}: queue of 1", alone, "bare connect, poll, bind", system_calls, _BARE_LIMIT),
        at_most(f"{what}: queue of {count}", queue, "bare, queue of 1", system_calls, _BARE_LIMIT),
        at_most(f"{what}: queue of {count}", queue, "ours, queue of 1", alone, _LENGTH_LIMIT),
    ]


def _gaps(drain: Drain) -> list[float]:
    """Those while more than half are still in the queue."""
    return drain.gaps[: len(drain.gaps) // 2]


def _beside(rounds: int) -> list[Row]:
    drains: dict[str, list[Drain]] = {kind: [] for kind in [OURS, *PEERS]}
    with contextlib.ExitStack() as stack:
        lines = {kind: stack.enter_context(Line(kind)) for kind in drains}
        for _ in range(rounds):
            for kind, line in lines.items():
                drains[kind].append(line.drain(SOME))
    texts = {kind: _text(values) for kind, values in drains.items()}
    numbers: dict[str, object] = {
        kind: [
            {
                "seconds": drain.seconds,
                "processor_seconds_per_release": drain.processor,
                "wake_ups_per_release": drain.wake_ups,
                "in_place": drain.in_place,
                "longest_wait": drain.longest_wait,
            }
            for drain in values
        ]
        for kind, values in drains.items()
    }
    return [Row(f"drain {SOME}", texts[OURS], kind, texts[kind], repetitions=rounds, numbers=numbers) for kind in PEERS]


def _text(drains: list[Drain]) -> str:
    took = statistics.median(drain.seconds for drain in drains)
    processor = statistics.median(_known(drain.processor) for drain in drains) * SOME
    in_place = min(drain.in_place for drain in drains)
    longest = statistics.median(drain.longest_wait for drain in drains)
    order = "in order" if in_place == SOME else f"{in_place} in place"
    return f"{seconds(took)}, {seconds(processor)} CPU, {order}, longest wait {seconds(longest)}"


def _known(figure: float | None) -> float:
    assert figure is not None
    return figure
