"""One instance of a program: plain call and decorator, and when each takes the lock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bindlock
from bindlock.linux.binding import bindings
from bindlock.names import parse
from tests.actors import Actor, Cast, bindable

PLAIN = """
import sys
import bindlock
bindlock.single_instance(sys.argv[1])
print("runs", flush=True)
sys.stdin.readline()
"""
FUNCTION = """
import sys
import bindlock

def main():
    bindlock.single_instance(sys.argv[1])
    print("runs", flush=True)
    sys.stdin.readline()

main()
print("after", flush=True)
sys.stdin.readline()
"""
KEPT = """
import sys
import bindlock
instance = bindlock.single_instance(
    sys.argv[1],
    scope="user",
)
print("runs", flush=True)
sys.stdin.readline()
"""
DECORATOR = """
import sys
import bindlock

@bindlock.single_instance(sys.argv[1])
def main(word):
    "The docstring."
    print("runs", flush=True)
    sys.stdin.readline()
    return word

if __name__ == "__main__":
    print("loaded", main.__name__, main.__doc__, flush=True)
    sys.stdin.readline()
    print("returned", main("word"), flush=True)
    sys.stdin.readline()
    print("returned", main("again"), flush=True)
"""
SEVERAL_LINES = """
import sys
from functools import wraps
from bindlock import single_instance

def other(function):
    return wraps(function)(lambda: function())

@other
@single_instance(
    sys.argv[1],
    scope="user",
)
@other
def main():
    print("runs", flush=True)
    sys.stdin.readline()

print("loaded", flush=True)
sys.stdin.readline()
main()
"""


def script(directory: Path, text: str, name: str = "program.py") -> str:
    """A script of that text."""
    path = directory / name
    path.write_text(text)
    return str(path)


def second_start(*command: str) -> subprocess.CompletedProcess[str]:
    """Start a program that should exit at once."""
    return subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], first: Actor, name: str) -> None:
    """A second start has said on standard error, in one line, who runs, and exited with status 75."""
    assert done.returncode == 75
    assert done.stdout == ""
    assert done.stderr.startswith(f"bindlock: {name} is held by pid {first.pid} (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", [PLAIN, FUNCTION, KEPT], ids=["top of a script", "in a function", "kept"])
def test_a_plain_call(cast: Cast, name: str, tmp_path: Path, text: str) -> None:
    """A plain call takes the name at once; a second start exits with 75; the next one after the end runs."""
    path = script(tmp_path, text)
    first = cast.start(sys.executable, "-W", "error", path, name)
    first.expect("runs")
    refused(second_start(path, name), first, name)
    first.kill()
    third = cast.start(sys.executable, "-W", "error", path, name)
    third.expect("runs")


def test_a_plain_call_holds_to_the_end(cast: Cast, name: str, tmp_path: Path) -> None:
    """A plain call in a function holds the name after the function has returned, as long as the process lives."""
    first = cast.start(sys.executable, script(tmp_path, FUNCTION), name)
    first.expect("runs")
    first.write()
    first.expect("after")
    assert not bindable(name)
    first.write()
    assert first.wait() == 0
    assert bindable(name)


def test_python_c(cast: Cast, name: str) -> None:
    """Where there is no source to be read, as with python -c, a call takes the name at once."""
    first = cast.start(sys.executable, "-W", "error", "-c", PLAIN, name)
    first.expect("runs")
    refused(second_start("-c", PLAIN, name), first, name)


def test_from_standard_input(name: str) -> None:
    """A program that comes by standard input is single as well."""
    done = subprocess.run(
        [sys.executable, "-", name], input="import bindlock, sys\nbindlock.single_instance(sys.argv[1])\n"
        "print(bindlock.holder(sys.argv[1]) is not None)", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize("text", [DECORATOR, SEVERAL_LINES], ids=["one line", "several lines"])
def test_a_decorator(cast: Cast, name: str, tmp_path: Path, text: str) -> None:
    """As a decorator it takes the name when the function is called, not before, and a second call of it is refused."""
    path = script(tmp_path, text)
    first = cast.start(sys.executable, "-W", "error", path, name)
    assert first.read().startswith("loaded")
    assert bindable(name)
    first.write()
    first.expect("runs")
    assert not bindable(name)
    second = cast.start(sys.executable, "-W", "error", path, name, stderr=subprocess.PIPE)
    assert second.read().startswith("loaded")
    second.write()
    assert second.wait() == 75
    assert second.process.stderr is not None
    assert f"is held by pid {first.pid}".encode() in second.process.stderr.read()


def test_a_decorated_function_lets_go_when_it_returns(cast: Cast, name: str, tmp_path: Path) -> None:
    """The name is free after the decorated function has returned; its result, name and docstring are the function's."""
    actor = cast.start(sys.executable, script(tmp_path, DECORATOR), name)
    actor.expect("loaded main The docstring.")
    for word in ("word", "again"):
        actor.write()
        actor.expect("runs")
        assert not bindable(name)
        actor.write()
        actor.expect(f"returned {word}")
        assert bindable(name)
    assert actor.wait() == 0


