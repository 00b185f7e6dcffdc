"""The lock object: exclusion, time-outs, threads, misuse."""

from __future__ import annotations

import bindlock
from tests.actors import Cast


def test_another_process_is_excluded_and_named(cast: Cast, name: str) -> None:
    """A refused acquire says who is in the way."""
    actor = cast.holder(name)
    lock = bindlock.Lock(name)
    assert not lock.try_acquire()
    holder = bindlock.holder(name)
    assert holder is not None
    assert holder.pid == actor.pid


def test_free_after_sigkill(cast: Cast, name: str) -> None:
    """When waitpid has reported the death, the name is free."""
    cast.holder(name).kill()
    with bindlock.Lock(name, timeout=0) as lock:
        assert lock.held
