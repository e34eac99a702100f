"""What a store holds and what its account says, of one snapshot."""

from __future__ import annotations

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
# The account of what landed counts positions of the raw topic, which are those of the rows; that of what
# crossed counts positions of the origin's curated topic, which are not.
_ROWS = """
    SELECT t.raw_partition, count(*) FILTER (t.raw_offset < coalesce(a.accounted, 0)), count(*), {distinct}
    FROM lake.main.{table} t LEFT JOIN (
        SELECT raw_partition, max(next_accounted) AS accounted
        FROM lake.main._account WHERE ends_with(raw_topic, ?) AND event = ? GROUP BY raw_partition
    ) a USING (raw_partition)
    WHERE {landed} GROUP BY t.raw_partition
"""
_CROSSED = """
    SELECT origin, raw_partition, count(*), {distinct}
    FROM lake.main.{table} t WHERE origin IS NOT NULL GROUP BY origin, raw_partition
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
        tables = _event_tables(connection)
        rows = {
            (event, partition): row_totals
            for event, has_origin in tables.items()
            for partition, row_totals in _rows(connection, (region, event), has_origin, distinct)
        }
        crossed = {
            (event, origin, partition): row_totals
            for event, has_origin in tables.items()
            if has_origin
            for origin, partition, row_totals in _crossed(connection, event, distinct)
        }
        positions = read_positions(connection)
        return StoreTotals(region, snapshot, accounts, rows, committed, positions, crossed)
    finally:
        connection.execute("ROLLBACK")


def _event_tables(connection: Connection) -> dict[str, bool]:
    """Tables of events, and whether they have rows' origins: then something crosses into the region."""
    found = connection.execute(
        "SELECT table_name, bool_or(column_name = 'origin') FROM duckdb_columns() "
        "WHERE database_name = 'lake' AND table_name NOT LIKE '\\_%' ESCAPE '\\' "
        "GROUP BY table_name HAVING bool_or(column_name = 'raw_offset') ORDER BY table_name"
    ).fetchall()
    return dict(found)


def _rows(
    connection: Connection, place: tuple[str, str], has_origin: bool, distinct: bool
) -> list[tuple[int, RowTotals]]:
    region, event = place
    landed = "t.origin IS NULL" if has_origin else "true"
    sql = _ROWS.format(table=identifier(event), distinct=_distinct(distinct), landed=landed)
    found = connection.execute(sql, [f"{region}.raw.{event}", event]).fetchall()
    return [
        (partition, RowTotals(below, total - below, positions))
        for partition, below, total, positions in found
    ]


def _crossed(connection: Connection, event: str, distinct: bool) -> list[tuple[str, int, RowTotals]]:
    found = connection.execute(
        _CROSSED.format(table=identifier(event), distinct=_distinct(distinct))
    ).fetchall()
    return [
        (origin, partition, RowTotals(total, 0, positions)) for origin, partition, total, positions in found
    ]


def _distinct(wanted: bool) -> str:
    return "count(DISTINCT t.raw_offset)" if wanted else "NULL"
