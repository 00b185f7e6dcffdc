"""docs/tickets.pml, the model of a queue: checked in every state it can reach, and that it notices mistakes."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
MODEL = Path(__file__).parent.parent / "docs" / "tickets.pml"
Check = Callable[..., str]

#: A mistake that is built in, and which of the three promises breaks.
FAULTS = {
    "TICKET_IS_TRUSTED": "two_holders",
    "TICKET_OUTLIVES": "lost_wakeup",
    "TICKET_LEFT": "lost_wakeup",
    "NAME_NOT_TRIED": "lost_wakeup",
    "REFUSED_SLEEPS": "lost_wakeup",
    "ANY_NUMBER": "lost_wakeup",
    "NOT_LISTED": "overtaken",
    "NO_HEAD": "overtaken",
}
#: How often three processes can pass one of them: counted in which way, and at most.
BOUNDS = {"woken": 4, "first": 1}
#: As good as no bound.
MANY = 20


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Makes a checker of the model, as the given macros have it, and returns what the checker reports."""
    for tool, package in (("spin", "spin"), ("cpp", "cpp"), ("gcc", "gcc")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}(1): apt-get install {package}")

    def check(*macros: str) -> str:
        def run(*command: str) -> str:
            made = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert made.returncode == 0, f"{command}: {made.stdout}"
            return made.stdout

        shutil.copy(MODEL, tmp_path)
        run("spin", "-a", *(f"-D{macro}" for macro in macros), MODEL.name)
        # Few states are searched faster than a compiler optimises.
        run("gcc", "-O2" if "N=4" in macros else "-O0", "-w", "-DSAFETY", "-DMEMLIM=6000", "-o", "pan", "pan.c")
        return run("./pan", "-m12000000" if "N=4" in macros else "-m1000000")

    return check


def violated(report: str) -> Sequence[str]:
    """The promises that the report says are broken; fails for any other kind of error."""
    broken = re.findall(r"assertion violated +!\((\w+)\)", report)
    errors = re.search(r"errors: (\d+)", report)
    assert errors is not None, report
    assert int(errors[1]) == len(broken), report
    return broken


def assert_complete(report: str) -> None:
    """Every state was searched, and every step of a process was taken in some of them."""
    for incomplete in ("not completed", "max search depth", "out of memory", "VECTORSZ", "hash conflict resolution"):
        assert incomplete not in report, report
    unreached = re.search(r"unreached in proctype Process\n(.*?)\(\d+ of \d+ states\)", report, re.DOTALL)
    assert unreached is not None, report
    # A process comes again for ever: only its end is never reached.
    assert re.findall(r'"(.*?)"', unreached[1]) == ["-end-"], report
    assert len(unreached[1].splitlines()) == 2, report


def test_never_two_holders_and_no_lost_wakeup(check: Check, long: bool) -> None:
    """Of three processes (four, in the long form) never do two have the name, and none sleeps while it is free."""
    report = check(f"N={4 if long else 3}")
    assert violated(report) == []
    assert_complete(report)


@pytest.mark.parametrize(("who", "bound"), BOUNDS.items())
def test_overtaking_is_bounded(check: Check, who: str, bound: int) -> None:
    """By those whom a release has woken, too, a waiter is passed so often, and no more."""
    report = check("ORDER", f"WHO={who}", f"BOUND={bound}")
    assert violated(report) == []
    assert_complete(report)
    assert violated(check("ORDER", f"WHO={who}", f"BOUND={bound - 1}")) == ["overtaken"]


def test_who_does_not_get_to_the_head_is_passed(check: Check) -> None:
    """A waiter that is awake, and slow to bind the head, is passed until it has it, as often as one cares to look."""
    assert violated(check("ORDER", "WHO=anyone", f"BOUND={MANY}")) == ["overtaken"]


@pytest.mark.parametrize(("fault", "promise"), FAULTS.items())
def test_a_mistake_is_noticed(check: Check, fault: str, promise: str) -> None:
    """A mistake that is built in breaks the promise that it should break."""
    order = ["ORDER", f"BOUND={MANY}"] if promise == "overtaken" else []
    assert violated(check(f"FAULT_{fault}", *order)) == [promise]


def test_every_mistake_is_tried() -> None:
    """The mistakes of the model are those that are tried here."""
    assert set(re.findall(r"FAULT_([A-Z_]+[A-Z])", MODEL.read_text())) == set(FAULTS)


def test_functions_of_the_model_exist() -> None:
    """The functions that the model says it is about are there."""
    homes = {
        "Attempt": "bindlock.lock.attempt:Attempt",
        "Binding": "bindlock.linux.binding:Binding",
        "block": "bindlock.lock.block",
        "queue": "bindlock.linux.queue",
        "tickets": "bindlock.lock.tickets",
    }
    named = set(re.findall(rf"\b({'|'.join(homes)})\.([a-z_]+)\b", MODEL.read_text()))
    assert {home for home, _ in named} == set(homes)
    for home, function in named - {("tickets", "pml")}:
        module, _, owner = homes[home].partition(":")
        found = importlib.import_module(module)
        assert callable(getattr(getattr(found, owner) if owner else found, function)), f"{home}.{function}"
