"""The local broker: starts, keeps its identity, refuses a busy port, survives a kill, leaves nothing."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from connectors.broker import BrokerOptions, LocalBroker
from connectors.broker_config import Ports
from connectors.broker_probe import serving_cluster
from connectors.processes import ProcessRecord
from pipeline.errors import ConfigError, TransientError
from pipeline.stack import Stack

pytestmark = pytest.mark.kafka


async def create_topic(broker: LocalBroker, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=2, replication_factor=1)])
    finally:
        await admin.close()


async def produce(broker: LocalBroker, topic: str, count: int, compression: str | None = None) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True, compression_type=compression
    )
    await producer.start()
    try:
        for number in range(count):
            await producer.send(topic, str(number).encode(), partition=0)
    finally:
        await producer.stop()


async def end_offset(broker: LocalBroker, topic: str) -> int:
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap)
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, 0)])
        return int(ends[TopicPartition(topic, 0)])
    finally:
        await consumer.stop()


async def test_it_takes_work_as_soon_as_start_returns(own_broker: LocalBroker) -> None:
    own_broker.start()
    assert serving_cluster(own_broker.port) == own_broker.cluster_id
    await create_topic(own_broker, "work")
    for compression in (None, "gzip", "lz4", "zstd", "snappy"):
        await produce(own_broker, "work", 10, compression)
    assert await end_offset(own_broker, "work") == 50


async def test_restart_keeps_ports_cluster_id_and_data(own_broker: LocalBroker) -> None:
    own_broker.start()
    before = (own_broker.bootstrap, own_broker.cluster_id)
    await create_topic(own_broker, "kept")
    await produce(own_broker, "kept", 25)
    own_broker.restart()
    assert (own_broker.bootstrap, own_broker.cluster_id) == before
    assert await end_offset(own_broker, "kept") == 25


async def test_acknowledged_records_survive_kill_9(own_broker: LocalBroker) -> None:
    own_broker.start()
    await create_topic(own_broker, "kept")
    await produce(own_broker, "kept", 25)
    own_broker.kill9()
    assert serving_cluster(own_broker.port) is None
    own_broker.start()
    assert await end_offset(own_broker, "kept") == 25


def test_a_second_start_finds_the_running_one(own_broker: LocalBroker, broker_options: BrokerOptions) -> None:
    own_broker.start()
    record = own_broker.record()
    again = LocalBroker(own_broker.state, broker_options)
    again.start()
    assert again.record() == record
    assert again.bootstrap == own_broker.bootstrap


def test_the_stack_shows_and_stops_a_detached_broker(tmp_path: Path, broker_options: BrokerOptions) -> None:
    options = replace(broker_options, detached=True)
    started = LocalBroker(tmp_path, options)
    assert Stack(tmp_path, started).up([]).started == ("broker",)
    later = Stack(tmp_path, LocalBroker(tmp_path, options))
    (shown,) = later.status()
    assert (shown.name, shown.alive, shown.port) == ("broker", True, started.port)
    assert later.down() == {"broker": True}
    assert not started.alive()


def test_a_configured_port_that_is_taken_is_refused_by_name(
    tmp_path: Path, broker_options: BrokerOptions
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = LocalBroker(tmp_path, replace(broker_options, port=port))
        with pytest.raises(ConfigError, match=f"port {port} is taken"):
            broker.start()
    assert not broker.alive()


def test_a_chosen_port_taken_meanwhile_is_replaced_at_the_next_start(own_broker: LocalBroker) -> None:
    first = own_broker.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert own_broker.port == first  # to ask changes nothing: another process may be about to start it
        own_broker.start()
    assert own_broker.port != first
    assert serving_cluster(own_broker.port) == own_broker.cluster_id


def test_a_port_that_clients_know_is_not_replaced_behind_their_back(own_broker: LocalBroker) -> None:
    own_broker.start()
    own_broker.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", own_broker.port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"port {own_broker.port} is taken"):
            own_broker.start()


def test_a_failed_look_at_a_running_broker_does_not_end_it(
    own_broker: LocalBroker, broker_options: BrokerOptions
) -> None:
    own_broker.start()
    Ports(broker=own_broker.port + 1, controller=1).write(own_broker.state / "broker" / "ports.json")
    astray = LocalBroker(own_broker.state, replace(broker_options, start_timeout_s=0.05))
    with pytest.raises(TransientError, match="not ready after"):
        astray.start()
    assert own_broker.alive()


def test_a_configured_port_that_is_the_controllers_by_now_moves_the_controller(
    own_broker: LocalBroker, broker_options: BrokerOptions
) -> None:
    kept = own_broker.state / "broker" / "ports.json"
    assert own_broker.port
    controller = json.loads(kept.read_text())["controller"]
    assert LocalBroker(own_broker.state, replace(broker_options, port=controller)).port == controller
    assert json.loads(kept.read_text())["controller"] != controller


def test_a_failed_start_says_why_and_leaves_nothing(own_broker: LocalBroker, tmp_path: Path) -> None:
    own_broker.start()
    own_broker.stop()
    meta = next(tmp_path.glob("*/broker/data/meta.properties"))
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(TransientError, match=r"the process ended; last lines:(.|\n)*Stored node id 7"):
        own_broker.start()
    assert not own_broker.alive()
    assert not list(tmp_path.glob("*/run/broker.json"))


def test_the_deadline_of_a_start_ends_the_process(tmp_path: Path, broker_options: BrokerOptions) -> None:
    with LocalBroker(tmp_path, broker_options):
        pass
    hurried = LocalBroker(tmp_path, replace(broker_options, start_timeout_s=0.05))
    with pytest.raises(TransientError, match="not ready after"):
        hurried.start()
    assert not hurried.alive()


def test_a_record_of_another_process_is_not_ours(tmp_path: Path, broker_options: BrokerOptions) -> None:
    """The pid of a crashed broker may belong to a stranger by now; here: to this test."""
    broker = LocalBroker(tmp_path, broker_options)
    stranger = ProcessRecord("broker", pid=os.getpid(), create_time_s=1.0, log="")
    stranger.write(tmp_path / "run" / "broker.json")
    assert not broker.alive()
    broker.kill9()
