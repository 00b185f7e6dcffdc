"""A private descriptor table: descriptors that no child can have, and that nobody else in the process can close.

The kernel's rules (clone(2), close_range(2), sigprocmask(2); kernel/fork.c, kernel/exit.c and fs/file.c, Linux 6.12 and
6.18):

* The descriptor table belongs to the thread (`task_struct.files`). Threads merely have one in common, until one of them
  unshares it. A child gets a copy of the table of the thread that makes it, be it by fork, vfork, clone or posix_spawn.
* close_range(2) with CLOSE_RANGE_UNSHARE (Linux 5.9) does both: a table of its own, and nothing in it. Without
  privilege. POSIX record locks belong to the table, too, so those of the others are not touched by what is closed here.
* A process is reported dead (`exit_notify` of the last thread) when each of its threads has closed its table.
* execve(2) ends all other threads (`de_thread`), and so the table. A forked child has only the thread that forked.
* A network namespace is a thread's, too: a new thread has that of the one that starts it.

So one thread per network namespace, started for the first descriptor and ended with the last, makes all system calls
for the sockets in its table. **No Python code ever runs in it**: not a byte code, so no tracer, profiler or handler of
signals; and no finalizer, for those close descriptors by number, and here the numbers mean other files.

* The thread executes ``any(map(call, chain.from_iterable(iter(commands.get, None))))``, C functions of the interpreter
  all of them. What it gets are iterators over C callables whose results are false, made by the thread that asks:
  `any` and `all` are its "until one fails" and "if it has failed" (`Request`).
* System calls are libc's, by ctypes, with ``restype`` a C callable, too, that says whether it failed. None raises, so
  no exception is made, and none ends the thread. No audit event is raised either: hooks are Python code. `PyDLL` does
  not release the GIL: no call here blocks, and errno is still that of the call when it is read.
* The collector of cycles runs in whichever thread comes by: since CPython 3.12 in the evaluation loop and in
  PyErr_CheckSignals, neither of which the thread gets to; in 3.11 whenever an object is made that it tracks. So none is
  made here: arguments are in a `partial`, whose tuple is passed on as it is when there are no more. What the thread
  drops the last reference to has been made by this module, and has no finalizer.
* Signals are blocked before the table is private. The C handler of CPython writes a byte into a descriptor
  (`signal.set_wakeup_fd`) in whichever thread the signal comes to.

**Whoever waits for the thread can be interrupted**, and then does not know how far it has got. So an iterator is used
up by being executed once; to post it again does no harm. Bookkeeping that has to be in step with a system call
(`claimed`, and the numbers that are free) is done by the thread, in the same iterator. Commands are executed in the
order in which they were posted, and are posted under a lock, as is the end of the thread: what was posted is executed.
Handlers and finalizers may have names of their own in the middle of all that, and the lock lets them in; what they
might change is looked at with no call between the look and the act.

**Descriptor 0 is the workbench.** The kernel gives out the lowest free number. All numbers above are given out here, so
0 is free whenever a request begins, and a socket that has just been made is 0 without anybody's having to be told.
"""

from __future__ import annotations

import errno
from _operator import call
from _queue import SimpleQueue
from _signal import SIG_SETMASK
from _thread import allocate_lock, start_new_thread
from functools import partial
from itertools import chain, count
from os import stat, strerror
from posix import register_at_fork
from sys import is_finalizing
from types import BuiltinFunctionType

from bindlock.linux.binding import fork_guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Hashable, Iterator
    from ctypes import PyDLL
    from typing import Any, TypeAlias

    #: Something of C, to be called without arguments.
    Step: TypeAlias = Callable[[], object]
    Steps: TypeAlias = Iterator[Step]

WORKBENCH = 0
#: The same number on every architecture but alpha; glibc has a function of that name since 2.34 only.
_CLOSE_RANGE, _CLOSE_RANGE_UNSHARE = 436, 2
_SIGSET_BYTES = 128
_CALLS = (
    "accept", "bind", "close", "connect", "dup2", "getsockname", "listen", "sendmsg", "sigprocmask", "socket", "statx",
    "syscall",
)  # fmt: skip
_execute: Callable[[Step], object] = call
_HAS_FAILED = frozenset({-1}).__contains__

