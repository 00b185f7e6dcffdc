"""The deciding tables: complete, and never a loop without end or without rest, whatever the kernel answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bindlock.lock import decide
from bindlock.lock.decide import ACQUIRE, ENDS, GRACE, HURRIES, HURRY_PAUSE, PATIENCE, SLOWEST, START, WAIT, Decision

TABLES = {"ACQUIRE": ACQUIRE, "WAIT": WAIT}
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
#: What a step costs at the least, in seconds: each of them is a system call.
STEP = 1e-6


def told() -> dict[str, list[str]]:
    """The comment block of the module: each state, and what the driver may be told in it."""
    source = inspect.getsource(decide)
    block = source[source.index("# What each state asks") : source.index("ENDS = ")]
    events = {}
    for line in re.findall(r"^# ([A-Z]+) .*?\.  +(.+)$", block, re.M):
        events[line[0]] = [re.sub(r"\s*\(.*?\)", "", event) for event in re.split(r",(?![^(]*\))\s*", line[1])]
    return events


TOLD = {state: [event.strip() for event in events] for state, events in told().items()}


def test_the_comment_block_can_be_read() -> None:
    """The comment lists the states that are not an end, and the events of each."""
    assert TOLD["CLAIM"] == ["claimed", "in use"]
    assert TOLD["CONNECT"] == ["queued", "unqueued", "stranger"]
    assert TOLD["QUEUED"] == ["hang-up", "hurried", "time"]
    assert set(TOLD) == {state for table in TABLES.values() for state, _ in table}


@each_table
def test_every_event_of_every_state_has_a_row(table: decide.Table) -> None:
    """Whatever the driver may be told, the table says what to do next, in each of the three phases."""
    states = {state for state, _ in table}
    # Who only waits has no strangers: any holder is a holder.
    untold = {"stranger"} if table is WAIT else set()
    assert {(state, event) for state in states for event in TOLD[state] if event not in untold} == set(table)
    assert all(len(row) == 3 for row in table.values())


@each_table
def test_targets_are_states(table: decide.Table) -> None:
    """Each row leads to a state of the same table, or to an end."""
    states = {state for state, _ in table}
    assert not states & ENDS
    assert {target for row in table.values() for target in row} <= states | ENDS


@each_table
def test_every_state_can_be_reached(table: decide.Table) -> None:
    """From the start every state of the table can be reached."""
    assert reachable(table, START[id(table)]) >= {state for state, _ in table}


@each_table
def test_every_state_can_end(table: decide.Table) -> None:
    """From every state an end can be reached."""
    for state in {state for state, _ in table}:
        assert reachable(table, state) & ENDS


def reachable(table: decide.Table, start: str) -> set[str]:
    """The states that can follow `start`, itself included."""
    found: set[str] = set()
    new: set[str] = {start}
    while new:
        found |= new
        new = {str(target) for (state, _), row in table.items() if state in new for target in row} - found
    return found


def test_only_a_claim_holds() -> None:
    """There is one way to hold the name: to have bound it, in or out of the queue."""
    for (state, event), row in ACQUIRE.items():
        assert ("HELD" in row) == (state in ("CLAIM", "RETRY") and event == "claimed")
    assert all("HELD" not in row and "CLAIM" not in row for row in WAIT.values())


def test_a_stranger_is_never_waited_for() -> None:
    """To acquire, a stranger is an answer at once, whatever the time: waiting could never be trusted."""
    for (_, event), row in ACQUIRE.items():
        if event == "stranger":
            assert set(row) == {"UNTRUSTED"}


def test_the_name_is_tried_first_after_a_hang_up() -> None:
    """The name is free before the hang-up, so it is tried before anything else, even when time is over."""
    assert set(ACQUIRE["QUEUED", "hang-up"]) == {"CLAIM"}


class Run:
    """One wait on an invented kernel and clock. Iterating yields (state, event, now, next state) until an end."""

    def __init__(self, table: decide.Table, timeout: float | None, data: st.DataObject, limit: int) -> None:
        self.table = table
        self.timeout = timeout
        self.data = data
        self.limit = limit
        self.decision = Decision(table, 0.0, timeout)

    def __iter__(self) -> Iterator[tuple[str, str, float, str]]:
        decision, now = self.decision, 0.0
        cost = st.floats(STEP, 0.01)
        for _ in range(self.limit):
            state = decision.state
            if state in ENDS:
                return
            events = [e for s, e in self.table if s == state and e != "hurried"]
            long = [e for e in events if not ENDS & set(self.table[state, e])]
            often = self.data.draw(st.integers(0, 9)) > 0
            event = self.data.draw(st.sampled_from(long if long and often else events))
            now += self.data.draw(cost)
            if state == "PAUSED" or event == "time":
                # poll(2) takes 24 days at most; at the deadline otherwise
                now = max(now, min(decision.until, now + 2_000_000.0))
            elif event == "hang-up" and self.data.draw(st.booleans()):
                now += self.data.draw(st.floats(0, min(10.0, max(0.0, decision.until - now))))
            following = decision.next(event, now)
            yield state, event, now, following


timeouts = st.one_of(st.just(0.0), st.floats(0, 2), st.just(float("inf")), st.none())
finite = st.one_of(st.just(0.0), st.floats(0, 2))


@each_table
@settings(deadline=None)
@given(timeout=timeouts, data=st.data())
def test_held_only_after_claimed(table: decide.Table, timeout: float | None, data: st.DataObject) -> None:
    """No course of events ends in HELD but by having been told "claimed", nor goes on after it."""
    for _, event, _, following in Run(table, timeout, data, 60):
        assert (following == "HELD") == (event == "claimed")


@each_table
@settings(deadline=None)
@given(timeout=finite, data=st.data())
def test_over_soon_after_time_and_grace(table: decide.Table, timeout: float, data: st.DataObject) -> None:
    """Once the caller's time and the grace are over, an end comes within a handful of steps."""
    over = 0
    for _, event, now, _following in Run(table, timeout, data, 200):
        if now >= max(timeout, GRACE):
            # A hang-up is answered by one more try of the name; each needs a connection that only time left makes.
            over += 1
            assert over <= 4, event


