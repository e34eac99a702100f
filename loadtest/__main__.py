"""``python -m loadtest``: one table, every figure from this run."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.bench import Bench, Figure

STATE = Path(__file__).resolve().parent.parent / ".pipeline" / "bench"


def main() -> int:
    """Run the parts asked for and print the table; the state folder is removed at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], help=f"of {', '.join(Bench.PARTS)} (default: all)")
    parser.add_argument("--events", type=int, default=1_000_000, help="events of the throughput parts")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the latency part")
    parser.add_argument("--rate", type=float, default=5_000.0, help="events a second of the latency part")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(Bench.PARTS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    sys.setswitchinterval(0.0005)
    progress = Console(stderr=True, style="dim", highlight=False)
    shutil.rmtree(STATE, ignore_errors=True)
    try:
        with Bench(STATE, options.events, lambda text: progress.print(text)) as bench:
            figures = bench.run(options.parts or list(Bench.PARTS), options.seconds, options.rate)
    finally:
        shutil.rmtree(STATE, ignore_errors=True)
    show(figures)
    return 1 if any(figure.ok is False for figure in figures) else 0


def show(figures: list[Figure]) -> None:
    """The table, expected values beside the measured ones."""
    table = Table(
        "what", "figure", "unit", "expected", "", title="one run, this machine", title_justify="left"
    )
    for figure in figures:
        mark = {True: "ok", False: "below", None: ""}[figure.ok]
        table.add_row(
            figure.name, f"{figure.value:,.1f}".removesuffix(".0"), figure.unit, figure.expected, mark
        )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
