"""What happens now, for whoever looks on: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.live import Live
from rich.table import Table

from pipeline.cli.output import Session
from pipeline.demo.emission import Emission
from pipeline.scrape import rates
from pipeline.stack import ProcessStatus, Stack

REFRESH_S = 0.5
LINE_EVERY_S = 5.0
WAIT_S = 0.2


class Watch:
    """Use as a context manager while ``emission`` runs; ``pending`` tells what waits in each spool."""

    def __init__(
        self, here: Session, stack: Stack, emission: Emission, pending: Callable[[], dict[str, int]]
    ) -> None:
        self.emission = emission
        self._here, self.pending = here, pending
        self._processes: list[ProcessStatus] = [p for p in stack.status() if p.name != "broker"]
        self._on_terminal = here.progress.is_terminal and not here.json
        self._last_line_s = time.monotonic()
        self._live = Live(
            get_renderable=self._table,
            console=here.progress,
            refresh_per_second=1 / REFRESH_S,
            transient=True,
        )

    def __enter__(self) -> Watch:
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_terminal:
            self._live.stop()

    def until(self, moment_s: float | None) -> None:
        """Wait until ``moment_s`` (monotonic), or until the emission has ended; raise what failed there."""
        while self.emission.running and (moment_s is None or time.monotonic() < moment_s):
            left_s = WAIT_S if moment_s is None else min(WAIT_S, moment_s - time.monotonic())
            self.emission.wait(left_s)
            if not self._on_terminal and time.monotonic() - self._last_line_s >= LINE_EVERY_S:
                self._last_line_s = time.monotonic()
                waiting = sum(self.pending().values())
                accepted = sum(self.emission.accepted.values())
                self._here.say(f"{accepted:,} events acknowledged, {waiting:,} in the spools")
        self.emission.wait(0)

    def _table(self) -> Table:
        handled = {p.name: rates(p.port, timeout_s=0.3).get("events", 0) for p in self._processes}
        waiting = self.pending()
        table = Table("region", "acknowledged", "in the spool", "processed", "stored", header_style="bold")
        for region in waiting:
            counts = (
                self.emission.accepted[region], waiting[region],
                handled.get(f"process-{region}", 0), handled.get(f"store-{region}", 0),
            )  # fmt: skip
            table.add_row(region, *(f"{count:,}" for count in counts))
        return table
