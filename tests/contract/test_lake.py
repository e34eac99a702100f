"""The store adapter on a real DuckLake: what a commit promises, who may write, what a reader may see."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from connectors.lake import DuckLimits, Lake, LakeOptions, open_reader
from connectors.lake.session import StoreFolder, connect
from pipeline.batches import PASSED
from pipeline.config import FlushConfig
from pipeline.errors import ConfigError, OwnershipLost, PipelineError, StoreCorrupt, TransientError
from pipeline.store.account import StatsRecord
from pipeline.store.buffer import Buffer
from tests.lake_commits import CURATED, EVENT, RAW, SCHEMA, STATS, commit, counted, gathered, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def lake(path: Path) -> Iterator[Lake]:
    lake = Lake(path, "eu")
    lake.ensure_table(EVENT, SCHEMA)
    yield lake
    lake.close()


# --- commits ---------------------------------------------------------------------------------------------


def test_rows_account_and_positions_arrive_together(lake, path):
    assert lake.positions() == {}
    first, second = commit(lake, 0, 500), commit(lake, 500, 300, days=3)
    assert second.snapshot == first.snapshot + 1
    assert (first.files, second.files) == (2, 4)  # one per day and one for the account
    assert lake.positions() == {CURATED: 800, STATS: 800}
    state = lake.state()
    assert (state.next_raw, state.accounted) == ({CURATED: 800}, {RAW: 800})
    with open_reader(path) as reader:
        totals = reader.totals(distinct=True)
        stored = reader.query(f"SELECT * FROM {EVENT} ORDER BY raw_offset")
    assert (totals.rows[(EVENT, 0)].below, totals.rows[(EVENT, 0)].distinct) == (800, 800)
    assert (totals.committed, totals.accounts[RAW].passed) == ({EVENT: 800}, 800)
    expected = pa.Table.from_batches([rows(0, 500), rows(500, 300, 3)])
    assert stored.cast(SCHEMA).equals(expected.combine_chunks())


def test_times_are_utc_and_files_lie_by_day(lake, path):
    commit(lake, 0, 2, days=2)
    folders = {
        str(f.parent.relative_to(path / "data/main" / EVENT)) for f in path.rglob(f"{EVENT}/**/*.parquet")
    }
    assert folders == {"year=2026/month=1/day=1", "year=2026/month=1/day=2"}
    with open_reader(path) as reader:
        times = reader.query(f"SELECT event_time FROM {EVENT} ORDER BY 1")["event_time"].to_pylist()
    assert times == [datetime(2026, 1, 1), datetime(2026, 1, 2)]


def test_a_store_goes_on_where_it_was(lake, path):
    commit(lake, 0, 10)
    lake.close()
    again = Lake(path, "eu")
    again.ensure_table(EVENT, SCHEMA)
    commit(again, 10, 5)
    again.close()
    assert counted(path) == 15


def test_a_moved_store_is_whole(lake, path, tmp_path):
    commit(lake, 0, 10)
    lake.close()
    moved = path.rename(tmp_path / "elsewhere")
    again = Lake(moved, "eu")
    again.ensure_table(EVENT, SCHEMA)
    commit(again, 10, 5)
    again.close()
    assert counted(moved) == 15


@pytest.mark.parametrize(("believed", "error"), [(5, OwnershipLost), (20, StoreCorrupt)])
def test_a_position_that_differs_is_refused_and_nothing_written(lake, path, believed, error):
    """Ahead of us: another writer. Behind us: the store went back."""
    commit(lake, 0, 10)
    files = set(path.rglob("*.parquet"))
    with pytest.raises(error, match=f"expected the stored position {believed}, found 10"):
        commit(lake, believed, 30)
    assert set(path.rglob("*.parquet")) == files
    assert counted(path) == 10
    commit(lake, 10, 1)


def test_a_commit_that_would_lower_a_position_is_refused(lake):
    commit(lake, 0, 10)
    buffer = gathered(10, 5)
    buffer.reached[CURATED] = 9
    with pytest.raises(StoreCorrupt, match="a commit from position 10 to 9"):
        lake.commit(buffer.tables(), buffer.account(1), buffer.expected)
    with pytest.raises(StoreCorrupt, match="a commit from position None"):
        lake.commit({}, gathered(10, 5).account(1), {})


def test_account_with_a_gap_is_noticed_at_the_start(lake):
    commit(lake, 0, 10)
    buffer = Buffer(FlushConfig())
    record = StatsRecord(RAW, EVENT, 15, 20, {(PASSED, ""): 5}, (), "p")
    buffer.add_stats(STATS, [record])
    buffer.advance(STATS, 10, 11, 0.0)
    lake.commit({}, buffer.account(1), buffer.expected)
    with pytest.raises(StoreCorrupt, match="expected an account of all 20 positions, found one of 15"):
        lake.state()


# --- one writer ------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_writes(lake, path):
    with pytest.raises(OwnershipLost, match=f"process {os.getpid()} writes this store"):
        Lake(path, "eu")
    lake.close()
    Lake(path, "eu").close()


def test_a_zombie_past_the_lock_cannot_store_a_row_twice(lake, path):
    """The lock file removed under the writer: both have it, only one commit per position gets through."""
    commit(lake, 0, 10)
    (path / "writer.lock").unlink()
    zombie = Lake(path, "eu")
    zombie.ensure_table(EVENT, SCHEMA)
    commit(zombie, 10, 10)
    with pytest.raises(OwnershipLost, match="expected the stored position 10, found 20"):
        commit(lake, 10, 10)
    zombie.close()
    assert counted(path) == 20


def test_a_commit_that_comes_in_between_makes_ours_fail(path):
    """Race inside the transaction: after our check and before our COMMIT, someone else commits."""
    other: list[Lake] = []
    meddle = [False]

    def fsync(descriptor: int) -> None:
        if meddle and meddle.pop():
            commit(other[0], 10, 10)

    lake = Lake(path, "eu", LakeOptions(fsync=fsync))
    lake.ensure_table(EVENT, SCHEMA)
    commit(lake, 0, 10)
    (path / "writer.lock").unlink()
    other.append(Lake(path, "eu"))
    other[0].ensure_table(EVENT, SCHEMA)
    meddle.append(True)
    with pytest.raises(OwnershipLost, match="found 20"):
        commit(lake, 10, 7)
    assert counted(path) == 20
    lake.close()
    other[0].close()


def test_the_same_commit_made_by_a_try_of_unknown_outcome_is_not_made_again(path):
    """The other writer stands for our own COMMIT whose answer was lost."""
    done = []

    def fsync(descriptor: int) -> None:
        if not done and other:
            done.append(commit(other[0], 10, 10))

    other: list[Lake] = []
    lake = Lake(path, "eu", LakeOptions(fsync=fsync))
    lake.ensure_table(EVENT, SCHEMA)
    commit(lake, 0, 10)
    (path / "writer.lock").unlink()
    other.append(Lake(path, "eu"))
    other[0].ensure_table(EVENT, SCHEMA)
    commit(lake, 10, 10)
    commit(lake, 20, 1)
    assert counted(path) == 21
    lake.close()
    other[0].close()


def test_another_regions_store_is_refused(lake, path):
    lake.close()
    with pytest.raises(ConfigError, match="expected the store of br, found the one of eu"):
        Lake(path, "br")


def holder(path: Path):
    """A connection that holds the catalogue's write lock, as a stuck process would."""
    connection = connect(DuckLimits())
    connection.execute(f"ATTACH '{StoreFolder(path).catalogue}' AS held (TYPE sqlite, BUSY_TIMEOUT 0)")
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE held.main.stuck (a INTEGER)")
    return connection


