"""The curated schema: what a flow's columns look like, derived from the event's schema and the pack.

Comes in: a checked :class:`Flow`. Goes out: an Avro record (subject ``<region>.curated.<event>``) and the
exact Arrow schema of its batches. Invariant: every column says in its ``confluent:tags`` what it is *after*
the policy, and in its doc which rule made it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.events import EventType, arrow_schema, split_null
from pipeline.policy.load import Packs
from pipeline.policy.typecheck import RAW_POSITION, Decision, Flow, check_flow

_RAW_DOCS = {
    "raw_partition": "Partition of the raw topic the event was read from; see raw_offset.",
    "raw_offset": "Offset in that partition. With region, raw topic and raw_partition the event's identity.",
}
_QUANTITY = ("unit", "minimum", "maximum")


def curated_subject(destination: str, event: str, origin: str | None = None) -> str:
    """The subject under which the curated schema is locked; ``origin``: the region it crosses from."""
    landed = f"{destination}.curated.{event}"
    return landed if origin is None or origin == destination else f"{landed}.{origin}"


def derived_schemas(packs: Packs, events: Mapping[str, EventType]) -> dict[str, dict[str, Any]]:
    """Curated schema of every event in every region, by subject; needs no keys.

    Raises ConfigError for the first flow whose tags do not fit.
    """
    return {
        curated_subject(region, name): curated_schema(check_flow(packs.pack(region), event, region, region))
        for region in packs.regions
        for name, event in sorted(events.items())
    }


def curated_schema(flow: Flow) -> dict[str, Any]:
    """The Avro record of what leaves the flow, ending with the raw position."""
    originals = {field["name"]: field for field in flow.event.schema["fields"]}
    raw_types = dict(zip(RAW_POSITION, ("int", "long"), strict=True))
    return {
        "type": "record",
        "name": flow.event.name,
        "namespace": f"pipeline.curated.{flow.region.replace('-', '_')}",
        "doc": f"{flow.event.schema.get('doc', '')} As {flow.region} may hold it.".strip(),
        "fields": [_field(decision, originals) for decision in flow.columns]
        + [
            {
                "name": name,
                "type": raw_types[name],
                "doc": _RAW_DOCS[name],
                "confluent:tags": ["transport"],
                "unit": "1",
                "minimum": 0,
            }
            for name in RAW_POSITION
        ],
    }


def curated_arrow(schema: dict[str, Any]) -> pa.Schema:
    """Exact Arrow schema of the policy's result: the record's columns without the raw position."""
    whole = arrow_schema(schema)
    return pa.schema(list(whole)[: -len(RAW_POSITION)])


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
