"""What ends a trial before its end: it cannot be had, or the proof itself went wrong."""


class NotPossible(Exception):
    """The event cannot be had on this machine, for this user, or for this kind of lock: the reason, for people."""


class Fault(Exception):
    """Something went wrong that has nothing to do with the lock."""


class Stopped(Exception):
    """The worker was asked to stop."""
