"""A copied, restored or damaged spool file: no number twice, nothing whole is lost, the sum closes."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.edge.blocks import Block, Change
from pipeline.edge.ledger import Settlement
from pipeline.edge.pages import TABLE_LEAF, PageFile, local_bytes
from pipeline.edge.salvage import damaged_files, move_aside
from pipeline.edge.spool import SpoolFile, read_ledger
from pipeline.edge.tables import FROM_1, TABLES
from pipeline.errors import TransientError
from pipeline.processor.repeats import find_repeats
from tests.edge_world import LANES

SEEDS = range(int(os.environ.get("SEEDS", "2")))
Found = dict[tuple[int, int, int], bytes]  # (spool, lane, sequence) -> record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "spool.sqlite"


def write(file: SpoolFile, lane: int, *records: bytes) -> Found:
    """One block at the lane's end."""
    first = file.next_sequence[lane]
    last = first + len(records) - 1
    block = Block(lane, "eu", "event", 0, first, last, 1_700_000_000_000, pa.array(records, pa.binary()))
    file.write(Change([block], {lane: last + 1}))
    return {(file.spool, lane, first + n): record for n, record in enumerate(records)}


def waiting(file: SpoolFile) -> Found:
    """All that can be read, in the forwarder's order; fails when a lane's order is broken."""
    found: Found = {}
    for lane in range(3):
        seen: dict[int, int] = {}
        after = 0
        while blocks := file.read("eu", lane, 1 << 20, after):
            after = blocks[-1].identity
            for block in blocks:
                assert block.first_sequence > seen.get(block.spool, 0)
                seen[block.spool] = block.last_sequence
                for n, record in enumerate(block.values.to_pylist()):
                    found[block.spool, lane, block.first_sequence + n] = record
    return found


def sums(file: SpoolFile) -> tuple[int, int]:
    """(pending, evicted); fails when a ledger contradicts itself."""
    for one in file.ledger():
        assert one.accepted == one.forwarded + one.evicted + one.pending
    return sum(one.pending for one in file.ledger()), sum(one.evicted for one in file.ledger())


def test_the_same_file_goes_on_as_the_same_spool(path):
    with closing(SpoolFile(path, LANES)) as file:
        first, spool = write(file, 1, b"a"), file.spool
    with closing(SpoolFile(path, LANES)) as file:
        assert file.spool == spool
        assert waiting(file) == first
        assert write(file, 1, b"b").keys() == {(spool, 1, 2)}


def copied(path: Path, elsewhere: Path) -> Path:
    shutil.copytree(path.parent, elsewhere)
    return elsewhere / path.name


def test_a_copy_numbers_under_an_incarnation_of_its_own_and_keeps_what_waits_under_the_old(path, tmp_path):
    with closing(SpoolFile(path, LANES)) as file:
        old = write(file, 1, b"a", b"b") | write(file, 1, b"c")
    with (
        closing(SpoolFile(path, LANES)) as file,
        closing(SpoolFile(copied(path, tmp_path / "c"), LANES)) as copy,
    ):
        assert copy.spool != file.spool
        assert waiting(copy) == waiting(file) == old
        mine, theirs = write(file, 1, b"mine"), write(copy, 1, b"theirs")
        assert not mine.keys() & theirs.keys()
        assert [(c.spool, c.accepted) for c in copy.ledger()] == [(copy.spool, 1), (file.spool, 3)]
        keys = [*old, *mine, *old, *theirs]  # both are forwarded to one partition: the first copy stays
        spool, lane, sequence = (np.array(column, np.int64) for column in zip(*keys, strict=True))
        repeats, _ = find_repeats(spool, lane, sequence, {})
        assert repeats.tolist() == [4, 5, 6]


def test_a_copy_taken_without_the_note_is_known_too(path, tmp_path):
    with closing(SpoolFile(path, LANES)) as file:
        write(file, 1, b"a")
        spool = file.spool
    other = tmp_path / "alone.sqlite"
    shutil.copy(path, other)
    with closing(SpoolFile(other, LANES)) as copy:
        assert copy.spool != spool


