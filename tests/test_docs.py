"""The documentation: what it shows is run, what it lists is complete, and where it points something is.

Conventions: a block ``console`` has lines ``$ command``, continued by ``> ``, each followed by its output; a block
``python`` is a whole program; ``sh`` is read by the shell but not run; anything else is only shown. In an output ``…``
stands for any text, on a line of its own for any lines. Numbers of four digits and more, fractions, and times as ``2m
3s`` stand for any others, spaces for any more; ``anna`` is whoever runs the tests.
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import bindlock
from bindlock import errors
from bindlock.cli.commands import cli
from tests.actors import bindlock_command

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MAN_PAGE = DOCS / "bindlock.1"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DEADLINE = 30
MARK = "\x1e"  # never printed by anything else

#: What of an output, as it is shown, stands for more than itself, and for what.
LOOSE = {
    r"(?<=\n)…(?=\n)": "(?s:.*)",
    r"…": ".*",
    r"\b\d+[dhms](?: \d+[hms])?\b": r"\d+[dhms](?: \d+[hms])?",
    r"\d+\.\d+": r"\d+\.\d+",
    r"\d{4,}": r"\d+",
    r"\banna\b": r"(?:root|uid \d+)",
}

#: Waits until `bindlock run`, started in the background as the process argv[1], has become its command, or is queued.
SETTLED = """
import os, sys, time, bindlock
from bindlock.linux.diag import Diag
pid = int(sys.argv[1])
end = time.monotonic() + 10
def sockets():
    for fd in os.listdir(f"/proc/{pid}/fd"):
        kind, _, inode = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")
        if kind == "socket":
            yield int(inode[:-1])
def settled():
    mine = set(sockets())
    with Diag() as diag:
        bound = diag.bound()
        if any(mine.intersection(now.clients) for entry in bound if (now := diag.queues(entry))):
            return True
    with open(f"/proc/{pid}/cmdline", "rb") as line:
        became = b"run" not in line.read().split(b"\\0")
    return became and any(entry.inode in mine for entry in bound)
while True:
    try:
        if settled():
            break
    except (FileNotFoundError, ProcessLookupError):
        pass
    if not os.path.exists(f"/proc/{pid}/cmdline"):
        break
    assert time.monotonic() < end, "a process in the background neither runs nor waits"
    os.sched_yield()
"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, language)], ids=name_of)


# What is shown is run.


@functools.cache
def apart() -> list[str]:
    """The command that puts what it runs into network and PID namespaces of its own, which end with it."""
    unshare = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        unshare += ["--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces to be had here")
    return unshare


def run_apart(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in an empty world: no locks but its own, and the installed bindlock first in its PATH."""
    (directory / "home").mkdir()
    return subprocess.run(
        [*apart(), *command],
        cwd=directory / "home",
        env={
            "PATH": f"{os.path.dirname(bindlock_command())}:{os.environ['PATH']}",
            "HOME": str(directory / "home"),
            "LANG": "C.UTF-8",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def sessions(block: str) -> list[tuple[str, str]]:
    """The commands of a console block and what each is said to print."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        command, output = found[-1] if found else ("", "")
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif line.startswith("> ") and found and not output:
            found[-1] = (f"{command}\n{line[2:]}", output)
        else:
            assert found, f"output before a command: {line!r}"
            found[-1] = (command, f"{output}{line}\n")
    return found


def pattern(output: str) -> re.Pattern[str]:
    """What an output as shown stands for."""
    meanings = list(LOOSE.values())

    def stands_for(match: re.Match[str]) -> str:
        return meanings[match.lastindex - 1] if match.lastindex else re.escape(match[0])

    return re.compile(re.sub("|".join([*(f"({token})" for token in LOOSE), "."]), stands_for, squeezed(output)) + r"\Z")


def squeezed(text: str) -> str:
    """The text without what only aligns it."""
    return "".join(re.sub(r"\s+", " ", line).rstrip() + "\n" for line in text.splitlines())


def script(commands: list[str], settled: Path) -> str:
    """A script of the shell that runs the commands, with a mark before each."""
    lines = ["exec 2>&1"]
    for command in commands:
        lines += [f"status=$?; printf '{MARK}'; (exit $status)", command]
        if command.endswith("&"):
            lines.append(f"'{sys.executable}' '{settled}' $!")
    return "\n".join(lines) + "\n"


def test_the_conventions() -> None:
    """A pattern takes what it stands for, and nothing else."""
    shown = pattern("x is held by pid 41772 (anna, sleep 600), running for 1m 3s\n")
    assert shown.match("x is held by pid 7 (root, sleep 600), running for 0s\n")
    assert not shown.match("x is held by pid 7 (root, sleep 60), running for 0s\n")
    assert not pattern("75\n").match("3\n")
    assert not pattern("a.b\n").match("axb\n")
    assert pattern("a  b\n…\nz\n").match(squeezed("a     b\n1\n2\nz\n"))
    assert sessions("$ a\n> b\nc\n$ d\n") == [("a\nb", "c\n"), ("d", "")]


@pages_with("console")
def test_sessions(page: Path, tmp_path: Path) -> None:
    """Every session at the terminal goes as it is shown."""
    shown = [session for block in blocks(page, "console") for session in sessions(block)]
    if shutil.which("ss") is None and any(command.startswith("ss ") for command, _ in shown):
        pytest.skip("no ss here")
    settled = tmp_path / "settled.py"
    settled.write_text(SETTLED)
    run = run_apart(tmp_path, "sh", "-c", script([command for command, _ in shown], settled))
    before, *outputs = run.stdout.split(MARK)
    assert not before
    assert len(outputs) == len(shown), run.stdout
    for (command, output), printed in zip(shown, outputs, strict=True):
        assert pattern(output).match(squeezed(printed)), f"$ {command}\n{printed}-- is shown with:\n{output}"


@pages_with("python")
def test_programs(page: Path, tmp_path: Path) -> None:
    """Every Python program runs, without a warning."""
    for number, program in enumerate(blocks(page, "python")):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "program.py").write_text(program)
        run = run_apart(directory, sys.executable, "-W", "error", str(directory / "program.py"))
        assert (run.returncode, run.stderr) == (0, ""), f"{program}\n{run.stdout}{run.stderr}"


