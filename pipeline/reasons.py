"""Why a record is refused or quarantined, and the bounds of time that every reader can hold."""

from __future__ import annotations

from enum import StrEnum

MICROS = 1_000_000
DAY_S = 86_400
# What datetime can hold (years 1 to 9999): beyond it readers overflow.
TIMESTAMP_MIN_US = -62_135_596_800 * MICROS
TIMESTAMP_MAX_US = 253_402_300_800 * MICROS - 1


class Reason(StrEnum):
    """One word per check. It goes into quarantine records, stats and metric labels."""

    OVERSIZE = "oversize"
    FRAMING = "framing"
    UNKNOWN_SCHEMA = "unknown_schema"
    UNDECODABLE = "undecodable"
    UTF8 = "utf8"
    RANGE = "range"
    NOT_FINITE = "not_finite"
    TIME_FUTURE = "time_future"
    TIME_ANCIENT = "time_ancient"
    JURISDICTION_MISSING = "jurisdiction_missing"
    JURISDICTION_UNKNOWN = "jurisdiction_unknown"
    JURISDICTION_ELSEWHERE = "jurisdiction_elsewhere"
    # Where fields arrive by name (the edge's doors); on the wire the schema leaves no room for these.
    FIELD_MISSING = "field_missing"
    FIELD_UNKNOWN = "field_unknown"
    TYPE = "type"
