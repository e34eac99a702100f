"""The gRPC door: acknowledged by number after the commit, refused with a reason, bounded in everything."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import connectors.grpc_ingest as grpc_ingest
from connectors.grpc_ingest import MESSAGE_BYTES_MAX, SERVICE, STREAM_BATCHES_MAX, GrpcIngest
from connectors.wire import ingest_pb2 as wire
from pipeline.config import Config
from pipeline.edge import EdgeClient, Receipt
from pipeline.errors import ConfigError, TransientError
from tests.edge_world import EVENT, JURISDICTIONS, decoded, open_spool, schemas, split, stored, vehicles

PROJECT = Path(__file__).resolve().parents[3]
SECRET = "value-that-must-not-be-told"


def event(row) -> wire.Event:
    fields, given = split(row)
    made = wire.Event(
        source=given["source"], event_time_us=given["event_time"], jurisdiction=given["jurisdiction"]
    )
    for name, value in fields.items():
        if isinstance(value, str):
            made.fields[name].text = value
        elif isinstance(value, float):
            made.fields[name].number = value
        else:
            made.fields[name].SetInParent()
    return made


def request(rows, number=1, **changes) -> wire.EmitRequest:
    return wire.EmitRequest(**{"sequence": number, "event": EVENT, "events": map(event, rows)} | changes)


@pytest.fixture
def spool(tmp_path):
    with open_spool(tmp_path / "spool.sqlite") as opened:
        yield opened


class Stub:
    """A client made from nothing but the service's name."""

    def __init__(self, channel):
        coders = (wire.EmitRequest.SerializeToString, wire.EmitResponse.FromString)
        self.emit = channel.unary_unary(f"/{SERVICE}/Emit", *coders)
        self.stream = channel.stream_stream(f"/{SERVICE}/Stream", *coders)


@pytest.fixture
async def door(spool):
    server = GrpcIngest(EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def stub(door):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        yield Stub(channel)


def all_rows(spool):
    rows = [row for block in stored(spool) for row in decoded(block.values).to_pylist()]
    return sorted(rows, key=lambda row: row["sequence"])


async def test_a_batch_is_durable_when_the_answer_comes(stub, spool):
    rows = vehicles(7)
    answer = await stub.emit(request(rows, 42))
    assert answer.sequence == 42
    assert (answer.receipt.spool, answer.receipt.first_sequence, answer.receipt.count) == (spool.spool, 1, 7)
    found = all_rows(spool)
    assert [row["vin"] for row in found] == [row["vin"] for row in rows]
    assert [row["latitude"] for row in found] == [row["latitude"] for row in rows]
    assert [row["speed_m_s"] for row in found] == [row["speed_m_s"] for row in rows]


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"latitude": 91.0}, "latitude", "range"),
        ({"vin": None}, "vin", "field_missing"),
        ({"jurisdiction": SECRET}, "jurisdiction", "jurisdiction_unknown"),
        ({"jurisdiction": ""}, "jurisdiction", "jurisdiction_missing"),
        ({"latitude": float("nan")}, "latitude", "not_finite"),
        ({"driver": 3.5}, "driver", "type"),
        ({SECRET: 3.5}, "", "field_unknown"),
        ({"event_time": 5}, "event_time", "time_ancient"),
    ],
)
async def test_refusals_say_why_and_never_what(stub, spool, changes, field, reason):
    rows = [vehicles(1)[0], vehicles(1)[0] | changes]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.emit(request(rows))
    error = caught.value
    told = dict(error.trailing_metadata())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert told["reason"] == reason
    assert told["field"] in (field, "")
    assert SECRET not in str(error)
    assert stored(spool) == []


