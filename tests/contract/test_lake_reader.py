"""What a reader of a store may see: whole commits, this store alone, and no values in its errors."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from connectors.lake import DuckLimits, Lake, ReadLimits, open_reader
from connectors.lake.session import StoreFolder, attach, connect
from pipeline.errors import ConfigError, TransientError
from tests.lake_commits import CURATED, EVENT, SCHEMA, commit, counted
from tests.shared_data import PROJECT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def lake(path: Path) -> Iterator[Lake]:
    lake = Lake(path, "eu")
    lake.ensure_table(EVENT, SCHEMA)
    yield lake
    lake.close()


def test_a_store_that_is_not_there_yet_is_named(path):
    with pytest.raises(ConfigError, match="there is no store yet") as caught:
        open_reader(path)
    assert caught.value.place == str(path)


def test_time_travel_by_argument_and_in_sql(lake, path):
    first = commit(lake, 0, 10).snapshot
    commit(lake, 10, 5)
    count = f"SELECT count(*) AS n FROM {EVENT}"
    with open_reader(path) as reader:
        assert reader.query(count, snapshot=first)["n"].to_pylist() == [10]
        assert reader.query(f"{count} AT (VERSION => {first})")["n"].to_pylist() == [10]
        assert reader.query(count)["n"].to_pylist() == [15]
        assert reader.snapshots()["snapshot_id"].to_pylist()[0] == first + 1
        with pytest.raises(ConfigError, match="no snapshot 999"):
            reader.query(count, snapshot=999)
        assert reader.query(count)["n"].to_pylist() == [15]


def test_parameters_and_batches(lake, path):
    commit(lake, 0, 10)
    with open_reader(path) as reader:
        sql = f"SELECT raw_offset FROM {EVENT} WHERE raw_offset >= ? ORDER BY 1"
        assert reader.query(sql, [8])["raw_offset"].to_pylist() == [8, 9]
        assert sum(len(batch) for batch in reader.stream(sql, [3])) == 7
        stream = reader.stream(sql, [0])
        next(stream)
        stream.close()
        assert reader.query(f"SUMMARIZE {EVENT}").num_rows == len(SCHEMA)
        assert reader.query("SHOW TABLES")["name"].to_pylist() == ["_account", EVENT]


FORBIDDEN = [
    "INSERT INTO meter_reading SELECT * FROM meter_reading",
    "DELETE FROM meter_reading",
    "UPDATE meter_reading SET source = 'x'",
    "DROP TABLE meter_reading",
    "CREATE TABLE memory.main.t AS SELECT 1",
    "CREATE MACRO m() AS TABLE SELECT 1",
    "COPY meter_reading TO '{inside}/stolen.parquet'",
    "COPY meter_reading TO '{outside}/stolen.parquet'",
    "EXPORT DATABASE '{outside}/stolen'",
    "ATTACH '{outside}/other.sqlite' AS o (TYPE sqlite)",
    "DETACH lake",
    "SET memory_limit = '100GB'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CALL lake.set_option('parquet_compression', 'zstd')",
    "PRAGMA database_list",
    "SELECT * FROM read_parquet('{outside}/other.parquet')",
    "SELECT * FROM '{outside}/other.parquet'",
    "SELECT * FROM '{inside}/**/*.parquet'",
    "SELECT * FROM read_parquet('{inside}/**/*.parquet')",
    "SELECT * FROM sqlite_scan('{outside}/other.sqlite', 'secrets')",
    "SELECT * FROM sqlite_query('__ducklake_metadata_lake', 'SELECT 1')",
    "SELECT (SELECT count(*) FROM sqlite_scan('{outside}/other.sqlite', 'secrets'))",
    "WITH a AS (SELECT * FROM read_text('{outside}/other.txt')) SELECT * FROM a",
    "SELECT 1 WHERE 1 IN (SELECT 1 FROM glob('{outside}/*'))",
    "SELECT 1 UNION ALL SELECT 1 FROM query('SELECT 1')",
    "SELECT * FROM query_table('meter_reading')",
    "SELECT * FROM json_execute_serialized_sql('x')",
    "SELECT * FROM ducklake_expire_snapshots('lake', versions => [1])",
    "SELECT * FROM ducklake_cleanup_old_files('lake', cleanup_all => true)",
    "SELECT * FROM __ducklake_metadata_lake.ducklake_file_column_stats",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM local_table",
    "SELECT 1; SELECT 2",
    "SELEC 1",
    "",
]


class Confined:
    """A store with ten rows, a reader of it, and files beside it that the reader must not reach."""

    def __init__(self, root: Path) -> None:
        self.root, self.path, self.outside = root, root / "store", root / "outside"
        lake = Lake(self.path, "eu")
        lake.ensure_table(EVENT, SCHEMA)
        commit(lake, 0, 10)
        lake.close()
        self.outside.mkdir()
        (self.outside / "other.txt").write_text("secret")
        other = connect(DuckLimits())
        other.execute(f"COPY (SELECT 'secret' AS s) TO '{self.outside}/other.parquet'")
        other.execute(f"ATTACH '{self.outside}/other.sqlite' AS o (TYPE sqlite)")
        other.execute("CREATE TABLE o.secrets AS SELECT 'secret' AS s")
        other.close()
        self.reader = open_reader(self.path)


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    confined = Confined(tmp_path_factory.mktemp("confined"))
    yield confined
    confined.reader.close()


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_a_query_reads_this_store_and_nothing_else(confined, sql):
    local_table = pa.table({"s": ["secret"]})
    before = sorted(confined.root.rglob("*"))
    with pytest.raises(ConfigError):
        confined.reader.query(sql.format(inside=confined.path / "data", outside=confined.outside))
    assert confined.reader.query(f"SELECT count(*) AS n FROM {EVENT}")["n"].to_pylist() == [10]
    assert [f for f in sorted(confined.root.rglob("*")) if ".sqlite-" not in f.name] == [
        f for f in before if ".sqlite-" not in f.name
    ]
    assert len(local_table) == 1


@pytest.mark.parametrize(
    "sql", [f"SELECT source::INTEGER FROM {EVENT}", f"SELECT strptime(source, '%Y') FROM {EVENT}"]
)
def test_an_error_on_the_data_does_not_quote_it(lake, path, sql):
    commit(lake, 0, 10)
    with open_reader(path) as reader, pytest.raises(ConfigError) as caught:
        reader.query(sql)
    assert "meter-" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_wrong_sql_says_what_is_wrong(lake, path):
    with open_reader(path) as reader:
        with pytest.raises(ConfigError, match="no_such_column"):
            reader.query(f"SELECT no_such_column FROM {EVENT}")
        with pytest.raises(ConfigError, match="no_such_table"):
            reader.query("SELECT * FROM no_such_table")


def test_a_query_without_end_is_stopped(lake, path):
    with open_reader(path, ReadLimits(timeout_s=0.3)) as reader:
        started = time.monotonic()
        with pytest.raises(TransientError, match=r"stopped after 0\.3 s"):
            reader.query("SELECT count(*) FROM range(10000000) a, range(10000000) b")
        assert time.monotonic() - started < 5
        assert reader.query("SELECT 1 AS one")["one"].to_pylist() == [1]


def test_a_query_that_needs_too_much_memory_is_stopped(lake, path):
    with open_reader(path, ReadLimits(duck=DuckLimits(32 * 1024 * 1024))) as reader:
        with pytest.raises(TransientError, match="out of memory"):
            reader.query("SELECT list(i) FROM range(50000000) t(i)")
        assert reader.query("SELECT 1 AS one")["one"].to_pylist() == [1]


def test_readers_see_whole_commits_while_the_writer_writes(lake, path):
    """In another process, asking without pause: rows always equal the account of the same snapshot."""
    commit(lake, 0, 50)
    reader = subprocess.Popen(
        [sys.executable, "-c", READ_ALONG, str(path)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    assert reader.stdout is not None
    try:
        assert reader.stdout.readline() == "50 rows seen\n"
        seconds = []
        for number in range(1, 40):
            started = time.monotonic()
            commit(lake, number * 50, 50)
            seconds.append(time.monotonic() - started)
        reader.wait(60)
    finally:
        reader.kill()
        reader.wait()
    queries, distinct = map(int, reader.stdout.read().split())
    print(f"{queries} queries saw {distinct} states; slowest commit {max(seconds):.3f} s")
    assert reader.returncode == 0
    assert distinct > 1
    assert max(seconds) < 10


READ_ALONG = """
import sys
from pathlib import Path
from connectors.lake import open_reader
rows = "(SELECT count(*) FROM meter_reading) AS a"
sql = f"SELECT {rows}, (SELECT coalesce(sum(row_count), 0) FROM _account) AS b"
seen, queries = set(), 0
with open_reader(Path(sys.argv[1])) as reader:
    while 2000 not in seen:
        (row,) = reader.query(sql).to_pylist()
        assert row["a"] == row["b"], row
        if not seen:
            print(row["a"], "rows seen", flush=True)
        seen.add(row["a"])
        queries += 1