def test_a_backup_put_back_in_its_place_does_not_number_again(path):
    with closing(SpoolFile(path, LANES)) as file:
        write(file, 1, b"a")
        file.tidy()
        spool, backup = file.spool, path.read_bytes()
        write(file, 1, b"b")
    with path.open("r+b") as same_inode:
        same_inode.write(backup)
        same_inode.truncate(len(backup))
    with closing(SpoolFile(path, LANES)) as file:
        assert file.spool != spool
        assert write(file, 1, b"c").keys() == {(file.spool, 1, 1)}
        assert sums(file) == (2, 0)


def test_a_file_of_the_first_format_goes_on_where_it_was(path):
    with closing(SpoolFile(path, LANES)) as file:
        old, spool = write(file, 1, b"a", b"b"), file.spool
    with closing(sqlite3.connect(path)) as db:
        back_to_the_first_format(db)
    assert [(c.spool, c.accepted, c.pending) for c in read_ledger(path)] == [(spool, 2, 2)]
    with closing(SpoolFile(path, LANES)) as file:
        assert (file.spool, waiting(file), sums(file)) == (spool, old, (2, 0))
        write(file, 1, b"c")


def back_to_the_first_format(db: sqlite3.Connection) -> None:
    """What FROM_1 does, undone."""
    ledger = TABLES[2].replace("spool INTEGER NOT NULL, ", "").replace("spool, ", "")
    for statement in (
        "ALTER TABLE ledger RENAME TO l2", ledger,
        "INSERT INTO ledger SELECT lane, region, accepted, forwarded, evicted FROM l2", "DROP TABLE l2",
        "DROP TABLE salvage",
        *(
            f"ALTER TABLE {words[2]} DROP COLUMN {words[5]}"
            for words in (statement.split() for statement in FROM_1) if words[3:5] == ["ADD", "COLUMN"]
        ),
        "PRAGMA user_version = 1",
    ):  # fmt: skip
        db.execute(statement)
    db.commit()


def filled(path: Path, rng: random.Random) -> tuple[Found, int]:
    """A spool with blocks of all sizes, some settled; what waits, and the spool's incarnation."""
    found: Found = {}
    with closing(SpoolFile(path, LANES)) as file:
        for number in range(30):
            sizes = [rng.choice([40, 700, 6_000, 60_000]) for _ in range(rng.randint(1, 3))]
            found |= write(file, rng.randrange(3), *(rng.randbytes(size) for size in sizes))
            if number == 15:
                for lane in range(3):
                    for one in file.read("eu", lane, 20_000)[:1]:
                        file.write(Change(settlements=[Settlement("eu", lane, one.identity)]))
                        for n in range(len(one.values)):
                            del found[file.spool, lane, one.first_sequence + n]
        if rng.random() < 0.5:
            file.checkpoint()
        kept = path.parent / "kept"
        kept.mkdir()
        for end in ("", "-wal"):  # closing would move the log into the file
            shutil.copy(f"{path}{end}", kept / f"spool.sqlite{end}")
        spool = file.spool
    for end in ("", "-wal"):
        shutil.copy(kept / f"spool.sqlite{end}", f"{path}{end}")
    return found, spool


@pytest.mark.parametrize("seed", SEEDS)
def test_every_whole_block_is_read_without_sqlite(path, seed):
    found, _ = filled(path, random.Random(seed))
    with closing(PageFile(path, 4096)) as pages:
        rows = [pages.values(c, TABLE_LEAF) for c in pages.cells(TABLE_LEAF) if len(c.types) == 13]
    assert all(row is not None for row in rows)
    assert sum(row[8] for row in rows if row) == len(found)


def test_what_lies_in_a_leaf_is_as_the_file_format_says():
    assert [local_bytes(size, 4096, TABLE_LEAF) for size in (10, 4061, 4062, 8000, 100_000)] == [
        10, 4061, 489, 3908, 1792,
    ]  # fmt: skip


DAMAGES = {
    "header": lambda data, rng: data.__setitem__(slice(0, 100), rng.randbytes(100)),
    "first page": lambda data, rng: data.__setitem__(slice(0, 4096), rng.randbytes(4096)),
    "a page": lambda data, rng: _page(data, rng, 1),
    "many pages": lambda data, rng: _page(data, rng, 8),
    "flips": lambda data, rng: _flip(data, rng, 30),
    "cut": lambda data, rng: data.__delitem__(slice(rng.randrange(1, len(data)), None)),
}


def _flip(data: bytearray, rng: random.Random, count: int) -> None:
    for _ in range(count):
        data[rng.randrange(len(data))] = rng.randrange(256)


