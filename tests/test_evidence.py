"""The evidence: the tables of docs/when-is-it-free.md are those of the run that docs/evidence.json keeps, the run has
everything that bindlock ships, and what the page says in words is what the tables say. And the page that shows how to
prove a lock of one's own does as it says.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bindlock.proof import events, kind
from bindlock.proof.cell import Cell
from bindlock.proof.report import Report
from bindlock.proof.trial import Outcome
from tests.actors import bindlock_command
from tests.test_docs import DEADLINE, MARK, blocks, pattern, script, sessions, squeezed

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "when-is-it-free.md"
HOWTO = ROOT / "docs" / "howto" / "prove-your-lock.md"
EVIDENCE = ROOT / "docs" / "evidence.json"
SCRIPT = ROOT / "docs" / "evidence.py"
AGAIN = "to make it again: bindlock prove --json docs/evidence.json && python docs/evidence.py"

#: What the page says of other locks, in words: of which kind, in which row, that it is what.
SAID = {
    "flock": {
        "SIGKILL": Outcome.RIGHT,
        "other network namespace": Outcome.RIGHT,
        "lock file deleted": Outcome.DOUBLE,
        "forked child outlives it": Outcome.STALE,
    },
    "lockf": {
        "child forked by C code": Outcome.RIGHT,
        "lock file read by the holder": Outcome.DOUBLE,
    },
    "pid-file": {
        "other network namespace": Outcome.RIGHT,
        "descriptors closed by a daemoniser": Outcome.RIGHT,
        "PID used again": Outcome.STALE,
        "50 contenders, free lock": Outcome.DOUBLE,
    },
    "pathname": {
        "other network namespace": Outcome.RIGHT,
    },
    "pid-file-exclusive": {
        "50 contenders, free lock": Outcome.RIGHT,
        "SIGKILL": Outcome.STALE,
    },
    "filelock": {
        "forked child outlives it": Outcome.RIGHT,
    },
}


@cache
def evidence() -> Report:
    return Report.load(EVIDENCE)


@cache
def tool() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def section(heading: str) -> str:
    """A section of the page, up to the next heading."""
    return PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def outcome(lock: str, title: str) -> Outcome | None:
    event = next(event for event in evidence().events if event.title == title)
    return evidence().cell(lock, event.key).outcome


# The tables are those of the run.


def test_tables() -> None:
    """The tables of the page are those of the run as it is kept; else run: python docs/evidence.py."""
    text = PAGE.read_text()
    assert text == tool()["rendered"](text, evidence())


def test_a_full_run() -> None:
    """What is published is a full run of this version, and no trial went wrong for a fault of the proof."""
    assert not evidence().quick, AGAIN
    assert [cell for cell in evidence().cells if cell.outcome is Outcome.FAULT] == []


def test_everything_is_in_it() -> None:
    """Every event and every kind of lock that bindlock ships was tried, or is said not to have been there."""
    report = evidence()
    assert [row.title for row in report.events] == [event.title for event in events.ALL], AGAIN
    assert {lock.key for lock in report.locks} | set(report.absent) == set(kind.known()), AGAIN
    cells = {(cell.lock, cell.event) for cell in report.cells}
    assert cells == {(lock.key, event.key) for lock in report.locks for event in report.events}


def test_enough_trials() -> None:
    """No cell that was possible has fewer trials than its event asks of a full run."""
    wanted = {event.key: event.trials[1] for event in events.ALL}
    short = {
        (cell.lock, cell.event): cell.trials
        for cell in evidence().cells
        if cell.outcome is not None and cell.trials < wanted[cell.event]
    }
    assert not short, AGAIN


# What is said in words is what the tables say.


def test_where_bindlock_is_not_right() -> None:
    """The page names each event in which bindlock was not right, under what it was, and no other."""
    said = {
        (word, title)
        for word, named in re.findall(r"^- \*\*(\w+)\*\*: ((?:\*[^*]+\*;?\s+)+)", section("The evidence"), re.MULTILINE)
        for title in re.findall(r"\*([^*]+)\*", named)
    }
    titles = {row.key: row.title for row in evidence().events}
    seen = {
        (str(cell.outcome), titles[cell.event])
        for cell in evidence().cells
        if cell.lock == "bindlock" and cell.outcome not in (None, Outcome.RIGHT)
    }
    assert said == seen


@pytest.mark.parametrize("lock", SAID)
def test_what_is_said_of_others(lock: str) -> None:
    """Each row that the page refers to for another lock shows what the page says."""
    assert {title: outcome(lock, title) for title in SAID[lock]} == SAID[lock]


def test_nothing_else_is_said_of_others() -> None:
    """Every row that the page refers to in the section about other locks is one that is checked here."""
    referred = re.findall(r"\(\*([^*]+)\*\)", " ".join(section("Where another lock does better").split()))
    assert sorted(referred) == sorted(title for titles in SAID.values() for title in titles)


# The script.


def test_a_table_has_one_place() -> None:
    """A page without a place for a table, or with two, is refused rather than left as it was."""
    text = PAGE.read_text()
    place = re.search(r"<!-- evidence: late -->\n.*?<!-- /evidence -->\n", text, re.DOTALL)
    assert place is not None
    for page in (text.replace(place[0], ""), text + place[0]):
        with pytest.raises(ValueError, match="late"):
            tool()["rendered"](page, evidence())


def test_check_notices(tmp_path: Path) -> None:
    """--check tells a page that is not of the report from one that is, and writes neither."""
    before = PAGE.read_bytes()
    fields = json.loads(EVIDENCE.read_text())
    fields["seconds"] += 1000
    other = tmp_path / "other.json"
    other.write_text(json.dumps(fields))
    for report, status in ((EVIDENCE, 0), (other, 1)):
        checked = subprocess.run([sys.executable, str(SCRIPT), str(report), "--check"], capture_output=True, text=True)
        assert checked.returncode == status, checked.stderr
    assert PAGE.read_bytes() == before


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0000004, "0 µs"),
        (0.00032, "320 µs"),
        (0.0045678, "4.57 ms"),
        (0.0621, "62.1 ms"),
        (0.7304, "730 ms"),
        (3.2, "3.20 s"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert tool()["duration"](seconds) == shown


def test_percentages() -> None:
    """A share that is not all is never shown as all, and one that is not none never as none."""
    shown = {}
    for late in (1, 99, 100, 5000, 9999, 10_000):
        cell = Cell("lock", "event", Outcome.LATE, counts={"late": late, "right": 10_000 - late})
        shown[late] = tool()["_outcome"](cell, exactly=True).removeprefix("**late**")
    assert shown == {1: " 0.01 %", 99: " 1 %", 100: " 1 %", 5000: " 50 %", 9999: " 99 %", 10_000: ""}


# The page about a lock of one's own.


def test_a_lock_of_one_s_own(tmp_path: Path) -> None:
    """The lock that the page writes is found out, by the commands that it shows, with the words that it shows."""
    (tmp_path / "mine.py").write_text(blocks(HOWTO, "python")[0])
    shown = [session for block in blocks(HOWTO, "text") for session in sessions(block)]
    assert shown
    (tmp_path / "settled.py").touch()
    run = subprocess.run(
        ["sh", "-c", script([command for command, _ in shown], tmp_path / "settled.py")],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE,
        env={**os.environ, "LANG": "C.UTF-8", "PATH": f"{os.path.dirname(bindlock_command())}:{os.environ['PATH']}"},
    )  # fmt: skip
    for (command, output), printed in zip(shown, run.stdout.split(MARK)[1:], strict=True):
        assert pattern(output).match(squeezed(printed)), f"$ {command}\n{printed}-- is shown with:\n{output}"


def test_every_option_of_prove_is_in_the_page() -> None:
    """The options that the page shows are those that there are."""
    from bindlock.cli.commands import cli

    options = {spelling for parameter in cli.commands["prove"].params for spelling in parameter.opts}
    text = HOWTO.read_text()
    assert options == {option for option in re.findall(r"--[a-z]+", text) if option in options}
    assert set(re.findall(r"`(--[a-z]+)", text)) <= options


def test_every_outcome_is_in_the_page() -> None:
    """Every outcome is explained."""
    rows = re.findall(r"^\| ([a-z ]+) \|", blocks_removed(HOWTO.read_text()), re.MULTILINE)
    assert {str(outcome) for outcome in Outcome} <= set(rows)


def blocks_removed(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
