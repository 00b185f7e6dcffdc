"""Becoming a command: execve(2), with nothing of this interpreter left in what the command inherits.

What CPython changes at its start: it ignores SIGPIPE and SIGXFSZ (`_PySignal_Init`), which exec would pass on. They get
their default action here, as with `subprocess`; what was before can no longer be known. And in the C locale it sets
LC_CTYPE (PEP 538), which the command would take for its user's wish: that is undone.
"""

from _signal import SIG_DFL, SIGINT, SIGPIPE, SIGXFSZ, default_int_handler, getsignal, signal
from posix import dup, environ, execve, set_inheritable  # not os: see `bindlock.names`
from sys import getfilesystemencodeerrors, getfilesystemencoding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_COERCED = (b"C.UTF-8", b"C.utf8", b"UTF-8")  # PEP 538's choices
_NO_PATH = b"/bin:/usr/bin"  # what execvp(3) searches without PATH


def die_of_interrupts() -> None:
    """Let Ctrl-C end this process as any other, by the signal, rather than raise KeyboardInterrupt."""
    if getsignal(SIGINT) is default_int_handler:  # and not ignored, as under nohup or in the background of a script
        signal(SIGINT, SIG_DFL)


def become(command: list[str], descriptor: int, variables: dict[bytes, bytes]) -> "NoReturn":
    """Execute `command`, found as execvp(3) does, in this process; it inherits `descriptor` under the number that the
    variable BINDLOCK_FD tells.

    Raises OSError when it cannot be executed: ENOENT or ENOTDIR when it was not found.
    """
    while descriptor < 3:  # standard streams were closed: the command would read or write the lock for them
        descriptor = dup(descriptor)
    set_inheritable(descriptor, True)
    signal(SIGPIPE, SIG_DFL)
    signal(SIGXFSZ, SIG_DFL)
    environment = {**environ, **variables, b"BINDLOCK_FD": str(descriptor).encode()}
    if environment.get(b"LC_CTYPE") in _COERCED:
        given = _given(b"LC_CTYPE=")
        if given is None:
            del environment[b"LC_CTYPE"]
        else:
            environment[b"LC_CTYPE"] = given
    if not command[0]:
        raise FileNotFoundError(2, "No such file or directory")  # as execve(2) says; Python's has no errno
    failure: OSError | None = None
    for path in _candidates(command[0]):
        try:
            _execute(path, command, environment)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            # As a shell does: "permission denied" for one that is there says more than "not found" for the last.
            if not isinstance(failure, PermissionError):
                failure = error
    assert failure is not None
    raise failure


def _candidates(program: str) -> list[bytes]:
    encoded = program.encode(getfilesystemencoding(), getfilesystemencodeerrors())
    if "/" in program or not program:
        return [encoded]
    return [(directory or b".") + b"/" + encoded for directory in environ.get(b"PATH", _NO_PATH).split(b":")]


def _execute(path: bytes, command: list[str], environment: dict[bytes, bytes]) -> "NoReturn":
    try:
        execve(path, command, environment)
    except FileNotFoundError:
        raise
    except OSError as error:
        from errno import ENOEXEC

        if error.errno != ENOEXEC:
            raise
        # A script without "#!": execvp(3) has the shell read it, and so has flock(1).
        execve("/bin/sh", ("sh", path, *command[1:]), environment)


def _given(variable: bytes) -> bytes | None:
    """Its value at this process's own exec; None when it had none, or there is no /proc to tell (a chroot)."""
    try:
        with open("/proc/self/environ", "rb") as given:
            entries = given.read().split(b"\0")
    except OSError:
        return None
    return next((entry[len(variable) :] for entry in entries if entry.startswith(variable)), None)
