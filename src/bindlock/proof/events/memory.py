"""Holders with much memory: giving it back, dumping it, and having none left."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from bindlock.proof.errors import NotPossible
from bindlock.proof.event import event
from bindlock.proof.events.endings import ORDER_OF_EXIT
from bindlock.proof.kernel import cgroup
from bindlock.proof.process import hear

if TYPE_CHECKING:
    from bindlock.proof.kind import Kind
    from bindlock.proof.process import Child
    from bindlock.proof.trial import Trial

#: The one that the event is called after first: a quick run may end before the last.
_SIZES = (1024, 16, 64, 256)
_DUMPED = 64
#: Several may be dumped at once.
_ROOM = 16
_OOM_LIMIT = 32
#: Beyond what a trial itself takes: several are under way at once, and the machine is somebody's.
_RESERVE = 3


@event(
    "1 GB of memory",
    trials=(4, 20),
    expected="Free when the parent is told of the death.",
    rule=ORDER_OF_EXIT + " So the lock is held while the memory is given back.",
)
def memory(trial: Trial) -> None:
    """The holder has 16, 64, 256 or 1024 MiB of memory of its own when it is killed."""
    megabytes = _SIZES[trial.number % len(_SIZES)]
    if _available() < megabytes * _RESERVE:
        raise NotPossible(f"only {_available()} MiB of memory are available")
    trial.parameter = float(megabytes)

    def then(child: Child, _: Kind) -> None:
        ballast = b"x" * (megabytes << 20)
        child.say("full")
        hear(child)
        assert ballast

    holder = trial.hold(then, before=_be_the_first_to_go)
    if holder.hear() != "full":
        raise NotPossible(f"{megabytes} MiB of memory cannot be had here")
    trial.expect_free_once_killed(holder)


@event(
    "SIGSEGV, core dump",
    trials=(1, 20),
    expected="Held while the core is written; free when the parent is told of the death.",
    rule="The core dump is written before do_exit() (get_signal: do_coredump), with every descriptor still open.",
)
def core_dump(trial: Trial) -> None:
    """The holder dies of SIGSEGV with 64 MiB of memory, and its core is dumped."""
    _cores_stay_here()
    if shutil.disk_usage(trial.site.directory).free < _ROOM * _DUMPED << 20:
        raise NotPossible(f"no room for core dumps in {trial.site.directory.parent.parent}")

    def before() -> None:
        os.chdir(trial.site.directory)
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)

    def then(child: Child, _: Kind) -> None:
        ballast = b"x" * (_DUMPED << 20)
        child.say("full")
        hear(child)
        assert ballast

    holder = trial.hold(then, before=before)
    holder.expect("full")
    trial.begin()
    holder.signal(signal.SIGSEGV)
    seen = False
    while not os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if _dumping(holder.pid):
            seen = True
            trial.expect_held_while(lambda: _dumping(holder.pid))
    status = holder.reap()
    if status != -signal.SIGSEGV or not list(trial.site.directory.glob("*core*")):
        raise NotPossible("the kernel did not dump a core here")
    if not seen:
        trial.remark = "the core was dumped too quickly to be tried meanwhile"
    trial.expect_free()


@event(
    "OOM kill in a cgroup",
    trials=(1, 20),
    expected="Free when the parent is told of the death.",
    rule="The kernel kills with SIGKILL who is out of memory (oom_kill_process). " + ORDER_OF_EXIT,
)
def oom_killed(trial: Trial) -> None:
    """The holder fills a cgroup that may have 32 MiB, and the kernel kills it."""
    if Path("/proc/sys/vm/panic_on_oom").read_text().strip() == "2":
        raise NotPossible("the kernel panics when a cgroup is out of memory (vm.panic_on_oom)")
    try:
        parent, limits = cgroup.version_1("memory"), ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    except NotPossible:
        parent, limits = cgroup.unified("memory"), ("memory.max", "memory.swap.max")

    def then(child: Child, _: Kind) -> None:
        hear(child)
        eaten = []
        while True:
            eaten.append(b"x" * (1 << 20))

    with cgroup.cgroup(parent, trial.site.name) as group:
        for limit in limits:
            if (group / limit).exists():
                (group / limit).write_text(str(_OOM_LIMIT << 20))
        holder = trial.hold(then)
        cgroup.move(group, holder.pid)
        holder.say("")
        if holder.reap() != -signal.SIGKILL:
            raise NotPossible("the kernel did not kill it")
        trial.expect_free()
        trial.latency = None  # when the kernel killed it is not known


def _be_the_first_to_go() -> None:
    """If somebody must go for want of memory, then this process."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def _cores_stay_here() -> None:
    """Raises NotPossible where cores are dumped to a place that is not ours to clean, or not at all."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|"):
        raise NotPossible("core dumps go to a program here, which would keep them (core_pattern)")
    if "/" in pattern or not pattern:
        raise NotPossible(f"core dumps do not go to the current directory here (core_pattern is {pattern!r})")
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != resource.RLIM_INFINITY:
        raise NotPossible(f"core dumps are limited to {hard} bytes here (ulimit -Hc)")


def _dumping(pid: int) -> bool:
    return "CoreDumping:\t1" in Path(f"/proc/{pid}/status").read_text()
