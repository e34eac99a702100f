"""A plan inside a user's own Faust agent: raw records in, what the plan lets through out.

Comes in: a Faust topic of raw records and a :class:`Curator`. Goes out: :class:`Curated` batches
to the user's function. Invariants: what fails stops the app, so nothing passes unseen and nothing is skipped;
records are acknowledged only after the function has returned, so they are seen at least once.

What this guards against, as seen in faust-streaming 0.15: ``take`` acknowledges its batch also when the agent
raises, a restarted agent goes on behind the records it failed on, commits pass unfinished records when
``concurrency`` is above 1, and the app's own web server answers on every interface.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import faust
import numpy as np
import pyarrow as pa

from pipeline.codec import Codec
from pipeline.errors import ConfigError
from pipeline.intake import Intake, Refusals
from pipeline.policy.plan import Plan
from pipeline.policy.standalone import Standalone

log = logging.getLogger(__name__)

# What an app must say for a plan to run in it: `faust.App("mine", broker=…, **SAFE)`.
SAFE: dict[str, Any] = {
    "web_enabled": False,  # it listens on all interfaces and serves tables
    "processing_guarantee": "at_least_once",  # exactly_once swallows errors
    "key_serializer": "raw",
    "value_serializer": "raw",
    "consumer_auto_offset_reset": "earliest",
    "topic_disable_leader": True,  # no topic of its own for electing a leader
    "worker_redirect_stdouts": False,  # standard output stays what it is
}


Record: TypeAlias = tuple[bytes | None, int, int]  # value, partition, offset


@dataclass(frozen=True)
class Take:
    """How records are gathered: at most ``count``, for at most ``within_s`` seconds."""

    count: int = 5_000
    within_s: float = 0.5


@dataclass(frozen=True)
class Curated:
    """What became of one run of records.

    ``batch``: allowed rows: the plan's columns, then ``raw_partition`` and ``raw_offset``, where each came
    from. ``kept``: their numbers among the records, ascending. ``filtered``: records that a filter dropped,
    by its name. ``refused``: records that are no plausible event, by (reason, field).
    """

    batch: pa.RecordBatch
    kept: np.ndarray
    filtered: dict[str, np.ndarray]
    refused: Refusals

    def records(self) -> list[dict[str, Any]]:
        """The allowed rows as dicts, times as datetimes that mean UTC."""
        rows: list[dict[str, Any]] = self.batch.to_pylist()
        return rows

    def encoded(self, codec: Codec) -> list[bytes]:
        """The allowed rows as framed Avro. ConfigError when the codec's schema has other columns."""
        columns = pa.RecordBatch.from_arrays(self.batch.columns, schema=codec.arrow)
        values: list[bytes] = codec.encode(columns).to_pylist()
        return values


class Curator:
    """Runs a landing's plan over raw records. One call at a time: a plan remembers pseudonyms.

    Raises ConfigError when the plan was compiled for another event, or asks for people's consent.
    """

    def __init__(self, intake: Intake, plan: Plan) -> None:
        if intake.event.arrow != plan.event.arrow:
            raise ConfigError(
                f"it reads {intake.event.name}, the plan was compiled for {plan.event.name}",
                operation="curate",
            )
        self._intake, self._plan = intake, Standalone(plan)

    def process(self, records: Sequence[Record], now_us: int | None = None) -> Curated:
        """Decode, check, filter, transform. ``now_us``: for the checks of time, default the clock.

        Raises ConfigError when the plan cannot do its work; then nothing of these records may go on.
        """
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        taken = self._intake.take(pa.array([value for value, _, _ in records], pa.binary()), now_us)
        applied = self._plan.apply(taken.batch)
        kept = taken.rows[applied.kept]
        positions = np.array([(partition, offset) for _, partition, offset in records], np.int64)
        places = positions.reshape(-1, 2)[kept]
        batch = applied.batch.append_column("raw_partition", pa.array(places[:, 0].astype(np.int32)))
        batch = batch.append_column("raw_offset", pa.array(places[:, 1]))
        filtered = {name: taken.rows[rows] for name, rows in applied.filtered.items()}
        return Curated(batch, kept, filtered, taken.refused)


Handle: TypeAlias = Callable[[Curated], Awaitable[None]]


def curating_agent(
    app: faust.App, topic: str, curator: Curator, take: Take = Take()
) -> Callable[[Handle], Any]:
    """Decorate ``async def handle(curated)`` to make it an agent of ``app`` on ``topic``.

    Records are acknowledged when ``handle`` returns: await in it what must not be lost (:func:`deliver`).
    An exception, the plan's or ``handle``'s, ends the whole app; a restart begins with the same records.
    Raises ConfigError when the app's settings would let something slip (see :data:`SAFE`).
    """
    demand_safe(app)

    def decorate(handle: Handle) -> Any:
        async def agent(stream: Any) -> None:
            stream.enable_acks = False  # for good: also when the app stops in the middle of a batch
            async for events in stream.noack_take(take.count, within=take.within_s):
                records = [(e.value, e.message.partition, e.message.offset) for e in events]
                await _one_run(app, curator, handle, records)
                for event in events:
                    await stream.ack(event)

        agent.__name__ = handle.__name__
        return app.agent(app.topic(topic, value_serializer="raw"), name=handle.__name__, concurrency=1)(agent)

    return decorate


async def _one_run(app: faust.App, curator: Curator, handle: Handle, records: list[Record]) -> None:
    try:
        # In a thread: the app's heartbeats share this loop.
        await handle(await asyncio.to_thread(curator.process, records))
    except Exception as error:
        log.critical("curating stopped, nothing of this batch is acknowledged: %s", type(error).__name__)
        await app.crash(error)
        # Not back into the loop, where a supervisor would go on with the next records.
        await asyncio.Event().wait()


async def deliver(topic: Any, values: Sequence[bytes]) -> None:
    """Send values to a Faust topic, without keys, and return when the broker has them all."""
    waiting = [await topic.send(key=None, value=value) for value in values]
    await asyncio.gather(*waiting)


def demand_safe(app: faust.App) -> None:
    """Raise ConfigError, with every fault, when a plan must not run under the app's settings."""
    conf = app.conf
    found = {
        "web_enabled": bool(conf.web_enabled),
        "processing_guarantee": str(getattr(conf.processing_guarantee, "value", conf.processing_guarantee)),
        "worker_redirect_stdouts": bool(conf.worker_redirect_stdouts),
    }
    faults = [
        f"{name} = {value!r}, expected {SAFE[name]!r}" for name, value in found.items() if value != SAFE[name]
    ]
    if faults:
        raise ConfigError(
            "; ".join(faults), operation="curating agent", place=str(conf.id),
            remedy="faust.App(…, **connectors.faust_plan.SAFE)",
        )  # fmt: skip
