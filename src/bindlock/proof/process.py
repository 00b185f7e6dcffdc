"""The processes of a trial: forked, spoken to over pipes, waited for with a deadline, and gone at the end of it."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bindlock.proof.errors import Fault, NotPossible, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

DEADLINE = 30.0

#: The ends of pipes that this process has for its children. A child closes them first thing: as long as a brother had
#: one of them open, too, the end of this process would not be the end of the input for whom they lead to.
_ends: set[int] = set()
_stopping = False


class Child:
    """A forked child that runs `body`.

    `body` gets the child itself, to `say` and `hear` lines. When it returns the child exits, with status 0. What it
    raises is said to the parent, and raised there by `hear`. Use it in a `with` block: at its end the child is dead and
    reaped.
    """

    def __init__(self, body: Callable[[Child], object]) -> None:
        self.status: int | None = None
        self._rest = b""
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(down[0])
            os.close(up[1])
            self._in, self._out = up[0], down[1]
            _ends.update((self._in, self._out))
            return
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for end in (*_ends, down[1], up[0]):
                os.close(end)
            _ends.clear()
            self._in, self._out = down[0], up[1]
            body(self)
            status = 0
        except NotPossible as error:
            self.say(f"!not possible {error}")
        except BaseException as error:  # noqa: BLE001 - nothing may get out into the parent's code
            self._confess(error)
        finally:
            os._exit(status)

    def say(self, line: str) -> None:
        """Send one line to the other side."""
        os.write(self._out, line.encode() + b"\n")

    def hear(self, deadline: float = DEADLINE) -> str:
        """The next line from the other side; empty when there is nobody any more.

        Raises Fault after `deadline` seconds, and what the child said that it could not do.
        """
        while b"\n" not in self._rest:
            if not select.select([self._in], [], [], deadline)[0]:
                raise Fault(f"process {self.pid} said nothing for {deadline:g} s")
            data = os.read(self._in, 65536)
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        text = line.decode()
        if text.startswith("!not possible "):
            raise NotPossible(text.removeprefix("!not possible "))
        if text.startswith("!fault "):
            raise Fault(text.removeprefix("!fault "))
        return text

    def ends(self) -> tuple[int, int]:
        """The descriptors that it hears and speaks with."""
        return self._in, self._out

    def heard_within(self, deadline: float) -> bool:
        """Whether the other side says something, or ends, in so many seconds."""
        return b"\n" in self._rest or bool(select.select([self._in], [], [], deadline)[0])

    def expect(self, line: str) -> None:
        """Hear one line and compare."""
        heard = self.hear()
        if heard != line:
            raise Fault(f"process {self.pid} said {heard!r}, not {line!r}")

    def signal(self, number: int) -> None:
        """Send it a signal; it has not been reaped, so the PID is its own."""
        assert self.status is None
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its exit and reap it: the status, negative for a signal."""
        if self.status is None:
            await_death(self.pid)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def reap(self) -> int:
        """As `wait`, by waitpid(2) alone: as little as can be between the death and our knowing."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> int:
        """SIGKILL it and reap it."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def close(self) -> None:
        """See that it is dead and reaped; whoever it left behind hears the end of its input."""
        if self.status is None:
            self.kill()
        for end in (self._in, self._out):
            if end in _ends:
                _ends.discard(end)
                os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _confess(self, error: BaseException) -> None:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        self.say(f"!fault {text}")


def keep_from_children(descriptor: int) -> None:
    """Have every Child close that descriptor first thing: whoever waits for its end waits for this process only."""
    _ends.add(descriptor)


def hear(child: Child, _: object = None) -> None:
    """In a child: wait for a line, or to be killed; also for the end of who would say it."""
    child.hear(3600)


def gone(pid: int, deadline: float = DEADLINE) -> bool:
    """Wait until a process is dead, with all its threads, and leave it to be reaped: False after the deadline."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], deadline)[0])
    finally:
        os.close(pidfd)


def await_death(pid: int) -> None:
    """Wait until a process is dead, with all its threads, and leave it to be reaped. Raises Fault when it is not."""
    if not gone(pid):
        raise Fault(f"process {pid} does not end")


def until(condition: Callable[[], object], what: str = "so", deadline: float = DEADLINE) -> None:
    """Ask again and again, for what the kernel tells but sends no event for. Raises Fault after the deadline."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise Fault(f"not {what} for {deadline:g} s")
        os.sched_yield()


def state(pid: int) -> str:
    """The letter of its state: R, S, D, T, t, Z (proc(5), stat)."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def reap_all(deadline: float = DEADLINE) -> None:
    """Wait for every child to end, also for those that became ours when their parents died; kill who does not."""
    end = time.monotonic() + deadline
    patience = time.monotonic() + 0.05
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        now = time.monotonic()
        if now > end:
            raise Fault("a process does not end")
        if now > patience:
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005)


def ask_to_stop(*_: object) -> None:
    """A signal handler: let the trial under way end in peace, and then stop."""
    global _stopping
    _stopping = True


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within the block SIGTERM raises Stopped wherever it comes: for a wait in which nothing is half made."""

    def stop(*_: object) -> None:
        ask_to_stop()
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        check()  # one that came before
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check() -> None:
    """Raises Stopped when this process was asked to stop."""
    if _stopping:
        raise Stopped


def _children() -> list[int]:
    try:
        with open("/proc/thread-self/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:
        return []  # a kernel without CONFIG_PROC_CHILDREN
