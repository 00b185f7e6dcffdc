"""Who waits for a name: a snapshot for people."""

from __future__ import annotations

import time

from bindlock.errors import CannotLock
from bindlock.linux import process
from bindlock.linux.diag import Diag
from bindlock.lock import slots, tickets
from bindlock.lock.holder import command_text, duration, user
from bindlock.lock.look import NO_DIAG, count_waiters
from bindlock.names import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bindlock.linux.diag import Entry
    from bindlock.names import Name


class Waiter:
    """One who waited for a name when it was looked at. What a stranger chose (the command line) is raw in here."""

    __slots__ = ("command", "pid", "since", "stopped", "uid")

    def __init__(
        self, pid: int | None, uid: int | None, since: float | None, command: tuple[str, ...], stopped: bool
    ) -> None:
        #: None when it cannot be seen: another user's, or of another PID namespace.
        self.pid = pid
        #: The uid of the process when it began to wait; None where it is unknown.
        self.uid = uid
        #: When it began to wait, in seconds since the epoch; None for one that has no ticket, and so no place in the
        #: order: `bindlock.wait`, or an acquire where sock_diag(7) is forbidden.
        self.since = since
        #: The arguments of the process; empty where they cannot be seen.
        self.command = command
        #: It is stopped (SIGSTOP, Ctrl-Z): when it is the first, the name stays free for up to 30 s after a release.
        self.stopped = stopped

    def as_dict(self) -> dict[str, Any]:
        """All that is known, for JSON."""
        return {
            "pid": self.pid,
            "uid": self.uid,
            "user": user(self.uid),
            "since": self.since,
            "command": list(self.command),
            "stopped": self.stopped,
        }

    def __str__(self) -> str:
        who = f"pid {'unknown' if self.pid is None else self.pid} ({user(self.uid)}"
        if self.command:
            who += f", {command_text(self.command)}"
        waiting = "" if self.since is None else f", waiting for {duration(max(0.0, time.time() - self.since))}"
        return f"{who}){waiting}" + (", stopped" if self.stopped else "")

    def __repr__(self) -> str:
        return f"<Waiter: {self}>"


def waiters(name: str, *, scope: str = "user") -> tuple[Waiter, ...]:
    """Who waits for the name now, in the order in which they will have it. Disturbs nobody.

    Those without a place in that order come last. Raises `InvalidArgument` for what cannot be a name, `CannotLock`
    when the kernel cannot be asked; where sock_diag(7) is forbidden nobody can be seen, and there is no order.
    """
    return queue_of(parse(name, scope))


def queue_of(name: Name) -> tuple[Waiter, ...]:
    """The same for a name that is parsed already."""
    try:
        return _queue_of(name) or _queue_for_slots(slots.queue_name(name))
    except OSError as error:
        if error.errno in NO_DIAG:
            return ()
        raise CannotLock(name.text, error.errno or 0, "looking for those who wait") from error


def _queue_of(name: Name) -> tuple[Waiter, ...]:
    with Diag() as diag:
        entries = diag.bound(tickets.with_name(name))
        line = tickets.waiting(name, entries)
        bound = next((entry for entry in entries if entry.key == name.key), None)
        bound, count = count_waiters(diag, name, bound, entries) if bound else (None, len(line))
    clients = [inode for inode in bound.clients if inode] if bound else []
    queue = _placed(line, clients)
    return tuple(queue + [_describe([], None) for _ in range(count - len(queue))])


def _queue_for_slots(name: Name) -> tuple[Waiter, ...]:
    start = tickets.stem(name)
    with Diag() as diag:
        entries = diag.bound(lambda address: address.startswith(start))
        held = diag.all_queues([entry for entry in entries if slots.numbers(entry.address)[1]])
    # Whoever is queued at one holder is queued at all of them.
    longest = max((list(filter(None, entry.clients)) for entry in held), key=len, default=[])
    return tuple(_placed(tickets.waiting(name, entries), longest))


def _placed(line: list[Entry], clients: list[int]) -> list[Waiter]:
    """Those who have a ticket, in order; and those who are queued at a holder without one, if they can be seen."""
    pids = process.with_sockets({entry.inode: entry.uid for entry in line} | dict.fromkeys(clients))
    queue = [_describe(pids[entry.inode], entry) for entry in line]
    others = [found[0] for found in map(pids.__getitem__, clients) if found]
    if queue and queue[0].pid in others:
        others.remove(queue[0].pid)  # the first of the line is queued at the holder, too
    return queue + [_describe([pid], None) for pid in others]


def _describe(pids: list[int], entry: Entry | None) -> Waiter:
    pid = pids[0] if pids else None
    return Waiter(
        pid=pid,
        uid=entry.uid if entry else None if pid is None else process.effective_uid(pid),
        since=None if entry is None else time.time() - tickets.waited(entry.address),
        command=() if pid is None else process.command_line(pid),
        stopped=pid is not None and process.stopped(pid),
    )
