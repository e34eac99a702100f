"""A file as the events of one type: opened, mapped, counted.

Comes in: a path, an event type, a mapping. Goes out: batches that the edge's ``emit_many`` takes. Invariant:
``read = sent + skipped``; nothing is read ahead of what was handed out by more than one block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from connectors.files import Rows, open_rows
from pipeline.errors import RecordError
from pipeline.events import EventType
from pipeline.mapping import Mapping, by_name
from pipeline.replay import BadRow, Mapped, Mapper


@dataclass
class Tally:
    """What became of the rows so far."""

    read: int = 0
    sent: int = 0
    bad: Counter[tuple[str, str]] = field(default_factory=Counter)  # (field, problem) -> rows

    @property
    def skipped(self) -> int:
        return sum(self.bad.values())


class Replay:
    """A file as events of one type; iterate once. Checked whole when built: ConfigError before the first row.

    ``on_bad="stop"``: rows ahead of the first bad one are handed out, then RecordError with its number and
    field. ``"skip"``: bad rows are counted in ``tally`` and left out.
    """

    def __init__(
        self,
        path: Path,
        event: EventType,
        mapping: Mapping | None = None,
        *,
        jurisdiction: str | None = None,
        on_bad: Literal["stop", "skip"] = "stop",
    ) -> None:
        self._source = open_rows(path, mapping.read if mapping else None)
        own = [f.name for f in event.own_fields]
        self._mapping = mapping or by_name(event.name, own, self._source.schema.names)
        self._mapper = Mapper(self._mapping, event, self._source.schema, jurisdiction)
        self._on_bad = on_bad
        self.columns = self._mapper.columns
        self.tally = Tally()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for rows in self._source.batches(self.columns):
            mapped = self._mapper.apply(rows.batch, rows.numbers)
            bad = sorted((*rows.broken, *mapped.bad), key=lambda row: row.number)
            if bad and self._on_bad == "stop":
                yield from self._until(rows, mapped, bad[0])
            self.tally.bad.update((row.field, row.problem) for row in bad)
            self.tally.read += len(rows.numbers) + len(rows.broken)
            yield from self._hand_out(mapped.good())

    def _until(self, rows: Rows, mapped: Mapped, bad: BadRow) -> Iterator[pa.RecordBatch]:
        before = int(np.searchsorted(rows.numbers, bad.number))
        self.tally.read += before + 1
        self.tally.bad[(bad.field, bad.problem)] += 1
        yield from self._hand_out(mapped.batch.slice(0, before))
        raise RecordError(
            f"row {bad.number}: {bad.problem}", reason="undecodable", field=bad.field,
            remedy=f"{self.tally.sent} rows before it were taken; repair the row, or skip bad rows",
        )  # fmt: skip

    def _hand_out(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if len(batch):
            self.tally.sent += len(batch)
            yield batch


def replay(
    path: Path, event: EventType, jurisdiction: str | None = None, mapping: Mapping | None = None
) -> Iterator[pa.RecordBatch]:
    """The short form of :class:`Replay` that stops at the first bad row."""
    return iter(Replay(path, event, mapping, jurisdiction=jurisdiction))
