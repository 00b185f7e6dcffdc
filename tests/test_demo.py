"""The demo: it tells its story, it is true, and it notices when it is not."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bindlock
from tests.actors import DEADLINE, bindlock_command
from tests.terminal import Terminal

if TYPE_CHECKING:
    from tests.actors import Cast

DEMO = str(Path(__file__).parents[1] / "examples" / "demo.py")


def told(text: str, tmp_path: Path) -> tuple[int, int]:
    """Check the facts of a story that was told; the PIDs of the two servers."""
    parts = dict(re.findall(r"^(\d)\. (.*?)(?=^\d\. |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(parts) == list("1234567")
    started = re.search(r"process (\d+) serves http://127\.0\.0\.1:\d+/: hello from the demo\n", parts["1"])
    assert started
    server = int(started[1])
    line = re.search(rf"bindlock: (web-demo-\d+) is held by pid {server} \(.*\), running for \d+s\n", parts["2"])
    assert line
    name = line[1]
    assert "exit status 75\n" in parts["2"]
    assert f"{name} is held by pid {server} " in parts["3"]
    assert re.search(rf"^ +{name} +user +{server} ", parts["3"], re.MULTILINE)
    assert f"{name} is held by pid {server} " in parts["4"]
    assert "; 1 waiting\n" in parts["4"]
    assert f"$ kill -KILL {server}\n" in parts["5"]
    taken = re.search(r"process (\d+) holds the lock (\d+\.\d) ms after the kill\n", parts["5"])
    assert taken
    waiter = int(taken[1])
    assert waiter != server
    assert f"$ kill -KILL {waiter}\n" in parts["6"]
    assert f"{name} is free\n" in parts["6"]
    assert "exit status 3\n" in parts["6"]
    assert re.search(rf"\$ bindlock run -n {name} -- echo running\n +running\n", parts["7"])
    last = text.splitlines()[-1]
    assert last.startswith(f"Done: one holder at a time; taken over {taken[2]} ms after SIGKILL; next start ")
    assert not list(tmp_path.iterdir())
    assert bindlock.holder(name) is None
    for pid in (server, waiter):
        assert not os.path.exists(f"/proc/{pid}")
    return server, waiter


def test_demo_through_a_pipe(tmp_path: Path) -> None:
    """The demo tells the whole story, plainly, and leaves no process, file or name behind."""
    ended = subprocess.run(
        [sys.executable, DEMO], capture_output=True, text=True, timeout=2 * DEADLINE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\x1b" not in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) < 160
    told(ended.stdout, tmp_path)


def test_demo_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal it tells the same."""
    with Terminal([sys.executable, DEMO], env={**os.environ, "TMPDIR": str(tmp_path)}) as terminal:
        assert terminal.wait() == 0
    told(re.sub(r"\x1b\[\d*m", "", terminal.shown).replace("\r\n", "\n"), tmp_path)


def test_demo_that_fails(tmp_path: Path) -> None:
    """Where the command does not do what it should, the demo says which step did not happen, and fails."""
    liar = tmp_path / "bindlock"
    liar.write_text(f'#!/bin/sh\n[ "$2" = -n ] && {{ echo fine; exit 0; }}\nexec {bindlock_command()} "$@"\n')
    liar.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    code = "import runpy, sys; sys.executable = sys.argv.pop(1); runpy.run_path(sys.argv[1], run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "python"), DEMO], capture_output=True, text=True,
        timeout=2 * DEADLINE, env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "demo: FAILED: the exit status should be 75, not 0\n")
    assert "3." not in ended.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted(cast: Cast, tmp_path: Path, number: signal.Signals) -> None:
    """Ended in the middle, the demo takes its servers with it."""
    actor = cast.start(sys.executable, DEMO, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    while " serves " not in (line := actor.read()):
        pass
    server = os.pidfd_open(int(line.split()[1]))
    try:
        actor.signal(number)
        assert actor.wait() == 128 + number
        assert select.select([server], [], [], DEADLINE)[0]
    finally:
        os.close(server)
    assert actor.process.stderr is not None
    assert actor.process.stderr.read() == b"demo: interrupted\n"
    assert not list(tmp_path.iterdir())
    assert bindlock.holder(f"web-demo-{actor.pid}") is None
