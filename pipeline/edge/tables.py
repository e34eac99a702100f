"""The spool's tables, blocks as their rows, and the statements that move both together.

Comes in: blocks, settlements, losses. Goes out: rows, and blocks again if every bit of a row is what was
written. Invariant: whoever deletes blocks changes the ledger by what was deleted, in the same transaction.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import pyarrow as pa

from pipeline.edge.blocks import Block, pack, unpack
from pipeline.edge.ledger import LaneLedger, Loss, LossLine, LossReason, Settlement
from pipeline.edge.summary import from_text, merged, to_text

FORMAT = 2  # PRAGMA user_version
DAMAGED_STEP_MAX = 1_000
HISTORY_ROWS_MAX = 10_000  # lines of the loss ledger and damaged blocks kept; the counters stay exact
ROW_BYTES = 128  # what a row takes beside its payload: small blocks must not outgrow the cap unseen
TABLES = (
    """CREATE TABLE meta (spool INTEGER NOT NULL, commits INTEGER NOT NULL, next_block INTEGER NOT NULL,
        birth TEXT NOT NULL DEFAULT '', place TEXT NOT NULL DEFAULT '',
        step_bytes INTEGER NOT NULL DEFAULT 0)""",
    "CREATE TABLE lane (lane INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, next_sequence INTEGER NOT NULL)",
    """CREATE TABLE ledger (spool INTEGER NOT NULL, lane INTEGER NOT NULL, region TEXT NOT NULL,
        accepted INTEGER NOT NULL, forwarded INTEGER NOT NULL, evicted INTEGER NOT NULL,
        PRIMARY KEY (spool, lane, region)) WITHOUT ROWID""",
    """CREATE TABLE block (id INTEGER PRIMARY KEY, region TEXT NOT NULL, lane INTEGER NOT NULL,
        event TEXT NOT NULL, partition INTEGER NOT NULL, first_sequence INTEGER NOT NULL,
        last_sequence INTEGER NOT NULL, received_ms INTEGER NOT NULL, count INTEGER NOT NULL,
        bytes INTEGER NOT NULL, checksum INTEGER NOT NULL, payload BLOB NOT NULL,
        spool INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX block_way ON block (region, lane, id)",
    # no types: what lies here is not what was written
    """CREATE TABLE damaged (id INTEGER PRIMARY KEY, region, lane, event, partition, first_sequence,
        last_sequence, received_ms, count, bytes, checksum, payload, spool)""",
    """CREATE TABLE loss (id INTEGER PRIMARY KEY AUTOINCREMENT, lane INTEGER NOT NULL, region TEXT NOT NULL,
        event, first_sequence, last_sequence, count INTEGER NOT NULL, reason TEXT NOT NULL,
        at_ms INTEGER NOT NULL, spool INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
        first_ms INTEGER NOT NULL DEFAULT 0, last_ms INTEGER NOT NULL DEFAULT 0,
        summary TEXT NOT NULL DEFAULT '', sent INTEGER NOT NULL DEFAULT 0)""",
    SALVAGE := "CREATE TABLE salvage (name TEXT PRIMARY KEY, through INTEGER NOT NULL)",
)
FROM_1 = (  # what an older agent left goes on where it was
    "ALTER TABLE meta ADD COLUMN birth TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE meta ADD COLUMN place TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE meta ADD COLUMN step_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE block ADD COLUMN spool INTEGER NOT NULL DEFAULT 0",
    "UPDATE block SET spool = (SELECT spool FROM meta)",
    "ALTER TABLE damaged ADD COLUMN spool",
    "ALTER TABLE ledger RENAME TO ledger_1",
    TABLES[2],
    "INSERT INTO ledger SELECT spool, lane, region, accepted, forwarded, evicted FROM ledger_1, meta",
    "DROP TABLE ledger_1",
    "ALTER TABLE loss ADD COLUMN spool INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE loss ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE loss ADD COLUMN first_ms INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE loss ADD COLUMN last_ms INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE loss ADD COLUMN summary TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE loss ADD COLUMN sent INTEGER NOT NULL DEFAULT 0",
    "UPDATE loss SET spool = (SELECT spool FROM meta)",
    SALVAGE,
)
BLOCK_COLUMNS = (
    "region, lane, event, partition, first_sequence, last_sequence, received_ms, count, bytes, checksum,"
    " payload, spool"
)
LOSS_COLUMNS = (
    "lane, region, event, first_sequence, last_sequence, count, reason, spool, bytes, first_ms, last_ms"
)
LEDGER = (
    "SELECT spool, lane, region, accepted, forwarded, evicted FROM ledger"
    " ORDER BY spool <> ?, spool, lane, region"
)
COST = f"bytes + {ROW_BYTES}"


