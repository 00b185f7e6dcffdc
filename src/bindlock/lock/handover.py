"""Having a lock by a socket that is bound already, and passing it on: the name is never free in between.

The doors, the protocol between two processes, and what becomes of the lock when either dies, are in docs/design.md,
"Hand-over".
"""

from __future__ import annotations

import errno
import os

from bindlock.errors import CannotLock, NotHandedOver, NotHeld, os_error, printable
from bindlock.linux import passing, service
from bindlock.linux.queue import peer_uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    from bindlock.linux.binding import Binding
    from bindlock.names import Name

#: What `bindlock run` and `Lock.keep_for_exec` tell the program that is executed.
DESCRIPTOR, NAME = "BINDLOCK_FD", "BINDLOCK_NAME"
#: What a copy in systemd's descriptor store is called.
STORED_AS = "bindlock"
#: Answers of the kernel that mean: this descriptor is not the one.
_NOT_IT = frozenset({errno.EBUSY, errno.EBADF, errno.ENOTSOCK, errno.EADDRNOTAVAIL})


def adopt(name: Name, binding: Binding, descriptor: int | None) -> None:
    """Have `binding` by a given descriptor, or by one that this process was given by whoever started it."""
    for candidate in [descriptor] if descriptor is not None else _inherited(name):
        if not 0 <= candidate < 2**31:
            continue
        try:
            binding.adopt(candidate)
        except OSError as error:
            if error.errno in _NOT_IT:
                continue
            raise CannotLock(name.text, error.errno or 0, "adopting it") from error
        _forget_variables(candidate)
        return
    what = f"descriptor {descriptor} is not" if descriptor is not None else "no inherited descriptor is"
    raise NotHeld(
        f"{printable(name.text)} cannot be adopted: {what} a listening socket with its address; was this started by "
        "bindlock run, after keep_for_exec(), or by systemd, with the same name and scope?"
    )


def take_back(binding: Binding) -> None:
    """Have it as before `keep_for_exec`, and the kernel name us."""
    binding.renew()
    if binding.fileno() >= 0:
        os.set_inheritable(binding.fileno(), False)
        _forget_variables(binding.fileno())


def _forget_variables(descriptor: int) -> None:
    if os.environ.get(DESCRIPTOR) == str(descriptor):
        for variable in (DESCRIPTOR, NAME):  # it is close-on-exec now, and that number soon another file's
            os.environ.pop(variable, None)


def keep_for_exec(name: Name, binding: Binding) -> dict[str, str]:
    """Let the descriptor through execve(2); the variables that tell the next program, set in `os.environ`, too."""
    variables = {NAME: name.text, DESCRIPTOR: str(binding.fileno())}
    os.set_inheritable(binding.fileno(), True)
    os.environ.update(variables)
    return variables


def send(name: Name, binding: Binding, connection: socket, timeout: float | None) -> None:
    """Pass the socket on, and have it no more."""
    _check_peer(name, connection)
    try:
        own = binding.socket
        assert own is not None
        passing.give(connection, own.fileno(), timeout, binding.close, own.close)
    except OSError as error:
        raise _failure(name, error) from error


def receive(name: Name, binding: Binding, connection: socket, timeout: float | None) -> None:
    """Be passed the socket."""
    _check_peer(name, connection)
    try:
        passing.take(connection, timeout, binding.hold, binding.adopt, binding.drop)
    except OSError as error:
        raise _failure(name, error) from error


def store(name: Name, binding: Binding) -> bool:
    """Leave a copy with the service manager; False when there is none."""
    return _manager(name, ("FDSTORE=1", f"FDNAME={STORED_AS}", "FDPOLL=0"), [binding.fileno()])


def unstore(name: Name) -> bool:
    """Have the service manager close its copy; False when there is none."""
    return _manager(name, ("FDSTOREREMOVE=1", f"FDNAME={STORED_AS}"), [])


def _manager(name: Name, lines: tuple[str, ...], descriptors: list[int]) -> bool:
    try:
        # Nobody answers such a message: what comes after the barrier finds it done.
        return service.notify(*lines, descriptors=descriptors) and service.barrier()
    except OSError as error:
        if error.errno is None:
            raise  # a signal handler's
        raise NotHandedOver(name.text, f"the service manager was not told: {os_error(error.errno)}") from error


def _inherited(name: Name) -> Iterator[int]:
    number = os.environ.get(DESCRIPTOR, "")
    if number.isdecimal() and len(number) <= 10:
        yield int(number)
    try:
        # Only the number: the others' owners make them close-on-exec, and one may be closed by now.
        yield from service.numbers()
    except ValueError as error:
        raise NotHandedOver(name.text, f"what systemd passes cannot be read: {error}") from error


def _check_peer(name: Name, connection: socket) -> None:
    try:
        uid = peer_uid(connection)
    except OSError as error:
        raise _failure(name, error) from error
    if uid not in (os.geteuid(), 0):
        raise NotHandedOver(name.text, f"the other side is a stranger, uid {uid}")


def _failure(name: Name, error: OSError) -> Exception:
    if error.errno is None:
        return error  # a signal handler's
    if error.errno == errno.EADDRNOTAVAIL:
        return NotHandedOver(name.text, "what was sent is no listening socket of this name")
    known = isinstance(error, ConnectionError | TimeoutError) or error.errno == errno.EPROTO
    return NotHandedOver(name.text, error.strerror if known and error.strerror else os_error(error.errno))