_library: tuple[PyDLL, Any, Any, bool] | None = None
#: The threads that take commands. Gone in a forked child.
_live: set[Table] = set()
#: Those whose table is private, or was, by network namespace.
_tables: dict[Hashable, Table] = {}
#: What callers sleep on until the thread has done what they asked for.
_waiting: set[LockType] = set()


class PrivateTableRefused(OSError):
    """No private descriptor table can be had: no such system call, forbidden by a policy, or no thread."""

    action = "making a private descriptor table"


class Request:
    """System calls to be made one after the other, until one fails; and what came of them.

    Each step is a C callable whose result is true when it failed. `check` tells, once it was performed.
    """

    __slots__ = ("_errno", "_passed", "steps")

    def __init__(self, table: Table, *steps: Step, tidy: bool = True) -> None:
        from ctypes import byref, c_int

        self._errno = c_int()
        # That all has gone well is not concluded from the absence of an error.
        self._passed: list[bool] = []
        every: tuple[Step, ...] = (*steps, partial(self._passed.append, True))
        attempt = partial(any, map(_execute, every))
        note = partial(table.libc.memcpy, byref(self._errno), table.errno_location, 4)
        #: To be posted.
        self.steps: Steps = iter((partial(all, map(_execute, (attempt, note))), *((table.tidy,) if tidy else ())))

    @property
    def failure(self) -> int:
        """The errno of the step that failed; 0 when none did."""
        return 0 if self._passed else self._errno.value or errno.EIO

    def check(self) -> None:
        """Raises OSError when a step has failed."""
        failure = self.failure
        if failure:
            raise OSError(failure, strerror(failure))


class Table:
    """A private descriptor table and its thread."""

    __slots__ = (
        "_close", "_commands", "_free", "_is_main", "_locate", "_numbers",
        "claimed", "errno_location", "key", "libc", "tidy",
    )  # fmt: skip

    def __init__(self, key: Hashable) -> None:
        from ctypes import c_void_p

        self.key = key
        self.libc, self._close, self._locate, self._is_main = _libc()
        #: Where the thread has its errno.
        self.errno_location = c_void_p()
        #: Closes what is on the workbench.
        self.tidy: Step = partial(self._close, WORKBENCH)
        #: A token for every descriptor that is open, or may be.
        self.claimed: set[object] = set()
        self._commands: SimpleQueue[Steps | None] = SimpleQueue()
        self._free: list[int] = []
        self._numbers = count(WORKBENCH + 1)

    @property
    def alive(self) -> bool:
        """Whether its thread takes commands: not after its end, and not in a forked child."""
        return self in _live

    def call(self, name: str, *arguments: object) -> Step:
        """A system call, as a step of a request."""
        function: Any = getattr(self.libc, name, None)
        if function is None:
            raise OSError(errno.ENOSYS, f"libc has no {name}()")
        return partial(function, *arguments)

    def perform(self, steps: Steps) -> bool:
        """Have the thread execute that, unless it was executed before, and wait; False when there is no thread.

        A signal handler that raises ends the wait, and not what is waited for.
        """
        if is_finalizing():
            return False  # no other thread runs Python's code any more
        done = allocate_lock()
        done.acquire()
        _waiting.add(done)
        command = chain(steps, iter((done.release,)))
        try:
            with fork_guard:
                # From here to the call no signal handler or finalizer can end the thread, in this thread or another.
                if self not in _live:
                    return False
                self._commands.put(command)
            done.acquire()
            return done in _waiting  # else a signal handler has forked, and this is the child
        finally:
            _waiting.discard(done)

    def start(self) -> None:
        """Start the thread, and give it its table. Raises `PrivateTableRefused`."""
        from ctypes import create_string_buffer

        if type(start_new_thread) is not BuiltinFunctionType:
            # gevent and eventlet replace it by what runs in this very thread: its own table would be closed.
            raise PrivateTableRefused(errno.ENOTSUP, "threads are replaced by green ones")
        if not self._is_main:
            raise PrivateTableRefused(errno.ENOTSUP, "a subinterpreter cannot end while it has a thread like this")
        signals = create_string_buffer(_SIGSET_BYTES)
        self.libc.sigfillset(signals)
        locate = map(partial(setattr, self.errno_location, "value"), map(_execute, (self._locate,)))
        request = Request(
            self,
            partial(any, locate),
            self.call("sigprocmask", int(SIG_SETMASK), signals, None),
            self.call("syscall", _CLOSE_RANGE, 0, -1, _CLOSE_RANGE_UNSHARE),
            tidy=False,  # the workbench is everybody's standard input until the table is private
        )
        commands = chain.from_iterable(iter(self._commands.get, None))
        _live.add(self)
        try:
            start_new_thread(any, (map(_execute, commands),))
        except RuntimeError as error:  # Python does not say why; pthread_create(3) has this one errno for it
            raise PrivateTableRefused(errno.EAGAIN, str(error)) from error
        if not self.perform(request.steps):
            raise PrivateTableRefused(errno.ECANCELED, "the process has forked, or ends")
        if request.failure:
            raise PrivateTableRefused(request.failure, strerror(request.failure))

    def number(self) -> int:
        """A number for a descriptor, which nobody else has until `closing` was performed."""
        try:
            return self._free.pop()
        except IndexError:
            return next(self._numbers)

    def closing(self, token: object, number: int) -> Steps:
        """What closes a descriptor, if it is open, and gives its number and its token back."""
        return iter((
            partial(self._close, number),
            partial(self._free.append, number),
            partial(self.claimed.discard, token),
        ))  # fmt: skip

    def end_if_idle(self) -> None:
        """End the thread when nothing is open. To be called again when interrupted."""
        # One call of C code: no handler can come between, and leave a thread that nobody knows of, or one without.
        ending: Steps = iter((partial(_live.discard, self), partial(self._commands.put, None)))
        end = map(_execute, ending)
        with fork_guard:
            # From here to the call no signal handler or finalizer can claim anything in it.
            if not self.claimed and self in _live:
                any(end)