class Database(Protocol):
    """What a connection inside a transaction can do."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any:
        """Run one statement."""
        ...


def to_row(block: Block, spool: int) -> tuple[Any, ...]:
    """The values of BLOCK_COLUMNS; ``spool`` is the file's own incarnation."""
    payload, spool = pack(block.values), block.spool or spool
    return (
        block.region, block.lane, block.event, block.partition, block.first_sequence, block.last_sequence,
        block.received_ms, len(block.values), len(payload), block.checksum(spool, payload), payload, spool,
    )  # fmt: skip


def from_row(identity: int, row: Sequence[Any]) -> Block | None:
    """The block stored in row ``identity``, or None when it is not what was written."""
    region, lane, event, partition, first, last, received, count, _, checksum, payload, spool = row
    try:
        values = unpack(payload, count)
    except (TypeError, ValueError, pa.ArrowException):  # a flipped bit can change a column's type
        return None
    block = Block(lane, region, event, partition, first, last, received, values, identity, spool)
    return block if block.checksum(spool, payload) == checksum else None


def read_ledgers(db: Database, spool: int) -> Iterator[LaneLedger]:
    """The file's own incarnation ``spool`` first."""
    for owner, lane, region, taken, sent, lost in db.execute(LEDGER, (spool,)):
        yield LaneLedger(owner, lane, region, taken, sent, lost, taken - sent - lost)


def fetch(db: Database, which: tuple[str, int, int], bytes_max: int) -> tuple[list[Block], int, list[int]]:
    """Blocks of (region, lane) beyond a row, the room they take, and rows that are not what was written."""
    blocks: list[Block] = []
    damaged: list[int] = []
    size = room = 0
    where = "FROM block WHERE region = ? AND lane = ? AND id > ? ORDER BY id"
    with closing(db.execute(f"SELECT id, {BLOCK_COLUMNS} {where}", which)) as rows:
        for identity, *row in rows:
            block = from_row(identity, row)
            if block is None:
                damaged.append(identity)
                if len(damaged) == DAMAGED_STEP_MAX:
                    break
                continue
            size += len(row[10])
            if blocks and size > bytes_max:
                break
            blocks.append(block)
            room += len(row[10]) + ROW_BYTES
    return blocks, room, damaged


def insert(
    db: Any, first_row: int, rows: Sequence[tuple[Any, ...]], next_sequence: Mapping[int, int]
) -> None:
    """Store rows of BLOCK_COLUMNS from row number ``first_row`` on, count them, move their lanes."""
    db.executemany(
        f"INSERT INTO block (id, {BLOCK_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
        [(first_row + place, *row) for place, row in enumerate(rows)],
    )
    taken = Counter[tuple[int, int, str]]()
    for row in rows:
        taken[row[11], row[1], row[0]] += row[7]
    db.executemany(
        "INSERT INTO ledger VALUES (?, ?, ?, ?, 0, 0) ON CONFLICT (spool, lane, region)"
        " DO UPDATE SET accepted = accepted + excluded.accepted",
        [(*way, count) for way, count in taken.items()],
    )
    moved = [(following, lane) for lane, following in next_sequence.items()]
    db.executemany("UPDATE lane SET next_sequence = ? WHERE lane = ?", moved)
    db.execute("UPDATE meta SET commits = commits + 1, next_block = next_block + ?", (len(rows),))


def settle(db: Database, settlement: Settlement) -> int:
    """Delete and count; the file itself says how many events leave. Returns the room they took, in bytes.

    0 when it was settled before: its outcome was unknown then.
    """
    which = (settlement.region, settlement.lane, settlement.through)
    (own,) = db.execute("SELECT spool FROM meta").fetchone()
    losses = [replace(loss, spool=loss.spool or own) for loss in settlement.losses]
    where = "FROM block WHERE region = ? AND lane = ? AND id <= ?"
    left = db.execute(f"SELECT spool, sum(count), sum({COST}) {where} GROUP BY spool", which).fetchall()
    if not left:
        return 0
    db.execute(f"DELETE {where}", which)
    for spool, count, _ in left:
        lost = sum(loss.count for loss in losses if loss.spool == spool)
        db.execute(
            "UPDATE ledger SET forwarded = forwarded + ?, evicted = evicted + ?"
            " WHERE spool = ? AND region = ? AND lane = ?",
            (count - lost, lost, spool, settlement.region, settlement.lane),
        )
    for loss in losses:
        enter(db, loss)
    return sum(freed for *_, freed in left)


