"""A file with two kinds of lock in it, so that it is not clear which is meant."""

from bindlock.proof.kinds.flock import Flock


class One(Flock):
    """One."""


class Another(Flock):
    """Another."""
