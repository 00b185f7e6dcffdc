"""The program that a storm executes: with the lock of the process that was here before, or of a supervisor.

The lock is held while it starts, so it loads nothing that it can do without.
"""

from __future__ import annotations

import os

import bindlock
from tests.storm_witnesses import Log


def main(name: str, how: str, log_text: str, chance_text: str) -> None:
    """Be inside, and go. `how` is what to write down for it."""
    log, chance = Log.inherited(log_text), float(chance_text)
    log.enter()  # after an exec: again, as the same process
    supervised = how == "supervised"
    if supervised:
        log.about("supervised")
    lock = bindlock.Lock(name)
    if not supervised or chance < 0.5:
        lock.adopt()
        if not lock.held:
            log.call_out("adopt: returned, but the lock says that it is not held")
    log.add("acquired")
    log.add(how)
    for _ in range(int(chance * 100_000)):
        pass
    log.leave()
    if supervised:
        log.about("supervising")
    elif chance < 0.5:
        lock.release()
    os._exit(0)
