"""Topics on a real broker: made once, checked, known by their id."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from connectors.broker import LocalBroker
from connectors.kafka import KafkaAdmin, TopicSpec
from connectors.kafka_client import connection_options
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError, TransientError


@pytest.fixture
async def admin(cluster: ClusterConfig) -> AsyncIterator[KafkaAdmin]:
    admin = KafkaAdmin(cluster)
    await admin.start()
    yield admin
    await admin.stop()


async def test_topics_are_made_once_and_have_leaders(admin: KafkaAdmin, topic_prefix: str) -> None:
    specs = [TopicSpec(f"{topic_prefix}a", 3), TopicSpec(f"{topic_prefix}b", 1, compacted=True)]
    await asyncio.gather(*[admin.ensure_topics(specs) for _ in range(4)])
    ids = await admin.topic_ids(spec.name for spec in specs)
    await admin.ensure_topics(specs)
    assert await admin.topic_ids(spec.name for spec in specs) == ids
    assert [await admin.partitions(spec.name) for spec in specs] == [3, 1]
    places = [(specs[0].name, number) for number in range(3)]
    assert await admin.end_offsets(places) == dict.fromkeys(places, 0)
    assert await admin.beginning_offsets(places) == dict.fromkeys(places, 0)


async def test_a_topic_with_another_partition_count_stops_the_start(
    admin: KafkaAdmin, topic_prefix: str
) -> None:
    await admin.ensure_topics([TopicSpec(f"{topic_prefix}a", 2)])
    for count in (1, 3):
        with pytest.raises(ConfigError, match=f"expected {count} partitions, found 2"):
            await admin.ensure_topics([TopicSpec(f"{topic_prefix}a", count)])
    assert await admin.partitions(f"{topic_prefix}a") == 2


async def test_a_recreated_topic_has_another_id(admin: KafkaAdmin, topic_prefix: str) -> None:
    spec = TopicSpec(f"{topic_prefix}a", 1)
    await admin.ensure_topics([spec])
    first = await admin.topic_ids([spec.name])
    await admin.delete_topics([spec.name])
    assert await admin.topic_ids([spec.name]) == {}
    assert await admin.partitions(spec.name) == 0
    await admin.ensure_topics([spec])
    second = await admin.topic_ids([spec.name])
    assert uuid.UUID(first[spec.name]) != uuid.UUID(second[spec.name])


async def test_the_cluster_names_itself(admin: KafkaAdmin, broker: LocalBroker) -> None:
    assert await admin.cluster_id() == broker.cluster_id


async def test_settings_reach_the_topic(admin: KafkaAdmin, cluster: ClusterConfig, topic_prefix: str) -> None:
    name = f"{topic_prefix}a"
    await admin.ensure_topics([TopicSpec(name, 1, compacted=True, config={"segment.ms": "12345"})])
    public = AIOKafkaAdminClient(**connection_options(cluster))
    await public.start()
    try:
        (response,) = await public.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    finally:
        await public.close()
    (_, _, _, _, entries), *_ = response.resources
    settings = {entry[0]: entry[1] for entry in entries}
    assert settings["cleanup.policy"] == "compact"
    assert settings["segment.ms"] == "12345"
    assert settings["max.compaction.lag.ms"] == "900000"


async def test_what_the_broker_refuses_is_a_config_error(admin: KafkaAdmin, topic_prefix: str) -> None:
    for spec in (
        TopicSpec("no spaces allowed", 1),
        TopicSpec(f"{topic_prefix}a", 1, config={"cleanup.policy": "perhaps"}),
    ):
        with pytest.raises(ConfigError, match="broker refuses"):
            await admin.ensure_topics([spec])


async def test_two_replicas_must_have_a_record_where_there_are_three() -> None:
    assert TopicSpec("a", 1).settings(3) == {"min.insync.replicas": "2"}
    assert TopicSpec("a", 1, config={"min.insync.replicas": "3"}).settings(3) == {"min.insync.replicas": "3"}
    assert TopicSpec("a", 1).settings(1) == {}


async def test_nobody_there_is_transient_and_says_so() -> None:
    admin = KafkaAdmin(ClusterConfig(bootstrap="127.0.0.1:9", request_timeout_s=1))
    with pytest.raises(TransientError, match="no broker answers"):
        await admin.start()
    with pytest.raises(ConfigError, match="bootstrap"):
        await KafkaAdmin(ClusterConfig()).start()
