"""Tables of a store: one per event, shaped by its curated Arrow schema.

Comes in: Arrow schemas. Goes out: DDL. Times are TIMESTAMP and mean UTC. A newer schema may add columns
(null in older rows); anything else needs a migration and is a ConfigError here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa

from connectors.lake.session import identifier
from pipeline.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_TYPES: dict[pa.DataType, str] = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.date32(): "DATE",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("ms"): "TIMESTAMP",
}
_TIMES = ("event_time", "received_time")


def sql_type(kind: pa.DataType, place: str) -> str:
    """The column type of an Arrow type. Raises ConfigError for a type that no schema of ours makes."""
    if kind in _TYPES:
        return _TYPES[kind]
    if pa.types.is_dictionary(kind):
        return sql_type(kind.value_type, place)
    if pa.types.is_list(kind):
        return f"{sql_type(kind.value_type, place)}[]"
    if pa.types.is_struct(kind):
        parts = (f"{identifier(child.name)} {sql_type(child.type, place)}" for child in kind)
        return f"STRUCT({', '.join(parts)})"
    raise ConfigError(f"no column type for {kind}", operation="making a table", place=place)


def columns_of(table: str, schema: pa.Schema) -> dict[str, str]:
    """Column name to type, in order. Raises ConfigError for a name that SQL would have to quote."""
    for name in (table, *schema.names):
        if not _NAME.fullmatch(name):
            raise ConfigError("not a plain name", operation="making a table", place=f"{table}.{name}")
    return {column.name: sql_type(column.type, f"{table}.{column.name}") for column in schema}


def partitioning(columns: Mapping[str, str]) -> str:
    """Days of the event's time; of the receipt where the policy drops that; nothing where both are gone.

    All three components, because DuckLake's functions are components of a date: the day alone would prune a
    query for one day to a day of every month.
    """
    for name in _TIMES:
        if columns.get(name) in ("TIMESTAMP", "DATE"):
            return f"year({name}), month({name}), day({name})"
    return ""


def statements(table: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """DDL that brings the table from ``found`` (empty: not there) to hold ``wanted``."""
    name = f"lake.main.{identifier(table)}"
    if not found:
        ddl = [f"CREATE TABLE {name} ({', '.join(f'{identifier(c)} {t}' for c, t in wanted.items())})"]
        parts = partitioning(wanted)
        return [*ddl, f"ALTER TABLE {name} SET PARTITIONED BY ({parts})"] if parts else ddl
    changed = [f"{c}: {found[c]} to {t}" for c, t in wanted.items() if c in found and not _same(found[c], t)]
    if changed:
        raise ConfigError(
            f"columns would change their type: {', '.join(changed)}",
            operation="changing a table", place=table,
            remedy="give the field a new name, or move the rows to a new store",
        )  # fmt: skip
    return [f"ALTER TABLE {name} ADD COLUMN {identifier(c)} {t}" for c, t in wanted.items() if c not in found]


def _same(found: str, wanted: str) -> bool:
    """DuckDB quotes a nested name only where it must, so compare without quotes."""
    return found.replace('"', "") == wanted.replace('"', "")
