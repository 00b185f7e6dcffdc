"""``python -m benchmarks``: measure, print one table, write JSON on request."""

from __future__ import annotations

import argparse
import json
import time

import pyperf
from rich.console import Console
from rich.table import Table

import bindlock
from benchmarks import command, drain, imports, listing, system_calls, takeover, uncontended, waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.result import Row

BENCHMARKS: dict[str, Callable[[bool], list[Row]]] = {
    "uncontended": uncontended.measure,
    "system-calls": system_calls.measure,
    "takeover": takeover.measure,
    "waiting": waiting.measure,
    "drain": drain.measure,
    "run": command.measure_start,
    "memory": command.measure_memory,
    "imports": imports.measure,
    "listing": listing.measure,
}
#: What of pyperf's description of the machine helps to judge the figures.
_MACHINE = ("cpu_model_name", "cpu_count", "cpu_freq", "cpu_config", "platform", "python_version", "load_avg_1min")
#: As wide as the table is, where it is not printed to a terminal.
_WIDTH = 200


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What bindlock costs, beside other locks."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: less than a minute")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE, too")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    machine = _machine()
    for key, value in machine.items():
        console.print(f"{key}: {value}", highlight=False)
    results: dict[str, list[Row]] = {}
    start = time.monotonic()
    for name in options.names or BENCHMARKS:
        with console.status(f"measuring: {name}"):
            results[name] = BENCHMARKS[name](options.quick)
    machine["seconds"] = f"{time.monotonic() - start:.0f}"
    console.print(_table(results))
    console.print(
        f"n: measurements of each. Ratios: median (lowest to highest) of rounds. {machine['seconds']} s in all."
    )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": machine, "quick": options.quick, "results": _plain(results)}, file, indent=1)
            file.write("\n")


def _machine() -> dict[str, str]:
    collected = pyperf.Benchmark([pyperf.Run([1.0], metadata={"name": "machine"})]).get_metadata()
    machine = {key: str(collected[key]) for key in _MACHINE if key in collected}
    return machine | {"bindlock": bindlock.__version__}


def _table(results: dict[str, list[Row]]) -> Table:
    table = Table(show_lines=False, pad_edge=False)
    for column in ("what", "ours", "beside", "theirs", "ratio", "target", "reached"):
        table.add_column(column)
    table.add_column("n", justify="right")
    for rows in results.values():
        for row in rows:
            reached = {True: "[green]yes", False: "[bold red]NO", None: "[red]NO" if row.target else ""}[row.reached]
            repetitions = str(row.repetitions) if row.repetitions else ""
            table.add_row(row.what, row.ours, row.peer, row.theirs, row.ratio, row.target, reached, repetitions)
        table.add_section()
    return table


def _plain(results: dict[str, list[Row]]) -> dict[str, list[dict[str, object]]]:
    return {name: [vars(row) for row in rows] for name, rows in results.items()}


if __name__ == "__main__":
    main()
