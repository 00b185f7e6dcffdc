"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import bindlock

MODULES = ["bindlock", *(info.name for info in pkgutil.walk_packages(bindlock.__path__, "bindlock."))]
#: Modules that run the command when they are imported, and have no examples.
RUN = ("__main__", ".amalgam")


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith(RUN)])
def test_examples(module: str) -> None:
    """Each example gives the result that is printed below it."""
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.FAIL_FAST)
    assert result.failed == 0


def test_there_are_examples() -> None:
    """The examples have been found: a dozen at the least."""
    finder = doctest.DocTestFinder()
    found = 0
    for module in MODULES:
        if not module.endswith(RUN):
            found += sum(len(test.examples) for test in finder.find(importlib.import_module(module)))
    assert found >= 12
