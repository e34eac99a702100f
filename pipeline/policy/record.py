"""The record of processing activities (GDPR 30(1); LGPD 37; UK GDPR 30), from what really runs.

Comes in: packs, events, the regions of a deployment and who answers for it. Goes out: plain values for JSON,
and the same as Markdown. Invariants: everything in it is read from the packs and the flows that the plans are
compiled from, so it cannot say another thing than what happens; the same packs give the same bytes, whatever
the day: that a basis has ended is told by ``pipeline policy check``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from pipeline.events import EventType
from pipeline.policy.borders import landed_event
from pipeline.policy.flow import Flow
from pipeline.policy.pack import Pack
from pipeline.policy.packs import Packs
from pipeline.policy.rules import Crowd
from pipeline.policy.transfers import Transfer
from pipeline.policy.typecheck import check_flow

NOT_SAID = "not configured: [record] in pipeline.toml"
GENERAL_MEASURES = (
    "What no rule serves and no tag allows is denied; each flow is type-checked before it runs, and again at "
    "the door of the store.",
    "Keys are made per region, purpose and epoch: pseudonyms of two regions, purposes or epochs do not join.",
    "Logs, metrics and errors carry names of fields, never values.",
)


class Responsible(Protocol):
    """Who answers for the processing; empty strings where that is not configured."""

    @property
    def organisation(self) -> str: ...
    @property
    def contact(self) -> str: ...
    @property
    def dpo(self) -> str: ...


def processing_record(
    packs: Packs, events: Mapping[str, EventType], regions: Iterable[str], who: Responsible
) -> dict[str, Any]:
    """The record as plain values, regions sorted; of the legs those between them.

    Raises ConfigError for a flow that does not type-check.
    """
    here = frozenset(regions)
    return {
        "controller": {
            "organisation": who.organisation or NOT_SAID,
            "contact": who.contact or NOT_SAID,
            "dpo": who.dpo or NOT_SAID,
        },
        "regions": [_region(packs, events, region, here) for region in sorted(here)],
    }


def _region(
    packs: Packs, events: Mapping[str, EventType], region: str, here: frozenset[str]
) -> dict[str, Any]:
    pack = packs.pack(region)
    legs = [leg for leg in packs.legs() if here.issuperset(leg)]
    flows = [flow for origin, to in legs if to == region for flow in _flows(packs, events, origin, to)]
    transfers = [(to, pack.transfers[to]) for origin, to in legs if origin == region != to]
    return {
        "region": region,
        "title": pack.title,
        "version": pack.version,
        "policy_hash": pack.hash,
        "jurisdictions": sorted(pack.jurisdictions),
        "located_in": pack.located_in or "",
        "purposes": [
            {"purpose": name, "meaning": purpose.meaning, "legal_basis": purpose.basis}
            for name, purpose in sorted(pack.purposes.items())
        ],
        "data": [_data(flow) for flow in flows],
        "recipients": [to for to, _ in transfers],
        "transfers": [_transfer(to, transfer) for to, transfer in transfers],
        "retention": _retention(packs, pack, flows),
        "measures": _measures(pack, flows),
    }


def _flows(packs: Packs, events: Mapping[str, EventType], origin: str, destination: str) -> Iterator[Flow]:
    terms = packs.terms(origin, destination)
    for name, event in sorted(events.items()):
        if terms.permits(name):
            came = landed_event(packs, origin, event)[0] if terms.crosses else event
            yield check_flow(terms, came)


def _data(flow: Flow) -> dict[str, Any]:
    before = {tag for field in flow.event.fields for tag in field.tags}
    after = {tag for decision in flow.columns for tag in decision.result}
    consent, crowd = flow.consent, flow.crowd
    return {
        "event": flow.event.name,
        "meaning": flow.event.schema.get("doc", ""),
        "origin": flow.terms.origin,
        "categories_in": sorted(before),
        "categories_held": sorted(after),
        "left_out": sorted(f.name for d in flow.decisions if d.output is None for f in d.fields),
        "filters": [{"filter": rule.name, "source": rule.source} for rule in flow.filters],
        "consent": f"{consent.mode} for {consent.purpose} ({consent.source})" if consent else "",
        "crowd": _crowd_words(crowd) if crowd else "",
    }


def _crowd_words(crowd: Crowd) -> str:
    return f"{crowd.k} people who share {', '.join(crowd.fields)} in one {crowd.window} ({crowd.source})"


def _transfer(destination: str, transfer: Transfer) -> dict[str, Any]:
    return {
        "to": destination,
        "basis": transfer.basis,
        "source": transfer.source,
        "valid_until": str(transfer.valid_until or ""),
        "purposes": sorted(transfer.purposes),
        "events": sorted(transfer.only_events) or ["every event"],
        "categories": sorted(transfer.allowed.tags),
    }


def _retention(packs: Packs, pack: Pack, flows: Iterable[Flow]) -> list[dict[str, Any]]:
    """Per event and pair of bounds the jurisdictions for which they hold."""
    places: dict[str, set[str]] = {}
    for flow in flows:
        places.setdefault(flow.event.name, set()).update(packs.jurisdictions(flow.terms.origin))
    found: list[dict[str, Any]] = []
    for event, jurisdictions in sorted(places.items()):
        groups: dict[Any, list[str]] = {}
        for jurisdiction in sorted(jurisdictions):
            groups.setdefault(pack.retention.kept(event, jurisdiction), []).append(jurisdiction)
        for kept, those in sorted(groups.items(), key=lambda group: group[1]):
            found.append(
                {
                    "event": event,
                    "jurisdictions": those,
                    "minimum_days": kept.minimum_days,
                    "maximum_days": kept.maximum_days,
                    "source": "; ".join(dict.fromkeys((kept.minimum_source, kept.maximum_source))),
                }
            )
    return found


def _measures(pack: Pack, flows: Iterable[Flow]) -> list[dict[str, Any]]:
    """What protects the data: one entry per operator that takes something away, with what it serves."""
    measures: dict[tuple[str, str], set[str]] = {}
    meanings: dict[str, str] = {}
    for flow in flows:
        for decision in flow.decisions:
            operator = decision.operator
            if operator.name == "keep":
                continue
            meanings[operator.name] = operator.meaning
            names = {f"{flow.event.name}.{field.name}" for field in decision.fields}
            measures.setdefault((operator.name, operator.effect(decision.parameters)), set()).update(names)
    for name, part in pack.edge.events.items():
        for field, rule in part.fields.items():
            operator = rule.known_operator
            meanings[operator.name] = operator.meaning
            effect = f"at the edge; {operator.effect(rule.checked_parameters)}".rstrip("; ")
            measures.setdefault((operator.name, effect), set()).add(f"{name}.{field}")
    return [
        {"measure": name, "meaning": meanings[name], "effect": effect, "fields": sorted(fields)}
        for (name, effect), fields in sorted(measures.items())
    ]


def record_markdown(record: Mapping[str, Any]) -> str:
    """The record for people; the same values in the same order."""
    who = record["controller"]
    lines = [
        "# Record of processing activities",
        "",
        "Generated from the policy packs; engineering input, not legal advice (GDPR 30(1)).",
        "",
        *_table(("controller", "contact", "data protection officer"),
                [(who["organisation"], who["contact"], who["dpo"])]),
    ]  # fmt: skip
    for region in record["regions"]:
        lines += ["", *_region_lines(region)]
    return "\n".join(lines) + "\n"


def _region_lines(region: Mapping[str, Any]) -> list[str]:
    where = ", ".join(region["jurisdictions"]) or "collects nothing, only receives"
    where += f"; stands in {region['located_in']}" if region["located_in"] else ""
    lines = [
        f"## {region['region']}: {region['title']}", "",
        f"Policy version {region['version']}, SHA-256 {region['policy_hash']}. Jurisdictions: {where}.",
        "", "### Purposes", "",
        *_table(("purpose", "meaning", "legal basis"),
                [(p["purpose"], p["meaning"], p["legal_basis"]) for p in region["purposes"]]),
        "", "### Categories of data", "",
        *_table(("event", "from", "comes in", "held", "left out", "rows"),
                [(d["event"], d["origin"], d["categories_in"], d["categories_held"], d["left_out"], _rows(d))
                 for d in region["data"]]),
        "", "### Recipients and transfers", "",
    ]  # fmt: skip
    if region["transfers"]:
        headings = ("to", "basis", "source", "valid until", "purposes", "events", "categories")
        rows = [
            (t["to"], t["basis"], t["source"], t["valid_until"] or "no end", t["purposes"], t["events"],
             t["categories"])
            for t in region["transfers"]
        ]  # fmt: skip
        lines += _table(headings, rows)
    else:
        lines.append("None: nothing leaves this region.")
    lines += [
        "", "### Retention", "",
        *_table(("event", "from", "at least, days", "at most, days", "source"),
                [(r["event"], r["jurisdictions"], r["minimum_days"], r["maximum_days"], r["source"])
                 for r in region["retention"]]),
        "", "### Security measures", "",
        *(f"- {sentence}" for sentence in GENERAL_MEASURES), "",
        *_table(("measure", "what it does", "effect", "fields"),
                [(m["measure"], m["meaning"], m["effect"] or "-", m["fields"]) for m in region["measures"]]),
    ]  # fmt: skip
    return lines


def _rows(data: Mapping[str, Any]) -> str:
    parts = [f"dropped by {rule['filter']} ({rule['source']})" for rule in data["filters"]]
    parts += [f"consent: {data['consent']}"] if data["consent"] else []
    parts += [f"only in a crowd of {data['crowd']}"] if data["crowd"] else []
    return "; ".join(parts) or "all"


def _table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    headings = tuple(headings)
    cells = [headings, ("---",) * len(headings), *rows]
    return [f"| {' | '.join(map(_cell, row))} |" for row in cells]


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ") or "-"
