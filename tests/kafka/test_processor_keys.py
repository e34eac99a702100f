"""A processor whose keys go missing while it works stops, out of reach it waits: not one row passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import Config, RegionConfig
from pipeline.errors import ConfigError, TransientError
from pipeline.policy.derivation import KEY_BYTES
from pipeline.policy.wrapping import LocalWrapping
from pipeline.service import Project
from tests.kafka.test_processor import DEADLINE_S, EVENT, REGION, Landing, positions, prepared
from tests.raw_events import framed, raw_batch

pytestmark = pytest.mark.kafka


@pytest.fixture
def project(cluster, topic_prefix: str, tmp_path: Path) -> Project:
    """A region with two partitions on the run's broker, keys made."""
    region = RegionConfig(cluster=cluster, partitions=2)
    project = Project.open(Config(state=tmp_path, topic_prefix=topic_prefix, regions={REGION: region}))
    project.create_keys([REGION])
    return project


def two_crowds(landing: Landing) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Events of some vehicles, then of others, whose pseudonyms have to be made."""
    first = raw_batch(landing.schemas, EVENT, 100, seed=1)
    second = raw_batch(landing.schemas, EVENT, 100, seed=2, first_sequence=101)
    return framed(landing.schemas, EVENT, first), framed(landing.schemas, EVENT, second)


async def until_stopped(
    landing: Landing, first: pa.Array, take_away: Callable[[], object], second: pa.Array
) -> None:
    """Process the first events, take the keys away, and wait until the second ones ended the processor."""
    async with landing.running() as task:
        await landing.send(0, first)
        await landing.accounted(100)
        take_away()
        await landing.send(0, second)
        await asyncio.wait_for(task, DEADLINE_S)


async def test_a_processor_whose_keys_vanish_stops_and_nothing_passes_until_they_are_back(project):
    landing = await prepared(project)
    first, second = two_crowds(landing)
    folder = project.config.keys_path(REGION)
    with pytest.raises(ConfigError, match=r"key store at .*: no key here"):
        await until_stopped(landing, first, partial(folder.rename, folder.with_name("gone")), second)
    assert positions(await landing.curated()) == [(0, i) for i in range(100)]
    assert len(await landing.quarantined()) == 0
    assert sum(c["count"] for record in await landing.stats() for c in record["counts"]) == 100
    with pytest.raises(ConfigError, match="no key here"):
        async with landing.running():
            pass  # nor does it start again
    folder.with_name("gone").rename(folder)
    async with landing.running():
        assert await landing.accounted(200) == {("passed", ""): 200}
    assert sorted(positions(await landing.curated())) == [(0, i) for i in range(200)]


class Away(LocalWrapping):
    """The region's wrapping, out of reach while ``away`` is set."""

    def __init__(self, master: bytes) -> None:
        super().__init__(master)
        self.away, self.asked = False, 0

    def unwrap(self, text: str, context: bytes) -> bytes:
        self.asked += self.away
        if self.away:
            raise TransientError("no answer", operation="transit", remedy="see that it is up")
        return super().unwrap(text, context)


async def test_a_processor_whose_wrapping_is_out_of_reach_waits_and_nothing_passes(project):
    landing = await prepared(project)
    master = project.keys.default_master().read_text()
    wrapping = Away(bytes.fromhex(master))
    assert len(bytes.fromhex(master)) == KEY_BYTES
    project.keys._wrappings[REGION] = wrapping
    first, second = two_crowds(landing)
    async with landing.running() as task:
        await landing.send(0, first)
        await landing.accounted(100)
        wrapping.away = True
        for path in project.config.keys_path(REGION).glob("*.key"):
            path.touch()  # as a rewrap does: what is held is not relied on any more
        await landing.send(0, second)
        async with asyncio.timeout(DEADLINE_S):
            while wrapping.asked < 3:  # noqa: ASYNC110 (a thread asks)
                await asyncio.sleep(0.05)
        assert positions(await landing.curated()) == [(0, i) for i in range(100)]
        assert not task.done()
        wrapping.away = False
        assert await landing.accounted(200) == {("passed", ""): 200}
    # A batch may be delivered again when a partition is taken up again; the store drops it by its position.
    assert sorted(positions(await landing.curated())) == [(0, i) for i in range(200)]