def _page(data: bytearray, rng: random.Random, count: int) -> None:
    for _ in range(count):
        at = rng.randrange(len(data) // 4096) * 4096
        data[at : at + 4096] = rng.randbytes(4096)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_file_never_stops_the_agent_and_gives_back_what_is_whole(path, damage, seed):
    rng = random.Random(f"{seed} {damage}")
    found, _ = filled(path, rng)
    data = bytearray(path.read_bytes())
    DAMAGES[damage](data, rng)
    path.write_bytes(data)
    back: Found = {}
    new: Found = {}
    for _ in range(3):  # every start after the first finds nothing new
        with closing(open_again(path)) as file:
            back = read_all(file)
            assert back.items() <= (found | new).items(), f"seed {seed}: an event came back as another"
            assert new.items() <= back.items()
            pending, _ = sums(file)
            assert pending == len(back)
            new |= write(file, 1, b"new")
            back |= new
    with closing(SpoolFile(path, LANES)) as file:
        if damage in ("header", "first page"):  # the log and all other pages are whole
            assert read_all(file) == found | new
        lost = len(found | new) - len(read_all(file))
        counters_lost = sum(c.accepted - c.forwarded for c in file.ledger()) < len(found | new)
        assert counters_lost or sums(file)[1] == lost
        assert sums(file)[1] == sum(loss.count for loss in file.losses())


def open_again(path: Path) -> SpoolFile:
    return SpoolFile(path, LANES)


def read_all(file: SpoolFile) -> Found:
    """Damage may only show while reading: then the file is replaced and read once more."""
    for _ in range(3):
        try:
            return waiting(file)
        except TransientError:
            continue
    return waiting(file)


def test_damage_met_at_run_time_loses_only_what_it_hit(path):
    found, spool = filled(path, random.Random(5))
    with closing(SpoolFile(path, LANES)) as file:
        file.checkpoint()
    with closing(PageFile(path, 4096)) as pages:
        cells = sorted((c for c in pages.cells(TABLE_LEAF) if len(c.types) == 13), key=lambda c: c.size)
    data = bytearray(path.read_bytes())
    leaf = cells[0].page
    hit = [c for c in cells if c.page == leaf]
    data[(leaf - 1) * 4096 : leaf * 4096] = bytes(4096)
    path.write_bytes(data)
    with closing(SpoolFile(path, LANES)) as file:
        back = read_all(file)
        assert file.spool != spool
        assert back.items() <= found.items()
        assert len(found) - len(back) <= 3 * len(hit)
        assert sums(file) == (len(back), len(found) - len(back))
        assert {loss.reason for loss in file.losses()} == {"damaged"}


def test_a_kill_while_a_damaged_file_is_moved_loses_neither_file_nor_log(path):
    found, spool = filled(path, random.Random(3))
    log = Path(f"{path}-wal").read_bytes()
    data = bytearray(path.read_bytes())
    data[:100] = bytes(100)
    path.write_bytes(data)
    move_aside(path)
    (damaged,) = damaged_files(path)
    os.rename(f"{damaged}-wal", f"{path}-wal")  # killed between the two
    assert Path(f"{path}-wal").read_bytes() == log
    with closing(SpoolFile(path, LANES)) as file:
        assert waiting(file) == found
        assert file.spool != spool
        assert sums(file) == (len(found), 0)


def test_one_damaged_file_is_kept_and_not_a_second(path):
    for _ in range(3):
        with closing(SpoolFile(path, LANES)) as file:
            write(file, 1, b"a")
        data = bytearray(path.read_bytes())
        data[:100] = bytes(100)
        path.write_bytes(data)
    with closing(SpoolFile(path, LANES)) as file:
        assert len(waiting(file)) == 3
    assert len(list(path.parent.glob("*.damaged-*"))) == 1


def test_a_block_with_a_flipped_bit_does_not_come_over(path):
    with closing(SpoolFile(path, LANES)) as file:
        whole = write(file, 1, b"a" * 50_000)
        write(file, 1, b"b" * 50_000)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"b" * 1000)] ^= 1  # in a page of its own: the record hangs together
    data[:100] = bytes(100)
    path.write_bytes(data)
    with closing(SpoolFile(path, LANES)) as file:
        assert waiting(file) == whole
        assert sums(file) == (1, 1)
        assert [(loss.reason, loss.count) for loss in file.losses()] == [("damaged", 1)]
