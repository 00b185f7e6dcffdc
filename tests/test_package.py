"""The package itself: what it offers, what it loads, which layer knows which, what a lock costs in system calls."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bindlock

PACKAGE = Path(bindlock.__file__).parent
#: Modules that run the command when they are imported.
RUN = ("__main__", ".amalgam")
MODULES = [
    "bindlock",
    *(info.name for info in pkgutil.walk_packages(bindlock.__path__, "bindlock.") if not info.name.endswith(RUN)),
]


def run(code: str, *arguments: str, options: tuple[str, ...] = ("-I",)) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with the package that these tests have."""
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    return subprocess.run(
        [sys.executable, *options, "-c", path + code, *arguments], capture_output=True, text=True, check=False
    )  # fmt: skip


def loaded(code: str) -> set[str]:
    """The modules that the code loads, beyond those that any program has."""
    done = run(f"before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_all_is_sorted_and_there() -> None:
    """`__all__` is sorted, and each of its names can be had, and is listed by dir()."""
    assert list(bindlock.__all__) == sorted(bindlock.__all__)
    assert len(set(bindlock.__all__)) == len(bindlock.__all__)
    for name in bindlock.__all__:
        assert getattr(bindlock, name) is not None
    assert set(bindlock.__all__) <= set(dir(bindlock))
    public = {name for name in dir(bindlock) if not name.startswith("_")}
    submodules = {name for name in public if inspect.ismodule(getattr(bindlock, name))}
    assert public - submodules - {"annotations", "TYPE_CHECKING"} == set(bindlock.__all__)


def test_type_checkers_see_the_same() -> None:
    """What a type checker sees imported is what `__all__` says, and where each name comes from at run time."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    static = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip
    assert sorted(static) == list(bindlock.__all__)
    for name, module in static.items():
        assert module is not None
        assert getattr(importlib.import_module(module), name) is getattr(bindlock, name)


def test_an_unknown_name() -> None:
    """A name that is not there is an AttributeError that says so."""
    with pytest.raises(AttributeError, match="'bindlock' has no attribute 'lokc'"):
        bindlock.lokc  # noqa: B018


def test_star_import() -> None:
    """A star import gives all public names, and no other."""
    done = run("from bindlock import *\nprint(*sorted(n for n in dir() if not n.startswith('_') and n != 'sys'))")
    assert done.stdout.split() == sorted(bindlock.__all__)


def test_the_version_is_one() -> None:
    """The package and its metadata agree on the version."""
    assert importlib.metadata.version("bindlock") == bindlock.__version__


def test_typed() -> None:
    """py.typed is shipped."""
    assert importlib.resources.files("bindlock").joinpath("py.typed").is_file()


def test_importing_loads_next_to_nothing() -> None:
    """`import bindlock` loads nothing but itself; not even what a Lock needs."""
    assert loaded("import bindlock") <= {"bindlock", "__future__"}


def test_a_lock_loads_little() -> None:
    """Making, taking and releasing an uncontended lock loads sockets and little more: a list that only gets shorter."""
    found = loaded("import bindlock\nwith bindlock.Lock(f'test-loaded-{__import__(\"posix\").getpid()}'): pass")
    own = {module for module in found if module.startswith("bindlock")}
    assert found - own <= {"__future__", "_socket", "errno"}
    assert own <= {
        "bindlock", "bindlock.names", "bindlock.errors", "bindlock.linux", "bindlock.linux.binding", "bindlock.lock",
        "bindlock.lock.lock",
    }  # fmt: skip


HEAVY = {
    "asyncio", "click", "concurrent.futures", "ctypes", "dataclasses", "enum", "inspect", "logging", "re", "rich",
    "signal", "socket", "subprocess", "threading", "typing",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in bindlock.__all__ if not name.startswith("Async")))
def test_no_name_loads_much(name: str) -> None:
    """Whatever is taken from the package, nothing heavy comes with it, but for what is awaited: that loads anyio."""
    assert not loaded(f"import bindlock\nbindlock.{name}") & HEAVY


def test_a_contended_lock_loads_no_more(name: str) -> None:
    """A refused lock, its holder and its error load nothing heavy either."""
    found = loaded(
        f"import bindlock\nwith bindlock.Lock({name!r}):\n"
        f"    assert not bindlock.Lock({name!r}).try_acquire()\n    bindlock.holder({name!r}).as_dict()\n"
        f"    str(bindlock.holder({name!r}))\n    bindlock.locks()"
    )
    assert not found & HEAVY


#: From the top down. Each layer imports from itself and from those below it.
LAYERS = ("cli", "proof", "aio", "lock", "linux", "names", "errors")
#: What only the linux layer may import: modules that make system calls on sockets, descriptors and processes.
KERNEL = {
    "_socket",
    "socket",
    "select",
    "selectors",
    "fcntl",
    "_signal",
    "signal",
    "ctypes",
    "mmap",
    "resource",
    "struct",
}
#: ... but for constants; for the command, which becomes another program and is stopped by signals; and for the proof:
#: its processes, and what happens to them, are no part of the lock.
ALLOWED = {"names": {"_socket"}, "cli": {"signal", "_signal", "select", "struct", "fcntl"}, "proof": KERNEL}


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    """Layer, module and code of each source file but the root and what is made of others."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__") or parts[-1] == "amalgam":
            continue
        yield parts[0], ".".join(("bindlock", *parts)), ast.parse(path.read_text())


