"""One connection to an MQTT 5 broker: messages in, acknowledged when we say so.

Comes in: configuration. Goes out: :class:`Message` from :attr:`Link.inbox`; :meth:`Link.settle` in the order
of receipt (MQTT 5, 4.6). Invariant: at most ``receive_max`` messages are in hand, of either quality of
service. The broker is told so (Receive Maximum), and the socket is not read beyond it, because brokers send
more: mosquitto 2.0.11 keeps to it only until the first acknowledgement. No Maximum Packet Size is asked for:
the same broker counts what it then withholds as in flight, and after a few large messages sends nothing more.
This is the only file that touches the inside of aiomqtt: that acknowledges before anyone has seen a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
from aiomqtt.client import ProtocolVersion
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.mqtt_messages import Message
from pipeline.errors import ConfigError, TransientError
from pipeline.mqtt_config import MqttConfig

PACKETS_AT_ONCE = 16
CONNECT_S = 10.0
_RETAINED_IF_NEW = 1  # retained messages come once, not at every reconnection


class _Client(aiomqtt.Client):
    """aiomqtt, with acknowledgement by hand, without its own queue, and with a socket that can rest."""

    def __init__(self, take: Callable[[MQTTMessage], None], host: str, **settings: Any) -> None:
        super().__init__(host, **settings)
        self._take = take
        self._resting = False
        self._got = 0
        self._client.manual_ack_set(True)

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done once the connection is gone."""
        return self._disconnected

    def acknowledge(self, mid: int) -> None:
        """PUBACK; without effect on a connection that is gone."""
        self._client.ack(mid, 1)

    def rest(self) -> None:
        """Read no more: what the broker sends waits with it."""
        held = self._client.socket()
        if held is not None and not self._resting:
            self._resting = True
            self._loop.remove_reader(held.fileno())

    def wake(self) -> None:
        """Read on."""
        held = self._client.socket()
        if held is not None and self._resting:
            self._resting = False
            self._loop.add_reader(held.fileno(), self._read)
            self._loop.call_soon(self._read)  # TLS may have decrypted what the socket no longer shows

    def abandon(self) -> None:
        """Let go of a socket that a failed attempt left with the event loop."""
        held = self._client.socket()
        if self._misc_task is not None:
            self._misc_task.cancel()
        if held is None:
            return
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(held.fileno())
            self._loop.remove_writer(held.fileno())
        held.close()

    def _on_message(self, _client: Any, _userdata: Any, message: MQTTMessage) -> None:
        self._got += 1
        self._take(message)

    def _on_socket_open(self, client: Any, userdata: Any, held: Any) -> None:
        super()._on_socket_open(client, userdata, held)
        self._loop.call_soon_threadsafe(
            self._loop.add_reader, held.fileno(), self._read
        )  # instead of its own

    def _read(self) -> None:
        """Read packets while there are any, a few at a time: others want the loop too."""
        try:
            for _ in range(PACKETS_AT_ONCE):
                held, before = self._client.socket(), self._got
                if self._resting or held is None:
                    return
                self._client.loop_read()
                if self._got == before and not (isinstance(held, ssl.SSLSocket) and held.pending()):
                    return
            if isinstance(held, ssl.SSLSocket):
                self._loop.call_soon(self._read)
        except Exception as error:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    async def _misc_loop(self) -> None:
        """Pings. Their answers are not read while the socket rests: that is no sign of a dead broker."""
        while self._client.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            if self._resting:
                self._client._ping_t = 0.0
            await asyncio.sleep(1)


