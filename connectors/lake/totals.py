"""What a store holds and what its account says, of one snapshot."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.lake.account import read_positions
from connectors.lake.session import Connection, identifier
from pipeline.balance import AccountTotals, RowTotals, StoreTotals
from pipeline.store.account import RawPartition

_ACCOUNTS = """
    SELECT raw_topic, raw_topic_id, raw_partition, any_value(event), max(next_accounted),
           sum(passed), sum(filtered), sum(quarantined), sum(repeats), sum(foreign_records)
    FROM lake.main._account WHERE raw_topic IS NOT NULL GROUP BY raw_topic, raw_topic_id, raw_partition
"""
_COMMITTED = "SELECT event, sum(row_count) FROM lake.main._account WHERE kind = 'rows' GROUP BY event"
_ROWS = """
    SELECT t.raw_partition, count(*) FILTER (t.raw_offset < coalesce(a.accounted, 0)), count(*), {distinct}
    FROM lake.main.{table} t LEFT JOIN (
        SELECT raw_partition, max(next_accounted) AS accounted
        FROM lake.main._account WHERE raw_topic IS NOT NULL AND event = ? GROUP BY raw_partition
    ) a USING (raw_partition)
    GROUP BY t.raw_partition
"""


def read_totals(connection: Connection, region: str, distinct: bool) -> StoreTotals:
    """All of it within one transaction, so rows and account are of the same moment."""
    connection.execute("BEGIN")
    try:
        snapshot = connection.execute("SELECT id FROM ducklake_current_snapshot('lake')").fetchall()[0][0]
        accounts = {
            RawPartition(*key): AccountTotals(event, *map(int, counts))
            for *key, event, end, passed, filtered, quarantined, repeats, foreign in connection.execute(
                _ACCOUNTS
            ).fetchall()
            for counts in [(end, passed, filtered, quarantined, repeats, foreign)]
        }
        committed = {event: int(n) for event, n in connection.execute(_COMMITTED).fetchall()}
        rows = {
            (event, partition): row_totals
            for event in _event_tables(connection)
            for partition, row_totals in _rows(connection, event, distinct)
        }
        return StoreTotals(region, snapshot, accounts, rows, committed, read_positions(connection))
    finally:
        connection.execute("ROLLBACK")


def _event_tables(connection: Connection) -> Sequence[str]:
    found = connection.execute(
        "SELECT table_name FROM duckdb_columns() WHERE database_name = 'lake' AND column_name = 'raw_offset' "
        "AND table_name NOT LIKE '\\_%' ESCAPE '\\' ORDER BY table_name"
    ).fetchall()
    return [name for (name,) in found]


def _rows(connection: Connection, event: str, distinct: bool) -> list[tuple[int, RowTotals]]:
    counted = "count(DISTINCT t.raw_offset)" if distinct else "NULL"
    sql = _ROWS.format(table=identifier(event), distinct=counted)
    return [
        (partition, RowTotals(below, total - below, positions))
        for partition, below, total, positions in connection.execute(sql, [event]).fetchall()
    ]
