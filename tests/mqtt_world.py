"""What the MQTT tests share: a device that publishes, routes, an edge client that does as it is told.

Run as a program it is a bridge that kills itself: ``python -m tests.mqtt_world PORT SPOOL WHERE COUNT``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from prometheus_client import CollectorRegistry

from connectors.mqtt_bridge import MqttBridge
from pipeline.config import Config
from pipeline.edge import EdgeClient, Receipt, Spool
from pipeline.errors import TransientError
from pipeline.metrics import MqttMetrics
from pipeline.mqtt_config import MqttConfig
from tests.edge_world import EVENT, JURISDICTIONS, decoded, open_spool, schemas, stored

ROUTE = {
    "filter": "vehicles/+/telemetry",
    "payload": "json",
    "event": EVENT,
    "source": {"topic_level": 1},
    "jurisdiction": {"value": "DE"},
    "event_time": {"field": "event_time", "scale": "us"},
}
CLOUD = {"filter": "cloud/#", "payload": "cloudevents-json"}
PUBLISH_S = 20.0


class Device:
    """Publishes, and remembers what is published to it."""

    def __init__(self, port: int, listens: str = "", **login: str) -> None:
        self.heard: list[paho.MQTTMessage] = []
        self._ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda _client, _data, message: self.heard.append(message)
        self._client.on_subscribe = lambda *_: self._ready.set()
        if login:
            self._client.username_pw_set(**login)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if listens:
            self._client.subscribe(listens, 1)
            assert self._ready.wait(10)

    def publish(
        self, topic: str, body: Any, qos: int = 1, content_type: str = "", **attributes: str
    ) -> paho.MQTTMessageInfo:  # fmt: skip
        """Send; anything but bytes as JSON; ``attributes`` are user properties."""
        properties = Properties(PacketTypes.PUBLISH)
        if content_type:
            properties.ContentType = content_type
        if attributes:
            properties.UserProperty = list(attributes.items())
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._client.publish(topic, payload, qos, False, properties)

    def vehicles(self, rows: list[dict[str, Any]], qos: int = 1) -> None:
        """Send rows on the topic of ROUTE, and wait until the broker has them."""
        sent = [self.publish(*as_message(row), qos=qos) for row in rows]
        for one in sent:
            one.wait_for_publish(PUBLISH_S)
            assert one.is_published()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def as_message(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Topic and object of a row."""
    given = ("source", "jurisdiction")
    return f"vehicles/{row['source']}/telemetry", {k: v for k, v in row.items() if k not in given}


def config(port: int, *routes: dict[str, Any], **changes: Any) -> MqttConfig:
    """Short waits."""
    given = {"port": port, "routes": routes or (ROUTE,), "backoff_min_s": 0.05, "backoff_max_s": 0.2}
    return MqttConfig.model_validate(given | changes)


class Bridge:
    """A bridge with its metrics, over a spool or whatever takes events."""

    def __init__(self, client: Any, configured: MqttConfig) -> None:
        self.registry = CollectorRegistry()
        emitter = client if not isinstance(client, Spool) else edge_client(client)
        self.bridge = MqttBridge(emitter, configured, MqttMetrics(self.registry), schemas().events)

    def count(self, name: str, **labels: str) -> int:
        """A metric's value."""
        return int(self.registry.get_sample_value(f"pipeline_{name}", labels) or 0)

    def rejected(self, reason: str, route: str = str(ROUTE["filter"])) -> int:
        """Messages refused for this reason."""
        return self.count("mqtt_rejected_messages_total", route=route, reason=reason)

    def taken(self, route: str = str(ROUTE["filter"])) -> int:
        """Messages that are durable."""
        return self.count("mqtt_taken_messages_total", route=route)

    async def __aenter__(self) -> Bridge:
        await self.bridge.start()
        await asyncio.wait_for(self.bridge.subscribed.wait(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bridge.stop()


def edge_client(spool: Spool) -> EdgeClient:
    """The edge client of the tests' regions."""
    return EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get)


def stored_rows(spool: Spool) -> list[dict[str, Any]]:
    """All events of the region eu that wait."""
    rows = [row for block in stored(spool) for row in decoded(block.values).to_pylist()]
    return sorted(rows, key=lambda row: row["sequence"])


class Held:
    """A client whose commits end when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[Receipt]] = []
        self.full = False

    def submit(self, *_: Any, **__: Any) -> Future[Receipt]:
        """One more that waits."""
        if self.full:
            raise TransientError("too many wait")
        self.futures.append(Future())
        return self.futures[-1]

    submit_many = submit

    def waiting(self) -> list[Future[Receipt]]:
        """Those without an end."""
        return [future for future in self.futures if not future.done()]


class Mortal:
    """An edge client that ends its process without notice, at the ``count``th event."""

    def __init__(self, client: EdgeClient, where: str, count: int) -> None:
        self._client, self._where, self._left = client, where, count

    def submit(self, *given: Any, **named: Any) -> Future[Receipt]:
        """As the client; SIGKILL after the hand-over, or after the commit."""
        future = self._client.submit(*given, **named)
        self._left -= 1
        if self._left == 0:
            if self._where == "submitted":
                _die()
            future.add_done_callback(lambda _: _die())
        return future


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _run_until_killed(port: int, spool: Path, where: str, count: int) -> None:
    with open_spool(spool) as opened:
        mortal = Mortal(edge_client(opened), where, count)
        async with Bridge(mortal, config(port)):
            await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(_run_until_killed(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
