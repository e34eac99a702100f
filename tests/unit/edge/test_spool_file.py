"""The spool's file: what is written comes back, in order, counted, or is set aside and counted."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import EdgeConfig
from pipeline.edge.blocks import Block, Change, bounds, pack, unpack
from pipeline.edge.ledger import LaneLedger, Loss, Settlement
from pipeline.edge.spool import SpoolFile, read_ledger
from pipeline.errors import ConfigError, StoreCorrupt, TransientError
from tests.edge_world import LANES


def block(first: int, values: list[bytes], lane: int = 1, region: str = "eu", partition: int = 0) -> Block:
    array = pa.array(values, pa.binary())
    return Block(lane, region, "event", partition, first, first + len(values) - 1, 1_700_000_000_000, array)


def keep(file: SpoolFile, *blocks: Block) -> None:
    """Write blocks that continue their lanes."""
    moved: dict[int, int] = {}
    for one in blocks:
        moved[one.lane] = moved.get(one.lane, file.next_sequence[one.lane]) + len(one.values)
    file.write(Change(blocks, moved))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge 1" / "spool.sqlite"


@pytest.fixture
def file(path: Path):
    spool = SpoolFile(path, LANES)
    yield spool
    spool.close()


def test_payload_keeps_every_value_of_a_slice():
    values = pa.array([b"", b"a", b"bc", b"", b"def", b"g"], pa.binary())
    part = values.slice(1, 4)
    assert unpack(pack(part), 4).to_pylist() == part.to_pylist()
    assert np.diff(bounds(part)).tolist() == [1, 2, 0, 3]
    assert unpack(pack(values.slice(0, 0)), 0).to_pylist() == []


def test_blocks_come_back_as_written_also_after_reopening(path):
    first = SpoolFile(path, LANES)
    keep(first, block(1, [b"a", b"", b"ccc"], partition=3), block(4, [b"d"], region="br"))
    spool = first.spool
    first.close()
    again = SpoolFile(path, LANES)
    assert again.spool == spool > 0
    assert again.next_sequence == {0: 1, 1: 5, 2: 1}
    (found,) = again.read("eu", 1, 1 << 20)
    assert found.values.to_pylist() == [b"a", b"", b"ccc"]
    assert (found.partition, found.first_sequence, found.last_sequence) == (3, 1, 3)
    assert [b.values.to_pylist() for b in again.read("br", 1, 1 << 20)] == [[b"d"]]
    assert again.read("eu", 0, 1 << 20) == []
    again.close()


def test_reading_stops_at_the_byte_limit_but_gives_at_least_one_block(file):
    keep(file, *(block(1 + n, [b"x" * 1000]) for n in range(5)))
    blocks = file.read("eu", 1, 2100)
    assert [b.first_sequence for b in blocks] == [1, 2]
    assert [b.first_sequence for b in file.read("eu", 1, 1, after=blocks[-1].identity)] == [3]


def test_counters_per_lane_and_region_add_up_in_every_state(file, path):
    keep(file, block(1, [b"a", b"b"], lane=0), block(1, [b"c"] * 3), block(4, [b"d"] * 4, region="br"))
    through = file.read("br", 1, 1 << 20)[-1].identity
    loss = Loss(1, "br", "event", 4, 7, 1, "oversize", file.spool, 9, 5, 6)
    file.write(Change(settlements=[Settlement("br", 1, through, (loss,))]))
    expected = [
        LaneLedger(file.spool, 0, "eu", 2, 0, 0, 2),
        LaneLedger(file.spool, 1, "br", 4, 3, 1, 0),
        LaneLedger(file.spool, 1, "eu", 3, 0, 0, 3),
    ]
    assert file.ledger() == expected
    assert read_ledger(path) == expected  # another connection, while the file is open
    assert file.losses() == [loss]


def test_settling_twice_counts_once(file):
    keep(file, block(1, [b"a", b"b"]))
    loss = Loss(1, "eu", "event", 1, 2, 1, "oversize")
    done = Settlement("eu", 1, file.read("eu", 1, 1)[0].identity, (loss,))
    for _ in range(2):
        file.write(Change(settlements=[done]))
    (counts,) = file.ledger()
    assert (counts.forwarded, counts.evicted, counts.pending) == (1, 1, 0)
    assert len(file.losses()) == 1
    assert file.pending_bytes == 0


def test_row_numbers_are_not_used_again_after_the_spool_ran_empty(file):
    keep(file, block(1, [b"a"]))
    first = file.read("eu", 1, 1)[0].identity
    file.write(Change(settlements=[Settlement("eu", 1, first)]))
    keep(file, block(2, [b"b"]))
    assert file.read("eu", 1, 1)[0].identity > first


def test_a_gap_in_the_sequences_is_refused(file):
    with pytest.raises(StoreCorrupt, match="lane 1"):
        file.write(Change([block(1, [b"a"])], {1: 3}))
    assert file.next_sequence[1] == 1
    assert file.ledger() == []


def test_one_owner_at_a_time(file, path):
    with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}"):
        SpoolFile(path, LANES)
    file.close()
    SpoolFile(path, LANES).close()


def test_each_file_has_an_incarnation_of_its_own(tmp_path):
    spools = set()
    for number in range(5):
        file = SpoolFile(tmp_path / f"{number}.sqlite", LANES)
        spools.add(file.spool)
        file.close()
    assert len(spools) == 5
    assert all(0 < spool < 2**63 for spool in spools)


@pytest.mark.parametrize("lanes", [("urgent", "bulk", "normal"), ("urgent", "normal")])
def test_lanes_cannot_change_their_meaning(file, path, lanes):
    file.close()
    with pytest.raises(ConfigError, match="lane"):
        SpoolFile(path, lanes)
    SpoolFile(path, (*LANES, "new")).close()


def test_a_file_of_a_later_format_is_left_alone(file, path):
    file.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="format 99"):
        SpoolFile(path, LANES)


def test_what_is_no_spool_is_kept_beside_and_a_new_one_begins(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    before = path.read_bytes()
    with closing(SpoolFile(path, LANES)) as file:
        assert file.ledger() == []
        keep(file, block(1, [b"a"]))
    (damaged,) = path.parent.glob("*.damaged-*.done")
    assert damaged.read_bytes() == before


def test_a_file_taken_away_is_noticed_before_an_event_is_acknowledged(file, path):
    keep(file, block(1, [b"a"]))
    path.unlink()
    with pytest.raises(StoreCorrupt, match="removed"):
        keep(file, block(2, [b"b"]))


DAMAGE = {
    "value": "payload = CAST(substr(payload, 1, length(payload) - 1) || x'ff' AS BLOB)",
    "offsets": "payload = CAST(x'09' || substr(payload, 2) AS BLOB)",
    "short": "payload = x'00'",
    "type": "payload = 'text'",
    "partition": "partition = partition + 1",
    "event": "event = 'other'",
    "text": "event = CAST(x'c328' AS TEXT)",
    "first": "first_sequence = first_sequence + 1",
    "count": "count = count + 1",
    "huge count": "count = 4611686018427387904",
    "checksum": "checksum = checksum + 1",
    "time": "received_ms = 0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_set_aside_and_counted_and_the_rest_goes_on(file, path, damage):
    keep(file, block(1, [b"a", b"b"]), block(3, [b"c", b"d", b"e"]), block(6, [b"f"]))
    file.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"UPDATE block SET {DAMAGE[damage]} WHERE id = 2")
        db.commit()
    for _ in range(2):  # found once; opening again finds nothing new
        again = SpoolFile(path, LANES)
        assert [b.values.to_pylist() for b in again.read("eu", 1, 1 << 20)] == [[b"a", b"b"], [b"f"]]
        (counts,) = again.ledger()
        assert (counts.accepted, counts.evicted, counts.pending) == (6, 3, 3)
        assert [(loss.reason, loss.count) for loss in again.losses()] == [("damaged", 3)]
        again.close()


def test_only_damaged_blocks_end_in_an_empty_answer(file, path):
    keep(file, *(block(1 + n, [b"x"]) for n in range(3)))
    file.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE block SET checksum = 0")
        db.commit()
    again = SpoolFile(path, LANES)
    assert again.read("eu", 1, 1) == []
    assert again.ledger()[0].pending == 0
    assert again.pending_bytes == 0
    again.close()


def test_values_of_settled_events_leave_the_disk(file, path):
    canary = b"canary-subject-4711"
    keep(file, *(block(1 + n, [canary + b"x" * 40_000]) for n in range(20)))
    files = (path, Path(f"{path}-wal"))
    assert any(canary in one.read_bytes() for one in files)
    last = file.read("eu", 1, 1 << 30)[-1].identity
    file.write(Change(settlements=[Settlement("eu", 1, last)]))
    while file.tidy():
        pass
    assert not any(canary in one.read_bytes() for one in files)
    assert path.stat().st_size < 300_000  # the space is given back


def test_only_the_owner_may_read_the_files(file, path):
    keep(file, block(1, [b"a"]))
    for name in (path, Path(f"{path}-wal"), Path(f"{path}.lock")):
        assert stat.S_IMODE(name.stat().st_mode) & 0o077 == 0


def test_room_counts_what_waits(path):
    file = SpoolFile(path, LANES, EdgeConfig(spool_bytes_max=100_000))
    keep(file, block(1, [b"x" * 60_000]))
    refused = file.write(Change([block(2, [b"x" * 20_000])], {1: 3})).refused
    assert refused[1].brought > 20_000
    assert refused[1].largest == 70_000
    assert file.next_sequence[1] == 2
    file.write(Change(settlements=[Settlement("eu", 1, file.read("eu", 1, 1)[0].identity)]))
    assert not file.write(Change([block(2, [b"x" * 20_000])], {1: 3})).refused
    file.close()


def test_a_closed_file_says_so(file):
    file.close()
    with pytest.raises(TransientError, match="closed"):
        file.read("eu", 1, 1)


def test_ledger_of_no_spool_is_a_question_of_configuration(tmp_path):
    with pytest.raises(ConfigError, match="no such spool"):
        read_ledger(tmp_path / "none.sqlite")


def test_ledger_of_a_file_not_begun_is_empty(path):
    path.parent.mkdir(parents=True)
    path.touch()
    assert read_ledger(path) == []
