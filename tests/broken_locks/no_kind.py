"""A file with no kind of lock in it: the one that it imports is not its own."""

from bindlock.proof.kind import Kind as Kind
