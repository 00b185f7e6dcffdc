"""Running a command as a child that does not outlive us: for `bindlock run --fork`.

The kernel's rules (prctl(2), signal(7), sigwaitinfo(2), wait(2), setpgid(2); kernel/exit.c, kernel/signal.c and
drivers/tty/tty_jobctrl.c, Linux 6.12 and 6.18):

* PR_SET_PDEATHSIG is the signal that a process gets when the thread that made it is gone. It survives execve(2), but
  not that of a set-user-ID program, nor a change of user (`commit_creds`). Whether the parent was gone before it was
  set, the PID of the parent tells: `forget_original_parent` changes that first, and then looks for the signal.
* A signal that is blocked stays pending until sigwaitinfo(2) takes it, one that is ignored, too. Faults of our own
  (SIGSEGV and its like) kill us all the same (`force_sig_info`); those that somebody sends are signals as any other.
* si_code tells what a process has sent from what the kernel has (SI_KERNEL). What the kernel sends for a terminal goes
  to the foreground process group, so that the command has had it already. But for a hang-up: that is told the leader of
  the session alone (`tty_signal_session_leader`).
* A shell knows of a stopped job only when the process that it has started stops; so we stop when the command does: by
  SIGTSTP, which the kernel discards where no shell is there that could continue us (`is_current_pgrp_orphaned`).
* SIGKILL and SIGSTOP cannot be passed on: after the first the kernel kills the command, after the second it goes on.

Who has the lock? Both. That the command has it is what makes a second copy impossible: our descriptors are closed
(`exit_files`) before the command is killed (`exit_notify`), so the name must not be free with the former. We could
close ours right after the fork, and then the command could let go of the name, or hand it over, before its end. But the
name would be lost with a command that closes all its descriptors (sudo does), and nobody would be told: to keep it for
such a command is what a parent is good for, and one that wants to let go early can do without. So the name is free when
both are gone, and all to whom the command has left the descriptor. The holder, for the kernel, is the one that
listened: we, until the command adopts. That is right for those who signal the holder: we pass it on, and SIGKILL ends
both.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_SI_KERNEL = 0x80
#: What the kernel sends to the foreground of a terminal, all of it.
_OF_A_TERMINAL = {
    signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGHUP,
    signal.SIGCONT,
}  # fmt: skip
#: Of these, what it sends to the leader of the session alone.
_OF_A_HANG_UP = {signal.SIGHUP, signal.SIGCONT}
_FAILED = 71


def supervise(become: Callable[[], int], refused: Callable[[int, OSError], object]) -> int:
    """Fork a child that does `become`, and pass signals on until it has ended; its status.

    When a signal ends it we end by the same one; where we cannot (as the first process of a PID namespace) the status
    is 128 + N. `become` is to execute the command; what it returns when it cannot is the status. `refused` is called
    with a signal that the kernel does not let us pass on, and the reason. Raises OSError when there can be no child.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: a child had better not load anything
    parent = os.getpid()
    taken = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the kernel would keep no exit status for us
    child = os.fork()
    if not child:

        def undo() -> None:
            signal.signal(signal.SIGCHLD, on_child)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        _be_child(libc, parent, undo, become)
    kept = _OF_A_TERMINAL - _OF_A_HANG_UP if os.getsid(0) == parent else _OF_A_TERMINAL
    while True:
        found = signal.sigwaitinfo(taken)
        if found.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return _end_likewise(libc, status)
        elif found.si_code != _SI_KERNEL or found.si_signo not in kept:
            try:
                os.kill(child, found.si_signo)  # it has not been reaped, so that the number is still its own
            except PermissionError as error:  # it has changed its user
                refused(found.si_signo, error)


def _be_child(libc: ctypes.CDLL, parent: int, undo: Callable[[], object], become: Callable[[], int]) -> NoReturn:
    status = _FAILED
    try:
        if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *(ctypes.c_ulong(0),) * 3):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() in (parent, 0):  # 0: it is outside of our PID namespace, whose first process this is
            undo()
            status = become()
    except BaseException:  # noqa: BLE001 - nothing may get out into the parent's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _reap(child: int) -> int | None:
    """The wait status of the child, if it has ended by now; stops when it was stopped."""
    while True:
        # Any child: the first process of a container gets orphans, and whoever executed us may have had children.
        pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        if not pid:
            return None
        if pid == child:
            if not os.WIFSTOPPED(status):
                return status
            _stop()


def _stop() -> None:
    """Stop, unless nobody could continue us; return when continued."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})  # here
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    signal.signal(signal.SIGTSTP, before)


def _end_likewise(libc: ctypes.CDLL, status: int) -> int:
    """The exit status for a wait status; does not return when a signal is to be died of."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    libc.prctl(_PR_SET_DUMPABLE, *(ctypes.c_ulong(0),) * 4)  # the core that says something is the command's
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
    return 128 - code
