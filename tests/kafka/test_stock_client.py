"""A stock client agrees with us: Confluent's consumer and Avro deserialiser read what the pipeline wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from pipeline.demo.fleet import Fleet, FleetSize
from pipeline.edge_session import drained_edge
from pipeline.framing import unframe
from pipeline.schemas import SchemaStore
from tests.local_stack import LocalStack

pytestmark = pytest.mark.kafka
DEADLINE_S = 30.0


class LockedRegistry(SchemaRegistryClient):
    """A registry that answers from the project's lock; nothing listens anywhere."""

    def __init__(self, schemas: SchemaStore) -> None:
        super().__init__({"url": "http://127.0.0.1:1"})
        self._schemas = schemas

    def get_schema(self, schema_id: int, *_: Any, **__: Any) -> Schema:
        return Schema(json.dumps(self._schemas.by_id(schema_id).schema), "AVRO")


@dataclass(frozen=True)
class Fed:
    """The stack after a few seconds of a fleet in eu, and where its topics ended before."""

    stack: LocalStack
    starts: dict[str, dict[int, int]]

    def topic(self, stage: str, event: str) -> str:
        """The raw or curated topic of an event."""
        return str(getattr(self.stack.project.topics, stage)("eu", event))


@pytest.fixture(scope="module")
def fed(stack: LocalStack) -> Fed:
    """Some events of every type, on their way and stored."""
    stack.settle("eu")
    topics, events = stack.project.topics, stack.project.schemas.events
    consumer = new_consumer(stack)
    names = [topic for event in events for topic in (topics.raw("eu", event), topics.curated("eu", event))]
    starts = {name: ends(consumer, name) for name in names}
    consumer.close()
    fleet = Fleet("eu", 7, FleetSize(vehicles=20, meters=20, machines=10, cameras=5))
    now_us = time.time_ns() // 1000 - 60_000_000
    with drained_edge(stack.project, "fleet") as client:
        for second in range(20):
            for event, batch in fleet.tick(now_us + second * 1_000_000, 1.0).items():
                client.emit_many(event, batch)
    stack.settle("eu")
    return Fed(stack, starts)


def new_consumer(stack: LocalStack) -> Consumer:
    """A plain consumer that commits nothing."""
    return Consumer({
        "bootstrap.servers": stack.project.broker().bootstrap, "group.id": "stock",
        "enable.auto.commit": False, "auto.offset.reset": "error",
    })  # fmt: skip


def ends(consumer: Consumer, topic: str) -> dict[int, int]:
    """The next offset of each partition."""
    return {
        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=DEADLINE_S)[1]
        for number in consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions
    }


def messages(fed: Fed, topic: str) -> Iterator[Message]:
    """What the fleet added to a topic, as a plain consumer gets it."""
    consumer, starts = new_consumer(fed.stack), fed.starts[topic]
    try:
        left = sum(ends(consumer, topic).values()) - sum(starts.values())
        consumer.assign([TopicPartition(topic, number, start) for number, start in starts.items()])
        deadline = time.monotonic() + DEADLINE_S
        while left:
            assert time.monotonic() < deadline, f"{left} messages of {topic} did not come"
            message = consumer.poll(1.0)
            if message is not None:
                assert message.error() is None
                left -= 1
                yield message
    finally:
        consumer.close()


def ours(schemas: SchemaStore, values: list[bytes]) -> list[dict[str, Any]]:
    """The same records by our codec."""
    ids, bodies = unframe(pa.array(values, pa.binary()))
    assert len(set(ids.tolist())) == 1
    batch, _, bad = schemas.codec(int(ids[0])).decode(bodies)
    assert not bad
    return batch.to_pylist()


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Times without their zone: Confluent's say UTC, ours mean it."""
    return {k: v.replace(tzinfo=None) if isinstance(v, datetime) else v for k, v in row.items()}


@pytest.mark.parametrize("stage", ["raw", "curated"])
def test_confluents_deserialiser_reads_the_same_values_as_our_codec(fed, stage):
    schemas = fed.stack.project.schemas
    strategy = {"subject.name.strategy": topic_subject_name_strategy}  # the default asks the registry
    deserialise = AvroDeserializer(LockedRegistry(schemas), conf=strategy)
    for event in schemas.events:
        topic = fed.topic(stage, event)
        values = [message.value() for message in messages(fed, topic)]
        context = SerializationContext(topic, MessageField.VALUE)
        theirs = [plain(deserialise(value, context)) for value in values]
        assert len(theirs) > 10
        assert theirs == ours(schemas, values)


@pytest.mark.parametrize("stage", ["raw", "curated"])
def test_records_with_events_carry_neither_key_nor_headers(fed, stage):
    for event in fed.stack.project.schemas.events:
        for message in messages(fed, fed.topic(stage, event)):
            assert message.key() is None
            assert message.headers() is None
