"""Every region on one broker, with canaries in all that it may not hold as it is; and everything they left.

Comes in: a project. Goes out: the roles' work in this process, one region after the other, and the bytes of
each place to which a value could have got: records with keys and headers, files of the stores, catalogues,
logs, metrics, messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiokafka
import aiokafka.admin
import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, generate_latest

from pipeline import consents
from pipeline.balance import BALANCED
from pipeline.edge_session import drained_edge
from pipeline.errors import PipelineError, RecordError
from pipeline.evidence import weigh, weigh_border
from pipeline.policy import check_flow
from pipeline.policy.consent import Choice
from pipeline.service import Project
from tests.canaries import Cage

DEADLINE_S = 90.0
ROWS = 4  # per event and region
Place = tuple[str, bytes]


class TestRole:
    """A role inside this process: its metrics are kept, a test says when it ends."""

    __test__ = False

    def __init__(self, name: str, metrics: dict[str, bytes]) -> None:
        self.name, self._metrics = name, metrics
        self.stop = asyncio.Event()

    @contextmanager
    def serving(self, registry: CollectorRegistry) -> Iterator[int]:
        """Keep what ``/metrics`` would show at the end."""
        yield 0
        self._metrics[self.name] = generate_latest(registry)

    async def run(
        self, work: Callable[[asyncio.Event], Awaitable[None]], ready: asyncio.Event, _: int
    ) -> None:
        """Work until told to stop."""
        await work(self.stop)


@asynccontextmanager
async def role(
    run: Callable[..., Awaitable[None]], name: str, metrics: dict[str, bytes], *args: Any
) -> AsyncIterator[None]:
    """One of ``run_processor``, ``run_store``, ``run_border``; raises what it raised."""
    this = TestRole(name, metrics)
    task = asyncio.ensure_future(run(*args, this))
    try:
        yield
    finally:
        this.stop.set()
        await asyncio.wait_for(task, DEADLINE_S)


def changed_at(project: Project, region: str, event: str) -> set[str]:
    """Fields that do not land as they are: dropped, or through an operator."""
    flow = check_flow(project.packs.terms(region, region), project.schemas.events[event])
    return {f.name for d in flow.decisions if d.operator.name != "keep" for f in d.fields}


def emit_all(project: Project, region: str, cage: Cage, told: list[str]) -> int:
    """Rows with canaries through an edge, and bad ones, whose refusals go to ``told``. How many were
    taken."""
    jurisdiction = sorted(project.packs.jurisdictions(region))[0]
    taken = 0
    with drained_edge(project, f"edge-{region}") as client:
        for event, kind in sorted(project.schemas.events.items()):
            secret = changed_at(project, region, event)
            plain = {"jurisdiction": jurisdiction, "score": 0.9, "label": "pallet"}
            rows = [cage.row(region, kind, secret, plain) for _ in range(ROWS)]
            taken += client.emit_many(event, rows).count
            for field in ("latitude", "score", "cycle", "energy_kwh", "event_time", "jurisdiction"):
                row = cage.row(region, kind, secret, plain) | {field: cage.text(region, event, field)}
                told += _refusals(client, event, row)
    return taken


def _refusals(client: Any, event: str, row: dict[str, Any]) -> Iterator[str]:
    given = {name: row[name] for name in ("source", "event_time", "jurisdiction")}
    fields = {name: value for name, value in row.items() if name not in given}
    for call in (lambda: client.emit(event, fields, **given), lambda: client.emit_many(event, [row, row])):
        try:
            call()
        except RecordError as error:
            yield f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"


async def agree(project: Project, region: str, cage: Cage) -> None:
    """Half of those who are asked agree, so that rows of both kinds are processed."""
    for event in project.schemas.events:
        rule = project.packs.terms(region, region).consent(event)
        people = [c for c in cage.canaries if (c.region, c.event) == (region, event)]
        if rule is not None:
            names = [c.forms[0].decode() for c in people if c.field == rule.subject][:ROWS:2]
            for name in names:
                await consents.say(project, region, rule.purpose, name, Choice.GRANTED)


async def settled(project: Project, region: str) -> Any:
    """The region's balance once all of it has arrived."""
    weighing = weigh if project.collects(region) else weigh_border
    deadline = time.monotonic() + DEADLINE_S
    while True:
        report = None
        if (project.config.store_path(region) / "catalogue.sqlite").exists():
            with contextlib.suppress(PipelineError):  # its writer has only just begun
                report = await weighing(project, region)
        if report is not None and report.status == BALANCED:
            return report
        assert report is None or report.ok, report
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.3)


# --- what was left ---------------------------------------------------------------------------------------


async def records(bootstrap: str, prefix: str) -> list[tuple[str, bytes]]:
    """(topic, key + headers + value) of every record of every topic under the prefix, by a stock reader."""
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found: list[tuple[str, bytes]] = []
    try:
        names = [name for name in await consumer.topics() if name.startswith(prefix)]
        admin = aiokafka.admin.AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        described = await admin.describe_topics(names)
        await admin.close()
        parts = [
            aiokafka.TopicPartition(topic["topic"], part["partition"])
            for topic in described
            for part in topic["partitions"]
        ]
        ends = await consumer.end_offsets(parts)
        consumer.assign([part for part in parts if ends[part]])
        left = {part for part in parts if ends[part]}
        async with asyncio.timeout(DEADLINE_S):
            while left:
                for part, messages in (await consumer.getmany(timeout_ms=200)).items():
                    if messages[-1].offset + 1 >= ends[part]:
                        left.discard(part)
                    for message in messages:
                        extra = b"".join(name.encode() + value for name, value in message.headers)
                        found.append((part.topic, (message.key or b"") + extra + (message.value or b"")))
    finally:
        await consumer.stop()
    return found


def files(folder: Path) -> Iterator[Place]:
    """Every file under a folder as bytes; of Parquet also the values, which lie there compressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
            if path.suffix == ".parquet":
                yield f"{path.relative_to(folder)} (values)", values_of(pq.read_table(path))


def values_of(table: pa.Table) -> bytes:
    """All values of a table, uncompressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@contextmanager
def all_logs() -> Iterator[list[str]]:
    """Everything that we log at any level, and others above their own debugging, with tracebacks."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logging.Formatter("%(name)s %(message)s %(args)s").format(record))

    handler, root = Keep(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ours = [logging.getLogger(name) for name in ("pipeline", "connectors")]
    for logger in ours:
        logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(before)
        for logger in ours:
            logger.setLevel(logging.NOTSET)
        root.removeHandler(handler)
