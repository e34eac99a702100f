"""Events out of a damaged spool file, into the new one that took its place.

Comes in: a file that was moved aside (``<spool>.damaged-<time>``). Goes out: its whole blocks in the new
file, under the identity they were given when they were accepted, so that one which the broker has already is
dropped as a repeat; its counters; a loss of reason ``damaged`` for what could not be read, so that the sum
closes. Invariants: a block comes over once, also when the agent is killed on the way; a block whose checksum
is wrong never comes over; the order of a lane is kept.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from pipeline.edge.blocks import Block
from pipeline.edge.ledger import Loss, LossReason
from pipeline.edge.lock import sync_folder
from pipeline.edge.pages import INDEX_LEAF, TABLE_LEAF, Cell, PageFile
from pipeline.edge.tables import BLOCK_COLUMNS, LOSS_COLUMNS, Database, from_row, give_up, to_row

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 << 20
DONE = 1 << 62
_BLOCK_TYPES, _LEDGER_TYPES, _LOSS_TYPES = 13, 6, 15
_MARK = ".damaged-"


def move_aside(path: Path) -> None:
    """Give a damaged file and its log another name. Killed in between, :func:`finish_moving` goes on."""
    damaged = path.with_name(f"{path.name}{_MARK}{time.time_ns()}")
    os.rename(path, damaged)
    finish_moving(path)


def finish_moving(path: Path) -> None:
    """The log follows its file: beside a new database SQLite would take it for that one's, or delete it."""
    whole = path.exists() and path.stat().st_size > 0
    waiting = damaged_files(path)
    for end in ("-wal", "-shm"):
        lone = Path(f"{path}{end}")
        if not whole and waiting and lone.exists() and not Path(f"{waiting[-1]}{end}").exists():
            os.rename(lone, f"{waiting[-1]}{end}")
            sync_folder(path)


def damaged_files(path: Path) -> list[Path]:
    """Files moved aside and not salvaged yet, the oldest first."""
    found = path.parent.glob(f"{path.name}{_MARK}*")
    return sorted(one for one in found if one.name.rpartition(_MARK)[2].isdigit())


def done_with(path: Path) -> None:
    """What was salvaged is not looked at again. The last such file is kept for whoever wants to look into it.

    Not more than one: they hold personal data and take room.
    """
    for damaged in damaged_files(path):
        for end in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{damaged}{end}", f"{damaged}.done{end}")
    done = sorted(path.parent.glob(f"{path.name}{_MARK}*.done"))
    for old in done[:-1]:
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{old}{end}")


def salvage(db: Database, damaged: Path, page_bytes: int) -> int:
    """Bring over what the new file ``db`` has not yet of the damaged one; returns how many events.

    Commits in chunks and remembers how far it came. Raises what the database raises.
    """
    through = db.execute("SELECT through FROM salvage WHERE name = ?", (damaged.name,)).fetchone()
    through = 0 if through is None else through[0]
    if through == DONE:
        return 0
    with closing(PageFile(damaged, page_bytes)) as pages:
        cells = sorted(
            (
                one
                for one in pages.cells(TABLE_LEAF)
                if len(one.types) == _BLOCK_TYPES and one.rowid > through
            ),
            key=lambda one: one.rowid,
        )
        events = 0
        for chunk in _chunks(pages, cells):
            db.execute("BEGIN IMMEDIATE")
            for block in chunk:
                _take(db, block)
                events += len(block.values)
            _note(db, damaged.name, chunk[-1].identity)
            db.execute("COMMIT")
        db.execute("BEGIN IMMEDIATE")
        _close_account(db, pages)
        _note(db, damaged.name, DONE)
        db.execute("COMMIT")
    log.warning("%s was damaged: %d events of it are in the new spool", damaged, events)
    return events


