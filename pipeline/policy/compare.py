"""Two policies on the same events: what would change, per leg, row and column, without showing a value.

Comes in: events, and for each side the way they take (a landing, a border, or a landing and then a border).
Goes out: counts and shares. Invariant: nothing that it gives holds a value of a field, only names and
numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError
from pipeline.intake import RowChecks
from pipeline.policy.flow import RAW_POSITION, Decision
from pipeline.policy.standalone import Standalone
from pipeline.policy.typecheck import check_flow

PASSED, DENIED = "passed", "denied: no such leg"
DISTINCT_MAX = 1_000_000  # different values counted per column; beyond it the count is a lower bound


@dataclass(frozen=True)
class Stage:
    """One leg of a way: what rows have to be, and what becomes of them."""

    checks: RowChecks
    run: Standalone


@dataclass(frozen=True)
class Arrived:
    """``batch``: what is left. ``rows``: its rows' numbers in the input, ascending. ``fates``: per row of the
    input what became of it."""

    batch: pa.RecordBatch | None
    rows: np.ndarray
    fates: np.ndarray


class Way:
    """The legs that one side's events take; none: this side does not permit it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.columns: dict[str, Decision] = {}
        self.schema: dict[str, Any] = {"fields": []}
        if stages:
            plan = stages[-1].run.plan
            flow = check_flow(plan.terms, plan.event)
            self.columns = {str(decision.output): decision for decision in flow.columns}
            self.schema = plan.schema

    def go(self, batch: pa.RecordBatch, now_us: int) -> Arrived:
        """All stages. ConfigError when the rows lack a column that a stage needs, or a plan fails."""
        fates = np.full(len(batch), DENIED if not self.stages else PASSED, dtype=object)
        rows = np.arange(len(batch)) if self.stages else np.empty(0, np.int64)
        for stage in self.stages:
            batch = _fitting(batch, stage.run.plan.event.arrow, rows)
            findings = stage.checks.run(batch, now_us)
            for (reason, name), failed in findings.failed().items():
                fates[rows[failed]] = f"refused: {reason}{f' ({name})' if name else ''}"
            good = findings.good()
            batch, rows = batch.take(pa.array(good)), rows[good]
            applied = stage.run.apply(batch)
            for name, dropped in applied.filtered.items():
                fates[rows[dropped]] = f"filtered: {name}"
            batch, rows = applied.batch, rows[applied.kept]
        return Arrived(batch if self.stages else None, rows, fates)


def _fitting(batch: pa.RecordBatch, wanted: pa.Schema, rows: np.ndarray) -> pa.RecordBatch:
    """The columns a stage takes; the raw position is made up where the one before has taken it off."""
    if batch.schema.equals(wanted):
        return batch
    columns, missing = [], []
    for column in wanted:
        if column.name in batch.schema.names and batch.schema.field(column.name).type == column.type:
            columns.append(batch.column(column.name))
        elif column.name in RAW_POSITION:
            columns.append(
                pa.array(rows if column.name == RAW_POSITION[1] else np.zeros(len(rows), int)).cast(
                    column.type
                )
            )
        elif column.nullable and column.name not in batch.schema.names:
            columns.append(pa.nulls(len(batch), column.type))
        else:
            missing.append(column.name)
    if missing:
        raise ConfigError(
            f"the rows have no column {', '.join(missing)} as this policy lands it", operation="policy plan",
            remedy="the landing changes too: compare from raw events (--topic, or a raw file)",
        )  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=wanted)


@dataclass
class ColumnChange:
    """One column under both policies; ``rows`` are those that pass under both."""

    name: str
    old: Decision | None
    new: Decision | None
    rows: int = 0
    changed: int = 0
    newly_null: int = 0
    distinct_before: int | None = None
    distinct_after: int | None = None
    type_changed: bool = False

    @property
    def drawn(self) -> bool:
        """Whether its values are drawn at random, so that a change of value says nothing."""
        return any(not side.operator.deterministic for side in (self.old, self.new) if side)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the rules change: added, removed, type, tags, operator, parameters; empty: nothing."""
        old, new = self.old, self.new
        if old is None or new is None:
            return ("added" if old is None else "removed",)
        found = ["type"] if self.type_changed else []
        found += ["tags"] if old.result != new.result else []
        if old.operator.name != new.operator.name:
            found.append("operator")
        elif old.parameters != new.parameters:
            found.append("parameters")
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; shares are of the rows that pass under both."""
        shares = (
            {"changed": _share(self.changed, self.rows), "newly_null": _share(self.newly_null, self.rows)}
            if self.old and self.new
            else {}
        )
        return {
            "column": self.name, "kinds": list(self.kinds),
            "operator": [_operator(self.old), _operator(self.new)],
            "tags": [_tags(self.old), _tags(self.new)], "rows": self.rows, **shares,
            "drawn": self.drawn, "distinct": [self.distinct_before, self.distinct_after],
        }  # fmt: skip


