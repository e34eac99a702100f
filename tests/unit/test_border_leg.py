"""Which versions of an origin's rows a border reads, and what of them it takes over."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.events import LockedSchema
from pipeline.processor import acceptable

SUBJECT = "eu.curated.e"


def column(name: str, kind: Any = "double", tag: str = "measurement") -> dict[str, Any]:
    return {"name": name, "type": kind, "confluent:tags": [tag]}


def nullable(name: str, tag: str = "measurement") -> dict[str, Any]:
    return {**column(name, ["null", "double"], tag), "default": None}


def version(number: int, *columns: dict[str, Any]) -> LockedSchema:
    schema = {"type": "record", "name": "e", "fields": list(columns)}
    return LockedSchema(number, SUBJECT, number, "", "", schema)


def landable(*refused: int):
    def door(locked: LockedSchema) -> None:
        if locked.id in refused:
            raise ConfigError("the region may not hold it")

    return door


NEWEST = version(9, column("a"), nullable("b"), column("t", "long", "time.coarse"))


def test_a_version_with_the_same_columns_is_taken_over_whole():
    old = version(3, column("t", "long", "time.coarse"), nullable("b"), column("a"))
    assert acceptable([old, NEWEST], NEWEST, landable()) == {3: {"a", "b", "t"}, 9: {"a", "b", "t"}}


def test_a_column_whose_tags_were_others_is_not_taken_over():
    old = version(3, column("a"), nullable("b", "quasi"), column("t", "long", "time.coarse"))
    assert acceptable([old, NEWEST], NEWEST, landable())[3] == {"a", "t"}


def test_a_column_whose_type_was_another_is_not_taken_over():
    old = version(3, column("a"), column("b"), column("t", "long", "time.coarse"))
    assert acceptable([old, NEWEST], NEWEST, landable())[3] == {"a", "t"}


def test_a_version_without_a_column_that_must_have_a_value_is_not_read():
    precise = version(3, column("a"), nullable("b"), column("t", "long", "time.precise"))
    missing = version(4, nullable("b"), column("t", "long", "time.coarse"))
    assert acceptable([precise, missing, NEWEST], NEWEST, landable()).keys() == {9}


def test_a_version_that_the_origin_may_not_hold_is_not_read():
    old = version(3, column("a"), nullable("b"), column("t", "long", "time.coarse"))
    assert acceptable([old, NEWEST], NEWEST, landable(3)).keys() == {9}


def test_a_newest_version_that_the_origin_may_not_hold_stops_the_border():
    with pytest.raises(ConfigError, match="may not hold"):
        acceptable([NEWEST], NEWEST, landable(9))
