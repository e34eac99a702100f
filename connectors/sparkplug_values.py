"""Values of Sparkplug B metrics as Python's, by the data type that the birth declared.

Comes in: a Metric of the wire and its data type. Goes out: int, float, bool, str or None; datetimes as int
µs. A RecordError for what is no value of the type: a metric is never read as something else. Source:
Sparkplug 3.0.0, section 6.4 (data types 1 to 15; the others have no form in an event).
"""

from __future__ import annotations

from typing import Any, Final

from connectors.mqtt_messages import refuse
from connectors.wire.sparkplug_b_pb2 import Payload
from pipeline.reasons import Reason

INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 = range(1, 9)
FLOAT, DOUBLE, BOOLEAN, STRING, DATETIME, TEXT, UUID = range(9, 16)
TYPE_MAX: Final = 34  # 16 to 34: data sets, bytes, files, templates, property sets, arrays
_BITS = {INT8: 8, INT16: 16, INT32: 32, INT64: 64, UINT8: 8, UINT16: 16, UINT32: 32, UINT64: 64}
_SIGNED = (INT8, INT16, INT32, INT64)
_TEXTS = (STRING, TEXT, UUID)
_PLAIN = {FLOAT: "float_value", DOUBLE: "double_value", BOOLEAN: "boolean_value"}


def metric_value(metric: Payload.Metric, datatype: int, field: str) -> Any:
    """The value, None when the metric is null; ``field`` names it in errors. Raises RecordError."""
    held = metric.WhichOneof("value")
    if metric.is_null:
        return None
    if held is None:
        refuse(field, Reason.FIELD_MISSING, "a metric without a value that is not null")
    if datatype in _BITS:
        return _integer(metric, datatype, held, field)
    if datatype == DATETIME:
        if held != "long_value":
            refuse(field, Reason.TYPE, "the value's kind is not that of the declared data type")
        return metric.long_value * 1000
    if datatype in _TEXTS and held == "string_value":
        return metric.string_value
    if _PLAIN.get(datatype) == held:
        return getattr(metric, held)
    refuse(field, Reason.TYPE, "the value's kind is not that of the declared data type")


def _integer(metric: Payload.Metric, datatype: int, held: str, field: str) -> int:
    """Two's complement taken off. Senders differ in which of the two integers they use, and in whether a
    small negative number fills 8, 16, 32 or 64 bits: each reading that fits the type is the same number.
    """
    if held == "int_value":
        number, width = metric.int_value, 32
    elif held == "long_value":
        number, width = metric.long_value, 64
    else:
        refuse(field, Reason.TYPE, "the value's kind is not that of the declared data type")
    bits = _BITS[datatype]
    if datatype not in _SIGNED:
        if number >= 1 << bits:
            refuse(field, Reason.RANGE, "beyond the declared data type")
        return number
    half = 1 << (bits - 1)
    if number < half:
        return number
    for filled in {bits, width, 32, 64}:
        if 1 << (filled - 1) <= number < 1 << filled and -half <= number - (1 << filled):
            return number - (1 << filled)
    refuse(field, Reason.RANGE, "beyond the declared data type")
