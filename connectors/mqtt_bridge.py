"""The edge agent's MQTT door: messages of a broker become events of the spool.

Comes in: messages of the configured topics (MQTT 5, QoS 1). Goes out: events, durable; then, and only then,
the acknowledgement to the broker, in the order of receipt. Invariants: at most ``receive_max`` messages are
in hand, so a spool that cannot take more holds the broker back; a message that is no event is acknowledged,
counted with its reason and, where ``rejects_topic`` says so, published there before; no message ends the
bridge. From device to spool delivery is at least once: a message whose acknowledgement is lost comes again
and makes its events twice. QoS 0 (all of Sparkplug's data) is never acknowledged: it may be lost on the way
to the spool, and never after.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from connectors.mqtt_link import Link, connected, settings
from connectors.mqtt_messages import CloudEventReader, JsonReader, Message, Part
from connectors.sparkplug import SparkplugHost
from pipeline.edge import Receipt
from pipeline.errors import ConfigError, PipelineError, RecordError, TransientError
from pipeline.events import EventType
from pipeline.metrics import MqttMetrics
from pipeline.mqtt_config import MqttConfig, MqttRoute, filter_levels, matches
from pipeline.reasons import Reason

log = logging.getLogger(__name__)

COMMIT_S = 60.0
STOP_S = 5.0
STEADY_S = 10.0  # a connection that lived so long was a good one: the next attempt comes early again
FULL_PAUSE_S = 0.005
FULL_PAUSE_MAX_S = 0.5
LOG_PAUSE_S = 10.0  # per route and reason
_THREAD_FROM_BYTES = 16_384  # reading a larger message would hold up the others
NO_ROUTE = "none"


class Emitter(Protocol):
    """What the bridge needs of an edge client."""

    def submit(
        self, event: str, fields: Mapping[str, Any], *, source: str, event_time: int, jurisdiction: str,
        lane: str | None = None, wait_s: float = 0.0,
    ) -> Future[Receipt]:  # fmt: skip
        """One event."""
        ...

    def submit_many(
        self, event: str, rows: Sequence[Mapping[str, Any]], *, lane: str | None = None, wait_s: float = 0.0
    ) -> Future[Receipt]:
        """All or none."""
        ...


class Reader(Protocol):
    """A route's way from a message to rows."""

    def read(self, message: Message) -> list[Part]: ...


_READERS: dict[str, Any] = {"cloudevents-json": CloudEventReader, "json": JsonReader}


@dataclass
class _InHand:
    """A message and what is becoming of it: its parts with their commits, or why it is refused."""

    message: Message
    route: str
    parts: list[tuple[Part, Future[Receipt]]] = field(default_factory=list)
    refused: RecordError | None = None


