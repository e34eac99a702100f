"""Canaries in every field that a region may not hold as it is, at every origin: none gets out.

The search looks at all records (keys and headers too), the stores' files and their values, catalogues, logs
at every level, metrics and refusals, for the values in every encoding and for their plain hashes. It is run
on the raw topics too, where each canary must be found: a blind search would prove anything.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import aiokafka
import pytest

from pipeline.config import Config, FlushConfig, RegionConfig
from pipeline.crossing import run_border
from pipeline.service import Project, run_processor, run_store
from tests.canaries import Cage, Find, Searcher
from tests.leak_world import ROWS, agree, all_logs, emit_all, files, records, role, settled

SEED = int(os.environ.get("SEED", "20261122"))
HUMAN = ("source", "event_time")  # in every event of every region


@pytest.fixture
def project(cluster, topic_prefix: str, tmp_path: Path) -> Project:
    """Every pack that ships, one partition each."""
    schemas = shutil.copytree(Config().schemas_path(), tmp_path / "schemas")
    packs = sorted((schemas / "policies").glob("*.toml"))
    for pack in packs:  # crowds that gather for many minutes gather for a second here
        pack.write_text(re.sub(r"hold_s = \d+", "hold_s = 1", pack.read_text()))
    regions = {pack.stem: RegionConfig(cluster=cluster, partitions=1) for pack in packs}
    config = Config(
        state=tmp_path / "state", schemas=schemas, topic_prefix=topic_prefix, regions=regions,
        flush=FlushConfig(age_s=0.2),
    )  # fmt: skip
    project = Project.open(config)
    project.create_keys(list(regions))
    return project


async def intrude(project: Project, region: str, cage: Cage) -> None:
    """Records from elsewhere: no event, events of other regions, keys and headers that say too much."""
    event = "vehicle_telemetry"
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=project.cluster(region).bootstrap)
    await producer.start()
    try:
        frame = b"\0" + project.schemas.latest(event).id.to_bytes(4, "big")
        texts = [cage.text(region, event, f"foreign_{number}").encode() for number in range(5)]
        values = [
            texts[0],
            frame + texts[1],
            frame + b"\x14" + texts[2][:10] + b"\xff\xfe",
            b"\0\0\0\0\xff" + texts[3],
        ]
        for value in values:
            headers = [("who", texts[4])]
            topic = project.topics.raw(region, event)
            await producer.send_and_wait(topic, value, key=texts[4], headers=headers, partition=0)
    finally:
        await producer.stop()


async def test_nothing_that_may_not_leaves(project, topic_prefix, capfd):
    print(f"SEED={SEED}")
    cage, told, metrics = Cage(SEED), [], {}
    origins = [region for region in project.config.regions if project.collects(region)]
    await project.ensure_topics(list(project.config.regions))
    with all_logs() as logs:
        for region in origins:
            assert emit_all(project, region, cage, told) == ROWS * len(project.schemas.events)
            await agree(project, region, cage)
            await intrude(project, region, cage)
        async with AsyncExitStack() as running:
            for region in project.config.regions:
                way = run_processor if project.collects(region) else run_border
                for run in (way, run_store):
                    name = f"{run.__name__} {region}"
                    await running.enter_async_context(role(run, name, metrics, project, region))
            for region in (*origins, "core"):
                report = await settled(project, region)
                assert report.stored, region
    printed = capfd.readouterr()
    searcher = Searcher(cage.canaries)
    raw: dict[str, list[Find]] = {region: [] for region in origins}
    leaks: list[Find] = []
    for topic, data in await records(project.cluster("eu").bootstrap, topic_prefix):
        region, _, kind = topic.removeprefix(topic_prefix).partition(".")
        found = searcher.find(topic, data)
        if kind.startswith("raw."):
            raw[region] += found
            found = [one for one in found if not one.canary.startswith(f"{region} ")]
        leaks += found
    places = [
        *files(project.config.state / "store"),
        *((name, page) for name, page in metrics.items()),
        ("refusals", "\n".join(told).encode()), ("logs", "\n".join(logs).encode()),
        ("standard output", printed.out.encode()), ("standard error", printed.err.encode()),
    ]  # fmt: skip
    for place, data in places:
        leaks += searcher.find(place, data)
    assert not leaks, sorted({f"{one.place}: {one.canary} (form {one.form})" for one in leaks})
    demand_sight(raw, cage, told, places)


def demand_sight(raw: dict[str, list[Find]], cage: Cage, told: list[str], places: list) -> None:
    """The search was not blind, and there was something to look at."""
    assert len(told) > 100
    assert sum(name.endswith("(values)") for name, _ in places) > 5 * len(raw)
    for region, found in raw.items():
        seen = {one.canary for one in found}
        landed = {c.name for c in cage.canaries if c.region == region and "foreign" not in c.field}
        missing = {
            name for name in landed if name.partition(".")[2] not in ("jurisdiction", "latitude")
        } - seen
        assert not {name for name in missing if name.rpartition(".")[2] in HUMAN}, missing
        assert len(seen) > 12, (region, seen)