def _chunks(pages: PageFile, cells: list[Cell]) -> Iterator[list[Block]]:
    chunk: list[Block] = []
    size, last = 0, 0
    for cell in cells:
        values = pages.values(cell, TABLE_LEAF) if cell.rowid != last else None
        block = None if values is None else from_row(cell.rowid, values[1:])
        if block is None:  # or a second image of a row that came over
            continue
        chunk.append(block)
        size, last = size + cell.size, cell.rowid
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _take(db: Database, block: Block) -> None:
    """Unless it came over from an older file that was damaged while it was being salvaged."""
    same = (block.region, block.lane, block.spool, block.first_sequence, block.event, block.partition)
    here = db.execute(
        "SELECT 1 FROM block WHERE region = ? AND lane = ? AND spool = ? AND first_sequence = ? AND event = ?"
        " AND partition = ? AND (SELECT count(*) FROM salvage) > 1 LIMIT 1", same
    ).fetchone()  # fmt: skip
    if here is not None:
        return
    (row,) = db.execute("SELECT next_block FROM meta").fetchone()
    marks = ",".join("?" * _BLOCK_TYPES)
    db.execute(
        f"INSERT INTO block (id, {BLOCK_COLUMNS}) VALUES ({marks})", (row, *to_row(block, block.spool))
    )
    db.execute("UPDATE meta SET next_block = next_block + 1")


def _note(db: Database, name: str, through: int) -> None:
    db.execute("INSERT OR REPLACE INTO salvage VALUES (?, ?)", (name, through))


def _close_account(db: Database, pages: PageFile) -> None:
    """Counters and loss lines of the damaged file; what they expect beyond the blocks found is lost."""
    for spool, lane, region, accepted, forwarded, evicted in _ledger(pages):
        db.execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (spool, lane, region) DO UPDATE SET"
            " accepted = max(accepted, excluded.accepted), forwarded = max(forwarded, excluded.forwarded),"
            " evicted = max(evicted, excluded.evicted)",
            (spool, lane, region, accepted, forwarded, evicted),
        )
    for row in _losses(pages):
        marks = ",".join("?" * (_LOSS_TYPES - 1))
        db.execute(f"INSERT INTO loss ({LOSS_COLUMNS}, at_ms, summary, sent) VALUES ({marks})", row)
    # Blocks whose counters are lost: all that is known of them is that they are here.
    db.execute(
        "INSERT INTO ledger SELECT spool, lane, region, 0, 0, 0 FROM block WHERE true"
        " GROUP BY spool, lane, region ON CONFLICT DO NOTHING"
    )
    found = db.execute(
        "SELECT l.spool, l.lane, l.region, accepted - forwarded - evicted, ifnull(sum(b.count), 0), accepted"
        " FROM ledger l LEFT JOIN block b USING (spool, lane, region)"
        " WHERE l.spool <> (SELECT spool FROM meta) GROUP BY l.spool, l.lane, l.region"
    ).fetchall()
    for spool, lane, region, expected, here, accepted in found:
        if expected > here:
            give_up(db, Loss(lane, region, "", 1, accepted, expected - here, LossReason.DAMAGED, spool))
        elif here > expected:
            db.execute(
                "UPDATE ledger SET accepted = accepted + ? WHERE spool = ? AND lane = ? AND region = ?",
                (here - expected, spool, lane, region),
            )


def _ledger(pages: PageFile) -> list[list[Any]]:
    wanted = [int, int, str, int, int, int]
    found = (pages.values(c, INDEX_LEAF) for c in pages.cells(INDEX_LEAF) if len(c.types) == _LEDGER_TYPES)
    return [
        row for row in found
        if row is not None and [type(value) for value in row] == wanted and row[3] >= row[4] + row[5]
        and min(row[1], row[4], row[5]) >= 0
    ]  # fmt: skip


def _losses(pages: PageFile) -> Iterator[list[Any]]:
    """Rows in the order of the insert: LOSS_COLUMNS, at_ms, summary, sent."""
    for cell in pages.cells(TABLE_LEAF):
        row = pages.values(cell, TABLE_LEAF) if len(cell.types) == _LOSS_TYPES else None
        if row is None:
            continue
        _, lane, region, event, first, last, count, reason, at, spool, size, start, end, summary, sent = row
        numbers = (lane, first, last, count, at, spool, size, start, end, sent)
        if all(type(n) is int for n in numbers) and all(type(t) is str for t in (region, reason, summary)):
            yield [
                lane,
                region,
                event,
                first,
                last,
                count,
                reason,
                spool,
                size,
                start,
                end,
                at,
                summary,
                sent,
            ]
