"""The page of `bindlock prove --html`: what is in it, and how it behaves in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from bindlock.proof import events, kind
from bindlock.proof.cell import Cell
from bindlock.proof.page import render, words
from bindlock.proof.report import Report, Row, Subject, machine, now
from bindlock.proof.run import Plan, run
from bindlock.proof.trial import Outcome
from tests.actors import DEADLINE

LOCKS = ("bindlock", "flock", "pid-file-exclusive")
EVENTS = ("sigkill", "memory", "waiter-release", "waiter-kill", "dropped")
HOSTILE = "<script>alert('1 & 2')</script>\"><b>"
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
APART = {"p", "dt", "dd", "th", "td", "h1", "h2", "h3", "svg"}


@pytest.fixture(scope="module")
def report() -> Report:
    """A small one, of a real run."""
    known = kind.known()
    chosen = [event for event in events.ALL if event.key in EVENTS]
    began, start = now(), time.monotonic()
    cells = run(Plan(LOCKS, chosen, True, 1, trials=3), lambda *_: None, lambda _: None)
    subjects = []
    for key in LOCKS:
        found = known[key]
        assert not isinstance(found, ImportError)
        subjects.append(Subject.of(key, found))
    rows = [Row.of(event) for event in chosen]
    return Report(subjects, rows, cells, {}, True, 1, time.monotonic() - start, machine(), began)


@pytest.fixture(scope="module", autouse=True)
def fonts(report: Report) -> None:
    """matplotlib keeps the files of its fonts open: no test has left them so."""
    render(report)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


class Reader(HTMLParser):
    """Reads a page; fails the test at tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: {self.get_starttag_text()}"
        self.tags.append((tag, dict(attrs)))
        if tag in APART:
            self.words.append(" ")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


