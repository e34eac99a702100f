"""Every metric of every role, in one place.

Names follow the Prometheus conventions: base units, ``_total`` on counters, ``pipeline_`` in front. Labels
are region, event and the name of a rule, a reason or a lane; never a source, a subject or a field's value.
Each role makes its own object on a registry of its own and serves it at ``/metrics``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, start_http_server
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

disable_created_metrics()  # a second series per counter that says nothing a scrape does not

BASIS_WARNING_DAYS = 90  # before a transfer's basis ends: time to find another one
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


class BatchHistogram(Collector):
    """A histogram that takes a whole array at once.

    prometheus_client observes one value a call, which at 300,000 events a second costs more than the
    pipeline itself; numpy counts a batch in one pass. Labels: as given, in order.
    """

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str],
        buckets: Sequence[float] = SECONDS,
    ) -> None:  # fmt: skip
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._edges = np.asarray(buckets)
        self._counts: dict[tuple[str, ...], np.ndarray] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def observe(self, labels: Sequence[str], values: np.ndarray) -> None:
        """Count ``values`` (float, in the unit of the name); a negative one counts as zero (clock skew)."""
        key = tuple(labels)
        values = np.maximum(values, 0.0)
        slots = np.searchsorted(self._edges, values, side="left")
        added = np.bincount(slots, minlength=len(self._edges) + 1)
        # Replaced, not changed in place: a scrape in another thread sees the old or the new array, whole.
        self._counts[key] = self._counts.get(key, np.zeros(len(self._edges) + 1, dtype=np.int64)) + added
        self._sums[key] = self._sums.get(key, 0.0) + float(values.sum())

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Called by the registry at a scrape."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for key, counts in list(self._counts.items()):
            running = np.cumsum(counts)
            buckets = [(f"{edge:g}", float(n)) for edge, n in zip(self._edges, running, strict=False)]
            family.add_metric(key, [*buckets, ("+Inf", float(running[-1]))], self._sums.get(key, 0.0))
        yield family


class EdgeMetrics:
    """What an edge agent counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._accepted = Counter(
            "pipeline_edge_accepted_events", "Events acknowledged to a producer.", ["region", "event"],
            registry=registry,
        )  # fmt: skip
        self._rejected = Counter(
            "pipeline_edge_rejected_events", "Events refused with an error to the producer.",
            ["event", "reason"], registry=registry,
        )  # fmt: skip
        self._minimised = Counter(
            "pipeline_edge_filtered_events", "Events that a filter of the edge policy kept from being taken.",
            ["region", "event", "rule"], registry=registry,
        )  # fmt: skip
        self._forwarded = Counter(
            "pipeline_edge_forwarded_events", "Events acknowledged by the broker.", ["region", "event"],
            registry=registry,
        )  # fmt: skip
        self._evicted = Counter(
            "pipeline_edge_evicted_events", "Accepted events given up: age, bytes, disk, damaged, oversize.",
            ["lane", "reason"], registry=registry,
        )  # fmt: skip
        self._pending = Gauge(
            "pipeline_edge_spooled_events", "Events in the spool, not yet acknowledged by the broker.",
            ["lane"], registry=registry,
        )  # fmt: skip
        self._bytes = Gauge("pipeline_edge_spool_bytes", "Payload bytes in the spool.", registry=registry)
        self._commit = BatchHistogram(
            registry, "pipeline_edge_commit_seconds", "Time of one durable group commit.", []
        )
        self._refused = Counter(
            "pipeline_edge_refused_senders", "Requests of senders that may not: credentials, event, source, "
            "jurisdiction.", ["reason"], registry=registry,
        )  # fmt: skip

    def accepted(self, event: str, region: str, count: int) -> None:
        """``count`` events are durable and acknowledged."""
        self._accepted.labels(region, event).inc(count)

    def rejected(self, event: str, reason: str, count: int) -> None:
        """``count`` events were refused; ``reason`` is a check's name."""
        self._rejected.labels(event, reason).inc(count)

    def minimised(self, event: str, region: str, rule: str, count: int) -> None:
        """``count`` events were not taken; ``rule`` is a filter's name."""
        self._minimised.labels(region, event, rule).inc(count)

    def refused_sender(self, reason: str) -> None:
        """A sender was refused; ``reason``: credentials, event, source or jurisdiction."""
        self._refused.labels(reason).inc()

    def forwarded(self, event: str, region: str, count: int) -> None:
        """The broker acknowledged ``count`` events."""
        self._forwarded.labels(region, event).inc(count)

    def evicted(self, lane: str, reason: str, count: int) -> None:
        """``count`` accepted events were given up."""
        self._evicted.labels(lane, reason).inc(count)

    def spool(self, pending: dict[str, int], payload_bytes: int) -> None:
        """What waits now: events per lane, bytes in all."""
        for lane, count in pending.items():
            self._pending.labels(lane).set(count)
        self._bytes.set(payload_bytes)

    def committed(self, seconds: float) -> None:
        """One group commit took this long."""
        self._commit.observe((), np.array([seconds]))


