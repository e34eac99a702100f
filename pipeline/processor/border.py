"""The border leg: what one region has curated, to what another one may hold of it.

Comes in: records of the origin's curated topic. Their identity is the raw position that they carry: per
partition it rises, except where the origin's processor delivered a stretch again (pipeline/store/decode.py
has the proof), so a row whose raw offset does not rise is a repeat. A row that goes on carries its origin and
that same raw position.

The records are the pipeline's own output: one that cannot be read is an error somewhere and is still only
quarantined here, counted and named by position, for what follows it must not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.checks import Findings
from pipeline.errors import ConfigError
from pipeline.events import LockedSchema, split_null
from pipeline.processor.leg import Leg, int64
from pipeline.reasons import Reason

RAW_PARTITION, RAW_OFFSET, JURISDICTION = "raw_partition", "raw_offset", "jurisdiction"
RAW_LINE = 1  # where a landing leg has the spool's number; 0 would mean "no identity"


@dataclass(frozen=True)
class BorderLeg(Leg):
    """One event type on its way from one region into another.

    ``jurisdictions``: those of the origin; a row of any other must not leave under its terms.
    """

    jurisdictions: frozenset[str]

    def permit(self, now_us: int) -> None:
        """Nothing crosses without a basis that holds now."""
        self.plan.terms.demand_valid(now_us)

    def identities(self, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One line per raw partition, numbered from 1 as sequences are."""
        partition, offset = int64(batch, RAW_PARTITION), int64(batch, RAW_OFFSET)
        return np.full(len(batch), RAW_LINE), partition, offset + 1

    def findings(self, batch: pa.RecordBatch, partition: int, now_us: int) -> Findings:
        """A row in another partition than its own, or of a jurisdiction that is not the origin's."""
        misplaced = int64(batch, RAW_PARTITION) != partition
        codes = np.where(misplaced, 0, -1).astype(np.int16)
        if JURISDICTION in batch.schema.names:
            here = pc.is_in(batch.column(JURISDICTION), value_set=pa.array(sorted(self.jurisdictions)))
            codes[~np.asarray(here) & ~misplaced] = 1
        reasons = [(Reason.RANGE, RAW_PARTITION), (Reason.JURISDICTION_ELSEWHERE, JURISDICTION)]
        return Findings(codes, reasons)

    def position(self, batch: pa.RecordBatch, partition: int, offsets: np.ndarray) -> tuple[pa.Array, ...]:
        """The one that it came with, and whose it is."""
        origin = pa.repeat(pa.scalar(self.plan.terms.origin), len(batch))
        return origin, batch.column(RAW_PARTITION), batch.column(RAW_OFFSET)

    def received_us(self, batch: pa.RecordBatch, written_us: np.ndarray) -> np.ndarray:
        """When the origin's processor delivered the row: its own times may be coarse."""
        return written_us


def acceptable(
    versions: Iterable[LockedSchema], newest: LockedSchema, door: Callable[[LockedSchema], None]
) -> dict[int, frozenset[str]]:
    """Schema ids that a border leg reads, each with the columns that it takes over; the newest is one.

    ``door`` raises ConfigError where the *origin* may not hold what a schema says: what should not be there
    does not cross. For the newest version that goes up. An older one is left out, and its records go to
    quarantine; so is one without a column that must have a value. A column is taken over only with the same
    type and the same tags: what a field *is* now was checked, what it was under older tags was not.
    """
    door(newest)
    columns = {name: _meaning(column) for name, column in _columns(newest).items()}
    required = {name for name, column in _columns(newest).items() if not split_null(column["type"])[1]}
    found = {newest.id: frozenset(columns)}
    for locked in versions:
        same = frozenset(n for n, c in _columns(locked).items() if columns.get(n) == _meaning(c))
        if locked.id != newest.id and required <= same and _admitted(door, locked):
            found[locked.id] = same
    return found


def _admitted(door: Callable[[LockedSchema], None], locked: LockedSchema) -> bool:
    try:
        door(locked)
    except ConfigError:
        return False
    return True


def _columns(locked: LockedSchema) -> dict[str, dict]:
    return {column["name"]: column for column in locked.schema["fields"]}


def _meaning(column: dict) -> tuple[object, frozenset[str]]:
    return column["type"], frozenset(column.get("confluent:tags", ()))
