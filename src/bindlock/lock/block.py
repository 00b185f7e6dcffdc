"""The blocking driver: carries out what `bindlock.lock.decide` says, and sleeps in poll(2).

The driver owns one thing, its place in the holder's queue (a connection), and closes it on every way out, and before
the name is tried. What a signal handler raises after the name was had, and before the caller knows, makes `acquire`
give it back.
"""

from __future__ import annotations

import errno
import time

from bindlock.errors import AlreadyHeld, CannotLock, Held, Lost, Untrusted, printable
from bindlock.linux.binding import Binding, bindings, this_thread
from bindlock.linux.queue import hung_up, peer_uid, queue
from bindlock.lock.decide import ACQUIRE, ENDS, WAIT, Decision
from bindlock.lock.holder import Holder, identify
from bindlock.lock.lock import check_timeout
from bindlock.lock.look import Sighting, look
from bindlock.names import Name, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    from bindlock.lock.decide import Event, State, Table

#: Answers to connect(2) that mean "not in this queue, not now": nobody listens, it is full, a policy forbids it, or it
#: is no stream socket. The slow timer takes over.
_UNQUEUED = frozenset({errno.ECONNREFUSED, errno.EAGAIN, errno.EPERM, errno.EACCES, errno.EPROTOTYPE, errno.ENOTCONN})
_FOREVER = float("inf")


class Blocking:
    """One wait, carried out by the calling thread."""

    def __init__(
        self, name: Name, binding: Binding | None, inode: int = 0,
        waiting: Callable[[Holder], object] | None = None,
    ) -> None:  # fmt: skip
        self._name = name
        self._binding = binding
        #: Await the end of this very socket, whoever has the name next; 0: of any.
        self._inode = inode
        #: Called once, when there is somebody to wait for.
        self._waiting = waiting
        self._telling = False
        self._place: socket | None = None
        self._sighting: Sighting | None = None

    def run(self, table: Table, timeout: float | None) -> State:
        """Go through the table to one of its ends. Raises `CannotLock` when the kernel refuses to answer."""
        steps: dict[State, Callable[[Decision], Event]] = {
            "CLAIM": self._claim,
            "CONNECT": self._connect,
            "QUEUED": self._sleep_in_queue,
            "PAUSED": self._pause,
            "LOOK": self._look,
        }
        decision = Decision(table, time.monotonic(), timeout)
        state = decision.state
        try:
            while state not in ENDS:
                event = steps[state](decision)
                state = decision.next(event, time.monotonic())
        except OSError as error:
            if error.errno is None or self._telling:
                raise  # not the kernel's: a signal handler's, or the caller's own
            action = {"CLAIM": "binding its name", "CONNECT": "queueing for it"}.get(state, "looking at its holder")
            raise CannotLock(self._name.text, error.errno or 0, action) from error
        finally:
            self._leave_queue()
        return state

    def holder(self) -> Holder | None:
        """Who was in the way when last looked; None when that cannot be seen."""
        try:
            if self._sighting is None:
                self._sighting = look(self._name)
            return identify(self._name, self._sighting) if self._sighting else None
        except OSError as error:
            if error.errno is None:
                raise
            return None  # that it is held is known, and said, all the same

    def _claim(self, _: Decision) -> Event:
        self._leave_queue()
        assert self._binding is not None
        try:
            self._binding.bind()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return "in use"
        return "claimed"

    def _connect(self, _: Decision) -> Event:
        if self._waiting is not None:
            tell, self._waiting = self._waiting, None
            holder = self.holder()
            if holder is not None:
                self._telling = True
                tell(holder)
                self._telling = False
        place = queue(self._name.address) if self._name.listens else errno.EPROTOTYPE
        if not isinstance(place, int):
            self._place = place
            return "queued" if self._name.trusts(peer_uid(place)) else self._stranger()
        if place not in _UNQUEUED:
            raise OSError(place, "connect")
        self._sighting = look(self._name)
        # Who binds and never listens, or fills its own queue, is still told from a friend.
        if self._sighting is not None and not self._name.trusts(self._sighting.uid):
            return "stranger"
        return "unqueued"

    def _stranger(self) -> Event:
        self._sighting = look(self._name)
        if self._sighting is None or self._name.trusts(self._sighting.uid):
            return "unqueued"  # changed hands meanwhile: try again
        return "stranger"

    def _sleep_in_queue(self, decision: Decision) -> Event:
        assert self._place is not None
        seconds = decision.until - time.monotonic()
        return "hang-up" if hung_up(self._place, None if seconds == _FOREVER else max(0.0, seconds)) else "time"

    def _pause(self, decision: Decision) -> Event:
        self._leave_queue()
        time.sleep(max(0.0, decision.until - time.monotonic()))
        return "tick"

    def _look(self, _: Decision) -> Event:
        self._leave_queue()
        self._sighting = sighting = look(self._name)
        if sighting is None or (self._inode and sighting.inode != self._inode):
            return "free"
        if not self._name.trusts(sighting.uid):
            return "stranger"
        return "going" if sighting.going else "alive"

    def _leave_queue(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.close()


def acquire(
    name: Name, binding: Binding, timeout: float | None, waiting: Callable[[Holder], object] | None = None
) -> None:
    """Bind `binding`, waiting for the name up to `timeout` seconds.

    Raises `Held`, `Untrusted`, `CannotLock`, or whatever a signal handler raises, and then nothing is bound; or
    `AlreadyHeld` when the calling thread would wait for itself.
    """
    if binding.forget_if_lost():
        raise Lost(name.text)
    thread = this_thread()
    for own in bindings():
        if own.thread is not thread:
            continue
        if own is binding:
            raise AlreadyHeld(f"{printable(name.text)} is held by this thread, by this very object; release it first")
        if own.key == name.key and (timeout is None or timeout == _FOREVER):
            raise AlreadyHeld(
                f"{printable(name.text)} is held by this thread, by another Lock object: without a time-out it would "
                "wait for itself for ever; release that, or give a time-out"
            )
    wait = Blocking(name, binding, waiting=waiting)
    try:
        state = wait.run(ACQUIRE, timeout)
        if state == "REFUSED":
            raise Held(name.text, wait.holder())
        if state == "UNTRUSTED":
            stranger = wait.holder()
            raise Untrusted(name.text, (stranger and stranger.uid) or 0, stranger)
    except BaseException:
        if binding.thread is thread and binding.bound:
            binding.close()  # a signal handler has raised after the name was had, and before we could say so
        raise


def wait(name: str, timeout: float | None = None, *, scope: str = "user") -> None:
    """Sleep until the name is free, without taking it: somebody else may have it the moment after.

    Raises `Held` after `timeout` seconds (None: never), `CannotLock` when the kernel cannot be asked,
    `InvalidArgument` for what cannot be a name or a time-out.
    """
    blocking = Blocking(parse(name, scope).trusting_all(), None)
    if blocking.run(WAIT, check_timeout(timeout)) != "FREE":
        raise Held(name, blocking.holder())


def await_release(name: Name, inode: int, timeout: float | None) -> bool:
    """Sleep until the socket `inode` no longer has the name: True; or for `timeout` seconds: False."""
    return Blocking(name, None, inode).run(WAIT, check_timeout(timeout)) == "FREE"
