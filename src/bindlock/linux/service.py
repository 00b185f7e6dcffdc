"""A service manager's two protocols: telling it what we do, and taking the descriptors that it passes to us.

What is relied on (sd_notify(3), sd_listen_fds(3), systemd.service(5); src/libsystemd/sd-daemon/sd-daemon.c and
src/core/service.c of https://github.com/systemd/systemd, read at 252 and 257):

* NOTIFY_SOCKET names a Unix datagram socket, by path, or with an ``@`` in place of the leading NUL. One datagram is one
  message: lines of VARIABLE=value, and descriptors with it (SCM_RIGHTS, unix(7)). The manager knows whose message it is
  by the kernel's SCM_CREDENTIALS; nobody answers. So what must have been *done* needs BARRIER=1, sent alone with the
  writing end of a pipe: the manager closes that when it has dealt with all that came before.
* FDSTORE=1 leaves copies of the descriptors with the manager, up to FileDescriptorStoreMax=; it says nothing when it
  refuses them. A copy is an open file as any other: it keeps an abstract name bound. One that the manager has already
  (kcmp(2)) is not stored twice. It drops what hangs up (EPOLLHUP), which a listening socket never does, but one that is
  bound only does always (`unix_poll`), so send FDPOLL=0, too.
* Passed descriptors are those from 3 on, LISTEN_FDS of them, without close-on-exec, if LISTEN_PID is our PID. Both
  outlive an exec, not a fork. LISTEN_FDNAMES has their names, with colons between them. LISTEN_PIDFDID (systemd 257)
  tells those apart who have the same PID one after the other; it is not looked at here.
* A datagram socket that is connected is writable when its peer's queue has room; one that is not connected is always
  (`unix_dgram_poll`), and a send with a time-out would spin. So it is connected.
"""

from __future__ import annotations

import errno
import os
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_DGRAM, SOL_SOCKET, socket
from select import poll
from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that a manager is given which does not read its messages.
PATIENCE = 5.0
_FIRST = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


def notify(*lines: str, descriptors: Sequence[int] = (), timeout: float = PATIENCE) -> bool:
    """Send the service manager one message, and copies of the descriptors; False when nobody wants to hear.

    >>> import os
    >>> _ = os.environ.pop("NOTIFY_SOCKET", None)
    >>> notify("READY=1", "STATUS=Has the lock.")
    False

    True says that it was sent, not that it was read, or obeyed: see `barrier`. Raises TimeoutError when it could not be
    sent in `timeout` seconds, OSError when it could not at all, ValueError when one of the lines is several.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if any("\n" in line for line in lines):
        raise ValueError("a line of a message has no line break: what follows it would be another assignment")
    if address[0] not in "/@":
        raise OSError(errno.EAFNOSUPPORT, f"NOTIFY_SOCKET={address}: {os.strerror(errno.EAFNOSUPPORT)}")
    peer = os.fsencode(address)
    rights = [(SOL_SOCKET, SCM_RIGHTS, pack(f"={len(descriptors)}i", *descriptors))] if descriptors else []
    channel = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        channel.settimeout(timeout)
        channel.connect(b"\0" + peer[1:] if peer[:1] == b"@" else peer)
        channel.sendmsg(["\n".join(lines).encode(errors="surrogateescape")], rights)
    finally:
        channel.close()
    return True


def barrier(timeout: float = PATIENCE) -> bool:
    """Sleep until the service manager has dealt with every message sent before; False when there is none.

    What was sent with FDSTOREREMOVE=1 is closed then. Raises as `notify`: TimeoutError after `timeout` seconds.
    """
    ours, theirs = map(open, os.pipe(), ("rb", "wb"), (0, 0))
    with ours:
        with theirs:
            if not notify("BARRIER=1", descriptors=[theirs.fileno()], timeout=timeout):
                return False
        poller = poll()
        poller.register(ours, 0)  # POLLHUP cannot be declined
        if not poller.poll(timeout * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the service manager has not dealt with our messages")
    return True


def passed(*, unset: bool = False) -> list[tuple[int, str]]:
    """The descriptors that a service manager passed to this process, with their names: "unknown" where it gave none.

    >>> import os
    >>> _ = os.environ.pop("LISTEN_PID", None)
    >>> passed()
    []

    From now on they are closed on exec; each that is not used is the caller's to close. With `unset` the variables are
    removed, whatever happens, so that neither a second call nor a child finds them. Names are not unique: a socket unit
    gives the same to all of its sockets.

    As with sd_listen_fds_with_names(3), variables for another process, or missing, mean that nothing was passed, and
    malformed ones are an error, here ValueError; OSError (EBADF) when descriptors were announced that are not open.
    """
    try:
        return _passed()
    finally:
        if unset:
            for variable in _VARIABLES:
                os.environ.pop(variable, None)


def numbers() -> range:
    """The numbers of the descriptors that were passed to this process; each may have been closed since."""
    count = _number("LISTEN_FDS") if _number("LISTEN_PID") == os.getpid() else None
    return range(_FIRST, _FIRST + (count or 0))


def _passed() -> list[tuple[int, str]]:
    if _number("LISTEN_PID") != os.getpid():
        return []
    count = _number("LISTEN_FDS")
    if count is None:
        return []
    names = os.environ.get("LISTEN_FDNAMES")
    listed = ["unknown"] * count if names is None else names.split(":")
    if len(listed) != count:
        raise ValueError(f"LISTEN_FDNAMES={names!r} has {len(listed)} names for {count} descriptors")
    for descriptor in range(_FIRST, _FIRST + count):
        os.set_inheritable(descriptor, False)
    return list(enumerate(listed, _FIRST))


def _number(variable: str) -> int | None:
    """The value of a variable; None when it is not set. Raises ValueError when it is no number, or out of range."""
    text = os.environ.get(variable)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and 0 < int(text) <= 2**31 - 1 - _FIRST):
        raise ValueError(f"{variable}={text!r} is not a positive number")
    return int(text)
