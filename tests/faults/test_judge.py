"""The judge of the fault tests is not blind: pipelines with one mistake in them are found out.

Each mutant goes the same way as the sound pipeline: events flow, the processor and the store writer are ended
and started again, and the tail of the raw topics is sent again, as an edge does that was killed before it
knew what had been acknowledged.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from connectors.kafka import KafkaWriter
from connectors.kafka_scan import LogScanner
from pipeline.evidence import weigh_settled
from pipeline.service import started
from tests.faults.flow import STREAMS
from tests.faults.verdict import Verdict, judge
from tests.whole_way import REGION, Setting, Way, until

EVENTS, FLOW_S, REST_S = 3000, 2.0, 60.0


def module(mutation: str, mutant: str, plain: str) -> tuple[str, ...]:
    """What python runs for a child: itself, or its mutant."""
    return ("tests.faults.mutants", mutation, plain) if mutation == mutant else (plain,)


async def flow(way: Way, mutation: str) -> Verdict:
    """The life of a region in short, and the verdict on it."""
    processor = way.role("process", module=module(mutation, "forgetful-processor", "pipeline"))
    store = way.role("store", module=module(mutation, "trusting-writer", "pipeline"))
    arguments = ("--events", str(EVENTS), "--seconds", str(FLOW_S), "--seed", "1")
    edge = way.producer(arguments, module(mutation, "careless-edge", "tests.faults.producer"))
    for child in (processor, store, edge):
        child.start()
    await until(lambda: way.all_sent(EVENTS), "all events accepted and sent")
    edge.stop()
    print(await weigh_settled(way.project, REGION, REST_S))
    processor.stop()
    store.kill9()
    await send_tail_again(way)
    processor.start()
    store.start()
    await until(lambda: processor.works and store.works, "both work again")
    return await judge(way, REST_S)


async def send_tail_again(way: Way) -> None:
    """The last records of each raw partition once more, in order."""
    cluster, topics = way.project.cluster(REGION), way.project.topics
    scan = LogScanner(cluster, way.project.config.limits)
    async with started(KafkaWriter(cluster)) as writer:
        for stream in STREAMS:
            for partition in range(way.setting.partitions):
                topic, values = topics.raw(REGION, stream.event), []
                async for fetched in scan(topic, partition, 0):
                    values += fetched.values.to_pylist()
                await writer.send(topic, partition, pa.array(values[-10:], pa.binary()))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mutation", "word"),
    [("", ""), ("forgetful-processor", "doubled"), ("trusting-writer", "doubled"), ("careless-edge", "lost")],
)
def test_the_judge_finds_what_is_doubled_or_lost(mutation, word, bootstrap, topic_prefix, tmp_path: Path):
    with Way(tmp_path, Setting(bootstrap=bootstrap, prefix=topic_prefix)) as way:
        verdict = asyncio.run(flow(way, mutation))
    print(verdict)
    if not mutation:
        assert verdict.findings == ()
        assert verdict.report.repeats > 0
    else:
        assert any(word in finding for finding in verdict.report.findings), verdict.findings
        assert any(("missing" if word == "lost" else word) in finding for finding in verdict.findings)
