"""The story of bindlock, with a real server: run this file (``make demo``) and read.

Every step is checked; when one does not happen, this says which, and exits with status 1. It leaves nothing behind.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE = 20.0
#: `http.server` on any free port; its first line says which.
SERVER = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]


class Failed(Exception):
    """A step of the story did not happen."""


class Interrupted(BaseException):
    """Somebody has ended the story: the signal's number."""


class Interrupts:
    """SIGINT and SIGTERM, as an exception; but while a process is being started, only after that."""

    def __init__(self) -> None:
        self._deferring = False
        self._number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: object) -> None:
        self._number = number
        if not self._deferring:
            raise Interrupted(number)

    def __enter__(self) -> None:
        self._deferring = True

    def __exit__(self, *exc_info: object) -> None:
        self._deferring = False
        if self._number:
            raise Interrupted(self._number)


class Process:
    """A process that says what it does."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._process = popen
        self.pid = popen.pid

    def line(self) -> str:
        """The next line that it says."""
        out = self._process.stdout
        assert out is not None
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([out], [], [], DEADLINE)
            byte = os.read(out.fileno(), 1) if ready else b""
            if not byte:
                raise Failed(f"process {self.pid} should have said something, but only said {line.decode()!r}")
            line += byte
        return line.decode().rstrip()

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out: the process itself can do nothing more."""
        self._process.kill()

    def wait(self) -> int:
        """Its status, when it has ended."""
        return self._process.wait(DEADLINE)


