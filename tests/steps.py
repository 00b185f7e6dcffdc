"""Processes that wait for a name: where they stand, whether they sleep, and stopping them at any of their system calls.

Stopping is ptrace(2): the kernel holds the process before a system call is made, and again after it. Between two such
stops there is nothing that another process could see, so to be killed or stopped at each of them is to be killed or
stopped everywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import select
import signal
import struct
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from socket import AF_UNIX, SOCK_NONBLOCK, SOCK_STREAM, socket
from typing import TYPE_CHECKING

import bindlock.lock.block
import bindlock.lock.waiter
from bindlock.linux.diag import Diag, Entry
from bindlock.lock import decide, tickets
from bindlock.names import parse
from bindlock.proof.kernel.call import call
from tests.actors import DEADLINE, Child, bindable, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bindlock.names import Name

#: poll(2), in which the lock sleeps, and nothing else in the tests does; clock_nanosleep(2); bind(2).
_POLL, _SLEEP, _BIND = {"x86_64": ("7", "230", 49), "aarch64": ("73", "115", 200)}.get(platform.machine(), ("",) * 3)
numbers_reason = None if _POLL else f"the numbers of system calls on {platform.machine()} are not known here"
#: What cannot be had as a descriptor, and so marks, as the argument of close(2), a place in a trace.
_MARK = 0x5EED5EED
_SEIZE, _INTERRUPT, _SYSCALL, _DETACH, _GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 17, 0x420E
_TRACE_SYSTEM_CALLS_PLAINLY = 1  # PTRACE_O_TRACESYSGOOD: they are told from signals
_STOPPED_AT_CALL = signal.SIGTRAP | 0x80
#: ptrace_syscall_info: what it is, architecture, two addresses, then the number and six arguments, or the result.
_INFO = struct.Struct("=B3xIQQQ6Q")
_ENTRY = 1
_NAMES = {
    "x86_64": {
        0: "read", 1: "write", 3: "close", 7: "poll", 9: "mmap", 11: "munmap", 12: "brk", 23: "select", 41: "socket",
        42: "connect", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 49: "bind", 50: "listen", 55: "getsockopt",
        202: "futex", 270: "pselect6",
    },
    "aarch64": {
        57: "close", 63: "read", 64: "write", 72: "pselect6", 73: "ppoll", 98: "futex", 198: "socket", 200: "bind",
        201: "listen", 203: "connect", 206: "sendto", 207: "recvfrom", 209: "getsockopt", 211: "sendmsg", 214: "brk",
        215: "munmap", 222: "mmap",
    },
}.get(platform.machine(), {})  # fmt: skip


def sockets(name: str, scope: str = "user") -> tuple[Entry | None, list[Entry]]:
    """What is bound to a name, and all of its tickets, whosesoever and spent ones included, by number."""
    parsed = parse(name, scope)
    is_ticket = tickets.of(parsed)
    with Diag() as diag:
        entries = diag.bound(lambda address: address == parsed.address or is_ticket(address))
    found = [entry for entry in entries if entry.key != parsed.key]
    found.sort(key=lambda entry: tickets.number(entry.address) or 0)
    return next((entry for entry in entries if entry.key == parsed.key), None), found


def inodes(pid: int) -> list[int]:
    """The sockets that a process has open, by inode."""
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed since
            link = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            if link.startswith("socket:"):
                found.append(int(link[8:-1]))
    return found


def system_call(pid: int) -> str | None:
    """The number of the system call that a process, its first thread, sleeps in; None when it does not sleep."""
    with open(f"/proc/{pid}/syscall") as file:  # not said before it is really off the CPU
        number = file.read().split()[0]
    with open(f"/proc/{pid}/stat") as file:
        return number if file.read().rpartition(") ")[2][0] == "S" and number != "running" else None


def queued(pid: int) -> bool:
    """Whether a process sleeps in somebody's queue, for the kernel to wake it."""
    return system_call(pid) == _POLL


def waits(pid: int) -> bool:
    """Whether a process sleeps in somebody's queue, or for a time, to try again."""
    return system_call(pid) in (_POLL, _SLEEP)


