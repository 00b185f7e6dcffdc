"""What to do next: the one place where that is decided, and it does nothing else.

A `Decision` is told what the kernel just answered, and what time it is, and says what to do next. It makes no system
call and knows no socket; `bindlock.lock.block` carries its decisions out. The rules are the two tables below and
nothing beside them: to change what bindlock does, change a row. The state diagram of the documentation is drawn from
the same tables.

Time is one of three phases: there is time *left*; the caller's time is over but the *grace* is not; it is *over*. The
grace (`GRACE` seconds from the first try) is for a holder that is gone as a process while its socket is not quite:
when it was killed while a child of it stood between fork and exec, or while its memory or core dump are being dealt
with. "Held" would be a false answer then, so shortly after ``kill -9`` even an acquire without waiting looks again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    State: TypeAlias = Literal[
        "CLAIM", "TICKET", "FOLLOW", "CONNECT", "QUEUED", "RETRY", "PAUSED", "LOOK",
        "HELD", "FREE", "REFUSED", "UNTRUSTED",
    ]  # fmt: skip
    Event: TypeAlias = Literal[
        "claimed", "in use", "first", "behind", "queued", "unqueued", "stranger", "hang-up", "hurried", "tick", "time",
        "free", "going", "alive",
    ]  # fmt: skip
    Table: TypeAlias = dict[tuple[State, Event], tuple[State, State, State]]

#: Seconds in which a holder that is gone as a process may still have its socket.
GRACE = 0.25
#: The longest pause of the slow timer, in seconds; it starts at nothing and doubles from 1 ms.
SLOWEST = 0.25
#: A hang-up this soon after queueing (seconds), so many times in a row, is no release: somebody accepts and closes.
HURRY = 0.001
HURRIES = 8
#: Seconds between two tries at such a listener.
HURRY_PAUSE = 0.01
#: Seconds behind a ticket after which the name is tried, in case the one before is next, and stopped.
PATIENCE = 30.0
_NEVER = float("inf")

# What each state asks of the driver, and what it may be told in return:
#
# CLAIM    bind the name.                                    claimed, in use
# TICKET   take one, if there is none yet; list them.        first (or no tickets to be had here), behind
# FOLLOW   queue at the ticket before ours.                  queued, unqueued (it is gone, its queue full, denied)
# CONNECT  queue at the holder; check its uid.               queued, unqueued (nobody listens, full, denied), stranger
# QUEUED   sleep until hung up, at most until `until`.       hang-up, hurried (one of many: HURRIES), time
# RETRY    bind the name, and stay in the queue meanwhile.   claimed, in use
# PAUSED   sleep until `until`.                              tick
# LOOK     ask who is in the way.                            free, going (dead or dying), alive, stranger
# HELD, FREE, REFUSED, UNTRUSTED: the end.

ENDS = frozenset({"HELD", "FREE", "REFUSED", "UNTRUSTED"})

#: To have the name.        event        time left    grace        over
ACQUIRE: Table = {
    ("CLAIM", "claimed"): ("HELD", "HELD", "HELD"),
    ("CLAIM", "in use"): ("TICKET", "LOOK", "LOOK"),
    ("TICKET", "first"): ("CONNECT", "LOOK", "LOOK"),
    ("TICKET", "behind"): ("FOLLOW", "LOOK", "LOOK"),
    ("FOLLOW", "queued"): ("QUEUED", "LOOK", "LOOK"),
    ("FOLLOW", "unqueued"): ("PAUSED", "LOOK", "LOOK"),
    ("CONNECT", "queued"): ("QUEUED", "QUEUED", "LOOK"),
    ("CONNECT", "unqueued"): ("PAUSED", "PAUSED", "LOOK"),
    ("CONNECT", "stranger"): ("UNTRUSTED", "UNTRUSTED", "UNTRUSTED"),
    # The name is free before the hang-up: try it first, whatever the time.
    ("QUEUED", "hang-up"): ("CLAIM", "CLAIM", "CLAIM"),
    ("QUEUED", "hurried"): ("PAUSED", "CLAIM", "CLAIM"),
    ("QUEUED", "time"): ("RETRY", "CLAIM", "CLAIM"),
    ("RETRY", "claimed"): ("HELD", "HELD", "HELD"),
    ("RETRY", "in use"): ("QUEUED", "LOOK", "LOOK"),
    ("PAUSED", "tick"): ("CLAIM", "CLAIM", "CLAIM"),
    # Looked at when time is over, to tell the four answers apart.
    ("LOOK", "free"): ("PAUSED", "PAUSED", "REFUSED"),
    ("LOOK", "going"): ("CONNECT", "CONNECT", "REFUSED"),
    ("LOOK", "alive"): ("CONNECT", "REFUSED", "REFUSED"),
    ("LOOK", "stranger"): ("UNTRUSTED", "UNTRUSTED", "UNTRUSTED"),
}

#: To see the name free, and leave it so: any holder is a holder, so there are no strangers.
WAIT: Table = {
    ("LOOK", "free"): ("FREE", "FREE", "FREE"),
    ("LOOK", "going"): ("CONNECT", "REFUSED", "REFUSED"),
    ("LOOK", "alive"): ("CONNECT", "REFUSED", "REFUSED"),
    ("CONNECT", "queued"): ("QUEUED", "LOOK", "LOOK"),
    ("CONNECT", "unqueued"): ("PAUSED", "LOOK", "LOOK"),
    ("QUEUED", "hang-up"): ("LOOK", "LOOK", "LOOK"),
    ("QUEUED", "hurried"): ("PAUSED", "LOOK", "LOOK"),
    ("QUEUED", "time"): ("QUEUED", "LOOK", "LOOK"),
    ("PAUSED", "tick"): ("LOOK", "LOOK", "LOOK"),
}

#: Where each begins.
START: dict[int, State] = {id(ACQUIRE): "CLAIM", id(WAIT): "LOOK"}


class Decision:
    """One wait, from its start at `now` (seconds on a steady clock) to one of `ENDS`.

    >>> wait = Decision(ACQUIRE, now=100.0, timeout=5.0)
    >>> wait.state, wait.next("in use", 100.0), wait.next("first", 100.0), wait.next("queued", 100.0), wait.until
    ('CLAIM', 'TICKET', 'CONNECT', 'QUEUED', 105.0)
    >>> wait.next("hang-up", 102.0), wait.next("claimed", 102.0)
    ('CLAIM', 'HELD')
    """

    __slots__ = ("_deadline", "_grace_end", "_hurries", "_patience", "_pauses", "_since", "_table", "state", "until")

    def __init__(self, table: Table, now: float, timeout: float | None) -> None:
        self._table = table
        self._deadline = _NEVER if timeout is None else now + timeout
        self._grace_end = now + GRACE
        self._pauses = 0
        self._hurries = 0
        self._patience = _NEVER
        self._since = now
        self.state: State = START[id(table)]
        #: In QUEUED and PAUSED: when to wake up at the latest.
        self.until = _NEVER

    def next(self, event: Event, now: float) -> State:
        """Take in what happened and say what to do now."""
        if event == "hang-up" and now - self._since < HURRY:
            self._hurries += 1
            if self._hurries > HURRIES:
                event = "hurried"
        elif event == "hang-up":
            self._hurries = 0
        phase = 0 if now < self._deadline else 1 if now < self._grace_end else 2
        state = self.state
        self.state = self._table[state, event][phase]
        if self.state == "QUEUED":
            if state in ("CONNECT", "FOLLOW"):
                self._since = now
                self._pauses = 0
                self._patience = PATIENCE if state == "FOLLOW" else _NEVER
            self.until = self._grace_end if phase else min(self._deadline, now + self._patience)
        elif self.state == "PAUSED":
            self.until = min(now + self._pause(event), self._grace_end if phase else self._deadline)
        return self.state

    def _pause(self, event: Event) -> float:
        if event == "hurried":
            return HURRY_PAUSE
        pause = min(0.001 * 2 ** (self._pauses - 1), SLOWEST) if self._pauses else 0.0
        self._pauses = min(self._pauses + 1, 10)
        return pause
