"""The HTTP door's bounds on connections: many, silent, slow, with endless headers."""

from __future__ import annotations

import asyncio
import os

import pytest
from prometheus_client import CollectorRegistry

import connectors.doorway as doorway
import connectors.http_ingest as http_ingest
from connectors.http_ingest import HttpIngest
from pipeline.config import Config
from pipeline.edge import EdgeClient
from pipeline.listen_config import ListenConfig
from tests.edge_world import JURISDICTIONS, open_spool, schemas

MAX = 40
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
async def door(tmp_path, monkeypatch):
    monkeypatch.setattr(http_ingest, "KEEPALIVE_S", 0.5)
    with open_spool(tmp_path / "spool.sqlite") as spool:
        client = EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get)
        server = HttpIngest(client, CollectorRegistry(), 0, ListenConfig(connections_max=MAX))
        await server.start()
        yield server
        await server.stop()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_hundreds_of_half_open_connections_hold_no_more_than_the_bound(door, monkeypatch):
    """Silent ones, and ones that send a header a byte at a time, hold MAX places for KEEPALIVE_S at most."""
    monkeypatch.setattr(doorway, "BACKLOG", 400)  # so that all of them find a place to wait
    await door.stop()
    await door.start()
    most, held = 0, []
    for number in range(300):
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", door.port), 10)
        held.append(writer)
        if number % 2:
            writer.write(GET)  # and never the empty line
        if number % 3 == 0:
            writer.transport.abort()
        most = max(most, len(door._runner.server.connections))
    begun = asyncio.get_running_loop().time()
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(GET + b"\r\n")
    assert b"200" in await asyncio.wait_for(reader.readline(), 20)  # it waits its turn
    most = max(most, len(door._runner.server.connections))
    assert MAX // 2 < most <= MAX
    assert asyncio.get_running_loop().time() - begun > http_ingest.KEEPALIVE_S  # it had to wait
    for writer in held:
        writer.close()


async def test_more_than_the_bound_wait_in_the_kernel(door, monkeypatch):
    monkeypatch.setattr(doorway, "FULL_POLL_S", 0.01)
    before = descriptors()
    held = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(MAX * 2)]
    async with asyncio.timeout(10):
        while len(door._runner.server.connections) < MAX:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.01)
    assert descriptors() - before <= MAX * 3  # both ends of MAX, one end of the others
    for _, writer in held:
        writer.close()


async def test_a_header_that_trickles_is_cut_off(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    writer.write(GET + b"X: ")
    reading = asyncio.ensure_future(reader.read())
    async with asyncio.timeout(10):
        while not reading.done():
            writer.write(b"a")
            await asyncio.wait([reading], timeout=0.05)
    assert loop.time() - begun > 0.4
    assert reading.exception() or reading.result() == b""


@pytest.mark.parametrize(
    "lines",
    [b"X: " + b"a" * 10_000 + b"\r\n", b"".join(b"X-%d: a\r\n" % n for n in range(200))],
    ids=["long", "many"],
)
async def test_headers_are_bounded(door, lines):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(GET + lines + b"\r\n")
    answer = await asyncio.wait_for(reader.readline(), 10)
    assert b" 400 " in answer
    writer.close()


async def test_a_connection_that_rests_is_closed(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(GET + b"\r\n")
    assert b"200" in await asyncio.wait_for(reader.readline(), 10)
    await asyncio.wait_for(reader.read(), 10)
    assert reader.at_eof()
    writer.close()
