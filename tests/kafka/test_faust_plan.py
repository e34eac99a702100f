"""A plan in a user's Faust app: what the docs show, run as it stands there, against the processor's leg."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faust
import pyarrow as pa
import pytest

from connectors.faust_plan import SAFE, demand_safe
from connectors.kafka import KafkaAdmin, KafkaWriter, TopicSpec
from connectors.kafka_scan import LogScanner
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.policy_comparison import Source, replayed
from pipeline.policy_session import curator
from pipeline.processor.leg import Decided
from pipeline.service import Project, started
from tests.raw_events import framed, raw_batch, replaced
from tests.shared_data import PROJECT
from tests.waiting import wait_for

EVENT, PARTITIONS, DEADLINE_S = "object_detection", 2, 40.0
ROWS = 4_000
BREAKS_AT = 900  # offset: the plan fails on every batch that holds it
# The docs' app, with a plan that fails in the middle.
BREAKING = f"""
import connectors.faust_plan as faust_plan
sound = faust_plan.Curator.process
def process(self, records, now_us=None):
    if any(offset >= {BREAKS_AT} for _, _, offset in records):
        raise RuntimeError("the plan fails, says the test")
    return sound(self, records, now_us)
faust_plan.Curator.process = process
faust_plan.curating_agent.__defaults__ = (faust_plan.Take(count=300, within_s=0.2),)
"""


def example() -> str:
    text = (PROJECT / "docs" / "policies.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"<!-- faust example -->\n```python\n(.*?)```", text, re.DOTALL)
    return str(found)


class World:
    """A region with events, good ones and others, on the run's broker; and the app's folder."""

    def __init__(self, folder: Path, bootstrap: str, prefix: str) -> None:
        self.folder = folder
        (folder / "pipeline.toml").write_text(
            f'state = "{folder / "state"}"\ntopic_prefix = "{prefix}"\n'
            f"[regions.eu]\npartitions = {PARTITIONS}\n"
            f'[regions.eu.cluster]\nbootstrap = "{bootstrap}"\n'
        )
        self.project = Project.open(load_config(folder / "pipeline.toml"))
        self.project.create_keys(["eu"])
        self.cluster, self.out = self.project.cluster("eu"), f"{prefix}boxes"
        self.raw = self.project.topics.raw("eu", EVENT)
        self.scan = LogScanner(self.cluster, self.project.config.limits)

    async def fill(self) -> None:
        """Events that pass, that a filter drops, that a check refuses, and bytes that are no event."""
        async with started(KafkaAdmin(self.cluster)) as admin, started(KafkaWriter(self.cluster)) as writer:
            await admin.ensure_topics([TopicSpec(self.raw, PARTITIONS), TopicSpec(self.out, 1)])
            for partition in range(PARTITIONS):
                batch = raw_batch(self.project.schemas, EVENT, ROWS, seed=partition + 1)
                codes = batch.column("jurisdiction").to_pylist()
                batch = replaced(batch, "jurisdiction", ["US-CA", *codes[1:]])
                values = framed(self.project.schemas, EVENT, batch).to_pylist()
                values[5:5] = [b"no event", b"\0\0\0\0\1torn", None]
                await writer.send(self.raw, partition, pa.array(values, pa.binary()))

    async def processed(self) -> set[bytes]:
        """What the processor's own leg makes of the raw topic."""
        leg, found = self.project.leg("eu", EVENT), set[bytes]()
        for partition in range(PARTITIONS):
            async for fetched in self.scan(self.raw, partition, 0):
                now_us = int(fetched.timestamps_ms.max()) * 1000
                found.update(leg.process(fetched, {}, Decided(), now_us).curated.to_pylist())
        return found

    async def delivered(self) -> list[bytes]:
        """What the app wrote."""
        found: list[bytes] = []
        async for fetched in self.scan(self.out, 0, 0):
            found += fetched.values.to_pylist()
        return found

    @contextmanager
    def app(self, script: str) -> Iterator[subprocess.Popen[bytes]]:
        """The app in a process of its own."""
        path = self.folder / "boxes.py"
        path.write_text(script)
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(path), "worker", "--loglevel", "error"], cwd=self.folder,
                env=environment, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


def position(project: Project, value: bytes) -> tuple[int, int]:
    codec = curator(project, "eu", EVENT)[1]
    row = codec.decode(pa.array([value[5:]], pa.binary()))[0].to_pylist()[0]
    return row["raw_partition"], row["raw_offset"]


def test_the_docs_app_passes_what_the_processor_passes_and_a_failing_plan_ends_it(
    bootstrap, topic_prefix, tmp_path
):
    world = World(tmp_path, bootstrap, topic_prefix)
    asyncio.run(world.fill())
    wanted = asyncio.run(world.processed())
    assert 2_000 < len(wanted) < PARTITIONS * ROWS

    # `policy plan --topic` reads the same records: both partitions, what is no event left out.
    replay = replayed(world.project, world.project.packs, world.project.schemas.events[EVENT], "eu",
                      Source(topic=True), 2 * 100)  # fmt: skip
    assert sum(map(len, replay)) == 2 * 100

    with world.app(BREAKING + example()) as broken:
        wait_for(lambda: broken.poll() is not None, DEADLINE_S)
        assert broken.returncode != 0, (tmp_path / "log").read_text()
    before = asyncio.run(world.delivered())
    assert before
    assert set(before) <= wanted
    # Whatever went out came from batches before the failure: nothing of a failing one, nothing behind it.
    assert all(position(world.project, value)[1] < BREAKS_AT for value in before)

    with world.app(example()) as sound:
        wait_for(
            lambda: sound.poll() is not None or set(asyncio.run(world.delivered())) >= wanted, DEADLINE_S
        )
        assert sound.poll() is None, (tmp_path / "log").read_text()
    # Byte for byte what the processor makes, raw positions included; the failed records were not skipped.
    assert set(asyncio.run(world.delivered())) == wanted


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"web_enabled": True}, "web_enabled"),
     ({"processing_guarantee": "exactly_once"}, "processing_guarantee"),
     ({"worker_redirect_stdouts": True}, "worker_redirect_stdouts")],
)  # fmt: skip
def test_an_app_whose_settings_could_let_something_slip_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        demand_safe(faust.App("unsafe", broker="kafka://127.0.0.1:1", **(SAFE | settings)))
