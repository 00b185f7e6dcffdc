"""How the command starts: scripts/bindlock in every kind of installation, and the amalgam that it runs."""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import subprocess
import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bindlock
from tests.actors import DEADLINE, bindlock_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.actors import Cast

    Said = tuple[int, str, str]

ROOT = Path(__file__).parents[1]
PACKAGE = Path(bindlock.__file__).parent
PYTHON = f"python3.{sys.version_info.minor}"
LIBRARIES = ("click", "rich")
#: hatchling, and what it needs.
BUILDING = ("editables", "hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers")
#: Long enough for pip, and a slow network.
PIP_DEADLINE = 120.0


class Installation:
    """A copy of the installation that is tested, in another place."""

    def __init__(self, prefix: Path, *, python: bool = True) -> None:
        self.prefix = prefix
        self.site_packages = prefix / "lib" / PYTHON / "site-packages"
        self.package = self.site_packages / "bindlock"
        self.command = prefix / "bin" / "bindlock"
        self.command.parent.mkdir(parents=True)
        shutil.copytree(PACKAGE, self.package)
        shutil.copy2(bindlock_command(), self.command)
        for library in LIBRARIES:
            link(library, self.site_packages)
        if python:
            (prefix / "bin" / PYTHON).symlink_to(sys.executable)

    @property
    def amalgam(self) -> Path:
        """What is compiled to what the start script runs."""
        return self.package / "cli" / "amalgam.py"

    @property
    def compiled(self) -> Path:
        """What the start script runs."""
        return Path(cache_from_source(str(self.amalgam)))


def link(library: str, site_packages: Path) -> None:
    """Make a library that the tests have known in another place."""
    found = find_spec(library)
    assert found is not None
    assert found.origin is not None
    (site_packages / library).symlink_to(Path(found.origin).parent)


def start(*command: str | Path, **options: Any) -> Said:
    """Run a command to its end: status, output, errors."""
    options = {"stdin": subprocess.DEVNULL, "timeout": DEADLINE, "capture_output": True} | options
    ended = subprocess.run(command, text=True, **options)
    return ended.returncode, ended.stdout, ended.stderr


def check(command: Sequence[str | Path], name: str, **options: Any) -> None:
    """That a command is bindlock: it runs something (the amalgam's part), and knows the rest (the modules')."""
    assert start(*command, "run", "-n", name, "--", "echo", "ran", **options) == (0, "ran\n", "")
    assert start(*command, "status", name, **options) == (3, f"{name} is free\n", "")


def test_installed(name: str) -> None:
    """What is tested is an installed wheel, amalgam included."""
    check([bindlock_command()], name)
    amalgam = PACKAGE / "cli" / "amalgam.py"
    compiled = Path(cache_from_source(str(amalgam)))
    assert compiled.stat().st_mtime_ns > amalgam.stat().st_mtime_ns


