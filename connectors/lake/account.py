"""Queries over ``_account``: where a store stands, and what it counted."""

from __future__ import annotations

from connectors.lake.session import Connection
from pipeline.errors import StoreCorrupt
from pipeline.store.account import RawPartition, Source, StoreState

_POSITIONS = """
    SELECT cluster_id, topic, topic_id, partition, max(next_position), coalesce(max(next_raw_offset), 0)
    FROM lake.main._account GROUP BY ALL
"""
_ACCOUNTED = """
    SELECT raw_topic, raw_topic_id, raw_partition, max(next_accounted),
           sum(next_accounted - first_accounted), min(first_accounted)
    FROM lake.main._account WHERE raw_topic IS NOT NULL GROUP BY ALL
"""


def read_positions(connection: Connection) -> dict[Source, int]:
    """Next Kafka offset per source; rows are only added and positions only rise, so the maximum."""
    rows = connection.execute(_POSITIONS).fetchall()
    return {Source(*key): position for *key, position, _ in rows}


def read_state(connection: Connection) -> StoreState:
    """Positions, high-water marks and account. Raises StoreCorrupt when ranges overlap or have gaps."""
    rows = connection.execute(_POSITIONS).fetchall()
    accounted = {}
    for topic, topic_id, partition, end, covered, first in connection.execute(_ACCOUNTED).fetchall():
        if covered != end or first != 0:
            raise StoreCorrupt(
                f"expected an account of all {end} positions, found one of {covered}",
                operation="reading the account", place=f"{topic}/{partition}",
                remedy="compare the store's snapshots: rows of _account are missing or doubled",
            )  # fmt: skip
        accounted[RawPartition(topic, topic_id, partition)] = end
    return StoreState(
        positions={Source(*key): position for *key, position, _ in rows},
        next_raw={Source(*key): next_raw for *key, _, next_raw in rows if next_raw},
        accounted=accounted,
    )
