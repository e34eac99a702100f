"""What people say is honoured by every event processed after it, exactly accounted for."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from connectors.kafka import KafkaAdmin, KafkaReader, KafkaWriter
from connectors.kafka_scan import LogScanner
from pipeline import consents
from pipeline.codec import unframe
from pipeline.config import Config, RegionConfig
from pipeline.control_records import decode_control
from pipeline.errors import ConfigError, StoreCorrupt
from pipeline.metrics import ProcessorMetrics
from pipeline.policy.consent import Choice, ConsentBook
from pipeline.processor import ConsentFeed, Ports, Processor, StateLog
from pipeline.service import Project, started
from tests.raw_events import framed, raw_batch, replaced

EVENT, REGION, DEADLINE_S = "vehicle_telemetry", "us-ca", 60.0


@pytest.fixture
def project(cluster, topic_prefix: str, tmp_path: Path) -> Project:
    config = Config(
        state=tmp_path, topic_prefix=topic_prefix,
        regions={REGION: RegionConfig(cluster=cluster, partitions=1)},
    )  # fmt: skip
    project = Project.open(config)
    project.create_keys([REGION])
    return project


@pytest.fixture
def rule(project):
    return project.packs.terms(REGION, REGION).consent(EVENT)


@asynccontextmanager
async def processing(project: Project):
    """The region's processor on one event, as the role runs it."""
    cluster, topics = project.cluster(REGION), project.topics.landing(REGION)
    book = ConsentBook(project.consent_names(REGION))
    async with started(KafkaAdmin(cluster)) as admin:
        await admin.ensure_topics(project.topic_specs(REGION))
        ids = await admin.topic_ids([topics.source(EVENT)])
    limits = project.config.limits
    reader, said = KafkaReader(cluster, topics.group, limits), KafkaReader(cluster, None, limits)
    state = StateLog(project.schemas, LogScanner(cluster, limits), topics.watermarks, topics.stats)
    feed = ConsentFeed(said, project.topics.consent(REGION), project.schemas, book)
    async with started(reader), started(said), started(KafkaWriter(cluster)) as writer:
        legs = {topics.source(EVENT): project.leg(REGION, EVENT, book)}
        metrics = ProcessorMetrics(CollectorRegistry(), REGION)
        ports = Ports(reader, writer, state, feed)
        processor = Processor(legs, ids, ports, project.schemas, topics, metrics)
        stop = asyncio.Event()
        task = asyncio.create_task(processor.run(stop))
        ready = asyncio.create_task(processor.ready.wait())
        await asyncio.wait((ready, task), timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        try:
            yield task
        finally:
            stop.set()
            await asyncio.wait_for(task, DEADLINE_S)


async def send(project: Project, people: list[str], subject: str, first: int) -> None:
    """One event of each of these people, with the sequences from ``first`` on."""
    batch = raw_batch(project.schemas, EVENT, len(people), region=REGION, first_sequence=first)
    values = framed(project.schemas, EVENT, replaced(batch, subject, people))
    async with started(KafkaWriter(project.cluster(REGION))) as writer:
        await writer.send(project.topics.raw(REGION, EVENT), 0, values)


async def counted(project: Project, count: int) -> Counter:
    """Outcomes, once ``count`` positions have one."""
    scan = LogScanner(project.cluster(REGION), project.config.limits)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            outcomes: Counter = Counter()
            async for run in scan(project.topics.landing(REGION).stats, 0, 0):
                for value in run.values.to_pylist():
                    for entry in decode_control(project.schemas, value)[1]["counts"]:
                        outcomes[entry["outcome"], entry["reason"]] += entry["count"]
            if outcomes.total() >= count:
                return outcomes
            await asyncio.sleep(0.1)


async def rows(project: Project) -> int:
    scan = LogScanner(project.cluster(REGION), project.config.limits)
    total = 0
    async for run in scan(project.topics.curated(REGION, EVENT), 0, 0):
        ids, _ = unframe(run.values)
        total += len(ids)
    return total


async def test_every_event_after_a_choice_heeds_it(project, rule):
    assert rule.mode == "opt-out"
    people = ["ann", "bob", "cid"]
    async with processing(project):
        await send(project, people, rule.subject, 1)
        assert await counted(project, 3) == {("passed", ""): 3}
        await consents.say(project, REGION, rule.purpose, "bob", Choice.OBJECTED)
        await send(project, people, rule.subject, 4)
        assert await counted(project, 6) == {("passed", ""): 5, ("filtered", "objection"): 1}
        await consents.say(project, REGION, rule.purpose, "bob", Choice.GRANTED)
        await consents.say(project, REGION, rule.purpose, "ann", Choice.WITHDRAWN)
        await send(project, people, rule.subject, 7)
        assert await counted(project, 9) == {("passed", ""): 7, ("filtered", "objection"): 2}
    async with processing(project):  # what was said holds after a restart
        await send(project, people, rule.subject, 10)
        assert await counted(project, 12) == {("passed", ""): 9, ("filtered", "objection"): 3}
        await consents.say(project, REGION, rule.purpose, "ann", None)
        await send(project, people, rule.subject, 13)
        assert await counted(project, 15) == {("passed", ""): 12, ("filtered", "objection"): 3}
    assert await rows(project) == 12
    assert await consents.said(project, REGION, rule.purpose, "bob") is Choice.GRANTED
    assert await consents.said(project, REGION, rule.purpose, "ann") is None


async def test_the_topic_holds_no_name_of_anyone(project, rule):
    await consents.say(project, REGION, rule.purpose, "someone-in-particular", Choice.OBJECTED)
    scan = LogScanner(project.cluster(REGION), project.config.limits)
    async for run in scan(project.topics.consent(REGION), 0, 0):
        for part in (*run.values.to_pylist(), *run.keys.to_pylist()):
            assert b"someone-in-particular" not in part


async def test_a_record_that_is_no_choice_stops_the_processor(project, rule):
    async with started(KafkaAdmin(project.cluster(REGION))) as admin:
        await admin.ensure_topics(project.topic_specs(REGION))
    async with started(KafkaWriter(project.cluster(REGION))) as writer:
        keys = pa.array([f"{rule.purpose}|{'0' * 32}".encode()])
        await writer.send(project.topics.consent(REGION), 0, pa.array([b"nonsense"]), keys=keys)

    async def process_one() -> None:
        async with processing(project) as task:
            await send(project, ["ann"], rule.subject, 1)
            await asyncio.wait((task,), timeout=DEADLINE_S)

    with pytest.raises(StoreCorrupt, match="is no choice of anyone"):
        await process_one()
    assert await rows(project) == 0


async def test_a_leg_that_asks_for_consent_passes_nothing_without_answers(project, rule):
    leg = project.leg(REGION, EVENT)
    batch = raw_batch(project.schemas, EVENT, 3, region=REGION)
    with pytest.raises(ConfigError, match="what people have said is not known here"):
        leg.plan.apply(batch)


async def test_a_purpose_that_the_pack_does_not_have_is_refused(project):
    with pytest.raises(ConfigError, match="no purpose 'marketing'"):
        await consents.say(project, REGION, "marketing", "ann", Choice.GRANTED)
