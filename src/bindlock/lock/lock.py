"""The lock itself: a name, and whether this object has it."""

from __future__ import annotations

import errno
import sys

from bindlock.linux.binding import Binding
from bindlock.names import Name, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket
    from typing import Literal, Self, TypeAlias

    from bindlock.lock.holder import Holder

    Children: TypeAlias = Literal["drop", "share", "never"]

#: "As the constructor said": None means something else, for ever.
_INHERIT = -1.0
#: Seconds that the other side of a hand-over is given.
HAND_OVER = 10.0


class Lock:
    """Only one at a time, in this network namespace, has a name.

    `name` and `scope` are explained in `bindlock.names`. `timeout` is how many seconds an acquire waits unless it says
    otherwise; None waits for ever, 0 not at all. `children` says what becomes of the lock in a forked child
    (`os.fork`, multiprocessing): ``"drop"``: the child has nothing; ``"share"``: the name is held until the last of
    them has released it or is gone; ``"never"``: no child can have it, however it is made, at the price of a thread,
    and of a name that is free after SIGKILL although another thread is still inside a system call it cannot leave. A
    child started with subprocess has none of them, once it executes its program.

    Threads are treated as processes are: any number of them exclude each other, through one Lock object or many. Any
    thread may release.

    >>> with Lock("doctest-lock", timeout=5) as lock:
    ...     lock.held, Lock("doctest-lock").try_acquire()
    (True, False)
    >>> lock.held
    False

    Raises `InvalidArgument` for what cannot be a name, scope, time-out or kind of children.
    """

    __slots__ = ("__weakref__", "_binding", "_children", "_name", "timeout")

    _binding: Binding

    def __init__(
        self, name: str, *, scope: str = "user", timeout: float | None = None, children: Children = "drop"
    ) -> None:
        self._name: Name = parse(name, scope)
        #: Seconds that an acquire waits unless it says otherwise; None: for ever.
        self.timeout = check_timeout(timeout)
        if children not in ("drop", "share", "never"):
            raise _invalid(f"unknown children {children!r}: it is 'drop', 'share' or 'never'")
        self._children: Children = children
        self._binding = _kind(children)(self._name.address, self._name.kind, children == "share")

    @property
    def name(self) -> str:
        """The name, as written."""
        return self._name.text

    @property
    def held(self) -> bool:
        """Whether this object, in this process, has the name: asked of the kernel, so true of forked children, too."""
        return self._binding.verify()

    def acquire(
        self, timeout: float | None = _INHERIT, *, replace: float | None = None,
        waiting: Callable[[Holder], object] | None = None,
    ) -> None:  # fmt: skip
        """Have the name, or raise; nothing is held then, whatever is raised.

        `timeout` is in seconds, None is for ever, and by default it is the constructor's. `waiting` is called once,
        with whoever is in the way, if there is somebody to wait for. `replace` ends who has the name: SIGTERM, and
        after so many seconds SIGKILL, to just that process, by pidfd. Raises

        * `Held` when somebody else has the name and the time is over: its `holder` says who;
        * `Untrusted` when the scope does not trust the user who has it;
        * `CannotLock` when it could not be tried: out of descriptors, or forbidden by a policy;
        * `AlreadyHeld` when this object is held by the calling thread, or when it would wait without end for itself;
        * `InvalidArgument` for a negative time-out, NaN, or a grace that is no number of seconds;
        * `CannotSignal` when a holder that is to be replaced is not ours to signal.

        Holders that were killed a moment ago are given up to 0.25 s to be gone, whatever the time-out.
        """
        if timeout is not _INHERIT:
            check_timeout(timeout)
        if replace is not None and not 0 <= replace < float("inf"):
            raise _invalid(f"a grace of {replace} s makes no sense: give seconds, 0 or more")
        try:
            self._binding.bind()
            return
        except OSError as error:
            if error.errno is None:
                raise  # not the kernel's: a signal handler's, such as TimeoutError
            if error.errno != errno.EADDRINUSE:
                from bindlock.errors import CannotLock

                action = getattr(error, "action", "binding its name")  # see `bindlock.linux.table`
                raise CannotLock(self.name, error.errno or 0, action) from error
        timeout = self.timeout if timeout is _INHERIT else timeout
        if replace is None:
            from bindlock.lock import block

            block.acquire(self._name, self._binding, timeout, waiting)
        else:
            from bindlock.lock import replace as policy

            policy.acquire(self._name, self._binding, timeout, replace, waiting)

    def try_acquire(self) -> bool:
        """Have the name, without waiting: whether it worked. Raises as `acquire` does, but for `Held`."""
        from bindlock.errors import Held

        try:
            self.acquire(0.0)
        except Held:
            return False
        return True

    def release(self) -> None:
        """Let the name go, with close(2) and nothing else.

        Raises `NotHeld` when it was not held, `Lost` when other code had closed the descriptor. Where that code, or
        some other since, may have opened a file of its own under the same number, look at `held` first: it tells them
        apart, which would cost each release a system call.
        """
        binding = self._binding
        if not binding.bound:
            self._check_held()
        try:
            binding.close()
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            from bindlock.errors import Lost

            raise Lost(self.name) from error

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for the name that this object has: asked of the kernel.

        A holder that sleeps in a loop of its own may have that watch `fileno()`: it becomes readable when somebody
        comes to wait. It may be so without anybody waiting, too, for those who look leave a trace; asking here takes
        that away. (Who is interrupted in the middle of looking may be taken for one who waits.)
        Raises `NotHeld`, or `CannotLock` when the kernel cannot be asked.
        """
        from bindlock.lock.look import is_wanted

        self._check_held()
        try:
            return is_wanted(self._name, self._binding)
        except OSError as error:
            from bindlock.errors import CannotLock

            raise CannotLock(self.name, error.errno or 0, "looking for those who wait") from error

    def adopt(self, descriptor: int | None = None) -> None:
        """Have the name through a socket that is bound to it already; it is never free in between.

        `descriptor` is that socket's number. Without one it is what this process was started with: by ``bindlock run``,
        after `keep_for_exec`, or by systemd (a socket unit, the descriptor store). An object that has the name already,
        in the child of a fork with ``children="share"``, has just the kernel name this process from now on.

        Raises `NotHeld` when there is no such socket, and `CannotLock` when the kernel refuses.
        """
        from bindlock.lock import handover

        if descriptor is None and self._binding.verify():
            handover.take_back(self._binding)
        else:
            self._binding.forget_if_lost()
            self._check_not_held()
            self._check_open_to_others()
            handover.adopt(self._name, self._binding, descriptor)

    def keep_for_exec(self) -> dict[str, str]:
        """Let the program that this process executes next have the name: it calls `adopt`.

        Sets BINDLOCK_NAME and BINDLOCK_FD in `os.environ`, and returns both for those who pass an environment of their
        own. Call it right before `os.execv`: until then other programs that this process starts may inherit the name as
        well (subprocess does not, unless told). When the exec fails, `adopt` takes it back. Raises `NotHeld`.
        """
        from bindlock.lock import handover

        self._check_held()
        self._check_open_to_others()
        return handover.keep_for_exec(self._name, self._binding)

    def store(self) -> bool:
        """Leave a copy with systemd, which keeps the name bound while the service is restarted: then `adopt` it.

        Needs FileDescriptorStoreMax= in the unit. Whether there is a service manager to be told. With its copy the name
        is not free when it is released here: see `unstore`. Raises `NotHandedOver` when it could not be told, and
        `NotHeld`. A lock that was adopted from the store is stored already.
        """
        from bindlock.lock import handover

        self._check_held()
        self._check_open_to_others()
        return handover.store(self._name, self._binding)

    def unstore(self) -> bool:
        """Have systemd close the copy that `store` has left with it. Whether there is a service manager to be told."""
        from bindlock.lock import handover

        return handover.unstore(self._name)

    def send(self, connection: socket, timeout: float | None = HAND_OVER) -> None:
        """Hand the name over to whoever calls `receive` at the other end of a connected Unix socket.

        On return that process has it, and this object no more. Raises `NotHandedOver` when it has not, and this object
        still has: after `timeout` seconds, when the other side is gone, or another user's. Raises `NotHeld`.
        """
        from bindlock.lock import handover

        self._check_held()
        self._check_open_to_others()
        handover.send(self._name, self._binding, connection, check_timeout(timeout))

    def receive(self, connection: socket, timeout: float | None = HAND_OVER) -> None:
        """Be handed the name by whoever calls `send` at the other end of a connected Unix socket.

        Raises `NotHandedOver`, and has nothing, when that does not happen within `timeout` seconds, when the other side
        is gone, or another user's (root's may be), and when it sends something else: that is closed.
        """
        from bindlock.lock import handover

        self._check_not_held()
        self._check_open_to_others()
        handover.receive(self._name, self._binding, connection, check_timeout(timeout))

    def detach(self) -> int:
        """Keep the name for as long as the process lives, and forget it: the descriptor, or -1 when not held."""
        return self._binding.detach()

    def fileno(self) -> int:
        """The descriptor of the bound socket; -1 when not held."""
        return self._binding.fileno()

    def _check_held(self) -> None:
        if not self._binding.bound:
            from bindlock.errors import NotHeld, printable

            raise NotHeld(f"{printable(self.name)} is not held by this {type(self).__name__} object in this process")

    def _check_open_to_others(self) -> None:
        if self._children == "never":
            raise _invalid("with children='never' nobody else can have the descriptor: such a lock cannot change hands")

    def _check_not_held(self) -> None:
        if self._binding.bound:
            from bindlock.errors import AlreadyHeld, printable

            raise AlreadyHeld(f"{printable(self.name)} is held already, by this very object; release it first")

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Not held: released in the block already, or this is a forked child, which has dropped it.
        if self._binding.bound:
            self.release()

    def __del__(self) -> None:
        # Without __init__ having succeeded there is no binding.
        binding: Binding | None = getattr(self, "_binding", None)
        if binding is None or not binding.bound:
            return
        if sys.is_finalizing():
            binding.detach()  # the kernel lets go of it in a moment; modules that a warning needs may be gone
            return
        import warnings

        try:
            warnings.warn(f"{self!r} was dropped without being released", ResourceWarning, source=self, stacklevel=1)
        finally:  # a warning can be made an exception
            if not binding.forget_if_lost():
                binding.close()

    def __repr__(self) -> str:
        state = "held" if self._binding.bound else "not held"
        return f"<bindlock.Lock {self.name!r} scope={self._name.scope} {state}>"

    def __reduce__(self) -> tuple[object, ...]:
        # A copy, or one sent to another process, is another object that wants the same name: it holds nothing.
        return _again, (self.name, self._name.scope, self.timeout, self._children)


def check_timeout(timeout: float | None) -> float | None:
    """The time-out itself, if it can be one: None, or seconds from 0 to infinity."""
    if timeout is None or timeout >= 0:
        return timeout
    raise _invalid(f"a time-out of {timeout} s makes no sense: give seconds, 0 not to wait, or None to wait for ever")


def _kind(children: Children) -> type[Binding]:
    if children != "never":
        return Binding
    from bindlock.linux.private import PrivateBinding

    return PrivateBinding


def _again(name: str, scope: str, timeout: float | None, children: Children) -> Lock:
    return Lock(name, scope="user" if scope == "verbatim" else scope, timeout=timeout, children=children)


def _invalid(message: str) -> Exception:
    from bindlock.errors import InvalidArgument

    return InvalidArgument(message)
