"""The spool's tables, blocks as their rows, and the statements that move both together.

Comes in: blocks, settlements. Goes out: rows, and blocks again if every bit of the row is what was written.
Invariant: whoever deletes blocks changes the ledger by what was deleted, in the caller's transaction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from pipeline.edge.blocks import Block, pack, unpack
from pipeline.edge.ledger import LaneLedger, Loss, Settlement

FORMAT = 1  # PRAGMA user_version
HISTORY_ROWS_MAX = 10_000  # lines of the loss ledger and damaged blocks kept; the counters stay exact
TABLES = (
    "CREATE TABLE meta (spool INTEGER NOT NULL, commits INTEGER NOT NULL, next_block INTEGER NOT NULL)",
    "CREATE TABLE lane (lane INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, next_sequence INTEGER NOT NULL)",
    """CREATE TABLE ledger (lane INTEGER NOT NULL, region TEXT NOT NULL, accepted INTEGER NOT NULL,
        forwarded INTEGER NOT NULL, evicted INTEGER NOT NULL, PRIMARY KEY (lane, region)) WITHOUT ROWID""",
    """CREATE TABLE block (id INTEGER PRIMARY KEY, region TEXT NOT NULL, lane INTEGER NOT NULL,
        event TEXT NOT NULL, partition INTEGER NOT NULL, first_sequence INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL, received_ms INTEGER NOT NULL, count INTEGER NOT NULL,
        bytes INTEGER NOT NULL, checksum INTEGER NOT NULL, payload BLOB NOT NULL)""",
    "CREATE INDEX block_way ON block (region, lane, id)",
    # no types: what lies here is not what was written
    """CREATE TABLE damaged (id INTEGER PRIMARY KEY, region, lane, event, partition, first_sequence,
        last_sequence, received_ms, count, bytes, checksum, payload)""",
    """CREATE TABLE loss (id INTEGER PRIMARY KEY AUTOINCREMENT, lane INTEGER NOT NULL, region TEXT NOT NULL,
        event, first_sequence, last_sequence, count INTEGER NOT NULL, reason TEXT NOT NULL,
        at_ms INTEGER NOT NULL)""",
)
BLOCK_COLUMNS = (
    "region, lane, event, partition, first_sequence, last_sequence, received_ms, count, bytes, checksum,"
    " payload"
)


def to_row(block: Block, spool: int) -> tuple[str, int, str, int, int, int, int, int, int, int, bytes]:
    """The values of BLOCK_COLUMNS."""
    payload = pack(block.values)
    return (
        block.region, block.lane, block.event, block.partition, block.first_sequence, block.last_sequence,
        block.received_ms, len(block.values), len(payload), block.checksum(spool, payload), payload,
    )  # fmt: skip


def from_row(identity: int, row: Sequence[Any], spool: int) -> Block | None:
    """The block stored in row ``identity``, or None when it is not what was written."""
    region, lane, event, partition, first, last, received, count, _, checksum, payload = row
    try:
        values = unpack(payload, count)
    except (TypeError, ValueError, pa.ArrowException):  # a flipped bit can change a column's type
        return None
    block = Block(lane, region, event, partition, first, last, received, values, identity)
    return block if block.checksum(spool, payload) == checksum else None


class Database(Protocol):
    """What a connection inside a transaction can do."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run one statement."""
        ...


def settle(db: Database, settlement: Settlement) -> int:
    """Delete and count; the file itself says how many events leave. Returns the payload bytes freed."""
    which = (settlement.region, settlement.lane, settlement.through)
    where = "FROM block WHERE region = ? AND lane = ? AND id <= ?"
    count, freed = db.execute(f"SELECT sum(count), sum(bytes) {where}", which).fetchone()
    if count is None:  # settled before: its outcome was unknown then
        return 0
    lost = sum(loss.count for loss in settlement.losses)
    db.execute(f"DELETE {where}", which)
    db.execute(
        "UPDATE ledger SET forwarded = forwarded + ?, evicted = evicted + ? WHERE region = ? AND lane = ?",
        (count - lost, lost, settlement.region, settlement.lane),
    )
    for loss in settlement.losses:
        _enter(db, loss)
    return int(freed)


def set_aside(db: Database, counts: LaneLedger, damaged: Sequence[int]) -> None:
    """Move blocks of one (lane, region) out of the way and give up their events.

    A block's own count may be what is wrong, so lost is what the counters expect beyond the other blocks.
    """
    found = f"FROM block WHERE id IN ({','.join('?' * len(damaged))})"
    first, last = db.execute(f"SELECT min(first_sequence), max(last_sequence) {found}", damaged).fetchone()
    db.execute(f"INSERT INTO damaged SELECT id, {BLOCK_COLUMNS} {found}", damaged)
    db.execute(f"DELETE {found}", damaged)
    db.execute("DELETE FROM damaged WHERE id <= (SELECT max(id) FROM damaged) - ?", (HISTORY_ROWS_MAX,))
    which = (counts.region, counts.lane)
    left = db.execute("SELECT coalesce(sum(count), 0) FROM block WHERE region = ? AND lane = ?", which)
    lost = counts.pending - left.fetchone()[0]
    db.execute("UPDATE ledger SET evicted = evicted + ? WHERE region = ? AND lane = ?", (lost, *which))
    _enter(db, Loss(counts.lane, counts.region, "", first, last, lost, "damaged"))


def _enter(db: Database, loss: Loss) -> None:
    db.execute(
        "INSERT INTO loss (lane, region, event, first_sequence, last_sequence, count, reason, at_ms)"
        " VALUES (?,?,?,?,?,?,?,?)",
        (loss.lane, loss.region, loss.event, loss.first_sequence, loss.last_sequence, loss.count,
         loss.reason, time.time_ns() // 1_000_000),
    )  # fmt: skip
    db.execute("DELETE FROM loss WHERE id <= (SELECT max(id) FROM loss) - ?", (HISTORY_ROWS_MAX,))
