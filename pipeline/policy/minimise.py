"""Minimisation at the edge: what a region's pack leaves out before an event is even spooled.

Comes in: the ``[edge]`` part of a pack and rows of one raw event. Goes out: rows of the *same* schema that
say less, and which rows a filter kept from being taken at all. Invariants: what leaves still passes the
event's own checks; no rule of landing is weakened by it (see :mod:`pipeline.policy.edge_check`), so landing
afterwards gives no more than landing alone would have given.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, PipelineError
from pipeline.events import EventField, EventType
from pipeline.policy.edge_check import EVENT_TIME, NOTHING_LEFT, SNAP, edge_faults, taken_tags
from pipeline.policy.encryption import Encrypter
from pipeline.policy.filters import dropped
from pipeline.policy.keys import KeyStore
from pipeline.policy.operators import Context, KeyedParameters, Parameters
from pipeline.policy.operators.edge_places import ROLES, snap
from pipeline.policy.pack import Pack
from pipeline.policy.packs import Packs
from pipeline.policy.pseudonyms import Epochs, Pseudonymiser, epoch_index, epoch_name
from pipeline.policy.rules import EventRules, Rule
from pipeline.policy.terms import Terms


@dataclass(frozen=True)
class Minimised:
    """``batch``: the rows that are taken, with the input's columns. ``kept``: their numbers in the input,
    ascending. ``filtered``: the other rows, per filter."""

    batch: pa.RecordBatch
    kept: np.ndarray
    filtered: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Step:
    """One operator on the columns it takes together; it gives as many."""

    rule: Rule
    fields: tuple[EventField, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def parameters(self) -> Parameters:
        return self.rule.checked_parameters


class EdgePlan:
    """The minimisation of one event in one region; safe in several threads."""

    def __init__(self, pack: Pack, event: EventType, keys: KeyStore | None) -> None:
        part = pack.edge.event(event.name)
        self.event, self.region = event, pack.region
        self._filters = part.filters
        self._steps = tuple(_steps(part, event))
        self._epoch, self._hierarchies = pack.epoch, pack.hierarchies
        self._purposes = sorted(
            {s.parameters.purpose for s in self._steps if isinstance(s.parameters, KeyedParameters)}
        )
        # Keyed names are remembered, which is not for two threads at once.
        self._turn: Any = threading.Lock() if self._purposes else nullcontext()
        self._pseudonyms = Pseudonymiser(keys, pack.region, pack.epoch) if keys else None
        self._encrypter = Encrypter(keys, pack.region, pack.epoch) if keys else None
        read = [c.field for f in self._filters for c in f.drop_when]
        read += [name for step in self._steps for name in step.names]
        self.reads = tuple(dict.fromkeys([*read, *([EVENT_TIME] if self._purposes else [])]))

    def require_keys(self, now_us: int) -> None:
        """ConfigError when an operator needs a key (of the epoch of ``now_us``) that is not there."""
        if self._purposes and self._pseudonyms is None:
            raise ConfigError(
                f"{', '.join(self._purposes)}: a keyed operator at an edge that has no key store",
                operation="edge minimisation", place=f"{self.region}, {self.event.name}",
                remedy="give the agent the region's keys, or use another operator at the edge",
            )  # fmt: skip
        epoch = epoch_name(int(epoch_index(np.array([now_us]), self._epoch)[0]), self._epoch)
        for purpose in self._purposes:
            assert self._pseudonyms is not None
            self._pseudonyms.key(purpose, epoch)

    def minimise(self, batch: pa.RecordBatch) -> Minimised:
        """Filter, then say less. ``batch`` has at least the columns :attr:`reads`, checked rows only.

        Raises ConfigError (a missing key, an operator that fails): then no row may be taken.
        """
        filtered = self._guarded("filter", lambda: dropped(self._filters, batch))
        kept = np.arange(len(batch))
        if filtered:
            kept = np.setdiff1d(kept, np.concatenate(list(filtered.values())), assume_unique=True)
            batch = batch.take(pa.array(kept))
        with self._turn:
            columns = self._columns(batch)
        return Minimised(pa.RecordBatch.from_arrays(columns, schema=batch.schema), kept, filtered)

    def _columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        epochs = Epochs(batch.column(EVENT_TIME), self._epoch) if self._purposes and len(batch) else None
        changed: dict[str, pa.Array] = {}
        for step in self._steps if len(batch) else ():
            given = [columns[name] for name in step.names]
            place = f"{step.rule.operator} on {', '.join(step.names)}"
            made = self._guarded(place, partial(self._run, step, given, epochs))
            for field, column in zip(step.fields, made, strict=True):
                wanted = self.event.arrow.field(field.name)
                if column.type != wanted.type or (column.null_count and not wanted.nullable):
                    raise self._stop(place, "the result is not of the field's own type")
                changed[field.name] = column
        return [changed.get(name, column) for name, column in columns.items()]

    def _run(self, step: _Step, columns: list[pa.Array], epochs: Epochs | None) -> list[pa.Array]:
        if step.rule.operator == SNAP:
            return snap(columns[0], columns[1], step.parameters)  # type: ignore[arg-type]
        operator, column = step.rule.known_operator, columns[0]
        if operator.name in NOTHING_LEFT or operator.run is None:
            return [pa.nulls(len(column), column.type)]
        domain = ",".join(sorted(taken_tags(step.rule, step.fields[0])))
        context = Context(domain, epochs, self._pseudonyms, self._encrypter, self._hierarchies)
        return [operator.run(columns, step.parameters, context)]

    def _guarded(self, step: str, work: Callable[[], Any]) -> Any:
        """Do it, or stop with the type of the error alone: the texts of kernels quote values."""
        try:
            return work()
        except PipelineError:
            raise
        except Exception as error:
            kind = type(error).__name__
        raise self._stop(step, f"failed ({kind})")

    def _stop(self, step: str, problem: str) -> ConfigError:
        return ConfigError(
            f"{step}: {problem}", operation="edge minimisation",
            place=f"{self.region}, {self.event.name}", remedy="nothing of this call was taken",
        )  # fmt: skip


def compile_edge(
    pack: Pack, event: EventType, keys: KeyStore | None, now_us: int, later: Iterable[Terms] = ()
) -> EdgePlan | None:
    """The event's minimisation in the pack's region, None when the pack asks for none.

    ``later``: the legs on which the event goes on, whose filters, consent and crowd read it.
    Raises ConfigError with every fault, or when a keyed operator finds no key.
    """
    part = pack.edge.event(event.name)
    if not part.fields and not part.filters:
        return None
    faults = list(edge_faults(pack, event, later))
    if faults:
        place = f"{pack.region}, {event.name}"
        raise ConfigError("; ".join(map(str, faults)), operation="edge minimisation", place=place)
    plan = EdgePlan(pack, event, keys)
    plan.require_keys(now_us)
    return plan


def _steps(part: EventRules, event: EventType) -> Iterator[_Step]:
    snapped = {event.field(name).role: name for name, rule in part.fields.items() if rule.operator == SNAP}
    for name, rule in part.fields.items():
        if rule.operator == "keep":
            continue
        if rule.operator != SNAP:
            yield _Step(rule, (event.field(name),))
        elif event.field(name).role == ROLES[0]:
            yield _Step(rule, tuple(event.field(snapped[role]) for role in ROLES))


class _WhenAsked:
    """A region's key store that is opened by the first question."""

    def __init__(self, keys: Callable[[str], KeyStore], region: str) -> None:
        self._keys, self._region = keys, region

    def key(self, region: str, purpose: str, epoch: str) -> bytes:
        """See :class:`pipeline.policy.keys.KeyStore`."""
        return self._keys(self._region).key(region, purpose, epoch)


def edge_plans(
    packs: Packs,
    regions: Iterable[str],
    events: Mapping[str, EventType],
    keys: Callable[[str], KeyStore],
) -> dict[str, dict[str, EdgePlan]]:
    """The minimisation of every event in every region that asks for one: event -> region -> plan.

    ``keys``: a region's key store; asked for only by operators that need a key, for an edge may hold none.
    Raises ConfigError like :func:`compile_edge`.
    """
    now_us = time.time_ns() // 1000
    found: dict[str, dict[str, EdgePlan]] = {}
    for region in regions:
        pack = packs.pack(region)
        later = [packs.terms(*leg) for leg in packs.legs() if leg[0] == region]
        for name in pack.edge.events:
            if name not in events:
                continue  # said when the pack was read
            plan = compile_edge(pack, events[name], _WhenAsked(keys, region), now_us, later)
            if plan is not None:
                found.setdefault(name, {})[region] = plan
    return found
