"""What becomes of the descriptor that is the lock: sent, in use by the kernel, closed by others."""

from __future__ import annotations

import os
import signal
import socket
import stat
import warnings
from _thread import start_new_thread
from ast import literal_eval
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.errors import NotPossible
from bindlock.proof.event import event
from bindlock.proof.kernel import io_uring
from bindlock.proof.process import hear, until

if TYPE_CHECKING:
    from bindlock.proof.kind import Kind
    from bindlock.proof.process import Child
    from bindlock.proof.trial import Trial


@event(
    "descriptor in flight",
    trials=(4, 100),
    expected="Held until the receiver closes: the lock is on its way to it; then free.",
    rule="A descriptor in a message that nobody has read yet (SCM_RIGHTS, unix(7)) is a reference like any other.",
)
def in_flight(trial: Trial) -> None:
    """The holder sends the lock's descriptor to another process, and is killed before that one receives it."""
    near, far = socket.socketpair()

    def then(child: Child, lock: Kind) -> None:
        far.close()
        socket.send_fds(near, [b"x"], [trial.descriptor(lock)])
        child.say("sent")
        hear(child)

    with near, far:
        holder = trial.hold(then)
        holder.expect("sent")
        near.close()
        holder.kill()
        trial.expect_held()
        trial.begin()
        far.close()
        trial.expect_free()


@event(
    "descriptor in a cycle",
    trials=(4, 200),
    expected="Free when the parent is told of the death: nobody can receive it any more.",
    rule="Sockets that are in flight in each other keep each other open until the kernel's collector has run "
    "(unix_gc, net/unix/garbage.c). The death does not start it: the next close of any other Unix socket "
    "on the machine does.",
)
def in_cycle(trial: Trial) -> None:
    """The holder sends the lock's descriptor over a pair of sockets that are in the same message, and is killed.

    Then another process closes a Unix socket, as somebody on every machine does all the time.
    """

    def then(child: Child, lock: Kind) -> None:
        near, far = socket.socketpair()
        socket.send_fds(near, [b"x"], [trial.descriptor(lock), near.fileno(), far.fileno()])
        child.say("sent")
        hear(child)

    holder = trial.hold(then)
    holder.expect("sent")
    trial.begin()
    holder.signal(signal.SIGKILL)
    holder.reap()
    socket.socket(socket.AF_UNIX).close()
    trial.expect_free()


@event(
    "io_uring request pending",
    trials=(2, 100),
    expected="Free when the parent is told of the death.",
    rule="A pending request has a reference of its own, which a worker of the kernel drops after the process is gone "
    "(io_ring_exit_work, io_uring/io_uring.c).",
)
def io_uring_pending(trial: Trial) -> None:
    """The holder has an accept, or a poll, of the lock's socket pending in an io_uring when it is killed."""

    def then(child: Child, lock: Kind) -> None:
        number = _socket_of(trial, lock)
        os.set_blocking(number, True)
        io_uring.leave_pending(number, "accept" if _listens(number) else "poll")
        child.say("pending")
        hear(child)

    holder = trial.hold(then)
    holder.expect("pending")
    trial.expect_free_once_killed(holder)


@event(
    "released during accept()",
    trials=(2, 100),
    expected="Free when the release returns.",
    rule="A system call that is under way has a reference of its own (fdget): close(2) in another thread does not end "
    "it, and the socket stays bound until it returns.",
)
def released_during_accept(trial: Trial) -> None:
    """The holder gives the lock back while another of its threads is inside accept(2) on its socket."""

    def then(child: Child, lock: Kind) -> None:
        number = _socket_of(trial, lock)
        if not _listens(number):
            raise NotPossible("nothing can be accepted from this lock")
        os.set_blocking(number, True)
        start_new_thread(_accept, (number,))
        until(lambda: _inside_a_call_on(number), "in accept()")
        child.say("accepting")
        hear(child)
        lock.release()
        child.say("released")
        hear(child)

    holder = trial.hold(then)
    holder.expect("accepting")
    trial.begin()
    holder.say("")
    holder.expect("released")
    trial.expect_free()


@event(
    "a client was connected",
    trials=(4, 200),
    expected="Free when the parent is told of the death.",
    rule="The side of a TCP connection that ends first keeps it in TIME_WAIT for 60 s (tcp_time_wait), and bind(2) "
    "refuses its port without SO_REUSEADDR. Unix sockets have no such state.",
)
def client_connected(trial: Trial) -> None:
    """The lock's socket serves a client when the holder is killed; the client then closes its end."""

    def then(child: Child, lock: Kind) -> None:
        number = _socket_of(trial, lock)
        if not _listens(number):
            raise NotPossible("nobody can connect to this lock")
        os.set_blocking(number, True)
        with socket.socket(fileno=os.dup(number)) as own:
            child.say(repr((int(own.family), own.getsockname())))
            served, _ = own.accept()
        child.say("serving")
        hear(child)
        served.close()

    holder = trial.hold(then)
    family, address = literal_eval(holder.hear())
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.connect(address)
        holder.expect("serving")
        trial.begin()
        holder.signal(signal.SIGKILL)
        holder.reap()
        client.recv(1)
    trial.expect_free()


@event(
    "descriptors closed by a daemoniser",
    expected="Held: the holder lives, and knows nothing of it.",
    rule="What is bound to a descriptor goes with close(2), whoever calls it.",
)
def closed_by_others(trial: Trial) -> None:
    """Other code in the holder closes all descriptors from 3 to 255, as daemonisers do."""

    def then(child: Child, _: Kind) -> None:
        kept = child.ends()
        for number in range(3, 256):
            if number not in kept:
                os.closerange(number, number + 1)
        child.say("closed")
        hear(child)

    holder = trial.hold(then)
    holder.expect("closed")
    trial.expect_held()


@event(
    "lock object dropped",
    expected="Held: the holder never gave it back.",
    rule="CPython closes sockets and files when the last reference to the object goes; a bare number stays open.",
)
def dropped(trial: Trial) -> None:
    """The holder's code forgets the object that is the lock, as of a local variable when its function returns."""

    def body(child: Child) -> None:
        warnings.simplefilter("ignore")  # bindlock says that it was dropped
        trial.take(child)
        child.say("dropped")
        hear(child)

    holder = trial.child(body)
    holder.expect("held")
    holder.expect("dropped")
    trial.expect_held()


def _socket_of(trial: Trial, lock: Kind) -> int:
    number = trial.descriptor(lock)
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        raise NotPossible("the lock is no socket")
    return number


def _listens(number: int) -> bool:
    with socket.socket(fileno=os.dup(number)) as own:
        return bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _accept(number: int) -> None:
    own = socket.socket(fileno=number)
    try:
        own.accept()
    finally:
        own.detach()


def _inside_a_call_on(number: int) -> bool:
    """Whether another thread of this process is inside a system call whose first argument is that descriptor."""
    for thread in os.listdir("/proc/self/task"):
        if int(thread) != os.getpid():
            # proc(5), syscall: the call's number and its arguments, or "running".
            fields = Path(f"/proc/self/task/{thread}/syscall").read_text().split()
            return len(fields) > 1 and int(fields[1], 16) == number
    return False