class Link:
    """A connection; made by :func:`connected`."""

    def __init__(self, config: MqttConfig) -> None:
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.held = 0  # messages in hand
        self._config = config
        self._client = _Client(self._take, config.host, **settings(config))
        self._rejects: aiomqtt.Client | None = None

    def _take(self, message: MQTTMessage) -> None:
        self.held += 1
        if self.held >= self._config.receive_max:
            self._client.rest()
        self.inbox.put_nowait(_as_message(message, self._config.message_bytes_max))

    def settle(self, message: Message) -> None:
        """The message is durable, or refused for good: the broker may forget it."""
        if message.qos:
            self._client.acknowledge(message.mid)
        self.held -= 1
        self._client.wake()

    async def subscribe(self) -> None:
        """Subscribe to every route's topics with QoS 1, and wait until the broker says so; meanwhile messages
        of the session come, and have to be taken. TransientError when it refuses, or the connection breaks.
        """
        options = SubscribeOptions(qos=1, retainHandling=_RETAINED_IF_NEW)
        filters = [route.filter for route in self._config.routes]
        try:
            codes = await self._client.subscribe([(one, options) for one in filters], timeout=math.inf)
        except aiomqtt.MqttError as error:
            raise TransientError("the connection broke", operation="mqtt subscribe") from error
        refused = [
            one
            for one, code in zip(filters, codes, strict=False)
            if isinstance(code, ReasonCode) and code.is_failure
        ]
        if refused:
            problem = f"the broker refuses {', '.join(refused)}"
            raise TransientError(problem, operation="mqtt subscribe", remedy="look at its access list")

    async def command(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 0. TransientError when the connection breaks."""
        await self._publish(self._client, topic, payload, 0, None)

    async def reject(self, message: Message, reason: str) -> None:
        """Publish a refused message, as it came, to ``rejects_topic``, and wait until the broker has it.

        Over a connection of its own: on this one the broker's answer may stand behind messages that are not
        read. TransientError when that breaks.
        """
        if self._rejects is None:
            raise TransientError("no rejects_topic", operation="mqtt reject")
        properties = Properties(PacketTypes.PUBLISH)
        told = [("rejected-reason", reason), ("rejected-topic", message.topic)]
        properties.UserProperty = [*message.properties, *told]
        if message.content_type:
            properties.ContentType = message.content_type
        await self._publish(self._rejects, self._config.rejects_topic, message.payload, 1, properties)

    async def _publish(
        self, client: aiomqtt.Client, topic: str, payload: bytes, qos: int, properties: Properties | None
    ) -> None:
        try:
            await client.publish(topic, payload, qos=qos, properties=properties)
        except aiomqtt.MqttError as error:
            raise TransientError("the connection broke", operation="mqtt publish") from error

    async def gone(self) -> None:
        """Wait until the connection is gone; raises TransientError then."""
        try:
            await asyncio.shield(self._client.lost)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            problem = f"the connection broke: {type(error).__name__}"
            raise TransientError(problem, operation="mqtt") from error
        raise TransientError("the connection was closed", operation="mqtt")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected inside."""
        try:
            async with AsyncExitStack() as stack:
                if self._config.rejects_topic:
                    others = settings(self._config) | {
                        "identifier": f"{self._config.client_id}-rejects",
                        "clean_start": True,
                        "properties": None,
                    }
                    self._rejects = aiomqtt.Client(self._config.host, **others)
                    await stack.enter_async_context(self._rejects)
                await stack.enter_async_context(self._client)
                yield
        finally:
            self._client.abandon()


@asynccontextmanager
async def connected(config: MqttConfig) -> AsyncIterator[Link]:
    """Connect to the session: what it kept comes at once.

    Raises TransientError (no broker, refused, lost), ConfigError (files of TLS or password). At the end the
    session stays at the broker until ``session_expiry_s`` have passed.
    """
    link = Link(config)
    try:
        async with link.opened():
            yield link
    except aiomqtt.MqttError as error:
        place = f"{config.host}:{config.port}"
        raise TransientError(f"no session: {error}", operation="mqtt", place=place) from error


def settings(config: MqttConfig) -> dict[str, Any]:
    """What the client is made with. ConfigError when a file of TLS or the password cannot be read."""
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = config.session_expiry_s
    properties.ReceiveMaximum = config.receive_max
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


def _as_message(message: MQTTMessage, bytes_max: int) -> Message:
    """Our own form. A topic that is not UTF-8 becomes an empty one, which no route takes; of a payload that
    is too large only the fact is kept.
    """
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    properties = message.properties
    oversize = len(message.payload) > bytes_max
    return Message(
        topic, b"" if oversize else bytes(message.payload), message.qos, message.mid, bool(message.dup),
        bool(message.retain), oversize, getattr(properties, "ContentType", ""),
        tuple(map(tuple, getattr(properties, "UserProperty", ()))),
    )  # fmt: skip
