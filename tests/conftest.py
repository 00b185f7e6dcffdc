"""What every test gets: a name of its own, real processes that are gone afterwards, and a search for what is left."""

from __future__ import annotations

import gc
import os
import random
import signal
import uuid
from collections.abc import Iterator

import pytest

from tests.actors import Cast

# A shell has what it starts in the background ignore these; and so would all programs that are started here.
for number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the stress tests in their long form")


def pytest_collection_finish() -> None:
    """The collector looks at what the tests make, twice at each: not every time at all their libraries, too."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # plugins that are loaded now may ask the collector who refers to what


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the stress tests were asked for in their long form."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def name() -> str:
    """A name that no other test, and no other run of the tests, uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def seed() -> int:
    """A seed, printed where the test fails; BINDLOCK_SEED repeats one."""
    seed = int(os.environ.get("BINDLOCK_SEED", random.SystemRandom().randrange(2**32)))
    print(f"BINDLOCK_SEED={seed}")
    return seed


@pytest.fixture
def cast() -> Iterator[Cast]:
    """Starts real processes; all are dead and reaped when the test is over."""
    with Cast() as cast:
        yield cast


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test leaves a descriptor, a child process or a bound name of this process behind."""
    gc.freeze()  # what is there now is not looked through again: see above
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before, "descriptors left open"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def descriptors() -> dict[str, str]:
    """The open descriptors of this process and what they lead to, sockets by inode."""
    found = {}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found[descriptor] = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue  # the one that listed them
    return found


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