class MqttMetrics:
    """What the MQTT bridge counts. ``route`` is the configured topic filter, never a topic."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._connected = Gauge(
            "pipeline_mqtt_connected", "1 while subscribed at the broker.", registry=registry
        )
        self._connects = Counter(
            "pipeline_mqtt_connects", "Attempts to connect, by outcome.", ["outcome"], registry=registry
        )
        self._in_flight = Gauge(
            "pipeline_mqtt_in_flight_messages", "Messages taken and not yet settled.", registry=registry
        )
        self._taken = Counter(
            "pipeline_mqtt_taken_messages", "Messages whose events are durable.", ["route"], registry=registry
        )
        self._rejected = Counter(
            "pipeline_mqtt_rejected_messages", "Messages refused, with nothing (of a group) taken.",
            ["route", "reason"], registry=registry,
        )  # fmt: skip
        self._retries = Counter(
            "pipeline_mqtt_retries", "Submissions that the spool could not take at once.", registry=registry
        )
        self._sparkplug = Counter(
            "pipeline_sparkplug_notices",
            "gap, repeat, rebirth_request, birth, death, stale_death; metrics: historical.",
            ["route", "kind"], registry=registry,
        )  # fmt: skip
        self._nodes = Gauge(
            "pipeline_sparkplug_online_nodes", "Edge nodes with a valid birth.", ["route"], registry=registry
        )

    def connection(self, up: bool) -> None:
        """Subscribed, or not any more."""
        self._connected.set(int(up))

    def connect(self, outcome: str) -> None:
        """An attempt ended: ``subscribed``, ``refused`` or ``failed``."""
        self._connects.labels(outcome).inc()

    def in_flight(self, messages: int) -> None:
        """So many are in hand now."""
        self._in_flight.set(messages)

    def taken(self, route: str) -> None:
        """One message is durable."""
        self._taken.labels(route).inc()

    def rejected(self, route: str, reason: str) -> None:
        """One message was refused."""
        self._rejected.labels(route, reason).inc()

    def retried(self) -> None:
        """The spool was full or failing; the message waits, unacknowledged."""
        self._retries.inc()

    def sparkplug(self, route: str, kind: str, count: int = 1) -> None:
        """Something that a host of Sparkplug has to know."""
        self._sparkplug.labels(route, kind).inc(count)

    def nodes(self, route: str, online: int) -> None:
        """Edge nodes online now."""
        self._nodes.labels(route).set(online)


class ProcessorMetrics:
    """What a processor counts: ``region`` is where its legs end, ``origin`` where they begin."""

    def __init__(self, registry: CollectorRegistry, region: str) -> None:
        self._region = self._origin = region
        self._outcomes = Counter(
            "pipeline_processor_processed_events",
            "Source records by what became of them: passed, filtered, quarantined, repeat.",
            ["region", "origin", "event", "outcome", "reason"], registry=registry,
        )  # fmt: skip
        self._lag = Gauge(
            "pipeline_processor_lag_records", "Source records not yet processed.",
            ["region", "origin", "event"], registry=registry,
        )  # fmt: skip
        self._latency = BatchHistogram(
            registry, "pipeline_processor_latency_seconds",
            "From the edge's receipt (on a border: the origin's delivery) to the acknowledgement.",
            ["region", "origin", "event"],
        )  # fmt: skip
        self._batch = BatchHistogram(
            registry,
            "pipeline_processor_batch_seconds",
            "Computing one batch.",
            ["region", "origin", "event"],
        )
        self._retries = Counter(
            "pipeline_processor_restarts", "Partitions taken up again after an error, by the error's class.",
            ["region", "origin", "error"], registry=registry,
        )  # fmt: skip
        self._held = Gauge(
            "pipeline_processor_held_records", "Source records held back until a crowd has gathered.",
            ["region", "origin", "event"], registry=registry,
        )  # fmt: skip
        self._holding: dict[tuple[str, int], int] = {}

    def processed(self, event: str, counts: dict[tuple[str, str], int]) -> None:
        """One batch's records per (outcome, reason)."""
        for (outcome, reason), count in counts.items():
            self._outcomes.labels(self._region, self._origin, event, outcome, reason).inc(count)

    def lag(self, event: str, records: int) -> None:
        """Records between our position and the end of the source topic."""
        self._lag.labels(self._region, self._origin, event).set(records)

    def delivered(self, event: str, seconds: np.ndarray) -> None:
        """Seconds from receipt to acknowledgement, one per event."""
        self._latency.observe((self._region, self._origin, event), seconds)

    def computed(self, event: str, seconds: float) -> None:
        """One batch was computed in this time."""
        self._batch.observe((self._region, self._origin, event), np.array([seconds]))

    def held(self, event: str, partition: int, records: int) -> None:
        """So many records of a partition are held back now."""
        self._holding[event, partition] = records
        held = sum(count for (name, _), count in self._holding.items() if name == event)
        self._held.labels(self._region, self._origin, event).set(held)

    def restarted(self, error: str) -> None:
        """A partition goes back to its last complete position."""
        self._retries.labels(self._region, self._origin, error).inc()


