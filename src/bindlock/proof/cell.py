"""One cell of the matrix: many trials of one event with one kind of lock, and what they came to."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from bindlock.proof.errors import Fault, NotPossible, Stopped
from bindlock.proof.kernel import namespace
from bindlock.proof.kernel.call import adopt_orphans
from bindlock.proof.kind import Site
from bindlock.proof.process import Child, check, reap_all, stopping_at_once
from bindlock.proof.trial import Outcome, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bindlock.proof.event import Event
    from bindlock.proof.kind import Kind

#: Of the times of a cell, so many are kept for the plots, evenly over the sorted ones.
_KEPT = 200
#: Digits of a second that a time has: more than Python can be sure of.
_DIGITS = 7
#: Seconds of patience for a trial of a cell whose trials have all been stale so far.
_HURRIED = 0.002


@dataclass(frozen=True)
class Times:
    """Seconds: a distribution of times."""

    count: int
    min: float
    median: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Times | None:
        """None when there are none."""
        if not values:
            return None
        ordered = sorted(values)
        count = len(ordered)
        median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        return cls(count, ordered[0], median, ordered[min(count - 1, count * 99 // 100)], ordered[-1])


@dataclass(frozen=True)
class Cell:
    """What many trials came to. `outcome` is None when none could be had: `reason` says why."""

    lock: str
    event: str
    outcome: Outcome | None = None
    reason: str = ""
    #: How many trials came to what.
    counts: dict[str, int] = field(default_factory=dict)
    #: From the event to a new holder.
    latency: Times | None = None
    #: From "all the world could know that it is free" to a new holder, where it was refused at first.
    late: Times | None = None
    #: Latencies, sorted; at most 200 of them, evenly chosen.
    samples: tuple[float, ...] = ()
    #: Parameter and latency of each trial that has a parameter, as megabytes.
    points: tuple[tuple[float, float], ...] = ()
    #: What one of the worst trials said.
    remark: str = ""
    #: What the trials took.
    seconds: float = 0.0
    #: Seconds after which a refusal with nobody there was called stale; 2 ms for most, when all trials were stale.
    patience: float = 0.0
    #: As `late`, where it was not refused: a lock may look again for a while before it answers.
    answered: Times | None = None

    @property
    def trials(self) -> int:
        """How many there were."""
        return sum(self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Cell:
        """Of what `as_dict` gave."""
        times = {
            name: None if fields[name] is None else Times(**fields[name]) for name in ("latency", "late", "answered")
        }
        outcome = None if fields["outcome"] is None else Outcome(fields["outcome"])
        samples = tuple(fields["samples"])
        points = tuple((parameter, latency) for parameter, latency in fields["points"])
        return cls(**{**fields, **times, "outcome": outcome, "samples": samples, "points": points})


@dataclass(frozen=True)
class Order:
    """What a cell is to be made of."""

    #: Folder for the sites of the trials.
    scratch: Path
    #: Unlike that of any other run.
    prefix: str
    seed: int
    trials: int
    #: Seconds after which no further trial is begun, or None.
    budget: float | None
    #: Seconds after which a refusal with nobody there is called stale.
    patience: float
    #: How many stale trials get all of it. When the cell has none but stale ones, the others get 2 ms.
    patient: int = 1


def measure(kind: type[Kind], key: str, event: Event, order: Order) -> Cell:
    """Make the trials of one cell. Raises Stopped when this process was asked to stop."""
    if not event.inside:
        return _measure(kind, key, event, order)

    def inside(child: Child) -> None:
        namespace.enter(*event.inside)
        adopt_orphans()
        child.say(json.dumps(_measure(kind, key, event, order).as_dict()))

    empty = Cell(key, event.key)
    try:
        with Child(inside) as child:
            with stopping_at_once():
                answer = child.hear(3600)
            if not answer:
                raise Fault("the namespace of the cell ended before its trials")
            return Cell.from_dict(json.loads(answer))
    except NotPossible as error:
        return replace(empty, reason=str(error))
    except Fault as error:
        return replace(empty, outcome=Outcome.FAULT, counts={Outcome.FAULT: 1}, remark=str(error))
    finally:
        reap_all()  # what was in the namespace ends a moment after the child


def _measure(kind: type[Kind], key: str, event: Event, order: Order) -> Cell:
    counts: Counter[Outcome] = Counter()
    remarks: dict[Outcome, str] = {}
    latencies: list[float] = []
    lates: list[float] = []
    answers: list[float] = []
    points: list[tuple[float, float]] = []
    reason = ""
    began = time.monotonic()
    for number in range(order.trials):
        check()
        if number and order.budget is not None and time.monotonic() - began > order.budget:
            break
        name = f"{order.prefix}-{key}-{event.key}-{number}"
        site = Site(name, order.scratch / name, event.shared)
        hurried = number >= order.patient and counts[Outcome.STALE] == number
        patience = _HURRIED if hurried else order.patience
        trial = Trial(kind, site, Random(f"{order.seed}/{key}/{event.key}/{number}"), patience, number)  # noqa: S311
        try:
            with trial:
                event.run(trial)
        except NotPossible as error:
            reason = str(error)
            break
        except Stopped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the code of a kind raises
            trial.outcome, trial.remark = Outcome.FAULT, f"{type(error).__name__}: {error}"
        counts[trial.outcome] += 1
        remarks.setdefault(trial.outcome, trial.remark)
        if trial.latency is not None:
            latencies.append(round(trial.latency, _DIGITS))
            if trial.parameter is not None:
                points.append((trial.parameter, latencies[-1]))
        if trial.late is not None:
            lates.append(round(trial.late, _DIGITS))
        if trial.answered is not None:
            answers.append(round(trial.answered, _DIGITS))
        if trial.outcome is Outcome.FAULT:
            break
    worst = next((outcome for outcome in Outcome if counts[outcome]), None)
    return Cell(
        lock=key,
        event=event.key,
        outcome=worst,
        reason=reason,
        counts={str(outcome): counts[outcome] for outcome in Outcome if counts[outcome]},
        latency=Times.of(latencies),
        late=Times.of(lates),
        answered=Times.of(answers),
        samples=_spread(sorted(latencies)),
        points=tuple(points),
        remark="" if worst is None else remarks[worst],
        seconds=time.monotonic() - began,
        patience=order.patience,
    )


def _spread(ordered: Sequence[float]) -> tuple[float, ...]:
    if len(ordered) <= _KEPT:
        return tuple(ordered)
    return tuple(ordered[round(position * (len(ordered) - 1) / (_KEPT - 1))] for position in range(_KEPT))
