"""Acquire, wait, release; who holds a name; what names there are."""