def test_by_symbolic_links(name: str, tmp_path: Path) -> None:
    """It is found through symbolic links, relative ones and chains of them, too: as pipx makes them."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "first").symlink_to(bindlock_command())
    (tmp_path / "second").symlink_to(Path("bin", "first"))
    check([tmp_path / "second"], name)
    check(["./second"], name, cwd=tmp_path)
    check(["first"], name, env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})


@pytest.mark.parametrize("folder", ["a b", "it's", 'quo"ted', "$HOME", "`false`", "new\nline", "*", "-n", "ä\u202e"])
def test_in_a_folder_of_any_name(name: str, tmp_path: Path, folder: str) -> None:
    """The path of the installation may have any characters."""
    installation = Installation(tmp_path / folder)
    check([installation.command], name)
    check(["./bindlock"], name, cwd=installation.command.parent)
    check(["sh", "bindlock"], name, cwd=installation.command.parent)


def test_where_python_is_elsewhere(name: str, tmp_path: Path) -> None:
    """Without a Python beside it (pip install --user, --prefix) it uses the one in PATH that it was installed for."""
    installation = Installation(tmp_path, python=False)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / PYTHON).symlink_to(sys.executable)
    path = f"{tmp_path}/path:/usr/bin:/bin"
    check([installation.command], name, env={"PATH": path})
    other = tmp_path / "lib" / "python3.0" / "site-packages" / "bindlock"
    shutil.copytree(PACKAGE, other)  # of a Python that is gone
    check([installation.command], name, env={"PATH": path})


def test_without_python(name: str, tmp_path: Path) -> None:
    """Without any Python to be found nothing is run, and the status is 127 or 126, as for any program not there."""
    installation = Installation(tmp_path, python=False)
    (tmp_path / "path").mkdir()
    ended = start(installation.command, "run", name, "echo", "ran", env={"PATH": f"{tmp_path}/path"})
    assert ended[0] in (126, 127)
    assert ended[1] == ""
    assert "python3" in ended[2]


def test_in_a_hostile_environment(name: str, tmp_path: Path) -> None:
    """Nothing of PYTHON*, of the current directory or of user site-packages has a say in it."""
    for module in ("posix", "_socket", "site", "click", "bindlock", "encodings", "sitecustomize", "usercustomize"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('not this one')")
    user = tmp_path / "lib" / PYTHON / "site-packages"
    user.mkdir(parents=True)
    shutil.copy(tmp_path / "usercustomize.py", user)
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "PYTHONUSERBASE": str(tmp_path),
        "PYTHONSTARTUP": str(tmp_path / "site.py"), "PYTHONHOME": "/nowhere", "PYTHONEXECUTABLE": "/nowhere",
        "PYTHONPLATLIBDIR": "nowhere", "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-16", "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
    }  # fmt: skip
    check([bindlock_command()], name, env=environment, cwd=tmp_path)


# The amalgam.


def test_the_compiled_amalgam_is_run(name: str, tmp_path: Path) -> None:
    """When it is newer than its source it is what runs."""
    installation = Installation(tmp_path)
    installation.amalgam.write_text("print('the amalgam')")
    py_compile.compile(str(installation.amalgam), doraise=True)
    times = installation.amalgam.stat()
    os.utime(installation.amalgam, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))
    assert start(installation.command, "run", name, "echo", "ran") == (0, "the amalgam\n", "")


@pytest.mark.parametrize("state", ["no compiled file", "neither", "older than its source"])
def test_without_a_compiled_amalgam(name: str, tmp_path: Path, state: str) -> None:
    """When it is missing, or older than its source, the modules are run."""
    installation = Installation(tmp_path)
    installation.amalgam.write_text("print('the amalgam')")
    py_compile.compile(str(installation.amalgam), doraise=True)
    if state == "older than its source":
        times = installation.compiled.stat()
        os.utime(installation.amalgam, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    else:
        installation.compiled.unlink()
        if state == "neither":
            installation.amalgam.unlink()
    check([installation.command], name)


#: Command lines; {0} is a name that is free, {1} one that is held.
INVOCATIONS = (
    "run {0} -- echo ran",
    "run {0} echo ran",
    "run {0} -- env",
    "run {0} -c 'echo $0; exit 3'",
    "run -c 'kill -TERM $$' {0}",
    "run {0} -- no-such-command",
    "run {0} -- /etc/passwd",
    "run -n {1} -- echo ran",
    "run -nq {1} -- echo ran",
    "run -w 0.01 -E 5 {1} -- echo ran",
    "run --scope host {1} -- echo ran",
    "run --verbose {0} -- echo ran",
    "run '' -- echo ran",
    "run {0}/ -- echo ran",
    "run '@{0}' -- echo ran",
    "run '{0} {0} {0} {0} {0} {0} {0}' -c 'echo $BINDLOCK_NAME'",
    "run -w never {0} -- echo ran",
    "run {0}",
    "run",
    "run --help",
    "status {0}",
    "status {1}",
    "wait -w 0 {1}",
    "stop {0}",
    "signal {0} TERM",
    "completion bash",
    "--version",
    "",
    "nonsense",
)


def ways() -> Mapping[str, Sequence[str]]:
    """The command: by its start script (and so the amalgam), by the modules in the same way, and as a module."""
    return {
        "script": [bindlock_command()],
        "file": [sys.executable, "-I", "-S", str(PACKAGE / "__main__.py")],
        "module": [sys.executable, "-m", "bindlock"],
    }


def test_all_ways_are_the_same(cast: Cast, name: str) -> None:
    """The amalgam says and does what the modules do, in every case."""
    cast.holder(f"{name}-held")
    for line in INVOCATIONS:
        line = line.format(name, f"{name}-held")
        found = {}
        for way, command in ways().items():
            status, output, errors = start("sh", "-c", f'"$@" {line}', "sh", *command)
            # sh says where it is; time passes.
            output = re.sub(r"(?m)^_=.*\n", "", output)
            output, errors = (re.sub(r"\b\d+(\.\d+)?(s\b| seconds)", "N", text) for text in (output, errors))
            found[way] = (status, output, errors)
            assert "Traceback" not in errors
        assert found["script"] == found["file"] == found["module"], line


@pytest.mark.parametrize("amalgam", [True, False])
def test_no_library_is_loaded(cast: Cast, name: str, tmp_path: Path, amalgam: bool) -> None:
    """``run`` with usual options loads no library, not even to say who is in the way."""
    installation = Installation(tmp_path)
    if not amalgam:
        installation.compiled.unlink()
    for library in LIBRARIES:
        (installation.site_packages / library).unlink()
        (installation.site_packages / f"{library}.py").write_text("raise SystemExit('loaded')")
    assert start(installation.command, "status", name) == (1, "", "loaded\n")
    holder = cast.holder(f"{name}-held")
    for option in ("-n", "--nb", "--nonblock"):
        assert start(installation.command, "run", option, name, "--", "echo", "ran") == (0, "ran\n", "")
    assert start(installation.command, "run", "-w", "5", "-E", "9", "--scope", "host", name, "-c", "echo ran") == (
        0, "ran\n", ""
    )  # fmt: skip
    status, output, errors = start(installation.command, "run", "-n", f"{name}-held", "true")
    assert (status, output) == (75, "")
    assert f" is held by pid {holder.pid} " in errors
    assert start(installation.command, "run", "-q", "-w", "0.01", f"{name}-held", "true") == (75, "", "")
    assert start(installation.command, "run", name, "no-such-command")[0] == 127


# Installed by pip.


class Pip:
    """pip install, into a new virtual environment that has nothing, with all that is needed to build at hand."""

    def __init__(self, environment: Path, tools: Path) -> None:
        self.environment = environment
        self.tools = tools

    def install(self, *arguments: str | Path) -> str:
        """What pip says when it fails, or nothing."""
        ended = subprocess.run(
            [sys.executable, "-m", "pip", "--python", self.environment, "--disable-pip-version-check", "--quiet",
             "install", *arguments],
            capture_output=True, text=True, timeout=PIP_DEADLINE, env={**os.environ, "PYTHONPATH": str(self.tools)},
        )  # fmt: skip
        return ended.stderr if ended.returncode else ""

    def install_this(self, *arguments: str | Path) -> None:
        """Install this source tree, and nothing else."""
        assert self.install(*arguments, "--no-deps", "--no-build-isolation", "--no-index") == ""


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What builds the package, and nothing else that the tests have."""
    tools = tmp_path_factory.mktemp("tools")
    for library in BUILDING:
        link(library, tools)
    return tools


