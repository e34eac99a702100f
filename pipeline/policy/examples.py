"""The examples of a pack, run: what its writer expects to leave, against what does.

Comes in: packs and events. Goes out: one :class:`ExampleResult` per example. Invariant: examples run under
keys that everyone can compute, never under a region's own, so an expected pseudonym says nothing about a real
one.
The values of an example are made up by its writer; they alone are quoted in what it reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.events import EventField, EventType
from pipeline.policy.derive import curated_event, curated_schema
from pipeline.policy.keys import KEY_BYTES, hkdf_sha256
from pipeline.policy.pack import Example, Pack
from pipeline.policy.packs import Packs
from pipeline.policy.plan import Applied, Plan
from pipeline.policy.standalone import Unasked
from pipeline.policy.tokens import ExampleVault
from pipeline.policy.typecheck import check_flow

_NOT_A_SECRET = b"edge-to-core-pipeline/example-key: known to everyone, protects nothing"
_ENVELOPE: dict[str, Any] = {
    "source": "example",
    "spool": 1,
    "lane": 0,
    "sequence": 1,
    "event_time": datetime(2026, 1, 15, 12, 34, 56, 789_000),
    "received_time": datetime(2026, 1, 15, 12, 34, 57),
}
_ZEROES: dict[str, Any] = {
    "string": "",
    "boolean": False,
    "timestamp-micros": datetime(2026, 1, 1),
    "timestamp-millis": datetime(2026, 1, 1),
    "date": date(2026, 1, 1),
    "array": [],
}


class ExampleKeys:
    """A :class:`pipeline.policy.keys.KeyStore` without a secret, for examples alone."""

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """The same key for everyone."""
        info = b"".join(part.encode() + b"\0" for part in (region, purpose, epoch))
        return hkdf_sha256(_NOT_A_SECRET, b"", info, KEY_BYTES)


@dataclass(frozen=True)
class ExampleResult:
    """One example; ``faults`` says how what left differs from what was expected, empty when it does not."""

    region: str
    event: str
    name: str
    faults: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all was as expected."""
        return not self.faults


def run_examples(packs: Packs, region: str, events: Mapping[str, EventType]) -> list[ExampleResult]:
    """Every example of a region's pack, in its order. One that cannot run has failed; nothing raises.

    An example with an origin goes the whole way: lands there, then crosses. Validity is not asked: an example
    says what the rules do.
    """
    return [
        ExampleResult(region, example.event, example.name, tuple(_faults(packs, region, events, example)))
        for example in packs.pack(region).examples
    ]


def _faults(packs: Packs, region: str, events: Mapping[str, EventType], example: Example) -> Iterator[str]:
    event = events.get(example.event)
    if event is None:
        yield f"no such event; there are {', '.join(sorted(events))}"
        return
    try:
        origin = example.origin or region
        applied = _landed(packs, origin, event, example.input)
        if origin != region and not applied.filtered:
            applied = _crossed(packs, (origin, region), event, applied)
    except ConfigError as error:
        yield str(error)
        return
    yield from _differences(example, applied)


def _landed(packs: Packs, region: str, event: EventType, given: Mapping[str, Any]) -> Applied:
    terms = packs.terms(region, region)
    batch = _batch(packs.pack(region), event, given)
    return _applied(Plan(check_flow(terms, event), ExampleKeys(), ExampleVault()), batch)


def _crossed(packs: Packs, leg: tuple[str, str], event: EventType, landed: Applied) -> Applied:
    origin, destination = leg
    flow = check_flow(packs.terms(origin, origin), event)
    curated = curated_event(event, curated_schema(flow))
    position = [pa.array([0], kind) for kind in (pa.int32(), pa.int64())]
    batch = pa.RecordBatch.from_arrays([*landed.batch.columns, *position], schema=curated.arrow)
    flow = check_flow(packs.terms(origin, destination), curated)
    return _applied(Plan(flow, ExampleKeys(), ExampleVault()), batch)


def _applied(plan: Plan, batch: pa.RecordBatch) -> Applied:
    """One row as it leaves, if it leaves: as if its person had agreed, and with its crowd around it."""
    filtered = plan.filter(batch, Unasked())
    kept = np.empty(0, dtype=np.int64) if filtered else np.arange(len(batch))
    return Applied(plan.transform(batch.take(pa.array(kept))), kept, filtered)


def _differences(example: Example, applied: Applied) -> Iterator[str]:
    by = next(iter(applied.filtered), "")
    if by != example.filtered:
        wanted = f"the filter {example.filtered} to drop it" if example.filtered else "it to pass"
        yield f"expected {wanted}, found {f'it dropped by {by}' if by else 'that no filter does'}"
        return
    if by:
        return
    columns = applied.batch.schema.names
    for name, value in example.expected.items():
        if name not in columns:
            yield f"{name}: expected, and no such column leaves; there are {', '.join(columns)}"
            continue
        found = applied.batch.column(name)
        try:
            wanted = _array(value, found.type)
        except ConfigError as error:
            yield f"{name}: {error.problem}"
            continue
        if not found.equals(wanted):
            yield f"{name}: expected {wanted[0].as_py()!r}, found {found[0].as_py()!r}"
    for name in example.absent:
        if name in columns:
            yield f"{name}: expected to be gone, and it leaves"


def _batch(pack: Pack, event: EventType, given: Mapping[str, Any]) -> pa.RecordBatch:
    """One row; a field that is not given is null, or the plainest value of its type."""
    names = [field.name for field in event.fields]
    if strange := sorted(set(given) - set(names)):
        raise ConfigError(
            f"input: {event.name} has no field {', '.join(strange)}; it has {', '.join(names)}",
            operation="policy test",
        )
    columns = [
        _array(given.get(field.name, _default(field, pack)), event.arrow.field(field.name).type)
        for field in event.fields
    ]
    return pa.RecordBatch.from_arrays(columns, schema=event.arrow)


def _default(field: EventField, pack: Pack) -> Any:
    if field.name == "jurisdiction":
        return next(iter(pack.jurisdictions), "")
    if field.name in _ENVELOPE:
        return _ENVELOPE[field.name]
    if field.nullable:
        return None
    return field.symbols[0] if field.symbols else _ZEROES.get(field.kind, field.minimum or 0)


def _array(value: Any, kind: pa.DataType) -> pa.Array:
    """One value as a column; times with a zone, or as ISO 8601 text, are moved to UTC."""
    try:
        if pa.types.is_timestamp(kind) and isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        return pa.array([value], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise ConfigError(f"{value!r} is not a value of type {kind}", operation="policy test") from None