def test_page_refers_to_nothing_outside_itself(page: str) -> None:
    reader = Reader(page)
    references = [*reader.all("href"), *reader.all("xlink:href"), *re.findall(r"url\(([^)]*)\)", page)]
    assert references
    assert [reference for reference in references if not reference.startswith("#")] == []
    assert {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object"} == set()
    assert reader.all("src") == []
    assert "@import" not in page


def test_ids_are_unique_and_what_refers_to_one_finds_it(page: str) -> None:
    reader = Reader(page)
    ids = Counter(reader.all("id"))
    assert [name for name, count in ids.items() if count > 1] == []
    targets = [href.removeprefix("#") for href in reader.all("href")]
    targets += reader.all("popovertarget") + re.findall(r"url\(#([^)]*)\)", page)
    targets += [name for names in reader.all("aria-labelledby") for name in names.split()]
    assert [target for target in targets if target not in ids] == []


def test_every_cell_is_there_with_its_word(report: Report, page: str) -> None:
    buttons = re.findall(r'<td><button [^>]*class="(\w+)"[^>]*aria-label="([^"]*)">.*?<span>([^<]*)</span>', page)
    titles = {lock.key: lock.title for lock in report.locks} | {row.key: row.title for row in report.events}
    expected = []
    for cell in report.cells:
        face = words.FACES[cell.outcome]
        expected.append((face.style, f"{face.word}: {titles[cell.event]}, {titles[cell.lock]}", face.word))
    assert [(style, html.unescape(label), word) for style, label, word in buttons] == expected
    assert len({face.word for face in words.FACES.values()}) == len(Outcome) + 1
    assert all(f'id="icon-{face.style}"' in page for face in words.FACES.values())


def test_headline_verdicts_and_what_was_run(report: Report, page: str) -> None:
    text = Reader(page).text
    assert report.headline in text
    for lock in report.locks:
        assert report.verdict(lock.key) in text
    assert "quick, seed 1" in text
    assert report.machine["kernel"] in text
    assert f"bindlock {report.bindlock}" in text


def test_cell_says_what_was_done_expected_and_seen_and_why(report: Report, page: str) -> None:
    cell = report.cell("pid-file-exclusive", "sigkill")
    assert cell.outcome is Outcome.STALE
    row, lock = report.events[0], report.locks[2]
    assert row.key == "sigkill"
    opened = page[page.index('id="cell-1-3"') :]
    text = Reader("<div " + opened[: opened.index("<div popover")]).text
    for part in (
        row.title,
        row.done,
        row.expected,
        row.rule,
        lock.rule,
        lock.how,
        "3 \N{MULTIPLICATION SIGN} stale in 3 trials",
    ):
        assert part in text
    assert f"still refused after {words.duration(cell.patience)}" in text


def test_all_plots_are_there_with_words_and_numbers(report: Report, page: str) -> None:
    reader = Reader(page)
    plots = [attributes for tag, attributes in reader.tags if tag == "svg" and attributes.get("class") == "plot"]
    assert [plot["aria-labelledby"] for plot in plots] == [
        f"{key}-title {key}-desc" for key in ("release", "memory", "wake")
    ]
    text = reader.text
    for key in ("sigkill", "waiter-release", "waiter-kill"):
        latency = report.cell("flock", key).latency
        assert latency is not None
        assert words.duration(latency.median) in text
    assert "16 MiB" in text
    # matplotlib's colours are all replaced by the page's: else they would not be seen in the dark.
    assert re.findall(r"(?:fill|stroke): *#\w+", page) == []


def test_plot_without_data_is_explained(report: Report) -> None:
    without = [cell for cell in report.cells if cell.event not in ("memory", "waiter-kill")]
    without = [replace(cell, samples=(), latency=None) if cell.event == "sigkill" else cell for cell in without]
    without += [Cell(lock.key, "memory", reason="only 12 MiB of memory are available") for lock in report.locks]
    kept = [row for row in report.events if row.key != "waiter-kill"]
    text = Reader(render(replace(report, cells=without, events=kept))).text
    assert "no trial of the event sigkill came to a new holder" in text
    assert "the event memory was not possible here (only 12 MiB of memory are available)" in text
    assert "1 row not possible here" in text
    assert "Wake-up latency of a waiter One row" in text

    alone = [row for row in report.events if row.key == "dropped"]
    page = render(replace(report, cells=[cell for cell in report.cells if cell.event == "dropped"], events=alone))
    assert 'class="plot"' not in page
    text = Reader(page).text
    for key in ("sigkill", "memory", "waiter-release"):
        assert f"the event {key} was not run" in text


def test_what_others_said_is_escaped(report: Report) -> None:
    cells = [replace(cell, remark=HOSTILE, reason=HOSTILE) for cell in report.cells]
    cells[0] = replace(cells[0], outcome=None, counts={})
    locks = [replace(lock, title=HOSTILE, how=f"`{HOSTILE}`", rule=HOSTILE) for lock in report.locks]
    rows = [replace(row, title=HOSTILE, done=HOSTILE, expected=HOSTILE, rule=HOSTILE) for row in report.events]
    facts = dict.fromkeys(report.machine, HOSTILE) | {HOSTILE: HOSTILE}
    page = render(
        replace(
            report, cells=cells, locks=locks, events=rows, machine=facts, absent={HOSTILE: HOSTILE}, bindlock=HOSTILE
        )
    )
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags} & {"script", "b"} == {"b"}  # our own <b>Rule:</b>
    assert page.count("<b>") == 2 * len(rows) + len(locks)
    assert HOSTILE in reader.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 µs"),
        (9.994e-6, "9.99 µs"),
        (85e-6, "85.0 µs"),
        (999.4e-6, "999 µs"),
        (999.6e-6, "1.00 ms"),
        (0.01234, "12.3 ms"),
        (0.9996, "1.00 s"),
        (61.0, "61.0 s"),
        (1234.0, "1234 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_prose_is_escaped_with_its_code_marked() -> None:
    assert words.prose("a < b") == "a &lt; b"
    assert words.prose("`x` and ``y & `z` ``.") == "<code>x</code> and <code>y &amp; `z` </code>."
    assert words.prose("one ` alone") == "one ` alone"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast(page: str, mode: str) -> None:
    """WCAG 2, AA: 4.5 to 1 for text, 3 to 1 for the marks of plots."""
    blocks = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[mode == "dark"]))
    pairs = [(face.style, f"{face.style}-on") for face in words.FACES.values()]
    pairs += [(text, ground) for text in ("text", "muted", "accent") for ground in ("paper", "raised")]
    assert {pair: ratio for pair in pairs if (ratio := contrast(colours, *pair)) < 4.5} == {}
    assert min(contrast(colours, series, "paper") for series in ("first", "second")) >= 3


def contrast(colours: dict[str, str], one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(colours[one]), luminance(colours[other])))
    return (lighter + 0.05) / (darker + 0.05)


# In a browser.

