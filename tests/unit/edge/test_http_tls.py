"""The HTTP door with TLS: without certificate or token nobody gets in, with one no further than theirs."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import warnings
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from connectors.agent_client import Access, AgentClient
from connectors.cloudevents import BATCH
from connectors.http_ingest import HttpIngest
from pipeline.config import Config
from pipeline.edge import EdgeClient
from pipeline.edge.senders import Senders, new_token
from pipeline.errors import ConfigError, RecordError, TransientError
from pipeline.listen_config import ListenConfig, SenderClass
from pipeline.metrics import EdgeMetrics
from tests.certificates import Authority
from tests.edge_world import EVENT, JURISDICTIONS, open_spool, schemas, split, stored, vehicles

TOKEN, HASH = new_token()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"), "strangers")


@pytest.fixture(scope="module")
def server(authority):
    return authority.sign("agent", dns=["localhost"])


@pytest.fixture
def spool(tmp_path):
    with open_spool(tmp_path / "spool.sqlite") as opened:
        yield opened


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def door(spool, registry):
    @asynccontextmanager
    async def opened(listen, **classes):
        metrics = EdgeMetrics(registry if classes else CollectorRegistry())
        made = {name: SenderClass.model_validate(one) for name, one in classes.items()}
        client = EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get, metrics)
        server = HttpIngest(client, registry, 0, listen, Senders(made, metrics.refused_sender))
        await server.start()
        yield server
        await server.stop()

    return opened


def listening(server, **more) -> ListenConfig:
    return ListenConfig(certificate=server.certificate, key=server.key, **more)


VEHICLES = {"sources": ["vehicle-*"], "events": [EVENT]}


async def emit(port: int, access: Access, row=None, host: str = "localhost"):
    def use():
        fields, given = split(row or vehicles(1)[0])
        with AgentClient(f"https://{host}:{port}", 5, access) as agent:
            return agent.emit(EVENT, fields, **given)

    return await asyncio.to_thread(use)


def refusals(registry, reason: str) -> float:
    return registry.get_sample_value("pipeline_edge_refused_senders_total", {"reason": reason}) or 0.0


async def test_a_token_over_tls(door, server, authority, registry, spool):
    async with door(listening(server), vehicles=VEHICLES | {"token_sha256": [HASH]}) as open_door:
        access = Access(TOKEN, authority.file)
        assert (await emit(open_door.port, access)).count == 1
        for refused, field in ((Access(None, authority.file), "credentials"),
                               (Access(TOKEN + "x", authority.file), "credentials")):  # fmt: skip
            with pytest.raises(RecordError) as caught:
                await emit(open_door.port, refused)
            assert (caught.value.reason, caught.value.field) == ("sender", field)
        foreign = vehicles(1)[0] | {"source": "meter-1"}
        with pytest.raises(RecordError) as caught:
            await emit(open_door.port, access, foreign)
        assert (caught.value.reason, caught.value.field) == ("sender", "source")
    assert (refusals(registry, "credentials"), refusals(registry, "source")) == (2, 1)
    page = generate_latest(registry).decode()
    assert TOKEN not in page
    assert "meter-1" not in page
    assert sum(len(block.values) for block in stored(spool)) == 1


async def test_the_answers_of_the_protocol(door, server, authority):
    context = ssl.create_default_context(cafile=authority.file)
    async with door(listening(server), vehicles=VEHICLES | {"token_sha256": [HASH]}) as open_door:
        url = f"https://localhost:{open_door.port}/v1/events"
        event = {"specversion": "1.0", "id": "1", "type": "meter_reading", "source": "vehicle-1",
                 "time": "2026-01-01T00:00:00Z", "jurisdiction": "DE", "data": {}}  # fmt: skip
        async with aiohttp.ClientSession() as session:
            headers = {"Content-Type": BATCH}
            body = json.dumps([event])
            async with session.post(url, data=body, headers=headers, ssl=context) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert (await answer.json())["reason"] == "sender"
            headers["Authorization"] = f"Bearer {TOKEN}"
            async with session.post(url, data=body, headers=headers, ssl=context) as answer:
                assert (answer.status, (await answer.json())["field"]) == (403, "event")
            async with session.get(url.replace("v1/events", "healthz"), ssl=context) as answer:
                assert (await answer.json())["open_to"] == "the configured senders"
            plain = url.replace("https", "http")
            with pytest.raises(aiohttp.ClientError):
                await session.post(plain, data=body, headers=headers)


async def test_a_client_certificate_is_the_device(door, server, authority, strangers, registry):
    one = VEHICLES | {"certificates": ["vehicle-*"], "sources": ["{certificate}"]}
    (row,) = vehicles(1)
    mine = authority.sign(row["source"])
    async with door(listening(server, client_ca=authority.file), one=one) as open_door:
        assert (await emit(open_door.port, _with(authority, mine), row)).count == 1
        with pytest.raises(RecordError) as caught:
            await emit(open_door.port, _with(authority, mine), row | {"source": "vehicle-999"})
        assert caught.value.field == "source"
        with pytest.raises(RecordError) as caught:  # a valid certificate of no class
            await emit(open_door.port, _with(authority, authority.sign("meter-1")), row)
        assert caught.value.field == "credentials"
        unfit = (None, strangers.sign(row["source"]), authority.sign(row["source"], days=-1))
        for pair in unfit:  # TLS 1.3: the client learns it with its first answer
            with pytest.raises((ConfigError, TransientError)):
                await emit(open_door.port, _with(authority, pair), row)
    assert refusals(registry, "source") == refusals(registry, "credentials") == 1


def _with(authority, pair) -> Access:
    if pair is None:
        return Access(None, authority.file)
    return Access(None, authority.file, pair.certificate, pair.key)


async def test_dns_names_go_before_the_common_name(door, server, authority):
    """An authority that checks DNS names alone must be enough: the common name beside them says nothing."""
    one = VEHICLES | {"certificates": ["admin"]}
    both = authority.sign("admin", dns=["nobody.example"])
    async with door(listening(server, client_ca=authority.file), one=one) as open_door:
        with pytest.raises(RecordError) as caught:
            await emit(open_door.port, _with(authority, both))
        assert caught.value.field == "credentials"


async def test_the_client_does_not_talk_to_a_stranger(door, server, strangers):
    async with door(listening(server), one=VEHICLES | {"token_sha256": [HASH]}) as open_door:
        with pytest.raises(ConfigError, match="no TLS"):
            await emit(open_door.port, Access(TOKEN, strangers.file))
    with pytest.raises(ConfigError, match="https only"):
        AgentClient("http://edge.example:80", access=Access(TOKEN))


async def test_beyond_this_machine_metrics_are_for_those_who_are_known(door, server, authority):
    listen = listening(server, host="0.0.0.0")
    context = ssl.create_default_context(cafile=authority.file)
    async with door(listen, monitor={"token_sha256": [HASH]}) as open_door:
        url = f"https://localhost:{open_door.port}/metrics"
        async with aiohttp.ClientSession() as session:
            async with session.get(url, ssl=context) as answer:
                assert answer.status == 401
            named = {"Authorization": f"Bearer {TOKEN}"}
            async with session.get(url, ssl=context, headers=named) as answer:
                assert answer.status == 200


async def test_old_tls_is_refused(door, server, authority):
    context = ssl.create_default_context(cafile=authority.file)
    with warnings.catch_warnings(category=DeprecationWarning):
        warnings.simplefilter("ignore")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with door(listening(server)) as open_door:
        with pytest.raises(OSError):  # noqa: PT011 (which one is OpenSSL's business)
            await asyncio.open_connection("localhost", open_door.port, ssl=context)


async def test_unfit_files_are_configuration_errors(door, server, authority, tmp_path):
    other = authority.sign("other")
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    known = tmp_path / "open.key"
    known.write_bytes(server.key.read_bytes())
    known.chmod(0o644)
    for listen in (
        ListenConfig(certificate=server.certificate, key=other.key),
        ListenConfig(certificate=bad, key=server.key),
        ListenConfig(certificate=server.certificate, key=tmp_path / "none"),
        ListenConfig(certificate=server.certificate, key=known),
        listening(server, client_ca=bad),
    ):
        with pytest.raises(ConfigError, match="tls"):
            async with door(listen):
                raise AssertionError("it listens")


async def test_a_handshake_that_does_not_end_gives_its_place_back(door, server, authority, monkeypatch):
    monkeypatch.setattr("connectors.doorway.HANDSHAKE_S", 0.3)
    listen = listening(server, connections_max=3)
    async with door(listen, one=VEHICLES | {"token_sha256": [HASH]}) as open_door:
        silent = [socket.create_connection(("127.0.0.1", open_door.port)) for _ in range(9)]
        receipt = await emit(open_door.port, Access(TOKEN, authority.file))  # waits its turn behind them
        assert receipt.count == 1
        for one in silent:
            one.close()