def imports(tree: ast.Module, checked: bool) -> Iterator[str]:
    """The modules that the code imports, wherever; with those for type checkers, if asked for."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not checked:
            skipped.update(child for part in node.body for child in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_layers_import_downwards() -> None:
    """No module imports from a layer above its own; names and errors import no other layer at all."""
    seen = set()
    for layer, module, tree in sources():
        seen.add(layer)
        for imported in imports(tree, checked=False):
            if imported.startswith("bindlock."):
                other = imported.split(".")[1]
                if other in LAYERS:
                    assert LAYERS.index(other) >= LAYERS.index(layer), f"{module} imports {imported}"
    assert seen == set(LAYERS)


def test_only_one_layer_talks_to_the_kernel() -> None:
    """Only the linux layer imports modules that make system calls on sockets, descriptors and processes."""
    for layer, module, tree in sources():
        if layer != "linux":
            found = KERNEL & set(imports(tree, checked=False)) - ALLOWED.get(layer, set())
            assert not found, f"{module} imports {found}"


def test_no_module_is_loaded_in_a_circle() -> None:
    """Each module can be imported first."""
    for module in MODULES:
        done = run(f"import {module}")
        assert done.returncode == 0, done.stderr


def test_everything_public_is_documented() -> None:
    """Every module, and every public class, function, method and property, has a docstring."""
    missing = []
    for name in MODULES:
        module = importlib.import_module(name)
        if not module.__doc__:
            missing.append(name)
        for kind, thing in vars(module).items():
            if kind.startswith("_") or getattr(thing, "__module__", None) != name:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing):
                members = vars(thing).items() if inspect.isclass(thing) else ()
                missing += [
                    f"{name}.{kind}.{member}"
                    for member, value in members
                    if not member.startswith("_")
                    and (inspect.isfunction(value) or isinstance(value, property))
                    and not inspect.getdoc(value)
                ]
                if not inspect.getdoc(thing):
                    missing.append(f"{name}.{kind}")
    assert not missing


def test_modules_are_small() -> None:
    """No module has more than four hundred lines."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "amalgam.py":
            assert len(path.read_text().splitlines()) <= 400, path.name


TRACED = """
import os, sys, bindlock
lock = bindlock.Lock(sys.argv[1], timeout=0)
with lock:
    pass
def marker(which):
    try:
        os.stat("/no-such-marker-" + which)
    except FileNotFoundError:
        pass
marker("begin")
marker("acquire")
lock.acquire()
marker("release")
lock.release()
marker("end")
with lock:
    marker("refused")
    other = bindlock.Lock(sys.argv[1], timeout=0)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_system_calls_of_an_uncontended_lock(name: str, tmp_path: Path) -> None:
    """Acquire is socket, bind, listen; release is close; and nothing else."""
    log = tmp_path / "strace"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", "signal=none", sys.executable, "-c", TRACED, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace is not allowed here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    between: dict[str, list[str]] = {}
    phase = ""
    for line in log.read_text().splitlines():
        match = re.search(r"/no-such-marker-(\w+)", line)
        if match:
            phase = match[1]
        else:
            between.setdefault(phase, []).append(line.split(None, 1)[1].partition("(")[0])
    assert between["acquire"] == ["socket", "bind", "listen"]
    assert between["release"] == ["close"]
    assert "begin" not in between


@pytest.mark.parametrize(
    "options", [(), ("-W", "error"), ("-X", "dev"), ("-W", "error", "-X", "dev"), ("-OO",)], ids=str
)
@pytest.mark.parametrize("way", ["global", "module", "cycle", "thread"])
def test_exit_with_a_held_lock_is_silent(name: str, options: tuple[str, ...], way: str) -> None:
    """A program may end with a held lock: not a word, status 0, and the name is free."""
    code = {
        "global": "lock = bindlock.Lock(name); lock.acquire()",
        "module": "bindlock.kept = bindlock.Lock(name); bindlock.kept.acquire()",
        "cycle": "lock = bindlock.Lock(name); lock.acquire(); ring = [lock]; ring.append(ring)",
        "thread": "import threading\nlock = bindlock.Lock(name)\n"
        "thread = threading.Thread(target=lock.acquire)\nthread.start()\nthread.join()",
    }[way]
    done = run(f"import bindlock\nname = {name!r}\n{code}\nassert lock.held" if way != "module" else
               f"import bindlock\nname = {name!r}\n{code}", options=("-I", *options))  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    with bindlock.Lock(name, timeout=0):
        pass


def test_deprecated_ways_are_not_used() -> None:
    """Everything can be imported and used with all warnings being errors."""
    done = run(
        "import bindlock\nfor name in bindlock.__all__: getattr(bindlock, name)\nbindlock.locks()",
        options=("-I", "-W", "error", "-X", "dev"),
    )
    assert (done.stderr, done.returncode) == ("", 0)
