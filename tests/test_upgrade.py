"""The upgrade recipe: no request fails, nobody else ever has the lock, and a new version that fails costs nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bindlock
from bindlock.proof.kernel.call import call
from tests.actors import DEADLINE, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.actors import Actor, Cast

EXAMPLES = Path(__file__).parents[1] / "examples"
SERVER = EXAMPLES / "upgrade" / "server.py"
PR_SET_CHILD_SUBREAPER = 36


@pytest.mark.parametrize("how", ["executed", "forked"])
def test_the_show(how: str, long: bool) -> None:
    """Upgraded under load, the server fails no request, and nobody else has its lock: by its own counts."""
    upgrades = 1000 if long else 20
    command = [sys.executable, str(EXAMPLES / "upgrade.py"), f"--upgrades={upgrades}"]
    done = subprocess.run(
        command + ["--fork"] * (how == "forked"), capture_output=True, text=True, timeout=600 if long else DEADLINE
    )
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    numbers = {
        label: float(value) for label, value in re.findall(r"^(.*?) +(\d+(?:\.\d+)?)", done.stdout, re.MULTILINE)
    }
    assert numbers.pop("requests served") > upgrades
    assert numbers.pop("tries for the lock") > upgrades
    assert numbers.pop("seconds") > 0
    assert numbers == {"upgrades": upgrades, "requests failed": 0, "had the lock": 0}


@pytest.fixture
def orphans() -> Iterator[None]:
    """Versions whose parents have ended become the test's own; none is left at its end."""
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    call("prctl", PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    try:
        while True:
            with open("/proc/thread-self/children") as children:
                for pid in children.read().split():
                    os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass


class Server:
    """The recipe, as a user runs it, in a file of its own that can be changed."""

    def __init__(self, cast: Cast, name: str, folder: Path) -> None:
        self.program = folder / "server.py"
        self.program.write_text(SERVER.read_text())
        self.name = name
        environment = {**os.environ, "UPGRADE_LOCK": name}
        self.actor: Actor = cast.start(
            sys.executable, str(self.program), "0", env=environment, stderr=subprocess.STDOUT
        )  # fmt: skip
        self.port = int(self.actor.read().rstrip("/").rpartition(":")[2])

    def ask(self) -> str:
        """What the server answers."""
        with socket.create_connection(("127.0.0.1", self.port), DEADLINE) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                return answer.read().decode().splitlines()[-1]

    def holder(self) -> int:
        """The process that has the lock."""
        holder = bindlock.holder(self.name)
        assert holder is not None
        assert holder.pid is not None
        return holder.pid


@pytest.mark.usefixtures("orphans")
def test_a_changed_program_takes_over(cast: Cast, name: str, tmp_path: Path) -> None:
    """SIGHUP starts the program as it is now; the one before ends, with status 0, and a third is refused throughout."""
    server = Server(cast, name, tmp_path)
    assert server.ask() == f"version 1, process {server.actor.pid}"
    server.program.write_text(server.program.read_text().replace("version {", "changed, version {"))
    server.actor.signal(signal.SIGHUP)
    assert server.actor.wait() == 0
    new = server.holder()
    assert new != server.actor.pid
    assert server.ask() == f"changed, version 2, process {new}"
    with pytest.raises(bindlock.Held):
        bindlock.Lock(name).acquire(timeout=0)
    os.kill(new, signal.SIGTERM)
    assert os.waitpid(new, 0)[1] == 0
    assert bindlock.holder(name) is None


@pytest.mark.usefixtures("orphans")
def test_a_broken_program_does_not_take_over(cast: Cast, name: str, tmp_path: Path) -> None:
    """When the next version fails before it is ready, or then, the one before serves on, and says so."""
    server = Server(cast, name, tmp_path)
    first = server.ask()
    whole = server.program.read_text()
    for broken in (
        whole.replace('connection.send(b"!")', "sys.exit()"),
        whole.replace("lock.receive(connection, timeout=60)", "sys.exit()"),
    ):
        assert broken != whole
        server.program.write_text(broken)
        server.actor.signal(signal.SIGHUP)
        assert server.actor.read().startswith("upgrade: still version 1: ")
        assert (server.ask(), server.holder()) == (first, server.actor.pid)
    server.program.write_text(whole)
    server.actor.signal(signal.SIGHUP)
    assert server.actor.wait() == 0
    until(lambda: server.ask().startswith("version 2, process "))
