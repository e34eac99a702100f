"""A producer's Arrow column as the event's schema wants it.

Comes in: a column of any Arrow type. Goes out: the same values in the field's type, or a RecordError. The
rules are those for single events: a double takes whole numbers, nothing takes text for a number or a boolean
for one, and no value is cut. Times without a zone are UTC.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import RecordError
from pipeline.reasons import Reason


def conform(column: pa.Array, field: pa.Field) -> pa.Array:
    """The column in ``field.type``. RecordError (reason type or range) when it does not fit."""
    if column.type == field.type:
        return column
    if pa.types.is_dictionary(column.type):
        return conform(column.dictionary_decode(), field)
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), field.type)
    if not _may_become(column.type, field.type):
        raise RecordError(
            f"expected a column of {field.type}, got {column.type}", reason=Reason.TYPE, field=field.name
        )
    try:
        # A double is the nearest one to a large whole number, as in Python; all other casts are exact.
        return column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise RecordError(
            f"a value does not fit {field.type}", reason=Reason.RANGE, field=field.name
        ) from None


def _may_become(given: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_floating(wanted):
        return pa.types.is_integer(given) or pa.types.is_floating(given)
    if pa.types.is_integer(wanted):
        return pa.types.is_integer(given)
    if pa.types.is_string(wanted):
        return pa.types.is_large_string(given) or pa.types.is_string_view(given)
    if pa.types.is_timestamp(wanted):
        return pa.types.is_timestamp(given) or pa.types.is_int64(given)
    if pa.types.is_date(wanted):
        return pa.types.is_date(given)
    if pa.types.is_list(wanted):
        return pa.types.is_list(given) or pa.types.is_large_list(given)
    return pa.types.is_struct(wanted) and pa.types.is_struct(given)