print(queries, len(seen))
"""


def test_what_a_killed_writer_committed_can_be_read_at_once(lake, path):
    """Its write-ahead log is still there: a reader, and the next writer, go by it."""
    lake.close()
    child = subprocess.run([sys.executable, "-c", DIE, str(path)], cwd=PROJECT, check=False, timeout=60)
    assert child.returncode == -9
    assert counted(path) == 30
    again = Lake(path, "eu")
    assert again.positions()[CURATED] == 30
    again.close()


DIE = """
import os, sys
import pyarrow as pa
from pathlib import Path
from connectors.lake import Lake
from tests.lake_commits import EVENT, SCHEMA, commit, open_reader, rows
lake = Lake(Path(sys.argv[1]), "eu")
lake.ensure_table(EVENT, SCHEMA)
reader = open_reader(Path(sys.argv[1]))
for number in range(3):
    commit(lake, number * 10, 10)
lake._connection.execute("BEGIN")
lake._insert(EVENT, pa.Table.from_batches([rows(30, 10)]))
os.kill(os.getpid(), 9)
"""


def test_attach_quotes_what_it_is_given(tmp_path):
    odd = tmp_path / "it's a store"
    lake = Lake(odd, "eu")
    lake.ensure_table(EVENT, SCHEMA)
    commit(lake, 0, 3)
    lake.close()
    assert counted(odd) == 3
    connection = connect(DuckLimits())
    attach(connection, StoreFolder(odd), "READ_ONLY")
    connection.close()
