"""The curated schema: what a flow's columns look like, derived from the event's schema and the pack.

Comes in: a checked :class:`Flow`. Goes out: an Avro record (subject ``<region>.curated.<event>``, and
``<destination>.curated.<event>.<origin>`` for what crossed a border) and the exact Arrow schema of its
batches. Invariant: every column says in its ``confluent:tags`` what it is *after* the policy, and in its doc
which rules made it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.events import EventType, arrow_schema, split_null
from pipeline.policy.flow import ORIGIN, RAW_POSITION, Decision, Flow
from pipeline.policy.packs import Packs
from pipeline.policy.typecheck import check_flow

_RAW_DOCS = {
    "raw_partition": "Partition of the raw topic the event was read from; see raw_offset.",
    "raw_offset": "Offset in that partition. With region, raw topic and raw_partition the event's identity.",
}
_QUANTITY = ("unit", "minimum", "maximum")


def curated_subject(region: str, event: str, origin: str | None = None) -> str:
    """The subject under which the curated schema is locked; ``origin``: where it crossed from."""
    return f"{region}.curated.{event}" + (f".{origin}" if origin not in (None, region) else "")


def derived_schemas(packs: Packs, events: Mapping[str, EventType]) -> dict[str, dict[str, Any]]:
    """Curated schema of every event on every leg, by subject; needs no keys and asks for no validity.

    Raises ConfigError for the first flow whose tags do not fit.
    """
    schemas: dict[str, dict[str, Any]] = {}
    for origin, destination in packs.legs():  # landings first: a border's input is a landing's result
        terms = packs.terms(origin, destination)
        for name, event in sorted(events.items()):
            if not terms.permits(name):
                continue
            if terms.crosses:
                event = curated_event(event, schemas[curated_subject(origin, name)])
            subject = curated_subject(destination, name, origin)
            schemas[subject] = curated_schema(check_flow(terms, event))
    return schemas


def curated_event(event: EventType, schema: dict[str, Any]) -> EventType:
    """An event as its origin's store has it: what a border takes. Not locked: version and id are 0."""
    return EventType(event.name, 0, 0, schema)


def curated_schema(flow: Flow) -> dict[str, Any]:
    """The Avro record of what leaves the flow, ending with the raw position."""
    originals = {field["name"]: field for field in flow.event.schema["fields"]}
    origin = flow.terms.origin if flow.terms.crosses else ""
    namespace = f"pipeline.curated.{_identifier(flow.region)}" + (
        f".from_{_identifier(origin)}" if origin else ""
    )
    return {
        "type": "record",
        "name": flow.event.name,
        "namespace": namespace,
        "doc": f"{flow.event.schema.get('doc', '')} As {flow.region} may hold it.".strip(),
        "fields": [_field(decision, originals) for decision in flow.columns] + _appended(flow),
    }


def _appended(flow: Flow) -> list[dict[str, Any]]:
    raw_types = dict(zip(RAW_POSITION, ("int", "long"), strict=True))
    position = [
        {
            "name": name,
            "type": raw_types[name],
            "doc": _RAW_DOCS[name],
            "confluent:tags": ["transport"],
            "unit": "1",
            "minimum": 0,
        }
        for name in RAW_POSITION
    ]
    if not flow.terms.crosses:
        return position
    doc = "Region that collected the event; the raw position below is one of its topics'."
    return [{"name": ORIGIN, "type": "string", "doc": doc, "confluent:tags": ["jurisdiction"]}, *position]


def _identifier(region: str) -> str:
    return region.replace("-", "_")


def curated_arrow(flow: Flow, schema: dict[str, Any]) -> pa.Schema:
    """Exact Arrow schema of the policy's result: the record's columns without those that are appended."""
    return pa.schema(list(arrow_schema(schema))[: -len(flow.appended)])


def _field(decision: Decision, originals: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    first = originals[decision.fields[0].name]
    replaced = decision.operator.result(decision.parameters)
    inner = replaced[1] if replaced else split_null(first["type"])[0]
    field: dict[str, Any] = {"name": decision.output, "type": ["null", inner] if decision.nullable else inner}
    if decision.nullable:
        field["default"] = None
    field["doc"] = f"{_doc(decision)} {_made_by(decision)}".strip()
    field["confluent:tags"] = sorted(decision.result)
    if not replaced:
        field |= {key: first[key] for key in _QUANTITY if key in first}
        field |= {
            key: type(first[key])(decision.operator.bound(decision.parameters, first[key]))
            for key in _QUANTITY[1:]
            if key in first
        }
        if decision.operator.name == "keep" and decision.fields[0].role:
            field["role"] = decision.fields[0].role
    return field


def _doc(decision: Decision) -> str:
    return " ".join(field.doc for field in decision.fields if field.doc)


def _made_by(decision: Decision) -> str:
    effect = decision.operator.effect(decision.parameters)
    return f"[{decision.operator.name}{': ' if effect else ''}{effect}; {decision.source}]"