def test_a_locked_catalogue_is_waited_for(lake, path):
    stuck = holder(path)
    threading.Timer(0.5, lambda: stuck.execute("ROLLBACK")).start()
    commit(lake, 0, 10)
    assert counted(path) == 10
    stuck.close()


def test_a_catalogue_locked_for_too_long_is_transient_and_nothing_is_left(path):
    lake = Lake(path, "eu", LakeOptions(lock_wait_s=0.1))
    lake.ensure_table(EVENT, SCHEMA)
    commit(lake, 0, 3)
    files = set(path.rglob("*.parquet"))
    stuck = holder(path)
    with pytest.raises(TransientError, match="locked"):
        commit(lake, 3, 10)
    stuck.execute("ROLLBACK")
    stuck.close()
    assert set(path.rglob("*.parquet")) == files
    commit(lake, 3, 10)
    assert counted(path) == 13
    lake.close()


# --- tables ----------------------------------------------------------------------------------------------


def test_a_newer_schema_adds_columns_and_old_rows_have_nulls(lake, path):
    commit(lake, 0, 2)
    newer = SCHEMA.append(pa.field("tariff", pa.string())).append(pa.field("tags", pa.list_(pa.string())))
    lake.ensure_table(EVENT, newer)
    table = pa.Table.from_batches([rows(2, 1)]).append_column("tariff", pa.array(["night"]))
    buffer = gathered(2, 1)
    lake.commit(
        {EVENT: table.append_column("tags", pa.array([["a", "b"]]))}, buffer.account(1), buffer.expected
    )
    commit(lake, 3, 1)  # the older version again
    with open_reader(path) as reader:
        found = reader.query(f"SELECT tariff, tags FROM {EVENT} ORDER BY raw_offset").to_pylist()
    assert [row["tariff"] for row in found] == [None, None, "night", None]
    assert found[2]["tags"] == ["a", "b"]