@pages_with("sh")
def test_scripts(page: Path) -> None:
    """Every script is one for the shell."""
    for block in blocks(page, "sh"):
        checked = subprocess.run(["sh", "-n", "-c", block], capture_output=True, text=True, timeout=DEADLINE)
        assert not checked.returncode, checked.stderr


def test_every_block_has_a_known_language() -> None:
    """A block is not left out by a typing error."""
    known = {"console", "python", "sh", "text", "ini", "crontab", "dockerfile", "mermaid"}
    for page in PAGES:
        fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
        assert set(fences[::2]) <= known, page
        assert set(fences[1::2]) <= {""}, page


# What is listed is complete.


def options(command: click.Command) -> set[str]:
    flags = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {spelling for flag in flags for spelling in flag.opts}


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_reference_page(name: str) -> None:
    """Every command has a page, in which every option stands."""
    text = (DOCS / "reference" / f"{name}.md").read_text()
    assert f"# bindlock {name}\n" in text
    assert not {option for option in options(cli.commands[name]) if f"`{option}`" not in text}
    assert f"]({name}.md)" in (DOCS / "reference" / "index.md").read_text()


def man_sections() -> dict[str, str]:
    """The subsections of the man page, as plain text."""
    text = re.sub(r"\\f.|\\&", "", MAN_PAGE.read_text()).replace(r"\-", "-")
    parts = re.split(r"^\.S([SH]) (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_man_page(name: str) -> None:
    """Every command has a section of the man page, in which every option stands; and a line of its synopsis."""
    sections = man_sections()
    words = re.split(r'[\s",]+', sections[f"bindlock {name}"])
    assert not options(cli.commands[name]) - set(words)
    assert f'.SY "bindlock {name}"' in sections["SYNOPSIS"]


def test_general_options() -> None:
    """The options of the command itself stand in both."""
    index = (DOCS / "reference" / "index.md").read_text()
    man = MAN_PAGE.read_text().replace(r"\-", "-")
    for option in {*options(cli), "-h", "--help"}:
        assert re.search(rf"`(?:bindlock )?{option}`", index), option
        assert option in man


def test_man_page_is_of_this_version() -> None:
    """The man page names the version it is about."""
    assert f'"bindlock {bindlock.__version__}"' in MAN_PAGE.read_text()


@pytest.mark.parametrize("formatter", ["groff -man -Tutf8 -ww -z", "mandoc -Tlint -Wwarning"])
def test_man_page_can_be_read(formatter: str) -> None:
    """The formatters have nothing to complain of."""
    command = formatter.split()
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    run = subprocess.run([*command, str(MAN_PAGE)], capture_output=True, text=True, timeout=DEADLINE)
    assert run.stdout + run.stderr == ""


def test_library_reference() -> None:
    """Every public name is in the reference, and nothing else."""
    text = (DOCS / "reference" / "library.md").read_text()
    assert sorted(re.findall(r"^::: bindlock\.(\w+)$", text, re.MULTILINE)) == sorted(bindlock.__all__)


def test_exit_statuses() -> None:
    """Every exit status that an error has is explained in the reference, the man page and README.md."""
    statuses = {3, 75, 126, 127, errors.CannotLock("", 1, "").exit_status, errors.CannotLock("", 2, "").exit_status}
    statuses |= {kind.exit_status for kind in vars(errors).values() if is_error(kind) and kind is not errors.CannotLock}
    man = man_sections()["EXIT STATUS"]
    for status in statuses:
        assert f"\n| {status} | " in (DOCS / "reference" / "index.md").read_text()
        assert f"\n| {status} | " in (ROOT / "README.md").read_text()
        assert f"\n.B {status}\n" in man


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.BindlockError)


def test_every_module_is_in_the_design() -> None:
    """The layers of the design are those of the source."""
    text = (DOCS / "design.md").read_text()
    source = ROOT / "src" / "bindlock"
    for module in source.rglob("*.py"):
        if not module.stem.startswith("__"):
            assert f"`{module.stem}`" in text, module


def test_diagrams() -> None:
    """The diagrams are those of the tables as they are now; else run: python docs/diagram.py."""
    text = (DOCS / "design.md").read_text()
    assert text == runpy.run_path(str(DOCS / "diagram.py"))["drawn"](text)


# Where it points, something is.


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links(page: Path) -> None:
    """Every link within the documentation leads to a page, and to a heading in it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.is_file(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


def test_every_page_is_in_the_contents() -> None:
    """mkdocs.yml lists every page, and no other."""
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
