"""Who holds a name: a snapshot for people, and a safe way to signal or await just that holder."""

from __future__ import annotations

import errno
import time

from bindlock.errors import CannotLock, CannotSignal, Held, os_error, printable
from bindlock.linux import process
from bindlock.lock.look import NO_DIAG, Sighting, look, signal_listener
from bindlock.names import Name, parse, spell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from bindlock.lock.waiter import Waiter


class Holder:
    """Who held a name when it was looked at. A frozen value: look again for news.

    Everything a stranger chose (the command line) is raw in here, and escaped by ``str()``.
    """

    __slots__ = ("_address", "_kind", "_start", "command", "gid", "inode", "name", "pid", "trusted", "uid", "waiters")

    _address: bytes
    _kind: int
    _start: int | None
    #: The name, as whoever looked wrote it.
    name: str
    #: None when the kernel cannot name the process from here: it is in another PID namespace, its socket is in
    #: flight, or it is another user's and could not be asked.
    pid: int | None
    #: The uid of the process at its `listen()`, else of the process that made the socket; None where it is unknown.
    uid: int | None
    #: Whether the name's scope trusts that user; False is what `Untrusted` is raised for.
    trusted: bool
    #: The gid that goes with `uid`, where that is known.
    gid: int | None
    #: The arguments of the process, at most 64 KiB of them; empty where they cannot be seen.
    command: tuple[str, ...]
    #: The inode of the socket that has the name, 0 where sock_diag(7) cannot be had.
    inode: int
    #: How many wait for the name.
    waiters: int

    def __init__(
        self, name: str, pid: int | None, uid: int | None, gid: int | None, trusted: bool, command: tuple[str, ...],
        inode: int, waiters: int, _start: int | None, _address: bytes, _kind: int,
    ) -> None:  # fmt: skip
        values = (_address, _kind, _start, command, gid, inode, name, pid, trusted, uid, waiters)
        for field, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, field, value)

    @property
    def started(self) -> float | None:
        """When the process started, in seconds since the epoch; None where that cannot be seen."""
        return None if self._start is None else time.time() - process.age(self._start)

    @property
    def age(self) -> float | None:
        """Seconds since the process started, now; None where that cannot be seen."""
        return None if self._start is None else process.age(self._start)

    @property
    def slot(self) -> tuple[int, int] | None:
        """Which slot of how many, where the name is a semaphore; else None."""
        from bindlock.lock.slots import numbers

        found = numbers(self._address)
        return found if found[1] else None

    def signal(self, number: int) -> None:
        """Send a signal to this very process, by pidfd, never to another that got its PID.

        Raises `CannotSignal`: its `errno` is ESRCH when the process is gone, or holds no more and could be found by its
        socket only; EPERM when it is not ours to signal; EINVAL for no signal's number, or a process outside of our
        PID namespace.
        """
        try:
            if self.pid is not None and self._start is not None:
                process.send_signal(self.pid, self._start, number)
            else:
                signal_listener(Name(self.name, "", self._address, self._kind), self.inode, number)
        except OSError as error:
            code = error.errno or errno.EINVAL
            raise CannotSignal(f"cannot signal {self}: {os_error(code)}", code) from error

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until this holder has let go of the name, by release or by death, whoever has it next.

        Raises `Held` after `timeout` seconds (None: never).
        """
        from bindlock.lock.block import await_release

        if not await_release(Name(self.name, "", self._address, self._kind), self.inode, timeout):
            raise Held(self.name, self)

    def queue(self) -> tuple[Waiter, ...]:
        """Who waits for the name now, in order: see `bindlock.waiters`. Costs a walk through /proc."""
        from bindlock.lock.slots import whose
        from bindlock.lock.waiter import queue_of

        return queue_of(spell(whose(self._address), self._kind))

    def as_dict(self) -> dict[str, Any]:
        """All that is known, for JSON."""
        return {
            "name": self.name,
            "pid": self.pid,
            "uid": self.uid,
            "gid": self.gid,
            "user": user(self.uid),
            "trusted": self.trusted,
            "started": self.started,
            "age": self.age,
            "command": list(self.command),
            "inode": self.inode,
            "waiters": self.waiters,
        } | ({"slot": self.slot[0], "slots": self.slot[1]} if self.slot else {})

    def __str__(self) -> str:
        who = f"pid {'unknown' if self.pid is None else self.pid} ({user(self.uid)}"
        if self.command:
            who += f", {command_text(self.command)}"
        age = self.age
        return f"{who})" + ("" if age is None else f", running for {duration(age)}")

    def __repr__(self) -> str:
        return f"<Holder of {self.name!r}: {self}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holder) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.pid, self._start, self.inode))

    def __reduce__(self) -> tuple[type[Holder], tuple[Any, ...]]:
        fields = (
            self.name, self.pid, self.uid, self.gid, self.trusted, self.command, self.inode, self.waiters,
            self._start, self._address, self._kind,
        )  # fmt: skip
        return type(self), fields

    def __setattr__(self, field: str, value: object) -> None:
        raise AttributeError(f"a Holder is a snapshot: {field} cannot be set")

    def __delattr__(self, field: str) -> None:
        raise AttributeError(f"a Holder is a snapshot: {field} cannot be deleted")


def holder(name: str, *, scope: str = "user") -> Holder | None:
    """Who holds the name now; None when it is free. Waiting for it is not disturbed by looking.

    Of those who have a slot of it, one: see `bindlock.lock.semaphore.holders`.

    Raises `InvalidArgument` for what cannot be a name, `CannotLock` when the kernel cannot be asked.
    """
    parsed = parse(name, scope)
    try:
        sighting = look(parsed)
        return identify(parsed, sighting) if sighting is not None else _of_slots(parsed)
    except OSError as error:
        raise CannotLock(name, error.errno or 0, "looking for its holder") from error


def _of_slots(name: Name) -> Holder | None:
    from bindlock.lock.slots import holders

    try:
        return next(iter(holders(name)), None)
    except OSError as error:
        if error.errno not in NO_DIAG:
            raise
        return None  # nobody can have a slot where they cannot be listed


def identify(name: Name, sighting: Sighting) -> Holder:
    """The process behind a sighting: the one that listened, or where that is gone one that has the socket now."""
    pid = None if sighting.gone else sighting.listener
    if pid is None and sighting.inode:
        pid = next(iter(process.with_socket(sighting.inode, sighting.uid)), None)
    return Holder(
        name=name.text,
        pid=pid,
        uid=sighting.uid,
        gid=sighting.gid,
        trusted=name.trusts(sighting.uid),
        command=() if pid is None else process.command_line(pid),
        inode=sighting.inode,
        waiters=sighting.waiters,
        _start=None if pid is None else process.started(pid),
        _address=name.address,
        _kind=name.kind,
    )


def user(uid: int | None) -> str:
    """The name of a user, or ``uid N`` where it has none here."""
    import pwd

    if uid is None:
        return "user unknown"
    try:
        return printable(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"uid {uid}"


def command_text(command: tuple[str, ...], width: int = 60) -> str:
    """A command line in one escaped line of at most `width` characters."""
    if command[1:3] == ("-I", "-S") and "/bindlock/cli/" in "".join(command[3:4]):
        command = ("bindlock", *command[4:])  # as it was typed: see scripts/bindlock
    text = printable(" ".join(command))
    return text if len(text) <= width else text[: width - 1] + "…"


def duration(seconds: float) -> str:
    """The two largest units of a time.

    >>> duration(0.4), duration(75), duration(11520), duration(864000)
    ('0s', '1m 15s', '3h 12m', '10d 0h')
    """
    rest = int(seconds)
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if rest >= size:
            return f"{rest // size}{unit} {rest % size // small}{below}"
    return f"{rest}s"
