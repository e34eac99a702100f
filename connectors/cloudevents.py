"""CloudEvents 1.0 over HTTP, in its three modes, as our events.

Comes in: headers and body of a request. Goes out: :class:`Incoming` per event, or a RecordError that names
the attribute and never its value. Sources: CloudEvents 1.0.2, its JSON format and HTTP protocol binding, RFC
3339. An event that says how it is classified is refused: our classes come from the schemas' tags, and an
intermediary that is unsure what a class asks for must not pass the event on (data classification extension).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from pipeline.errors import RecordError
from pipeline.reasons import Reason

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
CLASSIFIED = ("dataclassification", "dataregulation", "datacategory")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Unsupported(Exception):
    """The content type is none of the three modes."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One event as the edge client takes it; ``event_time`` is µs since the epoch."""

    event: str
    source: str
    event_time: int
    jurisdiction: Any
    fields: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """As a row for ``emit_many``. RecordError when a field is named like the envelope."""
        envelope = {"source": self.source, "event_time": self.event_time, "jurisdiction": self.jurisdiction}
        if self.fields.keys() & envelope.keys():
            _refuse("data", Reason.FIELD_UNKNOWN, "an attribute of the event is repeated in its data")
        return self.fields | envelope


def is_batch(content_type: str) -> bool:
    """Whether the body holds a list of events."""
    return _media_type(content_type) == BATCH


def parse(content_type: str, headers: Iterable[tuple[str, str]], body: bytes) -> list[Incoming]:
    """The events of one request. Raises Unsupported for another content type, RecordError for a bad event."""
    media = _media_type(content_type)
    if media == STRUCTURED:
        return [_structured(decode_json(body))]
    if media == BATCH:
        events = decode_json(body)
        if not isinstance(events, list):
            _refuse("", Reason.TYPE, "expected a JSON array of events")
        return [_of_batch(index, event) for index, event in enumerate(events)]
    attributes = _attributes(headers)
    if not attributes or not _is_json(media):
        raise Unsupported
    return [_event(attributes, decode_json(body))]


def parse_attributes(content_type: str, attributes: Mapping[str, str], body: bytes) -> Incoming:
    """The event of binary mode whose attributes the transport carries by name, as MQTT 5 does.

    Raises Unsupported when the data is not JSON, RecordError for a bad event.
    """
    if not _is_json(_media_type(content_type)):
        raise Unsupported
    return _event(attributes, decode_json(body))


def _of_batch(index: int, event: Any) -> Incoming:
    try:
        return _structured(event)
    except RecordError as error:
        raise RecordError(f"row {index}: {error.problem}", reason=error.reason, field=error.field) from None


def _structured(event: Any) -> Incoming:
    if not isinstance(event, dict):
        _refuse("", Reason.TYPE, "expected a JSON object")
    if "data_base64" in event:
        _refuse("data_base64", Reason.TYPE, "expected JSON in data")
    if not _is_json(_media_type(event.get("datacontenttype", "application/json"))):
        _refuse("datacontenttype", Reason.TYPE, "expected application/json")
    return _event(event, event.get("data"))


def _event(attributes: Mapping[str, Any], data: Any) -> Incoming:
    if attributes.get("specversion") != "1.0":
        _refuse("specversion", Reason.RANGE, "expected 1.0")
    for name in CLASSIFIED:
        if name in attributes:
            _refuse(name, Reason.FIELD_UNKNOWN, "classes come from the schema's tags here; leave it out")
    for name in ("id", "source", "type"):
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            _refuse(name, Reason.FIELD_MISSING, "expected a string that is not empty")
    if not isinstance(data, dict):
        _refuse("data", Reason.TYPE, "expected a JSON object of the event's fields")
    moment = moment_us(attributes.get("time"))
    return Incoming(attributes["type"], attributes["source"], moment, attributes.get("jurisdiction"), data)


def moment_us(value: Any) -> int:
    """RFC 3339 with an offset as µs since the epoch; finer digits are cut."""
    if value is None:
        _refuse("time", Reason.FIELD_MISSING, "expected when it happened, RFC 3339 with an offset")
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        _refuse("time", Reason.TYPE, "expected RFC 3339 with an offset")
    try:
        return (datetime.fromisoformat(value.upper()) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        _refuse("time", Reason.RANGE, "no such moment")


def _attributes(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The ``ce-`` headers, percent-decoded (HTTP binding, 3.1.3.2)."""
    found: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        if not name.startswith("ce-"):
            continue
        name = name[3:]
        if name in found:
            _refuse("", Reason.TYPE, "an attribute's header occurs twice")
        try:
            found[name] = unquote_to_bytes(value).decode("utf-8")
        except UnicodeError:
            _refuse("", Reason.UTF8, "an attribute's header is not UTF-8")
    return found


def decode_json(body: bytes) -> Any:
    """JSON in UTF-8, without NaN and Infinity. RecordError otherwise."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("", Reason.UNDECODABLE, "the body is not JSON in UTF-8")


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _media_type(content_type: Any) -> str:
    """Type and subtype in lower case; "" for a charset other than UTF-8, and for what is no text."""
    if not isinstance(content_type, str):
        return ""
    media, _, parameters = content_type.partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "us-ascii"):
        return ""
    return media.strip().lower()


def _is_json(media: str) -> bool:
    return media in ("application/json", "text/json") or media.endswith("+json")


def _refuse(field: str, reason: Reason, problem: str) -> NoReturn:
    raise RecordError(problem, reason=reason, field=field)