async def test_an_unknown_event_or_lane_is_refused(stub):
    for changes, reason in (({"event": "nonsense"}, "unknown_schema"), ({"lane": "nonsense"}, "lane")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.emit(request(vehicles(1), **changes))
        assert dict(caught.value.trailing_metadata())["reason"] == reason


async def test_a_stream_answers_each_batch_by_its_number(stub, spool):
    rows = vehicles(90)
    parts = [request(rows[at : at + 3], number) for number, at in enumerate(range(0, 90, 3), 100)]
    parts[7].events[1].fields["latitude"].number = 95.0  # refused, and the stream goes on
    answers = {answer.sequence: answer async for answer in stub.stream(iter(parts))}
    assert sorted(answers) == list(range(100, 130))
    refused = answers.pop(107).refusal
    assert (refused.field, refused.reason, refused.retry) == ("latitude", "range", False)
    assert sum(answer.receipt.count for answer in answers.values()) == len(all_rows(spool)) == 87


class Held:
    """A client whose commits end when the test says so."""

    def __init__(self):
        self.futures: list[Future] = []
        self.full = False
        self.asked = asyncio.Event()

    def submit_many(self, *_, **__):
        self.asked.set()
        if self.full:
            raise TransientError("too many wait")
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
async def held():
    client = Held()
    server = GrpcIngest(client)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield client, Stub(channel), server
    await server.stop()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event of its own)
            await asyncio.sleep(0.01)


async def test_a_stream_is_not_read_on_while_its_batches_wait(held):
    client, stub, _ = held
    count = STREAM_BATCHES_MAX * 4
    call = stub.stream(request(vehicles(1), number) for number in range(count))
    answers = asyncio.ensure_future(_all(call))
    await until(lambda: len(client.futures) >= STREAM_BATCHES_MAX)
    await asyncio.sleep(0.2)  # time in which more would be read, were it not bounded
    assert len(client.futures) == STREAM_BATCHES_MAX
    done = 0
    while not answers.done():
        for future in client.futures[done:]:
            future.set_result(Receipt(1, 1, 1, 1))
            done += 1
        assert len(client.futures) - done <= STREAM_BATCHES_MAX
        await asyncio.sleep(0.01)
    assert sorted(answer.sequence for answer in answers.result()) == list(range(count))


async def _all(call):
    return [answer async for answer in call]


async def test_a_full_queue_refuses_a_call_and_holds_a_stream(held):
    client, stub, _ = held
    client.full = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.emit(request(vehicles(1)))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    client.asked.clear()
    answers = asyncio.ensure_future(_all(stub.stream([request(vehicles(1), 5)])))
    await asyncio.wait_for(client.asked.wait(), 10)
    assert not answers.done()
    client.full = False
    await until(lambda: client.futures)
    client.futures[0].set_result(Receipt(1, 1, 1, 1))
    assert [answer.sequence for answer in await answers] == [5]


async def test_no_answer_before_the_commit_and_a_failing_disk_is_unavailable(held):
    client, stub, _ = held
    call = asyncio.ensure_future(stub.emit(request(vehicles(1))))
    await until(lambda: client.futures)
    assert not call.done()
    client.futures[0].set_exception(TransientError("disk"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_message_that_is_too_large_is_refused(stub, spool):
    big = request(vehicles(1))
    big.events[0].fields["driver"].text = "x" * (MESSAGE_BYTES_MAX + 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.emit(big)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stored(spool) == []


async def test_bytes_that_are_no_message_are_refused(door, spool):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/Emit")
        for junk in (b"\xff" * 64, request(vehicles(1)).SerializeToString()[:-3], b"\x12\x02\xff\xfe"):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(junk)
    assert stored(spool) == []


async def test_calls_under_way_are_bounded(monkeypatch):
    monkeypatch.setattr(grpc_ingest, "CALLS_MAX", 2)
    client = Held()
    server = GrpcIngest(client)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = Stub(channel)
        calls = [asyncio.ensure_future(stub.emit(request(vehicles(1)))) for _ in range(2)]
        await until(lambda: len(client.futures) == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.emit(request(vehicles(1)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for future in client.futures:
            future.set_result(Receipt(1, 1, 1, 1))
        assert len(await asyncio.gather(*calls)) == 2
    await server.stop()


async def test_health_and_reflection(door):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        async for one in reflected.ServerReflectionInfo(iter([ask])):
            assert SERVICE in {service.name for service in one.list_services_response.service}
            break


async def test_a_taken_port_is_a_configuration_error(door, spool):
    with pytest.raises(ConfigError, match="cannot listen"):
        await GrpcIngest(Held(), door.port).start()


def test_the_modules_are_those_of_the_proto_files(tmp_path):
    for proto in sorted((PROJECT / "schemas").glob("*.proto")):
        argv = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", f"--python_out={tmp_path}"]
        subprocess.run([*argv, str(proto)], check=True)
        made = f"{proto.stem}_pb2.py"
        assert (tmp_path / made).read_text() == (PROJECT / "connectors" / "wire" / made).read_text()
