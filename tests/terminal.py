"""A process on a terminal of its own: what it shows there, and the keys that are pressed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING

from tests.actors import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CTRL_C = b"\x03"
#: Variables that have programs take a terminal for another than it is.
OVERRIDES = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


class Terminal:
    """A command whose controlling terminal, standard input, output and error are a new pseudo-terminal.

    Use it in a `with` block: at its end the process is dead and reaped, and the terminal is closed.
    """

    def __init__(
        self, command: Sequence[str], *, rows: int = 24, columns: int = 80, env: Mapping[str, str] = os.environ
    ) -> None:
        env = {key: value for key, value in env.items() if key not in OVERRIDES} | {"TERM": "xterm-256color"}
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        try:
            self.process = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, preexec_fn=_take_terminal,
                env=env,
            )  # fmt: skip
        except BaseException:
            os.close(self._master)
            raise
        finally:
            os.close(slave)
        self.pid = self.process.pid
        #: All that has been shown, control sequences included.
        self.shown = ""
        self._seen = 0

    def read_until(self, pattern: str, deadline: float = DEADLINE) -> re.Match[str]:
        """Read until `pattern` was shown, after what an earlier call has found; fails the test after the deadline."""
        end = time.monotonic() + deadline
        while not (match := re.compile(pattern).search(self.shown, self._seen)):
            data = self._read(end)
            assert data, f"{pattern!r} was not shown before the end, but {self.shown[self._seen :]!r}"
            self.shown += data
        self._seen = match.end()
        return match

    def read_all(self, deadline: float = DEADLINE) -> str:
        """Read until the process has gone; all that was shown since it started."""
        end = time.monotonic() + deadline
        while data := self._read(end):
            self.shown += data
        return self.shown

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Read on, and wait for its exit: the status, negative for a signal."""
        self.read_all(deadline)
        return self.process.wait(deadline)

    def _read(self, end: float) -> str:
        ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"nothing more was shown in time after {self.shown[-200:]!r}"
        assert time.monotonic() < end, f"there is no end of what is shown, at last {self.shown[-200:]!r}"
        try:
            return os.read(self._master, 65536).decode(errors="surrogateescape")
        except OSError as error:
            if error.errno != errno.EIO:  # nobody has the other side open any more
                raise
            return ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(DEADLINE)
        os.close(self._master)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
