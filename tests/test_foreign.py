"""Other programs that use abstract sockets as locks: their own spelling excludes them, and is excluded by them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import bindlock
from tests.actors import DEADLINE, Child, bindable, until
from tests.test_when_free import in_call, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.actors import Actor, Cast

    Start = Callable[..., Actor]

#: The well-known lines.
PYTHON = """
import socket, sys
lock = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[2]))
try:
    lock.bind('\\0' + sys.argv[1])
except OSError:
    print("in use", flush=True)
    sys.exit(1)
if sys.argv[3:]:
    lock.listen()
print("bound", flush=True)
sys.stdin.readline()
"""
#: How each program binds, and the spelling that means the same.
CONVENTIONS = {
    "C, exact": "@",
    "C, padded": "padded:@",
    "C, exact, datagram": "datagram:@",
    "Python": "@",
    "Python, datagram": "datagram:@",
}
SPELLINGS = ("@", "padded:@", "datagram:@")


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The C program, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    binary = str(tmp_path_factory.mktemp("foreign") / "bind")
    subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", "-o", binary, Path(__file__).parent / "foreign" / "bind.c"],
        check=True,
    )
    return binary


@pytest.fixture
def text(name: str) -> str:
    """A name as such programs choose them."""
    return f"/{name}-socket"


@pytest.fixture
def start(cast: Cast, text: str, request: pytest.FixtureRequest) -> Start:
    """Starts a foreign program by its convention."""

    def start(convention: str, *, listening: bool = False) -> Actor:
        listen = ["listen"] if listening else []
        kind = "datagram" if "datagram" in convention else "stream"
        if convention.startswith("Python"):
            return cast.python(PYTHON, text, "SOCK_DGRAM" if kind == "datagram" else "SOCK_STREAM", *listen)
        length = "padded" if "padded" in convention else "exact"
        return cast.start(request.getfixturevalue("binary"), text, length, kind, *listen)

    return start


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_foreign_program_excludes_us(start: Start, text: str, convention: str) -> None:
    """A name that another program has bound is held, by that program, in its own spelling and in no other."""
    actor = start(convention)
    actor.expect("bound")
    for spelling in SPELLINGS:
        name = spelling + text
        if spelling != CONVENTIONS[convention]:
            take(name)
            assert bindlock.holder(name) is None
            continue
        with pytest.raises(bindlock.Held) as refusal:
            bindlock.Lock(name).acquire(timeout=0)
        holder = refusal.value.holder
        assert holder is not None
        assert (holder.pid, holder.uid) == (actor.pid, os.geteuid())
        assert holder == bindlock.holder(name)
    actor.kill()
    take(CONVENTIONS[convention] + text)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_we_exclude_a_foreign_program(start: Start, text: str, convention: str) -> None:
    """A foreign program finds a name in use that we hold in its spelling, and free one that we hold in another."""
    for spelling in SPELLINGS:
        same = spelling == CONVENTIONS[convention]
        with bindlock.Lock(spelling + text, timeout=0):
            actor = start(convention)
            actor.expect("in use" if same else "bound")
            if same:
                assert actor.wait() == 1
            else:
                actor.kill()


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("holder", ["foreign", "ours"])
def test_what_ss_shows(cast: Cast, start: Start, text: str, spelling: str, holder: str) -> None:
    """`ss` shows a lock of ours as it shows a foreign one: its name, padding and type; and after a kill nothing."""
    if shutil.which("ss") is None:
        pytest.skip("no ss here (iproute2)")
    assert ss(text) == []
    if holder == "ours":
        actor = cast.holder(spelling + text)
    else:
        convention = next(convention for convention in CONVENTIONS if CONVENTIONS[convention] == spelling)
        actor = start(convention, listening=spelling != "datagram:@")
        actor.expect("bound")
    ((kind, state, shown),) = ss(text)
    assert kind == ("u_dgr" if spelling == "datagram:@" else "u_str")
    assert state == ("UNCONN" if spelling == "datagram:@" else "LISTEN")
    assert shown == (f"@{text}".ljust(108, "@") if spelling == "padded:@" else f"@{text}")
    actor.kill()
    assert ss(text) == []


@pytest.mark.parametrize(
    ("convention", "listening"),
    [(convention, False) for convention in CONVENTIONS]
    + [(convention, True) for convention in CONVENTIONS if "datagram" not in convention],
)
def test_waiting_for_a_foreign_program(start: Start, text: str, convention: str, listening: bool) -> None:
    """We wait for a foreign program in its queue where it listens, else by a slow timer, and have the name after it."""
    name = CONVENTIONS[convention] + text
    actor = start(convention, listening=listening)
    actor.expect("bound")

    def wait(child: Child) -> None:
        lock = bindlock.Lock(name)
        assert not lock.try_acquire()
        child.say("refused")
        lock.acquire(timeout=DEADLINE)
        child.say("had")
        child.hear()

    with Child(wait) as child:
        child.expect("refused")
        if listening:
            until(lambda: in_call(child.pid, "poll") == 1)
            assert bindlock.holder(name).waiters == 1  # type: ignore[union-attr]
        else:
            until(lambda: in_call(child.pid, "clock_nanosleep") == 1)
        assert not bindable(name)
        actor.kill()
        child.expect("had")
        assert bindlock.holder(name).pid == child.pid  # type: ignore[union-attr]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_foreign_name_is_a_lock_like_any_other(cast: Cast, text: str, spelling: str) -> None:
    """Two of ours exclude each other by a foreign spelling, waiting and time-outs included."""
    actor = cast.holder(spelling + text)
    lock = bindlock.Lock(spelling + text)
    assert not lock.try_acquire()
    with pytest.raises(bindlock.Held):
        lock.acquire(timeout=0.01)
    actor.write()
    lock.acquire(timeout=DEADLINE)
    assert actor.wait() == 0
    lock.release()


def test_padding_is_not_shown_to_exclude(text: str) -> None:
    """A name with a single NUL behind it, as no convention has it, excludes none of the spellings."""
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(f"\0{text}\0")
        for spelling in SPELLINGS:
            take(spelling + text)


def ss(text: str) -> list[tuple[str, str, str]]:
    """Type, state and name of every abstract socket that has the text in its name."""
    shown = subprocess.run(["ss", "-axH"], capture_output=True, text=True, check=True).stdout
    return [
        (words[0], words[1], words[4])
        for words in map(str.split, shown.splitlines())
        if len(words) > 4 and words[4].startswith("@") and text in words[4]
    ]
