"""Which system calls an acquire and a release make, as strace(1) sees them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter

from benchmarks import peers
from benchmarks.result import Row

TITLE = "system calls of acquire and release"
_PEERS = ["flock(2)", "filelock", "portalocker", "fasteners"]
_CYCLES = 10
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\(")
#: A system call that no lock makes: everything between two of them belongs to the lock.
_MARK = "getppid"


def measure(quick: bool) -> list[Row]:
    """Trace ours and the peers."""
    if shutil.which("strace") is None:
        return [Row(TITLE, "not measured: strace missing", target="socket bind listen close")]
    wanted = Counter(socket=1, bind=1, listen=1, close=1)
    with tempfile.TemporaryDirectory(prefix="bindlock-benchmark-") as scratch:
        try:
            ours = _trace(peers.OURS, scratch)
            theirs = {kind: _trace(kind, scratch) for kind in (_PEERS[:2] if quick else _PEERS)}
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return [Row(TITLE, f"not measured: {' '.join(reason)}", target="socket bind listen close")]
    rows = []
    for number, (kind, calls) in enumerate(theirs.items()):
        first = number == 0
        rows.append(
            Row(
                TITLE,
                _text(ours) if first else str(ours.total()),
                kind,
                _text(calls),
                f"{calls.total()} : {ours.total()}",
                "socket bind listen close" if first else "",
                ours == wanted if first else None,
                _CYCLES,
                {"ours": dict(ours), "theirs": dict(calls)},
            )
        )
    return rows


def _trace(kind: str, scratch: str) -> Counter[str]:
    """Count the calls of one cycle, averaged over some and rounded up."""
    trace = f"{scratch}/trace"
    command = ["strace", "-f", "-o", trace, sys.executable, "-m", "benchmarks.system_calls", kind, f"{scratch}/lock"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    calls: Counter[str] = Counter()
    marks = 0
    with open(trace, errors="replace") as lines:
        for line in lines:
            found = _LINE.match(line)
            if found is None:
                continue
            if found[1] == _MARK:
                marks += 1
            elif marks == 1:
                calls[found[1]] += 1
    assert marks == 2
    return Counter({call: -(-count // _CYCLES) for call, count in calls.items()})


def _text(calls: Counter[str]) -> str:
    return " ".join(call if count == 1 else f"{count} {call}" for call, count in calls.items())


def _make_calls(kind: str, path: str) -> None:
    acquire, release = peers.LOCKS[kind](path)
    acquire()  # whatever is loaded and made at the first use only
    release()
    os.getppid()
    for _ in range(_CYCLES):
        acquire()
        release()
    os.getppid()


if __name__ == "__main__":
    _make_calls(*sys.argv[1:])
