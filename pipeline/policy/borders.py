"""What is wrong between packs: transfers to nowhere, to where they are forbidden, or with data kept too long.

Comes in: all packs that could be read, and the events. Goes out: sentences, each with the origin whose pack
says so. Invariant: what the law of the origin forbids or bounds holds whatever the destination's pack says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.events import EventType
from pipeline.policy.derive import curated_event, curated_schema
from pipeline.policy.faults import ever_allowed, field_name_faults, field_rule_faults, tag_rule_faults
from pipeline.policy.pack import Pack
from pipeline.policy.packs import Packs
from pipeline.policy.tags import covers
from pipeline.policy.terms import Terms
from pipeline.policy.transfers import Transfer, TransferDenied
from pipeline.policy.typecheck import judge_flow
from pipeline.policy.violations import Violation, listed


def border_faults(packs: Packs, events: Mapping[str, EventType]) -> Iterator[Violation]:
    """Everything that two packs, or a pack and what another lands, show to be wrong."""
    columns = {region: _landed_columns(packs, region, events) for region in packs.regions}
    for region in packs.regions:
        origin = packs.pack(region)
        for name in sorted(origin.transfers.keys() - {region}):
            yield from (
                replace(fault, origin=region, destination=name)
                for fault in _transfer_faults(packs, origin, name, columns[region])
            )
        yield from (
            replace(fault, destination=region) for fault in _gate_faults(packs, origin, events, columns)
        )
        yield from (replace(fault, destination=region) for fault in _place_faults(packs, origin))


def expiry_faults(packs: Packs, now_us: int) -> Iterator[Violation]:
    """Transfers whose basis has ended by ``now_us`` (microseconds since 1970 UTC)."""
    for origin, destination in packs.legs():
        terms = packs.terms(origin, destination)
        if fault := terms.expired(now_us):
            yield Violation(
                f"transfers.{destination}.valid_until", fault,
                "name a basis that holds, or take the transfer out",
                destination=destination, origin=origin, rule=f"transfers.{destination}",
                source=terms.transfer.source if terms.transfer else "",
            )  # fmt: skip


def _transfer_faults(
    packs: Packs, origin: Pack, name: str, columns: Mapping[str, frozenset[str]]
) -> Iterator[Violation]:
    transfer, place = origin.transfers[name], f"transfers.{name}"
    if name not in packs.regions:
        yield Violation(place, f"no region {name!r}; there are {listed(packs.regions)}", "add its pack")
        return
    destination = packs.pack(name)
    for denied in origin.transfers_denied:
        yield from _denied_faults(denied, transfer, destination, place)
    for purpose in transfer.purposes:
        if purpose in origin.purposes and purpose not in destination.purposes:
            yield Violation(
                f"{place}.purposes",
                f"{name} has no purpose {purpose!r}, and what was collected for one may not serve another",
                f"declare it in the pack of {name}, or take it out",
                rule=place, source="GDPR 5(1)(b)",
            )  # fmt: skip
    try:
        terms = packs.terms(origin.region, name)
    except ConfigError:
        return  # an origin that collects nothing: its own pack's fault
    allowed = ever_allowed(terms.allowed_for, (transfer.leg, destination.landing))
    yield from tag_rule_faults(transfer.leg, place, destination, allowed)
    for event, part in transfer.events.items():
        where = f"{place}.events.{event}"
        if event in columns:
            found = [
                *field_rule_faults(part, where, destination),
                *field_name_faults(part, columns[event], where),
            ]
            if part.consent:
                found.append(_asked_too_late(f"{where}.consent", part.consent.source))
            yield from (replace(fault, event=event) for fault in found)
    yield from _retention_faults(origin, destination, terms, columns)


def _asked_too_late(where: str, source: str) -> Violation:
    return Violation(
        where,
        "people are pseudonyms here, so no one's choice could be found",
        "ask where they are still known: in the landing of the region that collects",
        rule=where, source=source,
    )  # fmt: skip


def _denied_faults(
    denied: TransferDenied, transfer: Transfer, destination: Pack, place: str
) -> Iterator[Violation]:
    places = sorted(
        p for p in destination.places if any(p == d or p.startswith(d + "-") for d in denied.jurisdictions)
    )
    if not places and destination.region not in denied.destinations:
        return
    where = f"{destination.region} ({listed(places)})" if places else destination.region
    leaving = {"": transfer.allowed.tags} | {
        event: part.also_allowed.tags for event, part in transfer.events.items() if part.also_allowed
    }
    for event, tags in leaving.items():
        out = sorted(t for t in tags if any(covers(d, t) or covers(t, d) for d in denied.tags))
        if out:
            yield Violation(
                f"{place}.allowed" if not event else f"{place}.events.{event}.also_allowed",
                f"{listed(out)} may never go to {where}, in whatever form",
                "take the tag out of the transfer",
                event=event, tags=tuple(out), rule="transfers_denied", source=denied.source,
            )  # fmt: skip


def _retention_faults(
    origin: Pack, destination: Pack, terms: Terms, columns: Mapping[str, frozenset[str]]
) -> Iterator[Violation]:
    """Nothing may be held longer after a border than before it."""
    for event in sorted(columns):
        if not terms.permits(event):
            continue
        told: set[tuple[int, int]] = set()
        for jurisdiction in sorted(origin.jurisdictions):
            here = origin.retention.kept(event, jurisdiction)
            there = destination.retention.kept(event, jurisdiction)
            if (
                there.maximum_days > here.maximum_days
                and (bounds := (there.maximum_days, here.maximum_days)) not in told
            ):
                told.add(bounds)
                yield Violation(
                    f"retention of {event} from {jurisdiction}",
                    f"{destination.region} may keep it {there.maximum_days} days, and "
                    f"{origin.region}, where it comes from, {here.maximum_days}",
                    f"lower maximum_days in the pack of {destination.region}",
                    event=event, rule="retention", source=here.maximum_source,
                )  # fmt: skip


def _gate_faults(
    packs: Packs,
    pack: Pack,
    events: Mapping[str, EventType],
    columns: Mapping[str, Mapping[str, frozenset[str]]],
) -> Iterator[Violation]:
    """Rules of single fields in ``landing``: a field of the event, or a column that some origin sends."""
    for event, part in pack.landing.events.items():
        if event not in events:
            continue
        names = {field.name for field in events[event].fields}
        names.update(*(columns[origin].get(event, ()) for origin in packs.origins(pack.region)))
        where = f"landing.events.{event}"
        found = field_name_faults(part, frozenset(names), where)
        yield from (replace(fault, event=event) for fault in found)


def _place_faults(packs: Packs, pack: Pack) -> Iterator[Violation]:
    """Retention for jurisdictions that no event of this region can come from."""
    sending = {j for origin in packs.origins(pack.region) for j in packs.jurisdictions(origin)}
    there = sending | frozenset(pack.jurisdictions)
    for rule in pack.retention.events:
        if strange := sorted(set(rule.jurisdictions) - there):
            problem = f"nothing comes from {listed(strange)}: neither collected here nor crossing to here"
            yield Violation("retention.events", problem, event=rule.event, source=rule.source)


def _landed_columns(packs: Packs, region: str, events: Mapping[str, EventType]) -> dict[str, frozenset[str]]:
    """Per event the columns that the region's landing leaves, as far as that is decided."""
    if not packs.pack(region).collects:
        return {}
    return {
        name: frozenset(field.name for field in landed_event(packs, region, event)[0].fields)
        for name, event in events.items()
    }


def landed_event(packs: Packs, region: str, event: EventType) -> tuple[EventType, tuple[Violation, ...]]:
    """The event as the region lands it (what a border takes), and what speaks against its landing."""
    flow, faults = judge_flow(packs.terms(region, region), event)
    return curated_event(event, curated_schema(flow)), faults