@pytest.fixture
def pip(tmp_path: Path, tools: Path) -> Pip:
    """pip, for a new virtual environment."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=PIP_DEADLINE)
    return Pip(environment, tools)


def test_editable(name: str, tmp_path: Path, pip: Pip) -> None:
    """From an editable installation, where there is no amalgam, the source tree is run."""
    pip.install_this("--editable", ROOT)
    bin_directory = pip.environment / "bin"
    # The libraries are those of the tests.
    for library in LIBRARIES:
        link(library, pip.environment / "lib" / PYTHON / "site-packages")
    where = start(bin_directory / "python", "-c", "import bindlock; print(bindlock.__file__)")
    assert where == (0, f"{ROOT}/src/bindlock/__init__.py\n", "")
    check([bin_directory / "bindlock"], name)
    (tmp_path / "link").symlink_to("environment/bin/bindlock")
    check([tmp_path / "link"], name)


def test_installed_below_a_prefix(name: str, tmp_path: Path, pip: Pip) -> None:
    """pip install --prefix: the command, where it is, runs the amalgam with the Python in PATH."""
    prefix = tmp_path / "prefix"
    pip.install_this("--prefix", prefix, "--ignore-installed", ROOT)
    path = f"{pip.environment}/bin:/usr/bin:/bin"
    run = start(prefix / "bin" / "bindlock", "run", name, "--", "echo", "ran", env={"PATH": path})
    assert run == (0, "ran\n", "")
    (package,) = (prefix / "lib" / PYTHON).glob("*-packages/bindlock")
    assert list((package / "cli" / "__pycache__").glob("amalgam.*.pyc"))
    assert (prefix / "share" / "man" / "man1" / "bindlock.1").exists()