@each_table
@settings(deadline=None)
@given(timeout=timeouts, data=st.data())
def test_no_sleep_beyond_the_deadline(table: decide.Table, timeout: float | None, data: st.DataObject) -> None:
    """Sleep ends at the deadline, or at the end of the grace when the deadline is over; and never in the past."""
    deadline = float("inf") if timeout is None else timeout
    run = Run(table, timeout, data, 60)
    for _, _, now, following in run:
        if following in ("QUEUED", "PAUSED"):
            until = run.decision.until
            assert until <= (deadline if now < deadline else GRACE)
            assert until >= now


@each_table
@settings(deadline=None)
@given(timeout=timeouts, data=st.data())
def test_pauses_grow(table: decide.Table, timeout: float | None, data: st.DataObject) -> None:
    """From one pause to the next the slow timer doubles, up to its slowest, until a place in a queue has been had."""
    deadline = float("inf") if timeout is None else timeout
    run = Run(table, timeout, data, 100)
    last = -1.0
    for state, event, now, following in run:
        if event == "queued":
            last = -1.0
        elif following == "PAUSED" and state != "QUEUED":
            pause = run.decision.until - now
            limit = (deadline if now < deadline else GRACE) - now
            assert pause <= SLOWEST + 1e-6
            assert pause >= min(max(last * 2, 0.001 if last == 0 else 0.0), SLOWEST, limit) - 1e-6
            last = max(pause, 0.0)


def test_the_slow_timer_of_a_long_wait() -> None:
    """With nobody to queue at, an hour of waiting costs some fourteen thousand tries, not more."""
    decision, now, claims = Decision(ACQUIRE, 0.0, 3600.0), 0.0, 0
    while decision.state not in ENDS:
        if decision.state == "CLAIM":
            claims += 1
            decision.next("in use", now)
        elif decision.state == "TICKET":
            decision.next("first", now)
        elif decision.state == "CONNECT":
            decision.next("unqueued", now)
        elif decision.state == "PAUSED":
            now = decision.until
            decision.next("tick", now)
        else:
            decision.next("alive", now)
    assert decision.state == "REFUSED"
    assert now == 3600.0
    assert claims <= 3600 / SLOWEST + 20


