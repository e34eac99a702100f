"""Kafka, the face: reader, writer, admin and the values they exchange."""

from __future__ import annotations

from connectors.kafka_admin import KafkaAdmin, TopicSpec
from connectors.kafka_client import Partition
from connectors.kafka_reader import KafkaReader, ReaderOptions
from connectors.kafka_records import Fetched
from connectors.kafka_writer import KafkaWriter

__all__ = ["Fetched", "KafkaAdmin", "KafkaReader", "KafkaWriter", "Partition", "ReaderOptions", "TopicSpec"]
