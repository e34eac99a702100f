"""Operators for moments: truncate_time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.policy.operators.signature import Context, Operator, Parameters, Tags

UNIT_US = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
_COARSE_TIME_US = UNIT_US["hour"]  # the vocabulary's meaning of time.coarse


class TimeParameters(Parameters):
    """``to``: the unit a moment is rounded down to, in UTC."""

    to: Literal["second", "minute", "hour", "day"]


def _truncate_time(columns: Sequence[pa.Array], parameters: TimeParameters, context: Context) -> pa.Array:
    """Rounds towards the past, also before 1970. Three times faster on numbers than pc.floor_temporal."""
    column = columns[0]
    times_us = np.asarray(column.cast(pa.int64()).fill_null(0))
    floored = pa.array(times_us - np.mod(times_us, UNIT_US[parameters.to]), pa.int64()).cast(column.type)
    return pc.if_else(pc.is_valid(column), floored, None) if column.null_count else floored


def _truncated(parameters: TimeParameters, taken: Tags) -> Tags:
    return frozenset({"time.coarse"}) if UNIT_US[parameters.to] >= _COARSE_TIME_US else taken


TIMES = (
    Operator(
        name="truncate_time",
        meaning="A moment rounded down to its unit, UTC.",
        takes=frozenset({"time.precise"}),
        gives=_truncated,
        gives_words="time.coarse from an hour on; below that what it took",
        accepts=lambda column, parameters: column == pa.timestamp("us"),
        expects="timestamp-micros",
        run=_truncate_time,
        parameters=TimeParameters,
        effect=lambda parameters: f"rounded down to the {parameters.to}, UTC",
    ),
)