@dataclass
class LegComparison:
    """One leg under both policies; :meth:`feed` it batches, then read."""

    origin: str
    destination: str
    old: Way
    new: Way
    keys: str = ""
    not_replayed: tuple[str, ...] = ()
    rows: int = 0
    fates: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        names = list(dict.fromkeys([*self.old.columns, *self.new.columns]))
        self.columns = [ColumnChange(n, self.old.columns.get(n), self.new.columns.get(n)) for n in names]
        self._seen: dict[tuple[str, str], pa.Array] = {}

    @property
    def status(self) -> str:
        """``permitted``, ``newly permitted``, ``no longer permitted`` or ``denied``."""
        return {
            (True, True): "permitted", (False, True): "newly permitted",
            (True, False): "no longer permitted", (False, False): "denied",
        }[bool(self.old.stages), bool(self.new.stages)]  # fmt: skip

    def feed(self, batch: pa.RecordBatch, now_us: int) -> None:
        """Replay a batch on both sides. Raises ConfigError."""
        before, after = self.old.go(batch, now_us), self.new.go(batch, now_us)
        self.rows += len(batch)
        self.fates.update(zip(before.fates.tolist(), after.fates.tolist(), strict=True))
        for column in self.columns:
            self._count(column, before, after)

    def _count(self, column: ColumnChange, before: Arrived, after: Arrived) -> None:
        if column.old is not None and before.batch is not None:
            column.distinct_before = self._distinct("old", column.name, before.batch.column(column.name))
        if column.new is not None and after.batch is not None:
            column.distinct_after = self._distinct("new", column.name, after.batch.column(column.name))
        if column.old is None or column.new is None or before.batch is None or after.batch is None:
            return
        _, left, right = np.intersect1d(before.rows, after.rows, assume_unique=True, return_indices=True)
        was = before.batch.column(column.name).take(pa.array(left))
        now = after.batch.column(column.name).take(pa.array(right))
        column.rows += len(was)
        column.newly_null += int(np.sum(np.asarray(pc.is_null(now)) & ~np.asarray(pc.is_null(was))))
        column.type_changed = was.type != now.type
        column.changed += _different(was, now)

    def _distinct(self, side: str, name: str, values: pa.Array) -> int:
        known = self._seen.get((side, name), pa.array([], values.type))
        if len(known) < DISTINCT_MAX:
            known = pa.concat_arrays([known, values.unique()]).unique()
            self._seen[side, name] = known
        return len(known) - (1 if known.null_count else 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        newly_passing = {b: n for (b, a), n in self._moves() if a == PASSED}
        newly_dropped = {a: n for (b, a), n in self._moves() if b == PASSED}
        return {
            "from": self.origin, "to": self.destination, "status": self.status, "keys": self.keys,
            "not_replayed": list(self.not_replayed), "rows": self.rows,
            "passed": [self._passed(0), self._passed(1)],
            "newly_passing": newly_passing, "newly_dropped": newly_dropped,
            "moved": [{"before": b, "after": a, "rows": n} for (b, a), n in self._moves()],
            "columns": [column.as_dict() for column in self.columns],
        }  # fmt: skip

    def _passed(self, side: int) -> int:
        return sum(count for fates, count in self.fates.items() if fates[side] == PASSED)

    def _moves(self) -> list[tuple[tuple[str, str], int]]:
        return sorted((fates, count) for fates, count in self.fates.items() if fates[0] != fates[1])


def _different(was: pa.Array, now: pa.Array) -> int:
    """Rows whose value is another, a null being a value like any other; of another type all that hold one."""
    was_null, now_null = np.asarray(pc.is_null(was)), np.asarray(pc.is_null(now))
    if was.type != now.type:
        return int(np.sum(~(was_null & now_null)))
    same = np.asarray(pc.equal(was, now).fill_null(False)) | (was_null & now_null)
    return int(np.sum(~same))


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _operator(decision: Decision | None) -> str:
    if decision is None:
        return ""
    words = ", ".join(f"{k} = {v}" for k, v in decision.parameters.model_dump(exclude_unset=True).items())
    return f"{decision.operator.name}{f' ({words})' if words else ''}"


def _tags(decision: Decision | None) -> list[str]:
    return sorted(decision.result) if decision else []
