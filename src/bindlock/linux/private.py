"""Having an abstract Unix address by a socket that is in a private descriptor table: see `bindlock.linux.table`.

What that means, beside the rules of `bindlock.linux.binding`:

* No child has the socket, however and wherever it is made: not between fork and exec, and not one of C code, of which
  Python's at-fork hooks see nothing. So the name is free the moment that the process is gone, and at `close`, whatever
  children there are.
* Nobody in the process has it either: os.closerange() does not lose it, and there is no number to pass on.
* It goes with this process: at execve(2), and when a daemon's parent exits. A forked child has nothing.
* Such a socket is in /proc/PID/task/TID/fd, and not in /proc/PID/fd.
* While a name is had the process has a second thread. CPython 3.12 and later warn of that at os.fork().

What else is a thread's own (a sandbox of Landlock or seccomp, say) is, for the sockets, that of the thread that had the
first name, as it was then.
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET
from itertools import chain
from os import strerror
from select import POLLIN
from sys import byteorder, is_finalizing

from bindlock.linux.binding import BACKLOG, FLAGS, SPENT, Binding, fork_guard, others, this_thread
from bindlock.linux.table import WORKBENCH, Request, current, end_idle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from bindlock.linux.table import Step, Steps, Table

_AT_EMPTY_PATH, _STATX_INO, _STATX_BYTES, _STATX_INO_AT = 0x1000, 0x100, 256, 32
_FAMILY = struct.pack("=H", AF_UNIX)
#: Every claim on a name that this process has, and did not detach.
_bound: dict[object, PrivateBinding] = {}


class _Claim:
    """A descriptor in the table, from before it is open until after it is closed."""

    __slots__ = ("_closing", "inode", "number", "table", "token")

    table: Table
    _closing: Steps

    def __init__(self) -> None:
        self.token = object()
        self.number = -1
        self.inode = 0

    @property
    def open(self) -> bool:
        return self.number >= 0 and self.token in self.table.claimed and self.table.alive

    def take(self) -> None:
        """Have a table, and a number in it. To be followed by `close`, also when it raises."""
        with fork_guard:
            while not self.open:  # a finalizer or signal handler may have ended an idle table just now
                table = current()
                number = table.number()
                closing = table.closing(self.token, number)
                self.table = table
                self._closing = closing
                self.number = number
                table.claimed.add(self.token)

    def closing(self) -> Steps:
        """What closes it, to be performed with something else."""
        return self._closing

    def close(self) -> None:
        """Close it. To be called again when interrupted."""
        if self.number >= 0:
            if self.token in self.table.claimed:
                self.table.perform(self._closing)
            self.table.end_if_idle()
        else:
            end_idle()  # one that `take` has started, and was interrupted


class PrivateBinding(Binding):
    """The same in a private descriptor table: the name is had exactly while `bound`."""

    __slots__ = ("_claim",)

    def __init__(self, address: bytes, kind: int, share: bool = False) -> None:
        if share:
            raise ValueError("a socket in a private descriptor table cannot be shared")
        super().__init__(address, kind, False)
        self._claim: _Claim | None = None

    @property
    def bound(self) -> bool:
        """Whether this process has the socket, as far as Python knows (no system call)."""
        return self._claim is not None and self._claim.open

    def bind(self, spare: list[socket] | None = None) -> None:  # noqa: ARG002
        """Take the name, with the system calls socket, bind, listen. Nothing is spared here: all are one request.

        Raises OSError: EADDRINUSE when it is taken; `PrivateTableRefused` when no private descriptor table can be had;
        anything else when it could not be tried. Whatever is raised, also by a signal handler and at whatever instant,
        nothing is bound afterwards.
        """
        if self.bound:
            raise OSError(errno.EADDRINUSE, "bound already")
        thread = this_thread()
        claim = _Claim()
        try:
            claim.take()
            opening = Request(claim.table, *self._opening(claim))
            if not claim.table.perform(opening.steps):
                raise OSError(errno.ECANCELED, "the process has forked, or ends")
            if opening.failure == errno.EBADF:  # dup2(2) on a number that RLIMIT_NOFILE does not allow
                raise OSError(errno.EMFILE, strerror(errno.EMFILE))
            opening.check()
            _bound[claim.token] = self
            self.thread = thread
            self._claim = claim
        except BaseException:
            try:
                claim.close()
            finally:
                claim.close()  # a second signal has kept us from it, or nothing to do
                _bound.pop(claim.token, None)
            raise

    def _opening(self, claim: _Claim) -> list[Step]:
        call = claim.table.call
        address = _FAMILY + self.address
        steps = [
            call("socket", int(AF_UNIX), self.kind | FLAGS, 0),
            call("bind", WORKBENCH, address, len(address)),
        ]
        if self.kind == SOCK_STREAM:
            steps.append(call("listen", WORKBENCH, BACKLOG))
        # Last: as long as anything can fail there is nothing but the workbench to be cleared.
        steps.append(call("dup2", WORKBENCH, claim.number))
        return steps

    def close(self) -> None:
        """Let the name go; also when a signal handler raises, but for one that raises twice: `bound` tells."""
        claim = self._claim
        if claim is not None:
            try:
                claim.close()
            except BaseException:
                claim.close()  # a signal handler has raised; the thread may not have been asked yet
                raise
            finally:
                if not claim.open:
                    _bound.pop(claim.token, None)

    def stow(self, ticket: Binding) -> None:
        """Give up the ticket with which we came by the name: at once when nobody is queued at it, else with the name.

        `ticket` is closed in any case; the kernel may keep the socket, in the queue of this one.
        """
        assert isinstance(ticket, PrivateBinding)
        own, other = self._claim, ticket._claim
        try:
            if own is not None and other is not None and own.table is other.table and own.open and other.open:
                own.table.perform(chain(Request(own.table, *self._stowing(other)).steps, other.closing()))
        finally:
            ticket.close()

    def _stowing(self, ticket: _Claim) -> list[Step]:
        from ctypes import create_string_buffer

        call = ticket.table.call
        address = _FAMILY + self.address
        wanted = struct.pack("@ihh", ticket.number, POLLIN, 0)
        return [
            call("poll", create_string_buffer(wanted, len(wanted)), 1, 0),
            call("listen", ticket.number, SPENT),
            call("socket", int(AF_UNIX), SOCK_STREAM | FLAGS, 0),
            call("connect", WORKBENCH, address, len(address)),
            call("sendmsg", WORKBENCH, _message(ticket.number), 0),
        ]

    def adopt(self, descriptor: int) -> None:
        """Raise OSError (EOPNOTSUPP): a descriptor of the process's table cannot be moved to one that nobody has."""
        raise OSError(errno.EOPNOTSUPP, f"descriptor {descriptor}: {strerror(errno.EOPNOTSUPP)}")

    def renew(self) -> None:
        """Nothing is to be done: a forked child does not have the name."""

    def detach(self) -> int:
        """Forget the socket and leave it open, for as long as the process lives: -1, for it has no number out here."""
        claim = self._claim
        if claim is not None:
            _bound.pop(claim.token, None)
            self._claim = None
        return -1

    def forget_if_lost(self) -> bool:
        """Whether the socket was lost, which no code outside of the interpreter's and libc's own can bring about."""
        claim = self._claim
        if claim is None or not claim.open or self.verify():
            return False
        self.close()
        return True

    def fileno(self) -> int:
        """-1: in the table of the calling thread there is no such descriptor."""
        return -1

    def inode(self) -> int:
        """The inode of the bound socket: what sock_diag(7) and /proc call it by; 0 when it is bound no more."""
        from ctypes import create_string_buffer

        claim = self._claim
        if claim is None or not claim.open:
            return 0
        if not claim.inode:
            status = create_string_buffer(_STATX_BYTES)
            arguments = claim.number, b"", _AT_EMPTY_PATH, _STATX_INO, status
            asking = Request(claim.table, claim.table.call("statx", *arguments))
            if not claim.table.perform(asking.steps) or not claim.open:
                return 0
            asking.check()
            claim.inode = int.from_bytes(status.raw[_STATX_INO_AT : _STATX_INO_AT + 8], byteorder)
        return claim.inode

    def drop_dead(self, count: int) -> None:
        """Accept and close the first `count` connections of the queue, whose clients are gone.

        Closing one that still waits would be no harm, only a wake-up for nothing: its owner tries the name and queues
        again.
        """
        claim = self._claim
        if claim is None or not claim.open:
            return
        accept_one = claim.table.call("accept", claim.number, None, None), claim.table.tidy
        dropping = Request(claim.table, *accept_one * count)
        if claim.table.perform(dropping.steps) and claim.open and dropping.failure != errno.EAGAIN:
            dropping.check()  # EAGAIN: somebody else emptied the queue

    def verify(self) -> bool:
        """Ask the kernel whether the bound socket is still there."""
        from ctypes import byref, c_uint, create_string_buffer

        claim = self._claim
        if claim is None or not claim.open or is_finalizing():
            return claim is not None and claim.open  # the thread cannot be asked while the interpreter ends
        address = create_string_buffer(len(_FAMILY) + 108)
        length = c_uint(len(address))
        asking = Request(claim.table, claim.table.call("getsockname", claim.number, address, byref(length)))
        if not claim.table.perform(asking.steps) or asking.failure:
            return False
        return address.raw[: length.value] == _FAMILY + self.address and claim.open


def bindings() -> list[Binding]:
    """The names that this process has now, in private tables."""
    found: list[Binding] = []
    for token, binding in list(_bound.items()):
        claim = binding._claim
        if claim is not None and claim.token is token and claim.open:
            found.append(binding)
        elif claim is None or not claim.open:
            _bound.pop(token, None)  # a forked child's, or of one that was closed by two exceptions
    return found


def _message(descriptor: int) -> object:
    """A message for sendmsg(2) of one byte and a descriptor, which keeps alive what it points to."""
    from ctypes import addressof, create_string_buffer

    payload = create_string_buffer(b"\0", 1)
    vector = create_string_buffer(struct.pack("@PN", addressof(payload), 1))
    right = struct.pack("@Niii", struct.calcsize("@Niii"), int(SOL_SOCKET), int(SCM_RIGHTS), descriptor)
    control = create_string_buffer(right, len(right))
    header = struct.pack("@PIPNPNi", 0, 0, addressof(vector), 1, addressof(control), len(right), 0)
    message = create_string_buffer(header, len(header))
    message.parts = payload, vector, control  # type: ignore[attr-defined]
    return message


others.append(bindings)