class BorderMetrics(ProcessorMetrics):
    """What the legs into one region over its borders count; :meth:`of` for those from one origin."""

    def __init__(self, registry: CollectorRegistry, region: str) -> None:
        super().__init__(registry, region)
        self._basis = ""
        self._crossings = Counter(
            "pipeline_border_crossings", "Events delivered over a border, by what permits it.",
            ["from", "to", "event", "basis"], registry=registry,
        )  # fmt: skip
        self._valid = Gauge(
            "pipeline_transfer_valid_seconds",
            "Unix time at which the basis of the transfer ends; infinite: it has no end.",
            ["from", "to"], registry=registry,
        )  # fmt: skip
        self._ends_soon = Gauge(
            "pipeline_transfer_basis_ends_soon",
            f"1 in the last {BASIS_WARNING_DAYS} days of a transfer's basis and after it, else 0.",
            ["from", "to"], registry=registry,
        )  # fmt: skip

    def of(self, origin: str, basis: str, valid_until_us: int | None) -> BorderMetrics:
        """The same series for one origin; ``valid_until_us``: end of the basis, None for never."""
        until_s = float("inf") if valid_until_us is None else valid_until_us / 1e6
        self._valid.labels(origin, self._region).set(until_s)
        warn_s = until_s - BASIS_WARNING_DAYS * 86_400
        self._ends_soon.labels(origin, self._region).set_function(lambda: float(time.time() >= warn_s))
        one = copy(self)
        one._origin, one._basis = origin, basis
        return one

    def delivered(self, event: str, seconds: np.ndarray) -> None:
        """Seconds from the origin's delivery to acknowledgement, one per event; each has crossed."""
        super().delivered(event, seconds)
        if len(seconds):
            self._crossings.labels(self._origin, self._region, event, self._basis).inc(len(seconds))


class StoreMetrics:
    """What a store writer counts."""

    def __init__(self, registry: CollectorRegistry, region: str) -> None:
        self._region = region
        self._rows = Counter(
            "pipeline_store_stored_rows", "Rows committed.", ["region", "event"], registry=registry
        )
        self._repeats = Counter(
            "pipeline_store_repeated_rows", "Curated records skipped because their raw position is stored.",
            ["region", "event"], registry=registry,
        )  # fmt: skip
        self._flushes = Counter(
            "pipeline_store_flushes", "Commits by what triggered them.", ["region", "trigger"],
            registry=registry,
        )  # fmt: skip
        self._lag = Gauge(
            "pipeline_store_lag_records", "Curated records not yet committed.", ["region", "event"],
            registry=registry,
        )  # fmt: skip
        self._commit = BatchHistogram(
            registry, "pipeline_store_commit_seconds", "One transaction, fsync included.", ["region"]
        )
        self._end_to_end = BatchHistogram(
            registry, "pipeline_end_to_end_seconds",
            "From the edge's receipt (mean of a processed batch) to the commit.",
            ["region", "event"],
        )  # fmt: skip

    def stored(self, event: str, count: int) -> None:
        """Rows of one commit."""
        self._rows.labels(self._region, event).inc(count)

    def repeats(self, event: str, count: int) -> None:
        """Rows skipped as repeats."""
        self._repeats.labels(self._region, event).inc(count)

    def committed(self, seconds: float, trigger: str) -> None:
        """One commit; ``trigger`` is age, rows, bytes or stop."""
        self._commit.observe((self._region,), np.array([seconds]))
        self._flushes.labels(self._region, trigger).inc()

    def end_to_end(self, event: str, seconds: np.ndarray) -> None:
        """Seconds from receipt to commit, one per row."""
        self._end_to_end.observe((self._region, event), seconds)

    def lag(self, event: str, records: int) -> None:
        """Curated records between our position and the end."""
        self._lag.labels(self._region, event).set(records)


@contextmanager
def serve(registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serve ``/metrics`` on ``host`` (loopback by default) and hand out the port; 0 takes a free one."""
    server, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