def test_a_decorated_function_that_raises(name: str) -> None:
    """An exception of the decorated function comes out, and the name is free."""

    @bindlock.single_instance(name)
    def fails() -> None:
        assert not bindable(name)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert bindable(name)


def test_importing_a_decorated_module(cast: Cast, name: str, tmp_path: Path) -> None:
    """A module whose main is decorated can be imported while an instance runs; calling it then is refused."""
    path = script(tmp_path, DECORATOR)
    first = cast.start(sys.executable, path, name)
    first.read()
    first.write()
    first.expect("runs")
    code = "import sys\nsys.path.insert(0, sys.argv[2])\nimport program\nprint('imported')\nprogram.main('x')"
    done = second_start("-c", code, name, str(tmp_path))
    assert done.stdout == "imported\n"
    assert done.returncode == 75


MULTIPROCESSING = """
import multiprocessing, sys
import bindlock
bindlock.single_instance(sys.argv[1])

def work(number):
    return number + 1

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        print(pool.map(work, [1, 2]), flush=True)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_multiprocessing(name: str, tmp_path: Path, method: str) -> None:
    """A child of multiprocessing that imports the main module again is part of the instance, not a second start."""
    done = second_start(script(tmp_path, MULTIPROCESSING), name, method)
    assert done.stdout == "[2, 3]\n", done.stderr
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_second_call_for_the_same_name(name: str) -> None:
    """A program that calls it twice for one name is told so; it does not wait for itself."""
    code = """
    import sys, bindlock
    bindlock.single_instance(sys.argv[1])
    bindlock.single_instance(sys.argv[1])
    """
    done = second_start("-c", textwrap.dedent(code), name)
    assert done.returncode == 75
    assert name in done.stderr


def test_the_scope(cast: Cast, name: str) -> None:
    """The scope is that of a Lock."""
    with bindlock.Lock(name, scope="host"):
        code = "import sys, bindlock\nbindlock.single_instance(sys.argv[1], scope=sys.argv[2])"
        assert second_start("-c", code, name, "user").returncode == 0
        assert second_start("-c", code, name, "host").returncode == 75


def test_a_forked_child_comes_back_from_the_decorated_function(name: str) -> None:
    """A child forked inside of the decorated function leaves it without an error, and without releasing anything."""
    code = """
    import os, sys, bindlock
    @bindlock.single_instance(sys.argv[1])
    def main():
        return os.fork()
    child = main()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
    """
    done = second_start("-c", textwrap.dedent(code), name)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_exits_with_system_exit(name: str) -> None:
    """The refusal is SystemExit, so that finally clauses and exit handlers run."""
    with bindlock.Lock(name), pytest.raises(SystemExit) as caught:
        bindlock.single_instance(name)
    assert caught.value.code == 75
    assert os.getpid()


def test_a_lock_lost_in_the_decorated_function(name: str) -> None:
    """When the function closes the lock's descriptor, its end says that the lock was lost."""

    @bindlock.single_instance(name)
    def main() -> None:
        for binding in bindings():
            if binding.address == parse(name).address:
                os.close(binding.fileno())

    with pytest.raises(bindlock.Lost, match=name):
        main()
