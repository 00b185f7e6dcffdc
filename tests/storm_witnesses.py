"""The books of a storm: two witnesses of who is inside, what was called out, and what was done how often.

The invariant: no two live processes are inside at once. Both witnesses know nothing of the lock:

* `Word`: every holder writes its identity (PID and start time) into shared memory, must find there nobody who lives,
  and must find itself again when it leaves.
* `Record`: every holder takes a POSIX record lock on a file, which must not be taken. The kernel drops it with the
  process (`exit_files`) before it frees any socket (`exit_task_work`), so the dead never stand in the way.

All of it is in files without a name, whose descriptors a program that is executed can be given: `Log.inheritable`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

_PF_EXITING = 0x4
_WORD = struct.Struct("=Q")
_PID_SHIFT = 40
#: struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")
TALLIES = (
    "acquired", "timed out", "interrupted", "shared", "dropped", "errors",
    "adopted", "sent", "not sent", "received", "executed", "supervised", "never", "by tasks", "cancelled",
)  # fmt: skip
#: What a process is about, so that it is known in the middle of what it was killed.
DOINGS = ("else", "sending", "executing", "supervising", "supervised", "never", "tasks")


def identity() -> int:
    """PID and start time of this process in one word: never the same as another's; the same after an exec."""
    return os.getpid() << _PID_SHIFT | (_stat(os.getpid()) or (0, 0))[0]


def lives(who: int) -> bool:
    """Whether a process can still do anything, so can still be a holder: stopped ones can, exiting ones cannot."""
    found = _stat(who >> _PID_SHIFT)
    return found is not None and found[0] == who & (1 << _PID_SHIFT) - 1 and not found[1] & _PF_EXITING


def _stat(pid: int) -> tuple[int, int] | None:
    """Start time and flags."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # An exiting process whose parent does not reap it is a zombie: flagged as well.
    return (int(fields[19]), int(fields[6])) if fields else None


class Words:
    """Numbers in memory that processes share."""

    def __init__(self, count: int, descriptor: int = -1) -> None:
        self.descriptor = descriptor if descriptor >= 0 else os.memfd_create("storm-words")
        if descriptor < 0:
            os.truncate(self.descriptor, count * _WORD.size)
        self._memory = mmap.mmap(self.descriptor, 0)

    def __getitem__(self, index: int) -> int:
        word: int = _WORD.unpack_from(self._memory, index * _WORD.size)[0]
        return word

    def __setitem__(self, index: int, word: int) -> None:
        _WORD.pack_into(self._memory, index * _WORD.size, word)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)


class Word:
    """The owner's identity in shared memory."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def enter(self) -> str | None:
        """Say that we are in; what is wrong, if anything is."""
        me, before = identity(), self._words[0]
        self._words[0] = me
        if before and before != me and lives(before):
            return f"word: {me >> _PID_SHIFT} entered while {before >> _PID_SHIFT} was in"
        return None

    def leave(self) -> str | None:
        """Say that we are out."""
        me, now = identity(), self._words[0]
        if now != me:
            return f"word: {me >> _PID_SHIFT} leaves and finds {now >> _PID_SHIFT}"
        self._words[0] = 0
        return None


class Record:
    """A record lock on a file that has no name."""

    def __init__(self, file: int) -> None:
        self._file = file

    def enter(self) -> str | None:
        """Take it; what is wrong, if anything is."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
            other = "somebody" if kind == fcntl.F_UNLCK else pid
            return f"record: {os.getpid()} entered while {other} was in"
        return None

    def leave(self) -> str | None:
        """Let it go."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return None


class Witnesses:
    """Both of them, before the fork; or after an exec, by the descriptors that were let through it."""

    def __init__(self, descriptors: tuple[int, int] | None = None) -> None:
        words, self._file = descriptors or (-1, os.memfd_create("storm-record"))
        self._words = Words(1, words)
        self.descriptors = self._words.descriptor, self._file
        self.all = (Word(self._words), Record(self._file))

    def enter(self) -> list[str]:
        return [wrong for witness in self.all if (wrong := witness.enter())]

    def leave(self) -> list[str]:
        return [wrong for witness in self.all if (wrong := witness.leave())]

    def close(self) -> None:
        self._words.close()
        os.close(self._file)


class Tally:
    """Counters of one process and of those that came before it in its place; and what it is about."""

    WORDS = len(TALLIES) + 1

    def __init__(self, words: Words, place: int) -> None:
        self.words = words
        self.place = place
        self._start = place * self.WORDS

    def add(self, what: str) -> None:
        self.words[self._start + TALLIES.index(what)] += 1

    def __getitem__(self, what: str) -> int:
        return self.words[self._start + TALLIES.index(what)]

    def counts(self) -> dict[str, int]:
        return {what: self[what] for what in TALLIES}

    @property
    def doing(self) -> str:
        """What the process is about."""
        return DOINGS[self.words[self._start + len(TALLIES)]]

    @doing.setter
    def doing(self, what: str) -> None:
        self.words[self._start + len(TALLIES)] = DOINGS.index(what)


class Log:
    """What a process of the storm keeps: when it is inside, what it has done, and what is wrong."""

    def __init__(self, witnesses: Witnesses, report: int, tally: Tally) -> None:
        self._witnesses = witnesses
        self._report = report
        self._tally = tally

    def enter(self) -> None:
        self.call_out(*self._witnesses.enter())

    def leave(self) -> None:
        self.call_out(*self._witnesses.leave())

    def add(self, what: str) -> None:
        self._tally.add(what)

    def about(self, what: str) -> None:
        """Say what comes now."""
        self._tally.doing = what

    def call_out(self, *wrong: str) -> None:
        for line in wrong:
            os.write(self._report, line.encode() + b"\n")

    def inheritable(self) -> str:
        """What a program that is executed from here makes the same log of: `inherited`."""
        descriptors = *self._witnesses.descriptors, self._report, self._tally.words.descriptor
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        return " ".join(map(str, (*descriptors, self._tally.place)))

    @classmethod
    def inherited(cls, text: str) -> Log:
        """The log of the process that has executed us."""
        words, file, report, tallies, place = map(int, text.split())
        return cls(Witnesses((words, file)), report, Tally(Words(0, tallies), place))
