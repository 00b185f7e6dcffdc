"""A process that holds or waits for one lock, and does what it reads on its standard input: `Actor` is its other end.

hold      acquire, answer; release at `release`
fork      have a forked child acquire, and answer; SIGKILL it at `kill`
take      acquire, release, answer: for a process that is to wait in between

`release`, `kill` and `take` answer with a time on CLOCK_MONOTONIC, which all processes share: the instant before the
lock is released or its holder killed, and the instant after it is had.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from benchmarks.peers import LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_DEADLINE = 60.0


class Program:
    """A Python module that runs, reads lines and answers with lines; ended and reaped with the `with` block."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self._process.pid

    def write(self, command: str) -> None:
        """Have it do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")

    def read_line(self) -> bytes:
        """Its answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args!r} has ended"
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # which ends it, unless it waits for a lock
        if error is not None:
            self._process.kill()
        self._process.wait(_DEADLINE)
        self._process.stdout.close()


class Actor(Program):
    """One such process, kept to `processors` if any are given."""

    def __init__(self, kind: str, path: str, processors: set[int] | None = None) -> None:
        super().__init__("benchmarks.actor", kind, path)
        self.read()
        if processors:
            os.sched_setaffinity(self.pid, processors)
        while (idle := _blocked_in(self.pid)) is None:
            os.sched_yield()
        #: The system call it sleeps in when it has nothing to do.
        self._idle = idle

    def read(self) -> int:
        """Its answer."""
        return int(self.read_line())

    def ask(self, command: str) -> int:
        """Have it do something, and wait for the answer."""
        self.write(command)
        return self.read()

    def await_waiting(self) -> None:
        """Return when it sleeps in the kernel, and not for a command: so it waits for the lock."""
        deadline = time.monotonic() + _DEADLINE
        while _blocked_in(self.pid) in (None, self._idle):
            assert time.monotonic() < deadline, f"{self._process.args!r} does not wait"
            os.sched_yield()


def _blocked_in(pid: int) -> tuple[str, ...] | None:
    """Tell the system call that a process sleeps in, and its first argument; None while it runs (proc(5), syscall)."""
    with open(f"/proc/{pid}/syscall") as file:
        fields = file.read().split()
    return None if fields[0] == "running" else tuple(fields[:2])


def _act(kind: str, path: str) -> None:
    make = LOCKS[kind]
    acquire, release = make(path)
    child = 0
    print(0, flush=True)
    # Not `for line in sys.stdin`, which reads ahead; and no buffer between a command and the system call.
    while command := os.read(0, 64).decode().strip():
        answer = 0
        if command == "hold":
            acquire()
        elif command == "release":
            answer = time.monotonic_ns()
            release()
        elif command == "fork":
            child = _forked_holder(kind, path)
        elif command == "kill":
            answer = time.monotonic_ns()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        elif command == "take":
            acquire()
            answer = time.monotonic_ns()
            release()
        os.write(1, b"%d\n" % answer)


def _forked_holder(kind: str, path: str) -> int:
    # Forked rather than started: rounds are short, and so are lives of those who are killed in them. It dies as a
    # started one does, only that it has less memory of its own to give back.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        acquire, _ = LOCKS[kind](path)
        acquire()
        os.write(writer, b"held")
        while True:
            signal.pause()
    os.close(writer)
    held = os.read(reader, 4)
    os.close(reader)
    assert held == b"held"
    return child


if __name__ == "__main__":
    _act(*sys.argv[1:])
