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
from typing import Any

import bindlock.names

DEADLINE = 30.0


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


class Child:
    """A forked child of the test that runs `body`: cheaper than an Actor by far, for tests that need thousands.

    `body` gets the child itself, to `say` and `hear` lines; when it returns the child exits, with status 0, or 1 after
    an exception. Use it in a `with` block: at its end the child is dead and reaped.
    """

    def __init__(self, body: Callable[[Child], object]) -> None:
        self.status: int | None = None
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(down[0])
            os.close(up[1])
            self._in, self._out = up[0], down[1]
            return
        status = 1
        try:
            os.close(down[1])
            os.close(up[0])
            self._in, self._out = down[0], up[1]
            body(self)
            status = 0
        except BaseException:  # noqa: BLE001 - nothing may get out into the test's own code
            traceback.print_exc()
        finally:
            os._exit(status)

    def say(self, line: str) -> None:
        """Send one line to the other side."""
        os.write(self._out, line.encode() + b"\n")

    def hear(self, deadline: float = DEADLINE) -> str:
        """The next line from the other side; empty when there is nobody any more."""
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._in], [], [], deadline)
            assert ready, f"child {self.pid} said nothing for {deadline} s"
            data = os.read(self._in, 1)
            if not data:
                break
            line += data
        return line.rstrip(b"\n").decode()

    def expect(self, line: str) -> None:
        """Hear one line and compare."""
        heard = self.hear()
        assert heard == line, f"child {self.pid} said {heard!r}, not {line!r}"

    def signal(self, number: int) -> None:
        """Send it a signal; it has not been reaped, so the PID is its own."""
        assert self.status is None
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its exit and reap it: the status, negative for a signal."""
        if self.status is None:
            assert gone(self.pid), f"child {self.pid} does not go"
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> int:
        """SIGKILL it and reap it."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.status is None:
            self.kill()
        os.close(self._in)
        os.close(self._out)


def gone(pid: int, deadline: float = DEADLINE) -> bool:
    """Wait until a process is dead, with all its threads, and leave it to be reaped: False after the deadline."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], deadline)[0])
    finally:
        os.close(pidfd)


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
