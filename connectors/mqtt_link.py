"""One connection to an MQTT 5 broker: messages in, acknowledged when we say so.

Comes in: configuration. Goes out: :class:`Message` from :attr:`Link.inbox`; :meth:`Link.acknowledge` in the
order of receipt (MQTT 5, 4.6). Invariants: at most ``receive_max`` messages of QoS 1 are with us (the broker
keeps to Receive Maximum), and as many of QoS 0, which nobody resends: one too many is dropped and counted.
This is the only file that touches the inside of aiomqtt: it acknowledges before anyone has seen a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
from aiomqtt.client import ProtocolVersion
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.mqtt_messages import Message
from pipeline.errors import ConfigError, TransientError
from pipeline.mqtt_config import MqttConfig

PROPERTIES_BYTES_MAX = 65_536  # of a packet, beside its payload
CONNECT_S = 10.0
_RETAINED_IF_NEW = 1  # retained messages come once, not at every reconnection


class _Client(aiomqtt.Client):
    """aiomqtt, with acknowledgement by hand and without its own queue."""

    def __init__(self, take: Callable[[MQTTMessage], None], host: str, **settings: Any) -> None:
        super().__init__(host, **settings)
        self._take = take
        self._client.manual_ack_set(True)

    def _on_message(self, _client: Any, _userdata: Any, message: MQTTMessage) -> None:
        self._take(message)

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the connection is gone."""
        return self._disconnected

    def acknowledge(self, mid: int) -> None:
        """PUBACK; without effect on a connection that is gone."""
        self._client.ack(mid, 1)

    def abandon(self) -> None:
        """Let go of a socket that a failed attempt left with the event loop."""
        held = self._client.socket()
        if held is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(held.fileno())
            self._loop.remove_writer(held.fileno())
        if self._misc_task is not None:
            self._misc_task.cancel()
        held.close()


class Link:
    """A subscribed connection; made by :func:`connected`."""

    def __init__(self, config: MqttConfig, dropped: Callable[[], None]) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.unconfirmed = 0  # of QoS 0, in hand
        self._receive_max = config.receive_max
        self._dropped = dropped
        self._client = _Client(self._take, config.host, **_settings(config))

    def _take(self, message: MQTTMessage) -> None:
        if message.qos == 0:
            if self.unconfirmed >= self._receive_max:
                self._dropped()
                return
            self.unconfirmed += 1
        self.inbox.put_nowait(_as_message(message))

    def settle(self, message: Message) -> None:
        """The message is durable, or refused for good: the broker may forget it."""
        if message.qos:
            self._client.acknowledge(message.mid)
        else:
            self.unconfirmed -= 1

    async def publish(
        self, topic: str, payload: bytes, qos: int, about: Message | None = None, why: str = ""
    ) -> None:
        """Publish, with QoS 1 until the broker has it. ``about``: carry its attributes, and ``why`` beside
        them. TransientError when the connection breaks.
        """
        properties = Properties(PacketTypes.PUBLISH)
        if about is not None:
            properties.UserProperty = [
                *about.properties,
                ("rejected-reason", why),
                ("rejected-topic", about.topic),
            ]
            if about.content_type:
                properties.ContentType = about.content_type
        try:
            await self._client.publish(topic, payload, qos=qos, properties=properties)
        except aiomqtt.MqttError as error:
            raise TransientError("the connection broke", operation="mqtt publish") from error

    async def gone(self) -> None:
        """Wait until the connection is gone; raises TransientError then."""
        try:
            await asyncio.shield(self._client.lost)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise TransientError(f"the connection broke: {type(error).__name__}", operation="mqtt") from error
        raise TransientError("the connection was closed", operation="mqtt")


@asynccontextmanager
async def connected(config: MqttConfig, dropped: Callable[[], None]) -> AsyncIterator[Link]:
    """Connect to the session and subscribe to every route's topics with QoS 1.

    Raises TransientError (no broker, refused, lost), ConfigError (files of TLS or password). At the end the
    session stays at the broker until ``session_expiry_s`` have passed.
    """
    link = Link(config, dropped)
    client = link._client
    try:
        async with client:
            await _subscribe(client, config)
            yield link
    except aiomqtt.MqttError as error:
        raise TransientError(
            f"no session: {error}", operation="mqtt", place=f"{config.host}:{config.port}"
        ) from error
    finally:
        client.abandon()


async def _subscribe(client: _Client, config: MqttConfig) -> None:
    options = SubscribeOptions(qos=1, retainHandling=_RETAINED_IF_NEW)
    codes = await client.subscribe([(route.filter, options) for route in config.routes])
    refused = [
        route.filter
        for route, code in zip(config.routes, codes, strict=False)
        if isinstance(code, ReasonCode) and code.is_failure
    ]
    if refused:
        problem = f"the broker refuses {', '.join(refused)}"
        raise TransientError(problem, operation="mqtt subscribe", remedy="look at its access list")


def _settings(config: MqttConfig) -> dict[str, Any]:
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = config.session_expiry_s
    properties.ReceiveMaximum = config.receive_max
    properties.MaximumPacketSize = config.message_bytes_max + PROPERTIES_BYTES_MAX
    password = config.password.get_secret_value()
    if config.password_file:
        password = _read(config.password_file)
    return {
        "port": config.port,
        "identifier": config.client_id,
        "protocol": ProtocolVersion.V5,
        "clean_start": False,
        "properties": properties,
        "keepalive": config.keepalive_s,
        "username": config.username or None,
        "password": password or None,
        "timeout": CONNECT_S,
        "tls_context": _tls(config) if config.tls else None,
    }


def _tls(config: MqttConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        if config.tls_cert:
            context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:  # SSLError is one
        raise ConfigError(f"cannot use the TLS files: {error.strerror}", operation="mqtt") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read password_file", operation="mqtt", place=str(path)) from error


def _as_message(message: MQTTMessage) -> Message:
    """Our own form; a topic that is not UTF-8 becomes an empty one, which no route takes."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    properties = message.properties
    return Message(
        topic, bytes(message.payload), message.qos, message.mid, bool(message.dup), bool(message.retain),
        getattr(properties, "ContentType", ""), tuple(map(tuple, getattr(properties, "UserProperty", ()))),
    )  # fmt: skip
