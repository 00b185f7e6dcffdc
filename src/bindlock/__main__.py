"""``python -m bindlock``; and run as a file by scripts/bindlock, with -I -S, where there is no amalgam to be run."""

import sys

if not __package__:
    sys.path.append(__file__[: -len("/bindlock/__main__.py")])

from bindlock.cli.run import main

sys.exit(main(sys.argv[1:]))