class MqttBridge:
    """Runs from :meth:`start` to :meth:`stop`; a broker that is away is waited for."""

    def __init__(
        self, client: Emitter, config: MqttConfig, metrics: MqttMetrics, events: Mapping[str, EventType]
    ) -> None:
        """Raises ConfigError for a route whose event, fields or units do not fit ``events``."""
        self._client, self._config, self._metrics = client, config, metrics
        self._readers: dict[str, Reader] = {r.filter: _reader(r, events, metrics) for r in config.routes}
        self._levels = [(route.filter, filter_levels(route.filter)) for route in config.routes]
        self._route_of = lru_cache(maxsize=4096)(self._match)
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pending: asyncio.Queue[_InHand] = asyncio.Queue()
        self._told: dict[tuple[str, str], float] = {}
        self.subscribed = asyncio.Event()

    async def start(self) -> None:
        """Begin to connect, and go on trying. Raises ConfigError for files that cannot be read."""
        settings(self._config)
        self._stop.clear()
        self._task = asyncio.create_task(self._run(), name="mqtt bridge")

    async def stop(self) -> None:
        """Take no more; what is in hand is committed and acknowledged, within a deadline."""
        self._stop.set()
        if self._task is not None:
            done, _ = await asyncio.wait({self._task}, timeout=2 * STOP_S)
            if not done:
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    # -- connections

    async def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                await self._connection()
            except TransientError as error:
                log.warning("%s", error)
                self._metrics.connect("failed")
            except ConfigError as error:
                log.error("%s", error)
                self._metrics.connect("refused")
            except Exception as error:
                log.error("mqtt: %s in the bridge", type(error).__name__, exc_info=False)
                self._metrics.connect("failed")
            finally:
                self.subscribed.clear()
                self._metrics.connection(False)
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        """Until the next attempt, or the stop. Twice as long each time, half of it by chance."""
        longest = min(self._config.backoff_max_s, self._config.backoff_min_s * 2.0 ** min(failures, 30))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), longest * random.uniform(0.5, 1.0))

    async def _connection(self) -> None:
        """One connection, until it breaks (TransientError) or the bridge stops."""
        self._pending = asyncio.Queue()
        try:
            async with connected(self._config) as link:
                await self._serve(link)
        finally:
            # Their commits go on. The broker sends them again; before they are on disk that would pile up.
            await self._outlast()
            self._metrics.in_flight(0)

    async def _subscribe(self, link: Link) -> None:
        await link.subscribe()
        self._metrics.connect("subscribed")
        self._metrics.connection(True)
        self.subscribed.set()

    async def _serve(self, link: Link) -> None:
        taking = asyncio.create_task(self._take_all(link), name="mqtt take")
        settling = asyncio.create_task(self._settle_all(link), name="mqtt settle")
        subscribing = asyncio.create_task(self._subscribe(link), name="mqtt subscribe")
        watching = asyncio.create_task(link.gone(), name="mqtt watch")
        stopping = asyncio.create_task(self._stop.wait(), name="mqtt stop")
        tasks = {taking, settling, subscribing, watching, stopping}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if done == {subscribing}:
                subscribing.result()
                done, _ = await asyncio.wait(tasks - done, return_when=asyncio.FIRST_COMPLETED)
            if done == {stopping}:
                taking.cancel()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._pending.join(), STOP_S)
            for task in done - {stopping}:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _outlast(self) -> None:
        futures = []
        while not self._pending.empty():
            futures += [future for _, future in self._pending.get_nowait().parts if not future.done()]
        if futures and not self._stop.is_set():
            await asyncio.wait([asyncio.wrap_future(future) for future in futures], timeout=COMMIT_S)

    # -- taking

    async def _take_all(self, link: Link) -> None:
        while True:
            message = await link.inbox.get()
            in_hand = _InHand(message, self._route_of(message.topic) or NO_ROUTE)
            self._metrics.in_flight(link.held)
            try:
                await self._take(in_hand, link)
            except RecordError as error:
                in_hand.refused = error
            except (
                ConfigError
            ) as error:  # the edge's policy cannot be applied: a fault of ours, not the message's
                raise TransientError(error.problem, operation="mqtt") from error
            self._pending.put_nowait(in_hand)

    async def _take(self, in_hand: _InHand, link: Link) -> None:
        """Read, check and hand over to the spool; waits while it is full. Raises RecordError."""
        message = in_hand.message
        if in_hand.route == NO_ROUTE:
            raise RecordError("no route takes its topic", reason="no_route", field="topic")
        if message.oversize:
            limit = f"larger than {self._config.message_bytes_max} bytes (message_bytes_max)"
            raise RecordError(limit, reason=Reason.OVERSIZE)
        reader = self._readers[in_hand.route]
        try:
            if len(message.payload) >= _THREAD_FROM_BYTES:
                parts = await asyncio.to_thread(_read, reader, message)
            else:
                parts = _read(reader, message)
        finally:
            if isinstance(reader, SparkplugHost):
                for topic, payload in reader.commands():
                    await link.command(topic, payload)
        for part in parts:
            in_hand.parts.append((part, await self._submit(part)))

    async def _submit(self, part: Part) -> Future[Receipt]:
        pause_s = FULL_PAUSE_S
        while True:
            try:
                return self._hand_over(part)
            except TransientError:
                self._metrics.retried()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(FULL_PAUSE_MAX_S, pause_s * 2)

    def _hand_over(self, part: Part) -> Future[Receipt]:
        if len(part.rows) != 1:
            return self._client.submit_many(part.event, part.rows, lane=part.lane, wait_s=0.0)
        fields = dict(part.rows[0])
        source, moment = fields.pop("source"), fields.pop("event_time")
        jurisdiction = fields.pop("jurisdiction")
        return self._client.submit(
            part.event, fields, source=source, event_time=moment, jurisdiction=jurisdiction, lane=part.lane,
            wait_s=0.0,
        )  # fmt: skip

    # -- settling

    async def _settle_all(self, link: Link) -> None:
        while True:
            in_hand = await self._pending.get()
            try:
                await self._durable(in_hand)
            except RecordError as error:
                in_hand.refused = error
            if in_hand.refused is not None:
                await self._refuse(in_hand, in_hand.refused, link)
            else:
                self._metrics.taken(in_hand.route)
            link.settle(in_hand.message)
            self._metrics.in_flight(link.held)
            self._pending.task_done()

    async def _durable(self, in_hand: _InHand) -> None:
        """Wait for the commits of a message; one that failed is made again. Raises RecordError."""
        for part, future in in_hand.parts:
            while True:
                try:
                    if not future.done():
                        await asyncio.wait_for(asyncio.wrap_future(future), COMMIT_S)
                    future.result()
                    break
                except asyncio.CancelledError:
                    if not future.cancelled():  # we are cancelled, not the commit
                        raise
                    raise TransientError("the spool was closed", operation="mqtt") from None
                except CancelledError:
                    raise TransientError("the spool was closed", operation="mqtt") from None
                except (TransientError, TimeoutError):
                    self._metrics.retried()
                    await asyncio.sleep(FULL_PAUSE_MAX_S * random.uniform(0.5, 1.0))
                    future = await self._submit(part)

    async def _refuse(self, in_hand: _InHand, error: RecordError, link: Link) -> None:
        reason = str(error.reason)
        if self._config.rejects_topic:
            await link.reject(in_hand.message, reason)
        self._reject(in_hand.route, reason, error.problem)

    def _reject(self, route: str, reason: str, problem: str) -> None:
        self._metrics.rejected(route, reason)
        now = time.monotonic()
        if now >= self._told.get((route, reason), now):
            self._told[route, reason] = now + LOG_PAUSE_S
            log.warning("mqtt: refused a message of %s: %s (%s)", route, problem, reason)

    def _match(self, topic: str) -> str | None:
        levels = topic.split("/")
        return next((name for name, route in self._levels if matches(route, levels)), None)


def _reader(route: MqttRoute, events: Mapping[str, EventType], metrics: MqttMetrics) -> Reader:
    if route.event and route.event not in events:
        remedy = f"known: {', '.join(sorted(events))}"
        raise ConfigError("no such event", operation="mqtt route", place=route.filter, remedy=remedy)
    if route.payload == "sparkplug-b":
        return SparkplugHost(route, events, metrics)
    reader: Reader = _READERS[route.payload](route, events)
    return reader


def _read(reader: Reader, message: Message) -> list[Part]:
    """The parts of a message. A fault in reading must not stop the bridge: the broker would send it again."""
    try:
        return reader.read(message)
    except PipelineError:
        raise
    except Exception as error:
        log.error("mqtt: %s while reading a message", type(error).__name__)
        raise RecordError("could not be read", reason="internal") from None
