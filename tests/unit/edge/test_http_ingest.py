"""The HTTP door: 202 only after the commit, refusals without values, bounds on everything."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

import connectors.http_ingest as http_ingest
from connectors.agent_client import AgentClient
from connectors.cloudevents import BATCH, STRUCTURED
from connectors.http_ingest import HttpIngest
from pipeline.config import Config
from pipeline.edge import EdgeClient
from pipeline.errors import ConfigError, RecordError, TransientError
from pipeline.metrics import EdgeMetrics
from tests.edge_world import EVENT, JURISDICTIONS, decoded, open_spool, schemas, split, stored, vehicles

SECRET = "value-that-must-not-be-told"


def cloud_event(row, **changes):
    fields, given = split(row)
    return {
        "specversion": "1.0", "id": "1", "type": EVENT, "source": given["source"],
        "time": "2026-01-01T00:00:00Z", "jurisdiction": given["jurisdiction"], "data": fields,
    } | changes  # fmt: skip


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return EdgeMetrics(registry)


@pytest.fixture
def spool(tmp_path, metrics):
    with open_spool(tmp_path / "spool.sqlite", metrics) as opened:
        yield opened


@pytest.fixture
async def door(spool, registry, metrics):
    client = EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get, metrics)
    server = HttpIngest(client, registry)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def post(door):
    async with aiohttp.ClientSession(f"http://127.0.0.1:{door.port}") as session:

        async def send(body, content_type=STRUCTURED, **headers):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            named = {"Content-Type": content_type} | {k.replace("_", "-"): v for k, v in headers.items()}
            async with session.post("/v1/events", data=data, headers=named) as response:
                return response.status, await response.json(), response.headers

        send.session = session
        yield send


async def test_one_event_is_durable_when_the_answer_comes(post, spool):
    (row,) = vehicles(1)
    status, answer, _ = await post(cloud_event(row))
    assert (status, answer) == (202, {"spool": spool.spool, "lane": 1, "first_sequence": 1, "count": 1})
    (block,) = stored(spool)
    (event,) = decoded(block.values).to_pylist()
    assert (event["source"], event["vin"], event["sequence"]) == (row["source"], row["vin"], 1)


async def test_binary_mode(post, spool):
    (row,) = vehicles(1)
    event = cloud_event(row)
    headers = {f"ce_{name}": value for name, value in event.items() if name != "data"}
    status, answer, _ = await post(event["data"], "application/json", **headers)
    assert (status, answer["count"]) == (202, 1)


@pytest.mark.parametrize("count", [1, 3, 500])  # the largest is checked in a thread
async def test_a_batch_is_taken_whole(post, spool, count):
    status, answer, _ = await post([cloud_event(row) for row in vehicles(count)], BATCH)
    assert (status, answer["first_sequence"], answer["count"]) == (202, 1, count)
    assert spool.ledger()[0].accepted == count


async def test_an_empty_batch_is_nothing(post, spool):
    status, answer, _ = await post([], BATCH)
    assert (status, answer["count"]) == (202, 0)


async def test_a_batch_with_a_bad_event_is_refused_whole(post, spool):
    events = [cloud_event(row) for row in vehicles(10)]
    events[4]["data"]["speed_m_s"] = -5.0
    status, answer, _ = await post(events, BATCH)
    assert (status, answer["field"], answer["reason"]) == (400, "speed_m_s", "range")
    assert "row 4" in answer["message"]
    assert spool.ledger() == []


async def test_a_batch_of_several_types_is_refused(post):
    rows = vehicles(2)
    status, answer, _ = await post([cloud_event(rows[0]), cloud_event(rows[1], type="meter_reading")], BATCH)
    assert (status, answer["field"], answer["reason"]) == (400, "type", "mixed")


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"type": SECRET}, 400, "unknown_schema"),
        ({"jurisdiction": SECRET}, 400, "jurisdiction_unknown"),
        ({"jurisdiction": None}, 400, "jurisdiction_missing"),
        ({"time": SECRET}, 400, "type"),
        ({"time": "1815-01-01T00:00:00Z"}, 400, "time_ancient"),
        ({"data": {SECRET: SECRET}}, 400, "field_missing"),
        ({"data": {"vin": [SECRET]}}, 400, "type"),
        ({"data": {"vin": "v", "fault_code": SECRET * 4000}}, 413, "oversize"),
    ],
)
async def test_refusals_say_why_and_never_what(post, spool, changes, status, reason):
    (row,) = vehicles(1)
    got, answer, _ = await post(cloud_event(row, **changes))
    assert (got, answer["reason"]) == (status, reason)
    assert set(answer) == {"field", "reason", "message"}
    assert SECRET not in json.dumps(answer)
    assert spool.ledger() == []


async def test_content_types_and_paths(post):
    assert (await post({}, "text/plain"))[0] == 415
    assert (await post({}, "application/json"))[0] == 415
    assert (await post(b"{", STRUCTURED))[0] == 400
    async with post.session.get("/v1/events") as response:
        assert response.status == 405
    async with post.session.get("/else") as response:
        assert response.status == 404


async def test_a_body_that_is_too_large_is_refused_announced_or_not(post, monkeypatch):
    async def pieces():
        for _ in range(5000):
            yield b" " * 1024

    headers = {"Content-Type": STRUCTURED}
    for data in (b" " * (http_ingest.BODY_BYTES_MAX + 1), pieces()):
        async with post.session.post("/v1/events", data=data, headers=headers) as response:
            assert response.status == 413
            assert (await response.json())["reason"] == "oversize"


async def test_a_body_that_does_not_come_is_not_waited_for(door, monkeypatch):
    monkeypatch.setattr(http_ingest, "BODY_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    lines = ["POST /v1/events HTTP/1.1", "Host: localhost", f"Content-Type: {STRUCTURED}"]
    writer.write("\r\n".join([*lines, "Content-Length: 9", "", "{"]).encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    assert b"408" in answer
    writer.close()


async def test_another_host_name_does_not_open_the_door(post):
    (row,) = vehicles(1)
    assert (await post(cloud_event(row), Host="evil.example"))[0] == 403
    assert (await post(cloud_event(row), Host="localhost:80"))[0] == 202


class Held:
    """A client whose answers come when the test says so."""

    def __init__(self):
        self.future, self.full = Future(), False
        self.reached = asyncio.Event()

    def submit(self, *_, **__):
        if self.full:
            raise TransientError("too many wait")
        self.reached.set()
        return self.future

    submit_many = submit


@pytest.fixture
async def held():
    client = Held()
    server = HttpIngest(client, CollectorRegistry())
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        body = json.dumps(cloud_event(vehicles(1)[0]))

        def post():
            return session.post("/v1/events", data=body, headers={"Content-Type": STRUCTURED})

        yield client, post, server
    await server.stop()


async def test_no_answer_before_the_commit(held):
    client, post, _ = held
    task = asyncio.ensure_future(post())
    await asyncio.wait_for(client.reached.wait(), 10)
    assert not task.done()
    client.future.set_exception(TransientError("disk"))
    async with await task as response:
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"


async def test_a_full_queue_is_429_with_a_time_to_come_back(held):
    client, post, _ = held
    client.full = True
    async with post() as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1


async def test_requests_under_way_are_bounded(held, monkeypatch):
    client, post, _ = held
    monkeypatch.setattr(http_ingest, "REQUESTS_MAX", 1)
    task = asyncio.ensure_future(post())
    await asyncio.wait_for(client.reached.wait(), 10)
    async with post() as response:
        assert response.status == 429
    client.future.set_exception(RecordError("bad", reason="range"))
    async with await task as response:
        assert response.status == 400


async def test_stopping_answers_what_is_under_way(held):
    client, post, server = held
    task = asyncio.ensure_future(post())
    await asyncio.wait_for(client.reached.wait(), 10)
    stopping = asyncio.ensure_future(server.stop())
    await asyncio.sleep(0)
    client.future.set_exception(RecordError("bad", reason="range"))
    async with await task as response:
        assert response.status == 400
    await stopping


async def test_metrics_and_health(post, spool):
    await post(cloud_event(vehicles(1)[0]))
    await post(cloud_event(vehicles(1)[0], type=SECRET))
    counted, text = 'pipeline_edge_accepted_events_total{event="vehicle_telemetry",region="eu"} 1.0', ""
    async with asyncio.timeout(10):
        while counted not in text:  # the answer comes before the counters
            async with post.session.get("/metrics") as response:
                text = await response.text()
    assert 'reason="unknown_schema"' in text
    assert SECRET not in text
    async with post.session.get("/healthz") as response:
        assert (response.status, await response.json()) == (
            200, {"status": "ok", "open_to": "everybody on this machine"}
        )  # fmt: skip


async def test_a_taken_port_is_a_configuration_error(door, registry):
    with pytest.raises(ConfigError, match="cannot listen"):
        await HttpIngest(Held(), registry, door.port).start()


async def test_the_agents_client_gets_receipts_and_reasons(door, spool):
    rows = vehicles(2500)

    def use():
        with AgentClient(f"http://127.0.0.1:{door.port}") as agent:
            fields, given = split(rows[0])
            first = agent.emit(EVENT, fields, **given)
            receipts = agent.emit_many(EVENT, rows)
            with pytest.raises(RecordError) as caught:
                agent.emit(EVENT, fields | {"speed_m_s": -1.0}, **given)
            with pytest.raises(RecordError, match="JSON form"):
                agent.emit(EVENT, fields | {"speed_m_s": float("nan")}, **given)
            return first, receipts, caught.value

    first, receipts, error = await asyncio.to_thread(use)
    assert (first.first_sequence, first.count) == (1, 1)
    assert [(r.first_sequence, r.count) for r in receipts] == [(2, 1000), (1002, 1000), (2002, 500)]
    assert (error.reason, error.field) == ("range", "speed_m_s")
    times = [t for block in stored(spool) for t in decoded(block.values).column("event_time").to_pylist()]
    assert len(times) == 2501


async def test_the_agents_client_waits_for_a_busy_agent_and_gives_up_on_an_absent_one(held):
    client, _, server = held
    client.full = True

    def use(patience_s):
        fields, given = split(vehicles(1)[0])
        with AgentClient(f"http://127.0.0.1:{server.port}", patience_s) as agent:
            return agent.emit(EVENT, fields, **given)

    with pytest.raises(TransientError, match="too many wait"):
        await asyncio.to_thread(use, 0.3)
    port = server.port
    await server.stop()
    with pytest.raises(TransientError, match="cannot connect"):
        await asyncio.to_thread(use, 0.3)
    assert port
