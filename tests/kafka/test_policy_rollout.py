"""A new pack is rolled out and back again while events keep coming: none is lost, each names its pack."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from connectors.kafka_scan import LogScanner
from connectors.lake import open_reader
from pipeline.config import Config, FlushConfig, RegionConfig
from pipeline.control_records import decode_control
from pipeline.edge_session import drained_edge
from pipeline.errors import ConfigError
from pipeline.policy import derived_schemas
from pipeline.schemas import lock
from pipeline.service import Project, run_processor, run_store
from tests.leak_world import role, settled

REGION, EVENT, COUNT = "eu", "object_detection", 300
OLD = """drop_when = [{ field = "score", op = "<", value = 0.05 }]"""
NEW = """drop_when = [{ field = "score", op = "<", value = 0.5 }]"""
COARSER = """
[landing.events.object_detection.fields.event_time]
operator = "truncate_time"
with = { to = "day" }
source = "a test: the new pack tells days only"
"""


@pytest.fixture
def config(cluster, topic_prefix: str, tmp_path: Path) -> Config:
    schemas = shutil.copytree(Config().schemas_path(), tmp_path / "schemas")
    regions = {REGION: RegionConfig(cluster=cluster, partitions=2)}
    flush = FlushConfig(age_s=0.2)
    return Config(
        state=tmp_path / "state", schemas=schemas, topic_prefix=topic_prefix, regions=regions, flush=flush
    )


def coarser(text: str) -> str:
    """The pack with one more rule."""
    before = "\n[[landing.events.object_detection.filters]]"
    return text.replace(before, COARSER + before, 1)


def deploy(config: Config, text: str) -> Project:
    """The pack as it is to be from now on, with its curated schemas locked."""
    folder = config.schemas_path()
    (folder / "policies" / f"{REGION}.toml").write_text(text)
    project = Project.open(config)
    lock(folder, derived_schemas(project.packs, project.schemas.events))
    project = Project.open(config)
    project.create_keys([REGION])
    return project


def emit(project: Project, first: int) -> None:
    """COUNT detections, half of them below the new pack's bound; ``first`` numbers them."""
    rows = [
        {
            "source": f"cam-{number % 5}", "event_time": 1_790_000_000_000_000 + number, "jurisdiction": "DE",
            "camera": f"cam-{number % 5}", "frame": number, "label": "pallet",
            "score": 0.3 if number % 2 else 0.9, "box_x_px": 1.0 * number, "box_y_px": 1.0,
            "box_width_px": 1.0, "box_height_px": 1.0, "model": "m", "release": "r",
        }
        for number in range(first, first + COUNT)
    ]  # fmt: skip
    with drained_edge(project, "cams") as client:
        assert client.emit_many(EVENT, rows).count == COUNT


async def hashes(project: Project) -> dict[str, int]:
    """Raw positions per policy hash, in the order of their first appearance."""
    scan, found = LogScanner(project.cluster(REGION), project.config.limits), {}
    for number in range(2):
        async for run in scan(project.topics.landing(REGION).stats, number, 0):
            for value in run.values.to_pylist():
                stats = decode_control(project.schemas, value)[1]
                positions = stats["next_offset"] - stats["first_offset"]
                found[stats["policy_hash"]] = found.get(stats["policy_hash"], 0) + positions
    return found


async def test_out_and_back_again_without_losing_an_event(config):
    old_text = (config.schemas_path() / "policies" / f"{REGION}.toml").read_text()
    new_text = coarser(old_text.replace(OLD, NEW))
    assert OLD in old_text
    metrics: dict[str, bytes] = {}
    names, emitted = [], 0
    for text in (old_text, new_text, old_text):
        project = deploy(config, text)
        names.append(project.packs.pack(REGION).hash)
        await project.ensure_topics([REGION])
        emit(project, emitted)  # while no processor runs: the next one finds them
        emitted += COUNT
        async with (
            role(run_store, "store", metrics, project, REGION),  # first the store: it must know the new ids
            role(run_processor, "process", metrics, project, REGION),
        ):
            emit(project, emitted)
            emitted += COUNT
            report = await settled(project, REGION)
            assert report.accepted == report.stored + report.filtered == emitted
    assert report.filtered == COUNT  # half of the events of the middle third
    assert names[0] == names[2] != names[1]
    assert await hashes(project) == {names[0]: 4 * COUNT, names[1]: 2 * COUNT}
    with open_reader(config.store_path(REGION)) as lake:
        found = lake.query(
            f"SELECT count(*) AS total, count(DISTINCT box_x_px) AS different, "
            f"count(*) FILTER (hour(event_time) = 0) AS days FROM {EVENT}"
        ).to_pylist()
    assert found == [{"total": 5 * COUNT, "different": 5 * COUNT, "days": COUNT}]


async def test_a_pack_whose_schemas_are_not_locked_does_not_start(config):
    text = (config.schemas_path() / "policies" / f"{REGION}.toml").read_text()
    project = deploy(config, text)
    changed = coarser(text)
    (config.schemas_path() / "policies" / f"{REGION}.toml").write_text(changed)
    project = Project.open(config)
    with pytest.raises(ConfigError, match="pipeline schema lock"):
        project.leg(REGION, EVENT)
