"""The worker: a process that makes the trials of one kind of lock, as few modules loaded as can be: it forks a lot.

It reads orders on its standard input, a line of JSON each, and answers each with a cell. SIGTERM has it end the trial
under way, and leave; so has an empty line, or the end of its input.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from bindlock.proof import events
from bindlock.proof.cell import Order, measure
from bindlock.proof.errors import Stopped
from bindlock.proof.kernel.call import adopt_orphans, end_with_parent
from bindlock.proof.kind import key_of, load
from bindlock.proof.process import ask_to_stop, keep_from_children

_FAREWELL = "\n"


def main(lock: str, scratch: str, conductor: int) -> int:
    """Serve the orders for one kind of lock: its key, or the path of its file. `conductor` is the PID of our parent.

    When the conductor is gone without a farewell, an empty line, it was killed: then `scratch` is for us to remove.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPIPE})  # blocked in the thread that started us
    os.umask(0o022)  # who may open the files of a lock is not to depend on who runs this
    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the conductor tells
    end_with_parent()
    if os.getppid() != conductor or not _serve(lock):
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _serve(lock: str) -> bool:
    """Whether a farewell has ended it."""
    adopt_orphans()
    answers = os.dup(1)
    keep_from_children(answers)  # when we are killed the conductor waits for no frozen holder
    os.dup2(2, 1)  # what a kind prints is no answer
    kind = load(lock)
    by_key = {event.key: event for event in events.ALL}
    try:
        for line in sys.stdin:
            if line == _FAREWELL:
                return True
            fields = json.loads(line)
            event = by_key[fields.pop("event")]
            order = Order(**{**fields, "scratch": Path(fields["scratch"])})
            answer = json.dumps(measure(kind, key_of(lock), event, order).as_dict()).encode() + b"\n"
            while answer:
                answer = answer[os.write(answers, answer) :]
    except (Stopped, BrokenPipeError):
        os.close(answers)  # so that the conductor, if there is one, waits for no answer
        return _FAREWELL in sys.stdin
    return False