def switches(pid: int) -> int:
    """How often a process, its first thread, has gone to sleep."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))


class Contender(Child):
    """A process that reaches for a name when told to, holds it until told to let go, and says so."""

    def go(self) -> None:
        """Have it reach for the name."""
        self.say("go")

    def join(self) -> None:
        """The same, and wait until it sleeps in a queue."""
        self.go()
        until(lambda: queued(self.pid))

    def let_go(self) -> None:
        """Have it release the name, and wait until it has."""
        self.say("let go")
        self.expect("released")


class Member(Contender):
    """A process that waits for a name when told to, holds it until told to let go, and stays.

    `patience` is how long it waits behind a ticket before it tries the name by itself; for ever unless that is said,
    so that nobody is helped out of a sleep that should never have been.
    """

    def __init__(
        self, name: str, *, scope: str = "user", timeout: float | None = None, patience: float = float("inf"),
        before: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        def body(child: Child) -> None:
            decide.PATIENCE = patience
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            lock = bindlock.Lock(name, scope=scope)
            descriptors = len(os.listdir("/proc/self/fd"))
            child.hear()
            outcome = "held"
            try:
                _mark()
                lock.acquire(timeout)
            except (bindlock.Held, KeyboardInterrupt) as error:
                outcome = type(error).__name__
            # Not before the traceback is gone, which may be the last to refer to a socket.
            if outcome != "held":
                assert not lock.held
                assert len(os.listdir("/proc/self/fd")) == descriptors, "descriptors left open"
                child.say(outcome)
            else:
                child.say("held")
                child.hear()
                assert len(os.listdir("/proc/self/fd")) == descriptors + 1, "the lock is one descriptor"
                lock.release()
                _mark()
                child.say("released")
            child.hear()

        super().__init__(body)


class Call:
    """One system call of a traced process, made."""

    def __init__(self, number: int, arguments: tuple[int, ...]) -> None:
        self.number = number
        self.arguments = arguments

    @property
    def name(self) -> str:
        return _NAMES.get(self.number, f"system call {self.number}")

    @property
    def marks(self) -> bool:
        """Whether it is the mark, and not one of the steps."""
        return self.arguments[0] & 0xFFFFFFFF == _MARK


class Traced:
    """A child of ours that is stopped before each of its system calls, and after it, from now on."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            _ptrace(_SEIZE, pid, _TRACE_SYSTEM_CALLS_PLAINLY)
        except PermissionError as error:
            import pytest

            pytest.skip(f"tracing is not allowed here ({error})")
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, 0)

    def steps(self, asleep: Callable[[], object]) -> Iterator[Call]:
        """Every system call from the first mark, itself included, to the second, excluded; the process stands after it.

        `asleep` is called whenever it sleeps in one: to do what it is to be woken by.
        """
        begun = False
        entered = None
        while True:
            self._go_on(asleep)
            seen = self._look()
            if isinstance(seen, Call):
                entered = seen
                if begun and seen.marks:
                    return
            elif entered is not None:
                begun = begun or entered.marks
                if begun:
                    yield entered

    def to(self, name: str, count: int = 1, asleep: Callable[[], object] = lambda: None) -> None:
        """Go on to its `count`th system call of that name from here, and stand before it."""
        while count:
            self._go_on(asleep)
            seen = self._look()
            count -= isinstance(seen, Call) and seen.name == name

    def stop(self) -> None:
        """Leave it to itself, stopped by SIGSTOP where it stands."""
        os.kill(self.pid, signal.SIGSTOP)
        _ptrace(_DETACH, self.pid)
        until(lambda: state(self.pid) == "T")

    def leave(self) -> None:
        """Leave it to itself."""
        _ptrace(_DETACH, self.pid)

    def _go_on(self, asleep: Callable[[], object]) -> None:
        _ptrace(_SYSCALL, self.pid)
        before = -1
        while True:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                break
            now = switches(self.pid)
            if now != before and system_call(self.pid):
                before = now
                asleep()
        assert os.WIFSTOPPED(status), f"it ended, with status {os.waitstatus_to_exitcode(status)}"

    def _look(self) -> Call | None:
        buffer = ctypes.create_string_buffer(_INFO.size)
        _ptrace(_GET_SYSCALL_INFO, self.pid, ctypes.addressof(buffer), _INFO.size)
        what, _, _, _, number, *arguments = _INFO.unpack(buffer.raw)
        return Call(number, tuple(arguments)) if what == _ENTRY else None


