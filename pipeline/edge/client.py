"""The producer's side of the edge agent: events in, receipts out, never waiting for the core.

Comes in: events as mappings or Arrow batches, from any thread. Goes out: a Receipt once they are durable in
the spool. Invariant: a receipt means the events are on disk; an error means none of the call's events were
taken, unless it says that the outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, TypeAlias

import pyarrow as pa

from pipeline.config import Config
from pipeline.edge.blocks import Receipt
from pipeline.edge.committer import WAIT_S, Spool
from pipeline.edge.encoder import EventEncoder, Row
from pipeline.edge.gate import Gate
from pipeline.edge.metrics import EdgeMetrics, NoMetrics
from pipeline.edge.minimising import Admitted, Filtered
from pipeline.edge.routes import Routes
from pipeline.edge.submission import WEIGHT_BYTES, Submission
from pipeline.errors import ConfigError, RecordError, TransientError
from pipeline.policy.minimise import EdgePlan
from pipeline.reasons import Reason
from pipeline.schemas import SchemaStore

COMMIT_S = 60.0  # how long a caller waits for a commit that has begun
Minimisation: TypeAlias = Mapping[str, Mapping[str, EdgePlan]]  # event -> region -> plan
Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.Table | pa.RecordBatch


class EdgeClient:
    """Emits events into a spool; safe in several threads. The spool stays its owner's to close.

    ``region_of`` maps a jurisdiction to its region (the policy packs' answer), None for an unknown one.
    ``minimisation``: per event and region, what the region's policy has the edge leave out.
    """

    def __init__(
        self, config: Config, schemas: SchemaStore, spool: Spool, region_of: Callable[[str], str | None],
        metrics: EdgeMetrics | None = None, minimisation: Minimisation | None = None,
    ) -> None:  # fmt: skip
        self._edge = config.edge
        self._spool = spool
        self._metrics: EdgeMetrics = metrics or NoMetrics()
        routes = Routes(region_of, {name: region.partitions for name, region in config.regions.items()})
        self._encoders = {
            name: EventEncoder(
                name, schemas.codec(event.schema_id), routes, config.limits.record_bytes_max, self._metrics
            )
            for name, event in schemas.events.items()
        }
        self._gates = {
            name: Gate(event, config.limits, routes, self._encoders[name], (minimisation or {}).get(name))
            for name, event in schemas.events.items()
        }
        unknown = sorted(set(config.edge.event_lanes) - set(self._gates))
        if unknown:
            problem = f"event_lanes names unknown events: {', '.join(unknown)}"
            raise ConfigError(problem, operation="edge client")
        self._open = True

    def emit(
        self, event: str, fields: Mapping[str, Any], *, source: str, event_time: datetime | int,
        jurisdiction: str, lane: str | None = None,
    ) -> Receipt:  # fmt: skip
        """Take one event and return when it is durable.

        ``event_time``: aware datetime or int µs since the epoch; ``jurisdiction``: ISO 3166 code; ``lane``:
        default as configured for the event. Blocks for one group commit (milliseconds). Raises RecordError
        (this event is bad), TransientError (queue or disk full, or failing), ConfigError (no such lane).
        """
        return self._wait(
            self.submit(
                event, fields, source=source, event_time=event_time, jurisdiction=jurisdiction, lane=lane
            )
        )

    def emit_many(self, event: str, rows: Rows, *, lane: str | None = None) -> Receipt:
        """Take all rows or none, and return when they are durable.

        Columns or keys: ``source``, ``event_time``, ``jurisdiction`` and the event's fields. Raises as
        :meth:`emit`; RecordError names the first bad row, counted from 0. No rows: a receipt with count 0.
        """
        return self._wait(self.submit_many(event, rows, lane=lane))

    def submit(
        self, event: str, fields: Mapping[str, Any], *, source: str, event_time: datetime | int,
        jurisdiction: str, lane: str | None = None, wait_s: float = WAIT_S,
    ) -> Future[Receipt]:  # fmt: skip
        """Like :meth:`emit`, but does not wait for the commit; up to ``wait_s`` for room in the queue."""
        number = self._lane(event, lane)
        try:
            admitted = self._gate(event).admit_one(fields, source, event_time, jurisdiction)
        except RecordError as error:
            self._metrics.rejected(self._label(event), error.reason, 1)
            raise
        row = admitted.rows
        if not isinstance(row, tuple):
            return self._nothing_to_take(event, number, admitted)
        submission = Submission(self._encoders[event], number, row, 1, 1 + _text_bytes(row) // WEIGHT_BYTES)
        return self._submit(submission, wait_s)

    def submit_many(
        self, event: str, rows: Rows, *, lane: str | None = None, wait_s: float = WAIT_S
    ) -> Future[Receipt]:
        """Like :meth:`emit_many`, but does not wait for the commit; ``wait_s`` as in :meth:`submit`."""
        number = self._lane(event, lane)
        try:
            gate = self._gate(event)
            if len(rows) > self._edge.queue_events_max:
                raise RecordError(
                    f"{len(rows)} rows in one call, at most {self._edge.queue_events_max} (queue_events_max)",
                    reason=Reason.OVERSIZE, remedy="send them in parts",
                )  # fmt: skip
            admitted = gate.admit_many(rows) if len(rows) else Admitted(None)
        except RecordError as error:
            self._metrics.rejected(self._label(event), error.reason, max(1, len(rows)))
            raise
        batch = admitted.rows
        if not isinstance(batch, pa.RecordBatch):
            return self._nothing_to_take(event, number, admitted)
        weight = max(len(batch), batch.nbytes // WEIGHT_BYTES)
        submission = Submission(
            self._encoders[event], number, batch, len(batch), weight, admitted.filtered.total()
        )
        future = self._submit(submission, wait_s)
        if admitted.filtered:
            future.add_done_callback(lambda done: self._count_filtered(event, admitted.filtered, done))
        return future

    @property
    def events(self) -> tuple[str, ...]:
        """Names of the events it takes, sorted."""
        return tuple(sorted(self._gates))

    def close(self) -> None:
        """Take no more events; what was submitted is still committed by the spool."""
        self._open = False

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _nothing_to_take(self, event: str, lane: int, admitted: Admitted) -> Future[Receipt]:
        """No rows, or none that the edge policy lets be taken: answered at once."""
        if not self._open:
            raise TransientError("the client is closed", operation="emit")
        nothing: Future[Receipt] = Future()
        nothing.set_result(Receipt(self._spool.spool, lane, 0, 0, admitted.filtered.total()))
        self._count_filtered(event, admitted.filtered, nothing)
        return nothing

    def _count_filtered(self, event: str, filtered: Filtered, done: Future[Receipt]) -> None:
        """Once the call's outcome is known: a call that failed is made again, and would count twice."""
        if not done.cancelled() and done.exception() is None:
            for (region, rule), count in filtered.items():
                self._metrics.minimised(event, region, rule, count)

    def _submit(self, submission: Submission, wait_s: float) -> Future[Receipt]:
        if not self._open:
            raise TransientError("the client is closed", operation="emit")
        return self._spool.submit(submission, wait_s)

    def _wait(self, future: Future[Receipt]) -> Receipt:
        try:
            return future.result(COMMIT_S)
        except TimeoutError:
            withdrawn = future.cancel()
            outcome = "nothing was taken" if withdrawn else "the outcome is unknown"
            raise TransientError(
                f"not durable within {COMMIT_S:g} s; {outcome}", operation="emit", remedy="look at the disk"
            ) from None

    def _gate(self, event: str) -> Gate:
        gate = self._gates.get(event)
        if gate is None:
            raise RecordError(
                "no such event", reason=Reason.UNKNOWN_SCHEMA, field="event",
                remedy=f"known: {', '.join(self.events)}",
            )  # fmt: skip
        return gate

    def _label(self, event: str) -> str:
        """A metric label must not be the producer's free text."""
        return event if event in self._gates else "unknown"

    def _lane(self, event: str, lane: str | None) -> int:
        name = self._edge.event_lanes.get(event, "normal") if lane is None else lane
        try:
            return self._spool.lanes.index(name)
        except ValueError:
            raise ConfigError(
                "no such lane", operation="emit", remedy=f"known: {', '.join(self._spool.lanes)}"
            ) from None


def _text_bytes(row: Row) -> int:
    return sum(len(value) for value in row if type(value) is str)
