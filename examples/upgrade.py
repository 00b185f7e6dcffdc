"""Upgrades a web server under load, again and again, and counts failed requests and others that get its lock.

python examples/upgrade.py --upgrades 1000

Both counts must be 0, or the exit status is 1. The server is examples/upgrade/server.py. Two clients ask it without
end, each time over a new connection; one contender tries to bind the lock's name without end; another waits for it.
With ``--fork`` the versions are forked rather than executed: that shows how much of the time is Python's start.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import bindlock
import bindlock.names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

SERVER = Path(__file__).parent / "upgrade" / "server.py"
LOCK = f"upgrade-example-{os.getpid()}"
DEADLINE = 30.0
_PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """It does not go on."""


# Those who ask, and those who would have the lock.


class Client:
    """Asks for a page: how often it got one, and how often not."""

    def __init__(self, port: int) -> None:
        self.served = self.failed = 0
        self._port = port

    def ask(self) -> tuple[int, int]:
        """The version that answers, and its process; zeros when nobody does."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), DEADLINE) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with connection.makefile("rb") as answer:
                    head, _, body = answer.read().partition(b"\r\n\r\n")
            if head.split()[1] != b"200":
                raise ValueError(head)
            _, version, _, pid = body.replace(b",", b"").split()
            self.served += 1
            return int(version), int(pid)
        except (OSError, ValueError, IndexError) as error:
            print(f"upgrade: a request has failed: {error!r}", file=sys.stderr)
            self.failed += 1
            return 0, 0

    def ask_without_end(self, count: Callable[[int, int], None]) -> None:
        """The second client: ends at SIGTERM, after a last answer."""
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
        while not told:
            self.ask()
            count(self.served, self.failed)


def bind_without_end(count: Callable[[int, int], None]) -> None:
    """The first contender: tries, and successes."""
    address = bindlock.names.parse(LOCK).address
    tries = successes = 0
    while True:
        with socket.socket(socket.AF_UNIX) as own:
            try:
                own.bind(address)
                successes += 1
            except OSError:
                pass
        tries += 1
        count(tries, successes)


def wait_for_lock(count: Callable[[int, int], None]) -> None:
    """The second contender: says when it has had the lock."""
    with bindlock.Lock(LOCK):
        count(0, 1)


@contextmanager
def child(body: Callable[[Callable[[int, int], None]], object]) -> Iterator[Callable[[], tuple[int, int]]]:
    """Run `body` in a child, which is told to end at the end of the block: ask for the two numbers that it counts."""
    memory = mmap.mmap(-1, 16)

    def count(*numbers: int) -> None:
        memory[:] = struct.pack("qq", *numbers)

    def counted() -> tuple[int, int]:
        one, other = struct.unpack("qq", memory[:])
        return one, other

    pid = os.fork()
    if not pid:
        try:
            os.nice(19)  # not to slow down what is to be seen
            body(count)
        finally:
            os._exit(0)
    try:
        yield counted
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


# The server.


class Next(BaseException):
    """We are the next version now, and have nothing to do with what the one before was doing."""


def start(write: int, fork: bool) -> None:
    """Start version 1, with its output into a pipe."""
    if not fork:
        output = [(os.POSIX_SPAWN_DUP2, write, 1)]
        os.posix_spawn(sys.executable, [sys.executable, str(SERVER), "0"], os.environ, file_actions=output)
    elif not os.fork():
        try:
            os.dup2(write, 1)
            sys.argv = [str(SERVER), "0"]
            be_every_version(load())
        finally:
            os._exit(1)


def load() -> ModuleType:
    """The server, as a module."""
    spec = importlib.util.spec_from_file_location("server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def be_every_version(server: ModuleType) -> None:
    """Be a version of the server, and in a fork of it the next."""

    def start_next(version: int, listener: socket.socket) -> socket.socket:
        ours, theirs = socket.socketpair()
        if os.fork():
            theirs.close()
            return ours
        os.environ[server.HERITAGE] = f"{version} {os.dup(listener.fileno())} {theirs.detach()}"
        raise Next

    warnings.simplefilter("ignore", DeprecationWarning)  # of forks while there are threads: they do no harm here
    vars(server)["start_next"] = start_next
    while True:
        try:
            server.main()
            os._exit(0)
        except Next:
            pass


@contextmanager
def serving(fork: bool) -> Iterator[int]:
    """A server, by its port. When the block ends, so does every version of it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whose parents have ended become ours
    read, write = os.pipe()
    try:
        start(write, fork)
        os.close(write)
        if not select.select([read], [], [], DEADLINE)[0]:
            raise Failed("the server does not start")
        yield int(os.read(read, 1000).strip(b"/\n").rpartition(b":")[2])
    finally:
        os.close(read)
        try:
            while True:
                for pid in children():
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(-1, 0)
        except ChildProcessError:
            pass


def children() -> list[int]:
    """The processes that are ours to wait for."""
    with open("/proc/thread-self/children") as file:
        return [int(pid) for pid in file.read().split()]


def upgrade(client: Client, version: int) -> None:
    """Have the server upgraded to that version."""
    before, pid = client.ask()
    os.kill(pid, signal.SIGHUP)
    end = time.monotonic() + DEADLINE
    while before < version:
        if time.monotonic() > end:
            raise Failed(f"version {version} does not serve")
        before, _ = client.ask()
    os.waitpid(pid, 0)  # it has ended, or is about to


def run(upgrades: int, fork: bool) -> bool:
    """The whole show; whether all went well."""
    with serving(fork) as port, ExitStack() as stack:
        client = Client(port)
        client.ask()
        waiter = stack.enter_context(child(wait_for_lock))
        others = stack.enter_context(child(Client(port).ask_without_end))
        with child(bind_without_end) as binder:
            start = time.monotonic()
            for version in range(2, upgrades + 2):
                upgrade(client, version)
            seconds = time.monotonic() - start
        served, failed = (a + b for a, b in zip((client.served, client.failed), others(), strict=True))
        tries, successes = binder()
        successes += waiter()[1]
        print(f"upgrades           {upgrades:9} ({'forked' if fork else 'executed'})")
        print(f"requests served    {served:9}")
        print(f"requests failed    {failed:9}")
        print(f"tries for the lock {tries:9}, and one who waited for it")
        print(f"had the lock       {successes:9}")
        print(f"seconds            {seconds:9.1f}")
        return not failed and not successes and tries > 0


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrades", type=int, default=100, help="how many (100)")
    parser.add_argument("--fork", action="store_true", help="fork the next version rather than execute it")
    options = parser.parse_args()
    os.environ["UPGRADE_LOCK"] = LOCK
    try:
        return 0 if run(options.upgrades, options.fork) else 1
    except (Failed, OSError) as error:
        print(f"upgrade: FAILED: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
