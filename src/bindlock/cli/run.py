"""``bindlock run``: have the lock, then become the command.

This is what bindlock is compared with flock(1) by, so its usual spellings are understood here without any library,
and an uncontended lock is had without loading more than the socket itself; all else is left to others: unusual or wrong
options to click (`bindlock.cli.commands`), a name that is taken to `bindlock.cli.contended`.
"""

import sys

from bindlock.linux.become import become, die_of_interrupts
from bindlock.linux.binding import Binding
from bindlock.names import SCOPES, parse

CONFLICT, NOT_EXECUTABLE, NOT_FOUND = 75, 126, 127
#: Seconds that a holder which is replaced has to go by itself.
GRACE = 10.0

#: The options and their spellings, those of flock(1) first; and whether they take a value.
OPTIONS = {
    "nonblock": (("-n", "--nb", "--nonblock"), False),
    "wait": (("-w", "--wait", "--timeout"), True),
    "conflict": (("-E", "--conflict-exit-code"), True),
    "shell": (("-c", "--command"), True),
    "scope": (("--scope",), True),
    "slots": (("--slots",), True),
    "replace": (("--replace",), False),
    "fork": (("--fork",), False),
    "quiet": (("-q", "--quiet"), False),
    "verbose": (("--verbose",), False),
}


class Plan:
    """What a command line of ``bindlock run`` asks for. Raises ValueError, with the reason, when that is nothing."""

    __slots__ = ("command", "conflict", "fork", "name", "quiet", "replace", "scope", "slots", "timeout", "verbose")

    def __init__(
        self, operands: list[str], *, nonblock: bool = False, wait: float | None = None, conflict: int = CONFLICT,
        shell: str | None = None, scope: str = "user", quiet: bool = False, verbose: bool = False,
        slots: int | None = None, replace: float | bool | None = None, fork: bool = False,
    ) -> None:  # fmt: skip
        if not operands:
            raise ValueError("no name given")
        self.name, *rest = operands
        if shell is None and rest and rest[0] in OPTIONS["shell"][0]:
            # flock(1)'s other order: the name, then -c and one string.
            if len(rest) != 2:
                raise ValueError(f"{rest[0]} takes exactly one string")
            shell, rest = rest[1], []
        if rest[:1] == ["--"]:
            del rest[0]
        if shell is None and not rest:
            raise ValueError("no command given")
        if shell is not None and rest:
            raise ValueError(f"either a string for the shell or a command, not both: {rest[0]!r}")
        self.command = rest if shell is None else [_shell(), "-c", shell]
        if nonblock and replace is not None:
            raise ValueError("either skip (-n) or replace, not both")
        if slots is not None and replace is not None:
            raise ValueError("no telling which of several to replace: either --slots or --replace")
        self.timeout = 0.0 if nonblock else wait
        self.slots = slots
        self.replace = GRACE if replace is True else replace
        self.fork = fork
        self.conflict = conflict
        self.scope = scope
        self.quiet = quiet
        self.verbose = verbose

    def carry_out(self) -> int:
        """Become the command; the exit status when that cannot be."""
        die_of_interrupts()
        descriptor = self._claim()
        if descriptor < 0:
            from bindlock.cli.contended import acquire

            lock = acquire(self)
            if isinstance(lock, int):
                return lock
            descriptor = lock.detach()
        if self.fork:
            from bindlock.cli.contended import supervise

            return supervise(self, descriptor)
        return self.become(descriptor)

    def become(self, descriptor: int) -> int:
        """Become the command, that has the lock by that descriptor; the exit status when that cannot be."""
        try:
            become(self.command, descriptor, {b"BINDLOCK_NAME": self.name.encode()})
        except (OSError, ValueError) as error:  # ValueError: a NUL within an argument
            from bindlock.cli.contended import explain_failure

            return explain_failure(self, error)

    def _claim(self) -> int:
        """The descriptor of the lock, had by the first row of `bindlock.lock.decide`; -1 when there is more to it."""
        if self.verbose or self.slots is not None:
            return -1
        try:
            name = parse(self.name, self.scope)
            binding = Binding(name.address, name.kind, False)
            binding.bind()
        except (OSError, ValueError):
            return -1
        return binding.detach()


def main(arguments: list[str]) -> int:
    """Carry out the command line after the word ``bindlock``; the exit status."""
    if arguments[:1] == ["run"]:
        plan = scan(arguments[1:])
        if plan is not None:
            return plan.carry_out()
    if sys.flags.no_site:
        import site

        site.main()  # scripts/bindlock starts us with -S; click is in site-packages
    from bindlock.cli.commands import main as click_main

    return click_main(arguments)


def scan(arguments: list[str]) -> Plan | None:
    """The plan, for options written one by one and in full; None for anything else, or wrong: click's to say."""
    options: dict[str, object] = {}
    rest = list(arguments)
    try:
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            if option == "--":
                break
            for key, (spellings, valued) in OPTIONS.items():
                if option in spellings:
                    options[key] = _VALUES.get(key, str)(rest.pop(0)) if valued else True
                    break
            else:
                return None
        return Plan(rest, **options)  # type: ignore[arg-type]
    except (IndexError, ValueError):
        return None


def seconds(text: str) -> float:
    """A time-out: seconds, with a fraction if need be. Raises ValueError for less than none, or not a number."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:  # NaN is not
        raise ValueError(f"{text!r} is no time-out: give seconds, 0 or more")
    return value


def status(text: str) -> int:
    """An exit status. Raises ValueError for anything but 0 to 255."""
    value = int(text) if text.isdecimal() else -1
    if not 0 <= value <= 255:
        raise ValueError(f"{text!r} is no exit status: it is from 0 to 255")
    return value


def scope(text: str) -> str:
    """A scope. Raises ValueError for anything else."""
    if text not in SCOPES:
        raise ValueError(f"{text!r} is no scope: it is 'user' or 'host'")
    return text


def slots(text: str) -> int:
    """A number of slots. Raises ValueError for less than one, or not a number."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise ValueError(f"{text!r} is no number of slots: it is 1 or more")
    return value


_VALUES = {"wait": seconds, "conflict": status, "scope": scope, "slots": slots}


def _shell() -> str:
    from posix import environ

    return environ.get(b"SHELL", b"").decode("utf-8", "surrogateescape") or "/bin/sh"