def _libc() -> tuple[PyDLL, Any, Any, bool]:
    """libc, its close(2) without a result, where errno is, and whether this is the main interpreter.

    Loaded when first needed, for ctypes takes its time.
    """
    global _library
    if _library is None:
        from ctypes import PyDLL, c_void_p

        loaded = PyDLL(None)
        for name in _CALLS:
            function: Any = getattr(loaded, name, None)  # statx(2) is in glibc since 2.28, in musl since 1.2.5
            if function is not None:
                function.restype = _HAS_FAILED
        # What is false, so that the thread goes on, whatever the result.
        loaded.memcpy.restype = None
        close = loaded["close"]
        close.restype = None
        location = loaded["__errno_location"]
        location.restype = c_void_p
        # poll(2) for one descriptor: fails unless that is ready.
        loaded.poll.restype = frozenset({-1, 0}).__contains__
        _library = loaded, close, location, _in_main_interpreter()
    return _library


def _in_main_interpreter() -> bool:
    try:
        from _thread import _is_main_interpreter as is_main  # type: ignore[attr-defined]  # CPython 3.12
    except ImportError:
        try:
            import _xxsubinterpreters as interpreters  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return True  # built without them
        return bool(interpreters.get_current() == interpreters.get_main())
    return bool(is_main())


def current() -> Table:
    """The table for the network namespace of the calling thread, started where there is none.

    To be called, and the result used, under the guard. Raises `PrivateTableRefused`.
    """
    key = _network_namespace()
    while True:
        table = _tables.get(key)
        if table is not None and table.alive:
            return table
        table = Table(key)
        try:
            table.start()
            _tables[key] = table
        except BaseException:
            try:
                table.end_if_idle()
            finally:
                table.end_if_idle()
            raise


def end_idle() -> None:
    """End every thread that has nothing open. To be called again when interrupted."""
    with fork_guard:
        for table in tuple(_tables.values()):
            table.end_if_idle()


def _network_namespace() -> Hashable:
    try:
        status = stat("/proc/thread-self/ns/net")
    except OSError:
        return None  # without /proc they cannot be told apart
    return status.st_dev, status.st_ino


def _wake_in_child() -> None:
    # A signal handler forks while the code it has interrupted waits for the thread: nobody else will ever answer.
    for done in tuple(_waiting):
        if done.locked():
            done.release()
        _waiting.discard(done)


# By C code, which no signal can interrupt; the last one twice, as in `bindlock.linux.binding`.
register_at_fork(after_in_child=_live.clear)
register_at_fork(after_in_child=_tables.clear)
register_at_fork(after_in_child=_wake_in_child)
register_at_fork(after_in_child=_wake_in_child)