@each_table
def test_who_accepts_and_hangs_up_at_once_gets_no_spinning_waiter(table: decide.Table) -> None:
    """A listener that closes every connection at once costs a waiter about a hundred tries a second, for ever."""
    decision, now, tries = Decision(table, 0.0, 10.0), 0.0, 0
    while decision.state not in ENDS:
        now += STEP
        if decision.state == "CLAIM":
            decision.next("in use", now)
        elif decision.state == "LOOK":
            decision.next("alive", now)
        elif decision.state == "TICKET":
            decision.next("behind", now)
        elif decision.state in ("CONNECT", "FOLLOW"):
            tries += 1
            decision.next("queued", now)
        elif decision.state == "QUEUED":
            decision.next("hang-up", now)
        else:
            assert decision.state == "PAUSED"
            now = max(now, decision.until)
            decision.next("tick", now)
    assert decision.state == "REFUSED"
    assert HURRIES < tries <= 10.0 / HURRY_PAUSE + HURRIES + 2


@pytest.mark.parametrize("timeout", [None, 3600.0])
def test_the_name_is_tried_now_and_then_behind_a_ticket(timeout: float | None) -> None:
    """Behind a ticket, whose owner may be stopped, the name is tried every `PATIENCE` without leaving the queue."""
    decision = Decision(ACQUIRE, 0.0, timeout)
    assert [decision.next(event, 0.0) for event in ("in use", "behind", "queued")] == ["TICKET", "FOLLOW", "QUEUED"]
    for number in range(1, 4):
        assert decision.until == number * PATIENCE
        assert decision.next("time", decision.until) == "RETRY"
        assert decision.next("in use", number * PATIENCE) == "QUEUED"
    assert decision.next("time", decision.until) == "RETRY"
    assert decision.next("claimed", 4 * PATIENCE) == "HELD"


def test_nothing_but_the_hang_up_wakes_the_head_of_the_queue() -> None:
    """Who is queued at the holder sleeps until that is gone, or the caller's time is over."""
    for timeout, until in ((None, float("inf")), (3600.0, 3600.0)):
        decision = Decision(ACQUIRE, 0.0, timeout)
        assert [decision.next(event, 0.0) for event in ("in use", "first", "queued")] == ["TICKET", "CONNECT", "QUEUED"]
        assert decision.until == until


def test_an_acquire_that_does_not_wait_takes_no_ticket() -> None:
    """Tickets are for those who have time: neither a try without waiting nor the grace leads to one."""
    for (_, _), row in ACQUIRE.items():
        assert not {"TICKET", "FOLLOW"} & set(row[1:])


@settings(deadline=None)
@given(data=st.data())
def test_a_refused_try_ends_within_the_grace(data: st.DataObject) -> None:
    """Without waiting, the answer comes within the grace, whatever the kernel says meanwhile."""
    run = Run(ACQUIRE, 0.0, data, 500)
    begun = slept = 0.0
    for state, _, now, following in run:
        if state in ("QUEUED", "PAUSED"):
            slept += min(now, GRACE) - begun
        begun = now
        if following in ("QUEUED", "PAUSED"):
            assert run.decision.until <= GRACE
    assert slept <= GRACE + 1e-9


def test_a_live_holder_is_refused_without_any_sleep() -> None:
    """Without waiting, a name held by a process that lives is refused at once: no sleep, three steps."""
    decision = Decision(ACQUIRE, 0.0, 0.0)
    assert [decision.next("in use", 0.0), decision.next("alive", 0.0)] == ["LOOK", "REFUSED"]


def test_a_dead_holder_gets_the_grace() -> None:
    """Without waiting, a holder that is going is waited for until the end of the grace, and no longer."""
    decision = Decision(ACQUIRE, 0.0, 0.0)
    assert [decision.next("in use", 0.0), decision.next("going", 0.0), decision.next("queued", 0.0)] == [
        "LOOK", "CONNECT", "QUEUED",
    ]  # fmt: skip
    assert decision.until == GRACE
    assert decision.next("time", GRACE) == "CLAIM"  # once more, rather than to refuse what has just become free
    assert [decision.next("in use", GRACE), decision.next("going", GRACE)] == ["LOOK", "REFUSED"]
