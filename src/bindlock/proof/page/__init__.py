"""The page of `bindlock prove --html`: one file, without network and without a script.

Importing this raises ImportError where jinja2 or matplotlib (the extra `prove`) are not installed.
"""

import os
import tempfile

if "MPLCONFIGDIR" not in os.environ:
    # matplotlib writes a list of the machine's fonts into the user's home when it is loaded; nothing is to be left.
    with tempfile.TemporaryDirectory(prefix="bindlock-prove-") as _folder:
        os.environ["MPLCONFIGDIR"] = _folder
        try:
            import matplotlib.font_manager  # noqa: F401
        finally:
            del os.environ["MPLCONFIGDIR"]

from bindlock.proof.page.render import render

__all__ = ["render"]