# The protocol's pipes are to be descriptors 3 and 4.
_START = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(ours[0], 3)
os.dup2(ours[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless Chromium, spoken to by the DevTools protocol over pipes. Use it in a `with` block."""

    def __init__(self, program: str, profile: Path) -> None:
        down, up = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(down[0]), str(up[1]), program, "--headless", "--no-sandbox",
             "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
             f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(down[0], up[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(down[0])
        os.close(up[1])
        self._out, self._in = down[1], up[0]
        self._rest = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self._told: list[str] = []

    def __enter__(self) -> Browser:
        try:
            pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
            answer = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
            self._session = {"sessionId": answer["sessionId"]}
            self.call("Page.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        # It ends, with all its processes, when nobody is at the other end of its pipes.
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer; what it tells meanwhile is kept for `open`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._hear()).get("id") != self._number:
            self._told.append(answer["method"])
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        self._told.clear()
        self.call("Page.navigate", url=path.as_uri())
        while "Page.loadEventFired" not in self._told:
            self._told.append(self._hear()["method"])

    def width(self, width: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
        )

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up, as from a keyboard."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def value(self, expression: str) -> Any:
        """Of JavaScript, in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], DEADLINE)
            assert ready, f"the browser said nothing for {DEADLINE} s"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        heard: dict[str, Any] = json.loads(message)
        return heard


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with Browser(program, tmp_path / "profile") as browser:
        yield browser


@pytest.fixture
def file(report: Report, tmp_path: Path) -> Path:
    """A page as wide as pages get: as many locks as there are, with long words in every cell."""
    more = [
        replace(report.locks[number % 3], key=f"lock-{number}", title=f"TCP port, SO_REUSEADDR {number}")
        for number in range(13)
    ]
    cells = [
        replace(report.cell(LOCKS[number % 3], row.key), lock=lock.key, remark="/a/name/without/a/space" * 8)
        for row in report.events
        for number, lock in enumerate(more)
    ]
    path = tmp_path / "page.html"
    path.write_text(render(replace(report, locks=more, cells=cells, absent={"other": "no_module_named_other" * 9})))
    return path


# What reaches beyond the right edge and is not in a box that scrolls.
_BEYOND = """
[...document.querySelectorAll("body *")]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5 && !e.closest(".box"))
  .map(e => e.outerHTML.slice(0, 80))
"""


@pytest.mark.once
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_but_the_matrix_in_its_box(browser: Browser, file: Path, width: int) -> None:
    browser.width(width)
    browser.open(file)
    assert browser.value("innerWidth") == width
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value(_BEYOND) == []
    box = "document.querySelector('.matrix')"
    assert browser.value(f"{box}.scrollWidth > {box}.clientWidth")

    # The events and the locks stay in sight when it is scrolled.
    browser.value(f"{box}.scrollTo(200, 50)")
    where = "(e => [e.left, e.top])(document.querySelector('.matrix {}').getBoundingClientRect())"
    frame = browser.value(f"(e => [e.left + {box}.clientLeft, e.top + {box}.clientTop])({box}.getBoundingClientRect())")
    assert browser.value(where.format("tbody th"))[0] == frame[0]
    assert browser.value(where.format("thead th:nth-child(9)"))[1] == frame[1]

    browser.value("document.querySelector('[popovertarget=cell-1-3]').click()")
    assert browser.value("document.querySelector(':popover-open').getBoundingClientRect().width") <= width
    assert browser.value("(e => e.scrollWidth <= e.clientWidth)(document.querySelector(':popover-open'))")


@pytest.mark.once
def test_cell_opens_and_closes_by_keyboard(browser: Browser, file: Path) -> None:
    browser.width(1280)
    browser.open(file)
    opened = "[...document.querySelectorAll(':popover-open')].map(e => e.id)"
    focused = "document.activeElement.getAttribute('popovertarget') || document.activeElement.id"
    browser.value("document.querySelector('[popovertarget=cell-1-1]').focus()")
    browser.press("Tab", 9)
    assert browser.value(focused) == "cell-1-2"
    assert browser.value(opened) == []
    browser.press("Enter", 13, "\r")
    assert browser.value(opened) == ["cell-1-2"]
    # Who cannot see it is told what has opened, and comes back to the same cell.
    assert browser.value("document.activeElement.id") == "cell-1-2"
    assert browser.value("document.activeElement.getAttribute('role')") == "dialog"
    browser.press("Escape", 27)
    assert browser.value(opened) == []
    assert browser.value("document.activeElement.tagName") == "BUTTON"
    assert browser.value(focused) == "cell-1-2"
    browser.press(" ", 32, " ")
    assert browser.value(opened) == ["cell-1-2"]
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.className") == "close"
    browser.press("Enter", 13, "\r")
    assert browser.value(opened) == []
