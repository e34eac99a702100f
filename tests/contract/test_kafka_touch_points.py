"""What connectors/ uses of aiokafka below its documented API: when one of these fails, aiokafka has changed.

Then: run with ``ReaderOptions(raw=False)`` and ``KafkaWriter(raw=False)``, which need none of it, and mend
the adapter that the test names.
"""

from __future__ import annotations

import inspect

import pyarrow as pa
import pytest
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import UnknownError, for_code
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v4, FetchRequest_v11
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c

from connectors.kafka_encode import Columns, encode_batch
from connectors.kafka_metadata import TopicsRequest


def parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def newest(request: object, versions: dict[int, tuple[int, int]]) -> object:
    return request.prepare(versions)  # type: ignore[attr-defined]


def test_client_of_kafka_client_py() -> None:
    assert parameters(AIOKafkaClient.send) == ["node_id", "request", "group"]
    assert parameters(AIOKafkaClient.add_topic) == ["topic"]
    for name in ("bootstrap", "close", "send"):
        assert inspect.iscoroutinefunction(getattr(AIOKafkaClient, name)), name
    for name in ("force_metadata_update", "get_random_node"):
        assert parameters(getattr(AIOKafkaClient, name)) == [], name
    assert parameters(ClusterMetadata.leader_for_partition) == ["partition"]
    assert {group.name for group in ConnectionGroup} == {"DEFAULT", "COORDINATION"}


def test_fetch_request_of_kafka_fetch_py() -> None:
    assert parameters(FetchRequest)[:5] == [
        "max_wait_time",
        "min_bytes",
        "max_bytes",
        "isolation_level",
        "topics",
    ]
    request = FetchRequest(100, 1, 1000, 0, [("events", [(3, 17, 500)])])
    for struct in (newest(request, {1: (4, 4)}), newest(request, {1: (4, 17)})):
        assert struct.encode()  # type: ignore[attr-defined]
    for version in (FetchRequest_v4, FetchRequest_v11):
        _, partitions = version.RESPONSE_TYPE.SCHEMA.fields[-1].array_of.fields  # type: ignore[union-attr]
        names = partitions.array_of.names
        assert names[:2] == ("partition", "error_code"), names
        assert names[-1] == "message_set", names


def test_produce_requests_of_kafka_writer_py() -> None:
    request = ProduceRequest(None, -1, 1000, [("events", [(3, b"batch")])])
    struct = newest(request, {0: (3, 12)})
    assert b"batch" in struct.encode()  # type: ignore[attr-defined]
    _, partitions = struct.RESPONSE_TYPE.SCHEMA.fields[0].array_of.fields  # type: ignore[attr-defined]
    assert partitions.array_of.names[:3] == ("partition", "error_code", "offset")
    producer = newest(InitProducerIdRequest(None, 60_000), {22: (0, 5)})  # type: ignore[arg-type]
    assert producer.encode()  # type: ignore[attr-defined]
    assert {"error_code", "producer_id", "producer_epoch"} <= set(producer.RESPONSE_TYPE.SCHEMA.names)  # type: ignore[attr-defined]


def test_offset_request_of_kafka_client_py() -> None:
    struct = newest(OffsetRequest(-1, 0, [("events", [(3, -2)])]), {2: (1, 10)})
    _, partitions = struct.RESPONSE_TYPE.SCHEMA.fields[-1].array_of.fields  # type: ignore[attr-defined]
    assert partitions.array_of.names == ("partition", "error_code", "timestamp", "offset")


def test_metadata_request_of_kafka_metadata_py() -> None:
    struct = newest(TopicsRequest(["events"]), {3: (0, 13)})
    # One topic (count 2 - 1), id of zeros, compact name, no tags; no creation, no operations, no tags.
    assert struct.encode() == b"\x02" + bytes(16) + b"\x07events\x00" + b"\x00\x00\x00"  # type: ignore[attr-defined]


def test_record_reader_of_kafka_records_py() -> None:
    assert {"offset", "timestamp", "key", "value"} <= set(dir(next(iter(DefaultRecordBatch(_batch())))))


def test_checksum_of_kafka_batch_py_is_the_compiled_one() -> None:
    assert calc_crc32c(memoryview(b"123456789")) == 0xE3069283  # check value of CRC-32C
    assert type(calc_crc32c).__name__ in ("cython_function_or_method", "builtin_function_or_method")


@pytest.mark.parametrize(
    ("code", "name"),
    [(1, "OffsetOutOfRangeError"), (6, "NotLeaderForPartitionError"), (45, "OutOfOrderSequenceNumber")],
)
def test_error_names(code: int, name: str) -> None:
    assert for_code(code).__name__ == name
    assert for_code(31_000) is UnknownError


def _batch() -> bytes:
    return encode_batch(Columns(pa.array([b"v"], pa.binary())), "none").seal()
