"""Minimisation in the gate: admitted rows in, the rows that are taken out, per region.

Comes in: rows that passed the checks, as one batch or as one tuple. Goes out: the same rows saying less, in
their order, and how many a filter kept from being taken. A region without an ``[edge]`` part costs one
look-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.edge.encoder import STAMPED, Row
from pipeline.edge.routes import Routes
from pipeline.events import EventType
from pipeline.policy.minimise import EdgePlan

Filtered = Counter[tuple[str, str]]  # (region, filter) -> rows


@dataclass(frozen=True)
class Admitted:
    """``rows``: a batch, one row, or None where nothing is left to take. ``filtered``: rows not taken."""

    rows: pa.RecordBatch | Row | None
    filtered: Filtered = field(default_factory=Counter)


class Minimiser:
    """The plans of one event by region; safe in several threads."""

    def __init__(self, event: EventType, routes: Routes, plans: Mapping[str, EdgePlan]) -> None:
        self._routes = routes
        self._plans = dict(plans)
        self._arrow = event.arrow
        self._places = {
            column.name: index
            for index, column in enumerate(column for column in event.arrow if column.name not in STAMPED)
        }

    def one(self, row: Row) -> Admitted:
        """One row, in the order of the schema without the stamped columns."""
        region = self._routes.region(row[self._places["jurisdiction"]])
        plan = self._plans.get(region or "")
        if plan is None:
            return Admitted(row)
        fields = [self._arrow.field(name) for name in plan.reads]
        given = [pa.array([row[self._places[f.name]]], f.type) for f in fields]
        minimised = plan.minimise(pa.RecordBatch.from_arrays(given, schema=pa.schema(fields)))
        if minimised.filtered:
            return Admitted(None, Counter({(plan.region, name): 1 for name in minimised.filtered}))
        values = list(row)
        for column, before, after in zip(fields, given, minimised.batch.columns, strict=True):
            if after is not before:
                values[self._places[column.name]] = _value(after)
        return Admitted(tuple(values))

    def many(self, batch: pa.RecordBatch) -> Admitted:
        """A batch of the event's schema, whose rows may belong to several regions."""
        codes, regions = self._regions(batch)
        if len(regions) == 1:
            return self._part(batch, regions[0])[0]
        parts: list[pa.RecordBatch] = []
        rows: list[np.ndarray] = []
        filtered: Filtered = Counter()
        for code, region in enumerate(regions):
            chosen = np.flatnonzero(codes == code)
            admitted, kept = self._part(batch.take(pa.array(chosen)), region)
            filtered += admitted.filtered
            if admitted.rows is not None:
                parts.append(admitted.rows)
                rows.append(chosen[kept])
        if not parts:
            return Admitted(None, filtered)
        order = pa.array(np.argsort(np.concatenate(rows)))
        return Admitted(pa.concat_batches(parts).take(order), filtered)

    def _part(self, batch: pa.RecordBatch, region: str) -> tuple[Admitted, np.ndarray]:
        plan = self._plans.get(region)
        if plan is None:
            return Admitted(batch), np.arange(len(batch))
        minimised = plan.minimise(batch)
        filtered = Counter({(region, name): len(rows) for name, rows in minimised.filtered.items()})
        return Admitted(minimised.batch if len(minimised.kept) else None, filtered), minimised.kept

    def _regions(self, batch: pa.RecordBatch) -> tuple[np.ndarray, list[str]]:
        """A number per row, and the region each number means."""
        coded = batch.column("jurisdiction").dictionary_encode()
        names = [self._routes.region(code) or "" for code in coded.dictionary.to_pylist()]
        regions = sorted(set(names))
        numbers = np.array([regions.index(name) for name in names], dtype=np.int64)
        return numbers[coded.indices.to_numpy(zero_copy_only=False)], regions


def _value(column: pa.Array) -> Any:
    """The one value as a row holds it: times and dates as numbers."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    return column[0].as_py()
