"""The gRPC door with TLS: the same senders, the same refusals as over HTTP."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import asynccontextmanager

import grpc
import pytest

import connectors.grpc_ingest as grpc_ingest
from connectors.grpc_ingest import SERVICE, GrpcIngest
from connectors.wire import ingest_pb2 as wire
from pipeline.edge import Receipt
from pipeline.edge.senders import Senders, new_token
from pipeline.errors import ConfigError
from pipeline.listen_config import ListenConfig, SenderClass
from tests.certificates import Authority

TOKEN, HASH = new_token()
EVENT = "vehicle_telemetry"
VEHICLES = {"sources": ["vehicle-*"], "events": [EVENT], "jurisdictions": ["DE"]}
SECRET = "value-that-must-not-be-told"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


@pytest.fixture(scope="module")
def server(authority):
    return authority.sign("agent", dns=["localhost"])


class Taking:
    """A client that takes everything, and leaves three events of each batch out."""

    def __init__(self):
        self.batches: list[list] = []

    def submit_many(self, event, rows, **_):
        self.batches.append(rows)
        future = Future()
        future.set_result(Receipt(7, 1, 1, len(rows), 3))
        return future


@asynccontextmanager
async def door(listen, refused=None, **classes):
    made = {name: SenderClass.model_validate(one) for name, one in classes.items()}
    client = Taking()
    one = GrpcIngest(client, 0, listen, Senders(made, refused.append if refused is not None else print))
    await one.start()
    yield one, client
    await one.stop()


def channel(port, authority, pair=None):
    shown = (pair.key.read_bytes(), pair.certificate.read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes(), *shown)
    return grpc.aio.secure_channel(f"localhost:{port}", credentials)


def request(source="vehicle-1", event=EVENT, jurisdiction="DE", number=1):
    one = wire.Event(source=source, jurisdiction=jurisdiction)
    return wire.EmitRequest(sequence=number, event=event, events=[one])


def emit(connection, asked, token=None):
    coders = (wire.EmitRequest.SerializeToString, wire.EmitResponse.FromString)
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return connection.unary_unary(f"/{SERVICE}/Emit", *coders)(asked, metadata=metadata, timeout=10)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert SECRET not in str(caught.value)
    told = dict(caught.value.trailing_metadata())
    return caught.value.code(), told.get("reason"), told.get("field")


DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_over_tls(server, authority):
    listen, counted = ListenConfig(certificate=server.certificate, key=server.key), []
    async with door(listen, counted, vehicles=VEHICLES | {"token_sha256": [HASH]}) as (one, client):
        async with channel(one.port, authority) as connection:
            answer = await emit(connection, request(), TOKEN)
            assert (answer.receipt.count, answer.receipt.filtered) == (1, 3)
            for token in (None, TOKEN + "x"):
                got = await refusal(emit(connection, request(), token))
                assert got == (UNKNOWN, "sender", "credentials")
            for field, foreign in (
                ("source", request(SECRET)),
                ("event", request(event=SECRET)),
                ("jurisdiction", request(jurisdiction=SECRET)),
            ):
                assert await refusal(emit(connection, foreign, TOKEN)) == (DENIED, "sender", field)
        assert len(client.batches) == 1
    assert counted == ["credentials", "credentials", "source", "event", "jurisdiction"]


async def test_a_stream_refuses_the_batch_and_goes_on(server, authority):
    listen = ListenConfig(certificate=server.certificate, key=server.key)
    async with (
        door(listen, vehicles=VEHICLES | {"token_sha256": [HASH]}) as (one, client),
        channel(one.port, authority) as connection,
    ):
        coders = (wire.EmitRequest.SerializeToString, wire.EmitResponse.FromString)
        stream = connection.stream_stream(f"/{SERVICE}/Stream", *coders)
        sent = [request(number=1), request("meter-1", number=2), request(number=3)]
        call = stream(iter(sent), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=10)
        answers = {answer.sequence: answer async for answer in call}
        assert (answers[2].refusal.reason, answers[2].refusal.field) == ("sender", "source")
        assert answers[1].receipt.count == answers[3].receipt.count == 1
        assert len(client.batches) == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(iter(()), timeout=10).read()
        assert caught.value.code() == UNKNOWN


async def test_a_client_certificate_is_the_device(server, authority, tmp_path):
    listen = ListenConfig(certificate=server.certificate, key=server.key, client_ca=authority.file)
    one = VEHICLES | {"certificates": ["vehicle-*", "urn:*"], "sources": ["{certificate}"]}
    async with door(listen, one=one) as (opened, client):
        for common_name, dns in (("vehicle-7", ()), ("x", ("vehicle-7",)), ("y", ("urn:vehicle-7",))):
            mine = authority.sign(common_name, dns=dns)
            async with channel(opened.port, authority, mine) as connection:
                name = dns[0] if dns else common_name
                assert (await emit(connection, request(name))).receipt.count == 1
                assert (await refusal(emit(connection, request(f"{name}0"))))[0] == DENIED
        async with channel(opened.port, authority, authority.sign("meter-1")) as connection:
            assert (await refusal(emit(connection, request("meter-1"))))[0] == UNKNOWN
        strange = Authority(tmp_path, "strangers").sign("vehicle-7")
        for pair in (None, strange, authority.sign("vehicle-7", days=-1)):
            async with channel(opened.port, authority, pair) as connection:
                assert (await refusal(emit(connection, request("vehicle-7"))))[0] == (
                    grpc.StatusCode.UNAVAILABLE
                )
        assert len(client.batches) == 3


async def test_unfit_files_are_a_configuration_error(server, authority):
    other = authority.sign("other")
    with pytest.raises(ConfigError, match="tls"):
        await GrpcIngest(Taking(), 0, ListenConfig(certificate=server.certificate, key=other.key)).start()


async def test_connections_that_do_not_speak_give_their_places_back(monkeypatch):
    """A client that comes while silent ones hold every place gets one within their handshake's time."""
    monkeypatch.setattr(grpc_ingest, "HANDSHAKE_S", 0.5)
    async with door(ListenConfig(connections_max=20)) as (one, _):
        held = [await asyncio.open_connection("127.0.0.1", one.port) for _ in range(200)]
        ends = [asyncio.ensure_future(reader.read()) for reader, _ in held]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{one.port}") as connection, asyncio.timeout(15):
            while True:
                try:
                    assert (await emit(connection, request())).receipt.count == 1
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() == grpc.StatusCode.UNAVAILABLE  # noqa: PT017 (until it is let in)
                await asyncio.sleep(0.1)
        await asyncio.wait_for(asyncio.gather(*ends, return_exceptions=True), 15)  # all were let go
        for _, writer in held:
            writer.close()
