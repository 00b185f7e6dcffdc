"""A signal at a chosen instant: made pending inside the traced program, and handled at CPython's own next check.

A trace function that simply raised would have to know where each version of CPython looks for signals. This one makes
the signal pending (`_thread.interrupt_main` is what the C handler of a real signal calls) by means that run no such
check themselves, so that the traced code runs on until the interpreter itself comes to one. If the first check belongs
to the trace function, the handler puts the signal off instead of raising.
"""

from __future__ import annotations

import gc
import opcode
import signal
import sys
from _thread import interrupt_main
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any

NUMBER = signal.SIGUSR1
#: Instructions that may end in a check for signals. One too many is no error, only a repetition.
_MAY_CHECK = ("CALL", "JUMP_BACKWARD", "FOR_ITER", "BEFORE_WITH")


class Interrupted(BaseException):
    """What the signal's handler raises, as KeyboardInterrupt is."""


class Interrupter:
    """Runs a function, raising `Interrupted` at its n-th instant, and again so many instants later.

    Instants are counted in the frames of code whose file name begins with `package`.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._own = {
            function.__code__
            for function in (Interrupter._entry, Interrupter._step, Interrupter._due, Interrupter._handle)
        }
        self._left: list[int] = []
        self._pending = False
        #: What is raised; a TimeoutError without an errno is what handlers of SIGALRM are known for.
        self.error: type[BaseException] = Interrupted
        #: Where the exceptions were raised: code and instruction.
        self.raised: list[tuple[CodeType, int]] = []
        #: Called at the entry of each function of the package, with its name.
        self.on_call: Callable[[str], None] = lambda name: None

    def __enter__(self) -> Interrupter:
        self._before = signal.signal(NUMBER, self._handle)
        sys._getframe().f_trace_opcodes = True  # CPython 3.12 asks for it before settrace()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(NUMBER, self._before)

    def run(self, function: Callable[[], object], *instants: int) -> BaseException | None:
        """What `function` raised. `instants` count from 1, each from the one before; `raised` has those reached."""
        self._left = list(instants)
        self.raised = []
        outer, collects = sys.gettrace(), gc.isenabled()
        gc.disable()  # hypothesis has the collector call a function of its own, out of which nothing can be raised
        sys.settrace(self._entry)
        try:
            function()
        except BaseException as error:  # noqa: BLE001
            return error
        finally:
            sys.settrace(outer)
            if collects:
                gc.enable()
            self._pending = False  # no check came after the last instant: nothing was left to be interrupted
        return None

    def _entry(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._package):
            return None
        frame.f_trace = self._step  # CPython 3.13 asks for it before f_trace_opcodes
        frame.f_trace_opcodes = True
        self.on_call(frame.f_code.co_name)
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and self._due(opcode.opname[frame.f_code.co_code[frame.f_lasti]]):
            # Not one call more in here: it would end in a check. `in` steps through the map without one.
            _ = None in map(interrupt_main, (NUMBER,))
        return self._step

    def _due(self, instruction: str) -> bool:
        if self._pending:
            return True
        if not self._left or not instruction.startswith(_MAY_CHECK):
            return False
        self._left[0] -= 1
        if self._left[0]:
            return False
        del self._left[0]
        self._pending = True
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._pending or frame is None or frame.f_code in self._own:
            return  # put off: `_step` makes it pending again
        self._pending = False
        self.raised.append((frame.f_code, frame.f_lasti))
        raise self.error


def raised_by(function: Callable[[], object]) -> BaseException | None:
    """What a function raises; None when it returns."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - compared by the tests
        return error
    return None
