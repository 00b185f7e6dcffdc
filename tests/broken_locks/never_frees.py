"""As of a program that relies on an exit handler, which it has not got."""

from bindlock.proof.kinds.pid_file_exclusive import PidFileExclusive


class NeverFrees(PidFileExclusive):
    """PID file that is never removed.

    Neither the holder's death nor its release frees it.
    """

    def release(self) -> None:
        pass
