"""``python -m bindlock``: the command, for where scripts/bindlock is not on the PATH."""

from bindlock.cli.entry import main

main()
