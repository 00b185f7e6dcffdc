"""Real processes for the tests: each runs a piece of Python, talks over pipes, and is killed by pid when the test ends.

Nothing here sleeps until something is probably so: `Actor.read` waits for a line, `Actor.wait` for the exit, each with
a deadline after which the test fails.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, cast

import bindlock.names
from bindlock.proof import process
from bindlock.proof.process import DEADLINE as DEADLINE
from bindlock.proof.process import gone as gone


class Actor:
    """One process. Its standard input and output are pipes; `read` and `write` speak lines of them."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, **options
        )  # fmt: skip
        self.pid = self.process.pid
        self._rest = b""

    def read(self, deadline: float = DEADLINE) -> str:
        """The next line of its output; fails the test at the end of the output, or after the deadline."""
        out = self.process.stdout
        assert out is not None
        while b"\n" not in self._rest:
            ready, _, _ = select.select([out], [], [], deadline)
            assert ready, f"{self.process.args!r} said nothing for {deadline} s"
            data = os.read(out.fileno(), 65536)
            assert data, f"{self.process.args!r} ended with status {self.process.wait(deadline)} before it spoke"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="surrogateescape")

    def expect(self, line: str) -> None:
        """Read one line and compare."""
        assert self.read() == line

    def write(self, line: str = "") -> None:
        """Send it one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send it a signal; it has not been reaped, so the PID is its own."""
        self.process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL it and reap it."""
        self.process.kill()
        return self.wait()

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait for its exit: the status, negative for a signal."""
        return self.process.wait(deadline)

    def close(self) -> None:
        """Kill it if it lives, reap it, close the pipes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(DEADLINE)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Cast:
    """All processes of a test."""

    def __init__(self) -> None:
        self._actors: list[Actor] = []

    def start(self, *command: str, **options: Any) -> Actor:
        """Run a command."""
        actor = Actor(command, **options)
        self._actors.append(actor)
        return actor

    def python(self, code: str, *arguments: str, **options: Any) -> Actor:
        """Run Python code; its `sys.argv[1:]` are `arguments`."""
        return self.start(sys.executable, "-c", code, *arguments, **options)

    def holder(self, name: str, **options: Any) -> Actor:
        """A process that holds `name` until it is killed, or is sent a line: then it releases and exits."""
        actor = self.python(HOLD, name, **options)
        actor.expect("held")
        return actor

    def __enter__(self) -> Cast:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for actor in reversed(self._actors):
            actor.close()


HOLD = """
import sys, bindlock
with bindlock.Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def bindlock_command() -> str:
    """The installed command, beside the interpreter that runs the tests."""
    return os.path.join(os.path.dirname(sys.executable), "bindlock")


class Child(process.Child):
    """A forked child of the test that runs `body`: cheaper than an Actor by far, for tests that need thousands.

    What it raises is shown with the test's output, too.
    """

    def __init__(self, body: Callable[[Child], object]) -> None:
        super().__init__(cast("Callable[[process.Child], object]", body))

    def _confess(self, error: BaseException) -> None:
        traceback.print_exception(error)
        super()._confess(error)


#: A command that says "in" when it is alone, or "two" when another is, which has a record lock of its own on the file
#: that is its argument. It stays until its standard input ends.
WITNESS = (
    sys.executable, "-I", "-S", "-c",
    """
import fcntl, os, sys
try:
    fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(1, b"in\\n")
except OSError:
    os.write(1, b"two\\n")
sys.stdin.read()
""",
)  # fmt: skip


def until(condition: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Ask again and again, for what the kernel tells but sends no event for; fails the test after the deadline."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not so for {deadline} s"
        os.sched_yield()


def bindable(name: str, scope: str = "user") -> bool:
    """Whether the kernel lets a bare socket have the address this instant, without any of the lock's patience."""
    parsed = bindlock.names.parse(name, scope)
    with socket.socket(socket.AF_UNIX, parsed.kind) as probe:
        try:
            probe.bind(parsed.address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True