def state(pid: int) -> str:
    """The letter of its state: R, S, T, t, Z (proc(5), stat)."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def _mark() -> None:
    with suppress(OSError):
        os.close(_MARK)


def _ptrace(request: int, pid: int, data: int = 0, size: int = 0) -> None:
    # GET_SYSCALL_INFO has the size where others have an address.
    call("ptrace", ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(size), ctypes.c_long(data))


@contextmanager
def line(name: str, count: int, *, scope: str = "user") -> Iterator[tuple[Member, list[Member]]]:
    """A holder, and so many who wait behind it, each since the one before has slept in the queue."""
    with ExitStack() as stack:
        holder, *waiting = (stack.enter_context(Member(name, scope=scope)) for _ in range(count + 1))
        holder.go()
        holder.expect("held")
        for member in waiting:
            member.join()
        yield holder, waiting


def serve(members: Sequence[Member]) -> None:
    """See that they have the name in that order, one at a time, and let it go."""
    for number, member in enumerate(members):
        member.expect("held")
        assert not any(other.heard_within(0) for other in members[number + 1 :]), "two at once, or out of order"
        member.let_go()


def serve_all(members: Sequence[Member]) -> None:
    """See that they have the name in whatever order, one at a time, and let it go."""
    left = {member.ends()[0]: member for member in members}
    while left:
        ready, _, _ = select.select(list(left), [], [], DEADLINE)
        assert len(ready) == 1, "nobody, or two at once"
        member = left.pop(ready[0])
        member.expect("held")
        member.let_go()


def nothing_left(name: str, scope: str = "user") -> None:
    """The name is free, and nothing else is bound for its sake."""
    assert bindable(name, scope)
    stem = tickets.stem(parse(name, scope))
    with Diag() as diag:
        assert [entry.address for entry in diag.bound(lambda address: address.startswith(stem))] == []


class Crowd:
    """More processes than `Child` has descriptors for: they say who holds, and go on one by one."""

    def __init__(self, name: str, count: int) -> None:
        self.said, self._say = os.pipe()
        self._go, self._end = os.eventfd(0), os.eventfd(0)
        self.pids = []
        for number in range(count):
            pid = os.fork()
            if not pid:
                self._wait(name, number)
            self.pids.append(pid)
            until(partial(queued, pid))

    def _wait(self, name: str, number: int) -> None:
        try:
            lock = bindlock.Lock(name)
            lock.acquire()
            os.write(self._say, b"%d\n" % number)
            os.eventfd_read(self._go)
            lock.release()
            os.eventfd_read(self._end)
        finally:
            os._exit(1)

    def holder(self) -> int:
        """The number of the one that holds, and sleeps; no other may say so before it is told to let go."""
        assert select.select([self.said], [], [], DEADLINE)[0], "nobody has the name"
        number = int(os.read(self.said, 1000))
        until(lambda: not queued(self.pids[number]) and system_call(self.pids[number]))
        assert not select.select([self.said], [], [], 0)[0], "two at once"
        return number

    def let_go(self) -> None:
        os.eventfd_write(self._go, 1)

    def close(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for descriptor in (self.said, self._say, self._go, self._end):
            os.close(descriptor)


def fill(address: bytes) -> None:
    """Fill the queue of whoever listens there, with connections that are closed again."""
    refusal = 0
    while not refusal:
        with socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK) as client:
            refusal = client.connect_ex(address)
    assert refusal == errno.EAGAIN


def forbid_long_addresses(name: Name) -> None:
    """From now on this process can bind no address that is longer than that of `name`: no ticket, that is."""
    longest = 2 + len(name.address)  # of sockaddr_un, the family first
    instructions = [
        (0x20, 0, 0, 0),  # load seccomp_data.nr
        (0x15, 0, 3, _BIND),  # jump if equal
        (0x20, 0, 0, 32),  # load seccomp_data.args[2], its low half
        (0x25, 0, 1, longest),  # jump if greater
        (0x06, 0, 0, 0x00050000 | errno.EACCES),  # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("prctl", 22, 2, header, 0, 0)  # PR_SET_SECCOMP, a filter


def limit_descriptors(spare: int) -> None:
    """Let this process have so many descriptors more than it has now."""
    used = {int(number) for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")}
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 1 + spare,) * 2)
    for number in range(max(used)):
        if number not in used:
            os.open("/dev/null", os.O_RDONLY)
