"""Everything bindlock raises: one small family, sorted by what the caller can do about it.

==================  ===========================================  ======  =========================
error               what happened                                status  what to do
==================  ===========================================  ======  =========================
`InvalidArgument`   a name, scope or time-out that makes no       64      correct the call
                    sense
`CannotLock`        the kernel or a policy did not let us try     69, 71  mend the machine
`Held`              somebody else has it                          75      wait, or leave
`Untrusted`         somebody has it who has no business with it   77      find out who, and why
`AlreadyHeld`       this thread or task has it itself             70      correct the program
`NotHeld`           released, but not held                        70      correct the program
`Lost`              the descriptor was closed behind our back     70      correct the program
`CannotSignal`      the holder could not be signalled             71      see its ``errno``
`NotHandedOver`     the lock did not change hands                 71      try again; nothing has changed
==================  ===========================================  ======  =========================

The statuses are those of sysexits.h; `BindlockError.exit_status` has them for programs that exit with one.
Every error can be pickled, so it survives a process pool.
"""

from __future__ import annotations

import errno as _errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bindlock.lock.holder import Holder

#: No lock of this kind can be had here at all: the kernel was built, or told, not to allow it.
_POLICY = frozenset({_errno.EAFNOSUPPORT, _errno.EPERM, _errno.EACCES, _errno.ENOSYS, _errno.EPROTONOSUPPORT})


class BindlockError(Exception):
    """Base of the family; never raised itself."""

    exit_status = 70

    @property
    def summary(self) -> str:
        """One line that says what happened, to which name, and who is in the way."""
        return str(self)


class InvalidArgument(BindlockError, ValueError):
    """A name, scope or time-out that cannot mean anything. Nothing was tried."""

    exit_status = 64


class Held(BindlockError, TimeoutError):
    """Somebody else holds the name, and the time to wait for it is over.

    `name` is the name as the caller wrote it. `holder` says who holds it, or is None when that could not be seen.
    """

    exit_status = 75

    def __init__(self, name: str, holder: Holder | None = None) -> None:
        self.name = name
        self.holder = holder
        super().__init__(self.summary)

    @property
    def summary(self) -> str:
        """One line: the name, who is in the way, and for how long that process has run."""
        if self.holder is not None and self.holder.slot:
            return f"all {self.holder.slot[1]} slots of {printable(self.name)} are held, one by {self.holder}"
        return f"{printable(self.name)} is held by {self.holder or 'a process that could not be seen'}"

    def __str__(self) -> str:
        return f"{self.summary}; wait longer, or end that process"

    def __reduce__(self) -> tuple[type[Held], tuple[str, Holder | None]]:
        return type(self), (self.name, self.holder)


class Untrusted(BindlockError):
    """The name is bound by a user whom its scope does not trust: never "already running, fine".

    Any local user can bind a free abstract name (`unix_bind_abstract` checks no permission), so a name of yours in
    the hands of a stranger is an accident or an attack. `uid` is the stranger's, by the kernel's word.
    """

    exit_status = 77

    def __init__(self, name: str, uid: int, holder: Holder | None = None) -> None:
        self.name = name
        self.uid = uid
        self.holder = holder
        super().__init__(
            f"{printable(name)} is held by an untrusted user: {holder or f'uid {uid}'}; "
            f"end that process, or share the name on purpose with scope 'host'"
        )

    def __reduce__(self) -> tuple[type[Untrusted], tuple[str, int, Holder | None]]:
        return type(self), (self.name, self.uid, self.holder)


class CannotLock(BindlockError, OSError):
    """The lock could not even be tried, so nothing is known about who holds it. `errno` is the kernel's answer."""

    def __init__(self, name: str, errno: int, action: str) -> None:
        self.name = name
        self.action = action
        super().__init__(errno, action)

    @property
    def exit_status(self) -> int:  # type: ignore[override]
        """69 where locks of this kind are not allowed at all, 71 for any other trouble of the system."""
        return 69 if self.errno in _POLICY else 71

    def __str__(self) -> str:
        code = self.errno or 0
        advice = {
            _errno.EMFILE: "close descriptors, or raise the limit (ulimit -n)",
            _errno.ENFILE: "the whole machine is out of descriptors (sysctl fs.file-max)",
            _errno.EAFNOSUPPORT: "Unix sockets are switched off here (seccomp, RestrictAddressFamilies=)",
        }.get(code, "a security policy (seccomp, AppArmor, SELinux) may be in the way" if code in _POLICY else "")
        return f"cannot lock {printable(self.name)}: {self.action}: {os_error(code)}" + (
            f"; {advice}" if advice else ""
        )

    def __reduce__(self) -> tuple[type[CannotLock], tuple[str, int, str]]:
        return type(self), (self.name, self.errno or 0, self.action)


class AlreadyHeld(BindlockError, RuntimeError):
    """The calling thread or task holds the name already, so that waiting for it could only wait for itself."""


class NotHeld(BindlockError, RuntimeError):
    """Released without being held."""


class Lost(BindlockError, RuntimeError):
    """The lock's descriptor was closed by other code of this process (`os.closerange` and its like).

    The name may have been free, and held by others, for some time: what it guarded must be considered unguarded.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{printable(name)} was lost: other code of this process closed its descriptor, and what the lock guarded "
            "has been unguarded since; see that closerange() and daemonising come before the lock"
        )

    def __reduce__(self) -> tuple[type[Lost], tuple[str]]:
        return type(self), (self.name,)


class CannotSignal(BindlockError):
    """The holder could not be signalled; `errno` is ESRCH when it is gone, EPERM when it is not ours to signal."""

    exit_status = 71

    def __init__(self, message: str, errno: int) -> None:
        self.errno = errno
        super().__init__(message)

    def __reduce__(self) -> tuple[type[CannotSignal], tuple[str, int]]:
        return type(self), (str(self), self.errno)


class NotHandedOver(BindlockError):
    """The lock was not sent, or not received. Who had it has it still, unless that process is gone."""

    exit_status = 71

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{printable(name)} was not handed over: {reason}")

    def __reduce__(self) -> tuple[type[NotHandedOver], tuple[str, str]]:
        return type(self), (self.name, self.reason)


def os_error(code: int) -> str:
    """The words and the symbol of an errno.

    >>> os_error(1)
    'Operation not permitted (EPERM)'
    """
    import os

    return f"{os.strerror(code)} ({_errno.errorcode.get(code, code)})"


def printable(text: str) -> str:
    r"""`text` with everything a terminal might obey escaped; strangers choose names and command lines.

    >>> print(printable("a\x1b[31m\u202eb"))
    a\x1b[31m\u202eb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
