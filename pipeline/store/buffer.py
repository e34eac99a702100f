"""One commit's worth: rows, positions and account, gathered until the flush policy says enough.

Comes in: decoded rows and applied stats, in log order per source. Goes out: Arrow tables per event, the
``_account`` rows, and the positions they start from. Invariant: whatever is in the rows is in the account and
the other way round, because both leave together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pipeline.config import FlushConfig
from pipeline.errors import ConfigError
from pipeline.store.account import (
    ACCOUNT_SCHEMA,
    STATS,
    RawPartition,
    RowsEntry,
    Source,
    StatsEntry,
    StatsRecord,
)

RUN_BYTES = 100  # one Run with its numbers as Python objects, measured


@dataclass
class Rows:
    """New rows of one source, in log order, with what was skipped on the way."""

    event: str
    batches: list[pa.RecordBatch]
    next_raw_offset: int
    repeats: int

    @property
    def count(self) -> int:
        """Rows to store."""
        return sum(len(batch) for batch in self.batches)


class Buffer:
    """Gathers one commit. Not safe for threads: one owner at a time."""

    def __init__(self, flush: FlushConfig) -> None:
        self._flush = flush
        self._batches: dict[str, list[pa.RecordBatch]] = {}
        self._rows: dict[Source, RowsEntry] = {}
        self._stats: dict[Source, dict[RawPartition, list[StatsEntry]]] = {}
        self._opened_at: float | None = None
        self.expected: dict[Source, int] = {}  # positions before this commit, of the sources it moves
        self.reached: dict[Source, int] = {}  # and after it
        self.received_us: dict[str, list[np.ndarray]] = {}  # a batch's mean receipt, once per row
        self.row_count = 0
        self.byte_count = 0

    def advance(self, source: Source, position: int, next_position: int, now_s: float) -> None:
        """``source`` was read from ``position`` to ``next_position``; the clock of the age starts here."""
        self.expected.setdefault(source, position)
        self.reached[source] = next_position
        if self._opened_at is None:
            self._opened_at = now_s

    def add_rows(self, source: Source, rows: Rows) -> None:
        """New rows of a curated source; call :meth:`advance` for it as well."""
        entry = self._rows.setdefault(source, RowsEntry(rows.event, rows.next_raw_offset))
        entry.next_raw_offset = rows.next_raw_offset
        entry.row_count += rows.count
        entry.repeat_rows += rows.repeats
        self._batches.setdefault(rows.event, []).extend(rows.batches)
        self.row_count += rows.count
        self.byte_count += sum(batch.nbytes for batch in rows.batches)

    def add_stats(self, source: Source, records: Sequence[StatsRecord]) -> None:
        """Applied stats of a stats source, possibly none; call :meth:`advance` for it as well."""
        by_raw = self._stats.setdefault(source, {})
        for record in records:
            entries = by_raw.setdefault(record.raw, [])
            self.received_us.setdefault(record.event, []).append(np.full(record.passed, record.received_us))
            if not entries or entries[-1].policy_hash != record.policy_hash:
                entries.append(StatsEntry(record.event, record.policy_hash, record.first, record.first))
            entries[-1].add(record)
            self.byte_count += RUN_BYTES * (len(record.runs) + 4)

    def trigger(self, now_s: float) -> str | None:
        """Why to commit now: ``rows``, ``bytes`` or ``age``; None: not yet."""
        if self.row_count >= self._flush.rows:
            return "rows"
        if self.byte_count >= self._flush.bytes:
            return "bytes"
        return "age" if self.due_in(now_s) <= 0 else None

    def due_in(self, now_s: float) -> float:
        """Seconds until the age is reached; infinite while empty."""
        return float("inf") if self._opened_at is None else self._opened_at + self._flush.age_s - now_s

    @property
    def full(self) -> bool:
        """Whether a commit's worth is in hand: nothing more may be fetched before it left."""
        return self.row_count >= self._flush.rows or self.byte_count >= self._flush.bytes

    def __bool__(self) -> bool:
        return bool(self.reached)

    def rows(self) -> dict[str, int]:
        """Rows per event."""
        return {event: sum(map(len, batches)) for event, batches in self._batches.items() if batches}

    def repeats(self) -> dict[str, int]:
        """Skipped rows per event."""
        totals: dict[str, int] = {}
        for entry in self._rows.values():
            totals[entry.event] = totals.get(entry.event, 0) + entry.repeat_rows
        return totals

    def tables(self) -> dict[str, pa.Table]:
        """Rows per event as one table; columns that some batches do not have are null there.

        Raises ConfigError when two schema versions give one column different types.
        """
        tables = {}
        for event, batches in self._batches.items():
            if batches:
                try:
                    tables[event] = pa.concat_tables(
                        [pa.Table.from_batches([batch]) for batch in batches], promote_options="default"
                    )
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    raise ConfigError(
                        "two versions of the curated schema give a column different types",
                        operation="storing", place=event,
                    ) from error  # fmt: skip
        return tables

    def account(self, committed_us: int) -> pa.Table:
        """One row per source, or per raw partition of a stats source; ``committed_us`` since 1970 UTC."""
        rows = [(source, entry.columns(source)) for source, entry in self._rows.items()]
        for source, by_raw in self._stats.items():
            applied = [stats.columns(raw) for raw, entries in by_raw.items() for stats in entries]
            rows += [(source, columns) for columns in applied or [{"kind": STATS}]]
        values = [
            {
                **columns,
                **asdict(source),
                "next_position": self.reached[source],
                "committed_time": committed_us,
            }
            for source, columns in rows
        ]
        columns = {
            column.name: pa.array([value.get(column.name) for value in values], column.type)
            for column in ACCOUNT_SCHEMA
        }
        return pa.table(columns, schema=ACCOUNT_SCHEMA)
