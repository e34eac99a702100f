"""What a query may be: one SELECT over the store's own tables.

DuckDB's own switches are not enough. With external access disabled, ``sqlite_scan('/any/file.sqlite', …)``
and ATTACH of a SQLite file still open that file (tried with 1.5.5: SQLite's I/O does not pass DuckDB's file
system), and COPY may still write into the folder that Parquet is read from. So the statement is parsed
first and everything that is not known to be harmless is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from connectors.lake.session import Connection
from pipeline.errors import ConfigError

_FUNCTIONS = frozenset(
    {"unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree"}
)
_PLAIN = re.compile(r"\w+")
OPERATION = "query"


def check_select(connection: Connection, sql: str) -> None:
    """Raises ConfigError unless ``sql`` is one SELECT, SHOW, DESCRIBE or SUMMARIZE that only reads tables."""
    row = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
    assert row is not None
    parsed = json.loads(row[0])
    if parsed["error"]:
        message = parsed.get("error_message", "cannot be parsed")
        if "Only SELECT" in message:
            raise _refused("only a SELECT may run here", "the store is written by its writer alone")
        raise _refused(message, "")
    if len(parsed["statements"]) != 1:
        raise _refused(f"expected one statement, found {len(parsed['statements'])}", "")
    for node in _nodes(parsed):
        _check_node(node)


def _check_node(node: dict[str, Any]) -> None:
    if node.get("type") == "TABLE_FUNCTION":
        name = str(node["function"].get("function_name", "")).lower()
        if name not in _FUNCTIONS:
            raise _refused(
                f"the table function {name} is not allowed", f"allowed: {', '.join(sorted(_FUNCTIONS))}"
            )
    elif node.get("type") == "BASE_TABLE":
        names = [node.get(key) or "" for key in ("catalog_name", "schema_name", "table_name")]
        if not all(_PLAIN.fullmatch(name) for name in names if name):
            raise _refused("a file cannot be read as a table", "name a table; SHOW TABLES lists them")
        if any(name.lower().startswith("__ducklake") for name in names):
            raise _refused(
                "the catalogue's own tables are not for queries", "it holds values of rows since erased"
            )


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of the parse tree. Iterative: a query nests deeper than Python's stack may."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _refused(problem: str, remedy: str) -> ConfigError:
    return ConfigError(problem, operation=OPERATION, remedy=remedy)
