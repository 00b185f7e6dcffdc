# Run by scripts/bindlock as a file, with -I -S: small, for it is compiled at every start; bindlock.cli.entry is not.
import sys

sys.path.append(__file__[: -len("/bindlock/cli/start.py")])
from bindlock.cli.entry import main

main()