def give_up(db: Database, loss: Loss) -> None:
    """Count blocks that the caller deletes in this transaction as lost."""
    db.execute(
        "UPDATE ledger SET evicted = evicted + ? WHERE spool = ? AND lane = ? AND region = ?",
        (loss.count, loss.spool, loss.lane, loss.region),
    )
    enter(db, loss)


def set_aside(db: Database, way: tuple[int, str], damaged: Sequence[int]) -> list[Loss]:
    """Move blocks of one (lane, region) out of the way and give up their events.

    A block's own count may be what is wrong, so lost is what the counters expect beyond the other blocks.
    """
    lane, region = way
    losses = []
    found = f"FROM block WHERE id IN ({','.join('?' * len(damaged))})"
    ends = db.execute(f"SELECT min(first_sequence), max(last_sequence) {found}", damaged).fetchone()
    first, last = (end if isinstance(end, int) else 0 for end in ends)
    db.execute(f"INSERT OR REPLACE INTO damaged SELECT id, {BLOCK_COLUMNS} {found}", damaged)
    db.execute(f"DELETE {found}", damaged)
    db.execute("DELETE FROM damaged WHERE id <= (SELECT max(id) FROM damaged) - ?", (HISTORY_ROWS_MAX,))
    for counts in [one for one in read_ledgers(db, 0) if (one.lane, one.region) == way]:
        left = db.execute(
            "SELECT coalesce(sum(count), 0) FROM block WHERE region = ? AND lane = ? AND spool = ?",
            (region, lane, counts.spool),
        )
        lost = counts.pending - left.fetchone()[0]
        if lost > 0:
            loss = Loss(lane, region, "", first, last, lost, LossReason.DAMAGED, counts.spool)
            give_up(db, loss)
            losses.append(loss)
    return losses


def enter(db: Database, loss: Loss) -> None:
    """Write a line, or let the last one grow: of the same kind, not sent yet and not a second old.

    When HISTORY_ROWS_MAX lines wait for the link, the last one of the kind grows whatever its age, so that
    an outage without end does not fill the disk with its own account.
    """
    now_ms = time.time_ns() // 1_000_000
    kind = (loss.spool, loss.lane, loss.region, loss.event, loss.reason)
    waiting = db.execute("SELECT count(*) FROM loss WHERE sent = 0").fetchone()[0]
    since = 0 if waiting >= HISTORY_ROWS_MAX else now_ms - 1_000
    last = db.execute(
        "SELECT id, first_sequence, last_sequence, first_ms, last_ms, summary FROM loss WHERE sent = 0 AND"
        " spool = ? AND lane = ? AND region = ? AND event = ? AND reason = ? AND at_ms >= ?"
        " ORDER BY id DESC LIMIT 1",
        (*kind, since),
    ).fetchone()
    if last is None:
        db.execute(
            f"INSERT INTO loss ({LOSS_COLUMNS}, at_ms, summary) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (loss.lane, loss.region, loss.event, loss.first_sequence, loss.last_sequence, loss.count,
             str(loss.reason), loss.spool, loss.bytes, loss.first_ms, loss.last_ms, now_ms,
             to_text(loss.summary)),
        )  # fmt: skip
        # Lines that were sent make room; lines that were not never do.
        db.execute(
            "DELETE FROM loss WHERE sent = 1 AND id <= (SELECT max(id) FROM loss) - ?", (HISTORY_ROWS_MAX,)
        )
        return
    line, first, end, first_ms, last_ms, summary = last
    db.execute(
        "UPDATE loss SET count = count + ?, bytes = bytes + ?, first_sequence = ?, last_sequence = ?,"
        " first_ms = ?, last_ms = ?, at_ms = ?, summary = ? WHERE id = ?",
        (loss.count, loss.bytes, min(first, loss.first_sequence), max(end, loss.last_sequence),
         min(first_ms, loss.first_ms), max(last_ms, loss.last_ms), now_ms,
         to_text(merged(from_text(summary), loss.summary)), line),
    )  # fmt: skip


def loss_lines(db: Database, which: str = "1", values: Sequence[Any] = (), limit: int = -1) -> list[LossLine]:
    """Lines of the loss ledger, oldest first."""
    statement = f"SELECT id, at_ms, {LOSS_COLUMNS}, summary FROM loss WHERE {which} ORDER BY id LIMIT ?"
    lines = []
    for line, at_ms, *row in db.execute(statement, (*values, limit)):
        row[-1] = from_text(row[-1])
        lines.append(LossLine(line, Loss(*row), at_ms))
    return lines


def mark_sent(db: Database, lines: Sequence[LossLine]) -> None:
    """The lines are upstream, unless they have grown since they were read."""
    for line in lines:
        db.execute("UPDATE loss SET sent = 1 WHERE id = ? AND count = ?", (line.line, line.loss.count))