class Demo:
    """The steps, each with what it showed."""

    def __init__(self, bindlock: str, directory: str) -> None:
        self._bindlock = bindlock
        self._directory = directory
        self._interrupts = Interrupts()
        self._started: list[subprocess.Popen[bytes]] = []
        plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
        self._bold, self._dim, self._normal = ("", "", "") if plain else ("\033[1m", "\033[2m", "\033[0m")
        self.name = f"web-demo-{os.getpid()}"

    def tell(self) -> None:
        """The whole story. Raises `Failed`."""
        print(f"{self._bold}bindlock: a lock that the kernel drops with its process{self._normal}", flush=True)

        self._say("1. Start a server under a lock. bindlock becomes the server: one process, one PID.")
        server = self._start(*SERVER)
        url = self._await_server(server)
        page = urllib.request.urlopen(url, timeout=DEADLINE).read()  # noqa: S310 - http, and our own
        self._require(b"hello from the demo" in page, f"{url} should have the demo's page")
        self._show(f"process {server.pid} serves {url}: {page.decode().strip()}")

        self._say("2. Start it again: refused at once, and told by whom. Exit status 75.")
        refused = self._run("run", "-n", self.name, "--", *SERVER, expect=75)
        self._require(f"{self.name} is held by pid {server.pid} " in refused, "the refusal should name the holder")

        self._say("3. Who has it? The kernel says; there is no file to look into, or to go stale.")
        status = self._run("status", self.name, expect=0)
        self._require(f"pid {server.pid} " in status, "status should name the server")
        listed = self._run("list", expect=0, only=self.name)
        self._require(f" {server.pid} " in listed, "list should name the server")

        self._say("4. A second server waits for its turn: asleep, no polling.")
        waiter = self._start(*SERVER)
        self._await_waiter()
        self._show(self._ended("status", self.name)[1].strip())

        self._say("5. SIGKILL the server: no handler, no clean-up, nothing said.")
        self._command(f"kill -KILL {server.pid}")
        start = time.perf_counter()
        server.kill()
        takeover = self._await_holder(waiter.pid, start)
        self._require(server.wait() == -signal.SIGKILL, "the server should have died of SIGKILL")
        self._show(f"process {waiter.pid} holds the lock {takeover:.1f} ms after the kill")
        url = self._await_server(waiter)
        self._show(f"and serves {url} {(time.perf_counter() - start) * 1000:.0f} ms after it")

        self._say("6. SIGKILL that one, too. Nobody waits: the name is free, with nothing to tidy up.")
        self._command(f"kill -KILL {waiter.pid}")
        waiter.kill()
        waiter.wait()
        free = self._run("status", self.name, expect=3)
        self._require(f"{self.name} is free" in free, "the name should be free")

        self._say("7. So the next start wins at once.")
        start = time.perf_counter()
        self._run("run", "-n", self.name, "--", "echo", "running", expect=0)
        next_start = (time.perf_counter() - start) * 1000
        self._show(f"from the command line to its end: {next_start:.1f} ms")
        print(
            f"\n{self._bold}Done: one holder at a time; taken over {takeover:.1f} ms after SIGKILL; "
            f"next start {next_start:.1f} ms; nothing left behind.{self._normal}"
        )

    def end(self) -> None:
        """End all that was started and still runs."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.communicate()

    def _start(self, *command: str) -> Process:
        arguments = ["run", self.name, "--", *command]
        self._command(self._written(arguments) + " &")
        return Process(self._bindlock_with(*arguments))

    def _run(self, *arguments: str, expect: int, only: str = "") -> str:
        """Run bindlock, show what it says (the heading and the lines with `only`), and check its status."""
        self._command(self._written(arguments))
        status, said = self._ended(*arguments)
        lines = [line.rstrip() for line in said.splitlines()]
        for number, line in enumerate(lines):
            if number == 0 or only in line:
                self._show(line)
        if expect:
            self._show(f"exit status {status}")
        self._require(status == expect, f"the exit status should be {expect}, not {status}")
        return "\n".join(lines)

    def _ended(self, *arguments: str) -> tuple[int, str]:
        """The exit status of bindlock with these arguments, and what it said."""
        process = self._bindlock_with(*arguments)
        said, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, said.decode()

    def _bindlock_with(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self._interrupts:
            process = subprocess.Popen(
                [self._bindlock, *arguments], cwd=self._directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            self._started.append(process)
        return process

    def _await_server(self, server: Process) -> str:
        """Its URL, when it serves."""
        words = server.line().split()
        self._require(words[:3] == ["Serving", "HTTP", "on"] and "port" in words, f"a server should start, not {words}")
        return f"http://127.0.0.1:{words[words.index('port') + 1]}/"

    def _await_waiter(self) -> None:
        import bindlock

        end = time.monotonic() + DEADLINE
        while True:
            holder = bindlock.holder(self.name)
            if holder is not None and holder.waiters == 1:
                return
            self._require(time.monotonic() < end, "the second server should wait")
            time.sleep(0.005)

    def _await_holder(self, pid: int, start: float) -> float:
        """Milliseconds from `start` until the process is seen to hold the name."""
        import bindlock

        end = time.monotonic() + DEADLINE
        while True:
            holder = bindlock.holder(self.name)
            if holder is not None and holder.pid == pid:
                return (time.perf_counter() - start) * 1000
            self._require(time.monotonic() < end, f"process {pid} should hold {self.name}")

    def _require(self, condition: object, what: str) -> None:
        if not condition:
            raise Failed(what)

    def _say(self, line: str) -> None:
        print(f"\n{self._bold}{line}{self._normal}", flush=True)

    def _command(self, line: str) -> None:
        print(f"  $ {line}", flush=True)

    def _show(self, line: str) -> None:
        print(f"    {self._dim}{line}{self._normal}", flush=True)

    def _written(self, arguments: Sequence[str]) -> str:
        return shlex.join(["bindlock", *(argument.replace(sys.executable, "python3") for argument in arguments)])


def main() -> int:
    """Tell the story; the exit status."""
    bindlock = shutil.which("bindlock", path=os.path.dirname(sys.executable)) or shutil.which("bindlock")
    if bindlock is None:
        print("demo: bindlock is not installed; try: make demo", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory(prefix="bindlock-demo-") as directory:
            Path(directory, "index.html").write_text("hello from the demo\n")
            demo = Demo(bindlock, directory)
            try:
                demo.tell()
            finally:
                demo.end()
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        sys.stdout.flush()
        print(f"demo: FAILED: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("demo: interrupted", file=sys.stderr)
        return 128 + int(interrupted.args[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
