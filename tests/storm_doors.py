"""A process of the storm whose lock changes hands: by fork, by exec, over a connection; or that becomes a supervisor.

While it does, whoever is about to have the lock, or to have it no more, is killed by more than the storm: by a timer of
its own, at any instant of the few hundred microseconds that this takes (SIGALRM with its default action, which to the
kernel is a death as by SIGKILL).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import bindlock
import bindlock.linux.private
import bindlock.lock.handover
from tests.storm_sailors import Lockable, Sailor, dawdle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from tests.storm_witnesses import Log

#: The ways that a lock can go, and how often: of a thousand turns.
DOORS = {"send": 50, "exec": 12, "supervise": 10, "never": 300}
#: Of any program that is executed: nothing but itself and what is tested.
_PATHS = [str(Path(__file__).parent.parent), str(Path(bindlock.__file__).parent.parent)]
_PYTHON = (sys.executable, "-I", "-S", "-c")
_ABOARD = f"import sys; sys.path[:0] = {_PATHS}; from tests.storm_aboard import main; main(*sys.argv[1:])"
_BINDLOCK = f"import sys; sys.path[:0] = {_PATHS}; from bindlock.cli.run import main; sys.exit(main(sys.argv[1:]))"


class Trader(Sailor):
    """One whose lock has a name, so that more can be done with it."""

    def __init__(self, name: str, doors: Sequence[str], log: Log, seed: str) -> None:
        super().__init__(
            lambda share: bindlock.Lock(name, children="share" if share else "drop"), log, seed
        )  # fmt: skip
        self._name = name
        self._doors = doors

    def _turn(self) -> None:
        self._log.about("else")
        what = self._chance.randrange(1000)
        for door in self._doors:
            what -= DOORS[door]
            if what < 0:
                getattr(self, f"_{door}")()
                return
        super()._turn()

    def _adopted(self, lock: Lockable) -> Lockable:
        assert isinstance(lock, bindlock.Lock)
        what = self._chance.random()
        if what < 0.3:
            return lock
        self._log.add("adopted")
        self._mortal()
        own = lock
        if what < 0.6:
            own.adopt()
        else:
            own = bindlock.Lock(self._name)
            own.adopt(lock.detach())
        if not own.held:
            self._log.call_out("adopt: returned, but the lock says that it is not held")
        return own

    def _never(self) -> None:
        """Have it in a descriptor table that no child can have, and make children."""
        self._log.about("never")
        lock = bindlock.Lock(self._name, children="never")
        if self._acquire(lock):
            self._log.add("never")
            self._inside(lock, False)

    def _send(self) -> None:
        """Hand it over to a forked child. Both are out meanwhile: whoever has it afterwards enters."""
        lock = bindlock.Lock(self._name)
        if not self._acquire(lock):
            return
        self._log.enter()
        self._log.about("sending")
        end, other = socket.socketpair()
        if not os.fork():
            end.close()
            self._receive(other)
        other.close()
        self._log.leave()
        self._mortal()
        try:
            lock.send(end, self._patience())
            self._log.add("sent")
            if lock.held:
                self._log.call_out("send: returned, but the lock is still held")
        except bindlock.NotHandedOver:
            self._log.add("not sent")
            if not lock.held:
                self._log.call_out("send: raised, but the lock is not held any more")
            self._log.enter()
            end.close()
            dawdle(self._chance)
            self._log.leave()
            lock.release()
        finally:
            end.close()
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _receive(self, end: socket.socket) -> NoReturn:
        self._chance = random.Random(self._chance.random())
        self._mortal()
        lock = bindlock.Lock(self._name)
        try:
            lock.receive(end, self._patience())
        except bindlock.NotHandedOver:
            if lock.held:
                self._log.call_out("receive: raised, but the lock is held")
            os._exit(0)
        self._log.add("received")
        if not lock.held:
            self._log.call_out("receive: returned, but the lock is not held")
        self._log.enter()
        dawdle(self._chance)
        self._log.leave()
        lock.release()
        os._exit(0)

    def _exec(self) -> None:
        """Execute a program that adopts it, and is inside by the same marks: a process is the same after an exec."""
        lock = bindlock.Lock(self._name)
        if not self._acquire(lock):
            return
        self._log.enter()
        self._log.about("executing")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._mortal(0.1)
        lock.keep_for_exec()
        self._execute(*_PYTHON, _ABOARD, self._name, "executed")

    def _supervise(self) -> None:
        """Become ``bindlock run --fork``."""
        self._log.about("supervising")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        wait = ("-w", str(self._chance.choice((0.1, 2.0, 2.0, 2.0))))
        command = (*_PYTHON, _ABOARD, self._name, "supervised")
        self._execute(*_PYTHON, _BINDLOCK, "run", "-q", "--fork", *wait, self._name, "--", *command)

    def _execute(self, *command: str) -> NoReturn:
        os.execv(command[0], (*command, self._log.inheritable(), str(self._chance.random())))

    def _patience(self) -> float:
        return self._chance.choice((0, 1e-4, 1e-3, 1e-2, *(1.0,) * 8))

    def _mortal(self, longest: float = 0.003) -> None:
        """Let this process perhaps be killed, some time soon."""
        if self._chance.random() < 0.3:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, longest * self._chance.random() ** 2))