def test_a_column_that_would_change_its_type_is_refused(lake):
    changed = SCHEMA.set(2, pa.field("energy_kwh", pa.string()))
    with pytest.raises(ConfigError, match="energy_kwh: DOUBLE to VARCHAR"):
        lake.ensure_table(EVENT, changed)


@pytest.mark.parametrize("schema", [pa.schema([("a b", pa.int64())]), pa.schema([("a", pa.binary())])])
def test_a_schema_that_no_table_can_hold_is_refused(lake, schema):
    with pytest.raises(ConfigError):
        lake.ensure_table("other", schema)


# --- the fsync barrier -----------------------------------------------------------------------------------


class Recorder:
    """Stands for fsync: notes what was synced, and the snapshots there were at that moment."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.on_call = lambda: None

    def __call__(self, descriptor: int) -> None:
        self.paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        os.fsync(descriptor)
        self.on_call()


def test_every_new_file_and_folder_is_synced_before_the_catalogue_names_it(path):
    recorder, visible = Recorder(), []
    lake = Lake(path, "eu", LakeOptions(fsync=recorder))
    lake.ensure_table(EVENT, SCHEMA)
    before = set(path.rglob("*.parquet"))
    reader, count = open_reader(path), f"SELECT count(*) AS n FROM {EVENT}"
    recorder.on_call = lambda: visible.extend(reader.query(count)["n"].to_pylist())
    commit(lake, 0, 100, days=5)
    new = set(path.rglob("*.parquet")) - before
    assert len(new) == 6
    assert new <= set(recorder.paths)
    for file in new:
        for folder in itertools.takewhile(lambda f: f != path, file.parents):
            assert recorder.paths.index(folder) > recorder.paths.index(file)
    reader.close()
    assert set(visible) == {0}  # none of the rows could be seen at any of the syncs
    assert counted(path) == 100
    lake.close()


def test_a_failed_sync_commits_nothing_and_is_not_tried_again(path):
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    lake = Lake(path, "eu", LakeOptions(fsync=fsync))
    lake.ensure_table(EVENT, SCHEMA)
    with pytest.raises(TransientError, match="fsync failed"):
        commit(lake, 0, 100, days=5)
    assert len(calls) == 1
    assert counted(path) == 0
    assert list(path.rglob("*.parquet")) == []
    lake.close()


def test_the_barrier_can_be_left_out_to_show_what_it_is_for(path):
    recorder = Recorder()
    lake = Lake(path, "eu", LakeOptions(fsync=recorder, fsync_barrier=False))
    lake.ensure_table(EVENT, SCHEMA)
    assert commit(lake, 0, 10).files == 0
    assert recorder.paths == []
    lake.close()


def test_any_order_of_commits_refusals_and_reopenings_keeps_rows_equal_to_positions(path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    lake, stored = Lake(path, "eu"), 0
    for _ in range(25):
        what = chance.choice(["commit", "commit", "wrong", "reopen"])
        lake.ensure_table(EVENT, SCHEMA)
        if what == "commit":
            count = chance.randint(1, 200)
            commit(lake, stored, count, days=chance.randint(1, 4))
            stored += count
        elif what == "wrong":
            with pytest.raises(PipelineError):
                commit(lake, stored + chance.choice([-1, 1]) if stored else 1, 5)
        else:
            lake.close()
            lake = Lake(path, "eu")
    assert lake.positions().get(CURATED, 0) == stored
    lake.close()
    with open_reader(path) as reader:
        if stored:
            totals = reader.totals(distinct=True)
            assert (totals.rows[(EVENT, 0)].below, totals.rows[(EVENT, 0)].distinct) == (stored, stored)
