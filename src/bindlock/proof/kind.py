"""What a kind of lock has to offer to be put to the proof, and how the known ones are found."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from zlib import crc32

from bindlock.errors import InvalidArgument

if TYPE_CHECKING:
    from types import ModuleType


#: Below the ports that the kernel gives out by itself (ip_local_port_range: 32768 and above).
_PORT = 17200


@dataclass(frozen=True)
class Site:
    """Where the lock of one trial is: everybody who is given the same site contends for the same lock."""

    #: Unlike that of any other lock on this machine.
    name: str
    #: Empty at first; every file of the lock is to be in it.
    directory: Path
    #: Whether processes of other users are to contend, too.
    shared: bool = False

    @property
    def path(self) -> Path:
        """For locks that are a file."""
        return self.directory / "lock"

    @property
    def address(self) -> tuple[str, int]:
        """For locks that are a port: the host is one of the 16 million addresses of loopback, so nobody else has it."""
        number = crc32(self.name.encode())
        host = f"127.{number % 250 + 2}.{number // 250 % 250 + 2}.{number // 62500 % 250 + 2}"
        return host, _PORT + number // 62500 // 250

    def share(self, descriptor: int) -> None:
        """Let other users open a file of ours, whatever the umask, where they are to contend."""
        if self.shared and os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o666)


class Kind(ABC):
    """A kind of lock; an object of it is one process's view of the lock at one site.

    Write it as people write such a lock, and no weaker than good code does: close-on-exec, atomic renames.
    The first line of its docstring is its name in the tables.
    """

    #: Which rule of the kernel or of the file system decides who has it, and when it is free.
    rule: ClassVar[str] = ""
    #: The package that it is about, which is imported only where such a lock is made; empty for none.
    package: ClassVar[str] = ""
    #: Seconds between two looks of `wait`; None when it sleeps until it is woken.
    interval: ClassVar[float | None] = 0.1

    def __init__(self, site: Site) -> None:
        self.site = site

    @abstractmethod
    def acquire(self) -> bool:
        """Try once, without waiting for the holder: True when it is had now, False when somebody else has it.

        Raises OSError when it could not even be tried.
        """

    @abstractmethod
    def release(self) -> None:
        """Give it back, the process living on."""

    def wait(self) -> None:
        """Wait until it is had. This way of it, sleeping and looking again, is for locks that offer no other."""
        while not self.acquire():
            time.sleep(self.interval or 0)

    def fileno(self) -> int | None:
        """The descriptor that is the lock, while it is had: who has that one has the lock. None: there is none."""
        return None


def title(kind: type[Kind]) -> str:
    """The first line of its docstring, without the full stop."""
    return (inspect.getdoc(kind) or kind.__name__).partition("\n")[0].rstrip(".")


def key_of(text: str) -> str:
    """What a kind is called in the tables, of what calls it on the command line: a key, or the path of a .py file."""
    return Path(text).stem if text.endswith(".py") else text


def known() -> dict[str, type[Kind] | ImportError]:
    """All kinds that come with bindlock, by key; the error where the library that a kind is about is not installed."""
    from bindlock.proof import kinds

    found: dict[str, type[Kind] | ImportError] = {}
    for info in pkgutil.iter_modules(kinds.__path__):
        key = info.name.replace("_", "-")
        kind = _kind_in(importlib.import_module(f"{kinds.__name__}.{info.name}"), key)
        missing = kind.package and importlib.util.find_spec(kind.package) is None
        found[key] = ImportError(f"{kind.package} is not installed", name=kind.package) if missing else kind
    return {key: found[key] for key in sorted(found, key=lambda key: (_rank(key), key))}


def load(text: str) -> type[Kind]:
    """The kind with that key; or, when it is the path of a .py file, the one in that file.

    Raises InvalidArgument when there is none, and what the code of such a file raises.
    """
    if text.endswith(".py"):
        return _kind_in(_run(text), key_of(text))
    name = "bindlock.proof.kinds." + text.replace("-", "_")
    try:
        return _kind_in(importlib.import_module(name), text)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InvalidArgument(f"{text!r} is no kind of lock: {', '.join(known())}, or a file.py") from None


def _run(path: str) -> ModuleType:
    # Under a name that no library has: the file is often called as the one that it is about.
    specification = importlib.util.spec_from_file_location(f"lock in {path}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        specification.loader.exec_module(module)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from None
    return module


def _kind_in(module: ModuleType, key: str) -> type[Kind]:
    kinds = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Kind) and value.__module__ == module.__name__
    ]
    if len(kinds) != 1:
        raise InvalidArgument(f"{key} defines {len(kinds)} kinds of lock; it must be one")
    return kinds[0]


def _rank(key: str) -> int:
    """Ours and what it is made of first; then what it replaces; then the libraries."""
    ports = ("tcp", "tcp-reuseaddr", "tcp-reuseport", "udp")
    order = ("bindlock", "abstract", "pathname", "pid-file", "pid-file-exclusive", "flock", "lockf", *ports)
    return order.index(key) if key in order else len(order)
