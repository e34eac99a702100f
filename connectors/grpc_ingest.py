"""The edge agent's gRPC door: batches in, acknowledgements by number out.

Comes in: ``schemas/ingest.proto``, unary or as a stream. Goes out: an acknowledgement per batch after the
durable commit, or a refusal that names field and reason and holds no value. Beside it the standard health
service and reflection, so that ``grpcurl`` can talk to it without the file.
Who may not send is UNAUTHENTICATED or PERMISSION_DENIED; health and reflection ask nobody.
Invariants: connections, message size, calls and batches under way are bounded. A unary call that finds the
queue full is RESOURCE_EXHAUSTED; a stream waits and is not read on meanwhile, so HTTP/2's flow control holds
its sender back. After an acknowledgement the events are on disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from connectors.tls import key_pair, names_of_auth
from connectors.wire import ingest_pb2 as wire
from pipeline.edge import Receipt
from pipeline.edge.senders import CREDENTIALS, SENDER, Peer, Permission, Senders
from pipeline.errors import ConfigError, PipelineError, RecordError, TransientError
from pipeline.listen_config import ListenConfig

log = logging.getLogger(__name__)

SERVICE = "pipeline.ingest.v1.Ingest"
MESSAGE_BYTES_MAX = 4 << 20
CALLS_MAX = 256  # under way at once, streams included
STREAM_BATCHES_MAX = 16  # of one stream, read and not yet answered
COMMIT_S = 60.0
FULL_PAUSE_S = 0.005
STOP_S = 5.0
_EMPTY_PING_S = 10  # a client that pings more often is cut off
HANDSHAKE_S = 10.0  # TLS and the client's first HTTP/2 frames
IDLE_S = 300.0  # a connection without a call is closed
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", 1 << 16),
    ("grpc.max_concurrent_streams", CALLS_MAX),
    ("grpc.max_metadata_size", 8192),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", _EMPTY_PING_S * 1000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not half of the calls
]


class Emitter(Protocol):
    """What the door needs of an edge client."""

    def submit_many(
        self, event: str, rows: Sequence[Mapping[str, Any]], *, lane: str | None = None, wait_s: float = 0.0
    ) -> Future[Receipt]:
        """All or none."""
        ...


class GrpcIngest:
    """The server; ``port`` 0 takes a free one, known after :meth:`start`."""

    def __init__(
        self, client: Emitter, port: int = 0, listen: ListenConfig | None = None,
        senders: Senders | None = None,
    ) -> None:  # fmt: skip
        self._client, self.port = client, port
        self._listen, self._senders = listen or ListenConfig(), senders or Senders()
        self._server: grpc.aio.Server | None = None
        self._health = health.HealthServicer()

    async def start(self) -> None:
        """Listen. ConfigError when the port is taken or the TLS files are unfit."""
        credentials = _credentials(self._listen)
        options = [
            *_OPTIONS,
            ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
            ("grpc.max_connection_idle_ms", int(IDLE_S * 1000)),
            ("grpc.max_allowed_incoming_connections", self._listen.connections_max),
        ]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=CALLS_MAX)
        server.add_generic_rpc_handlers((self._handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        host = f"[{self._listen.host}]" if ":" in self._listen.host else self._listen.host
        place = f"{host}:{self.port}"
        try:
            if credentials is None:
                self.port = server.add_insecure_port(place)
            else:
                self.port = server.add_secure_port(place, credentials)
        except RuntimeError:
            raise ConfigError(
                "cannot listen", operation="grpc", place=place,
                remedy="choose another grpc_port, or 0",
            ) from None  # fmt: skip
        await server.start()
        self._server = server
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Take no more calls; those under way get their answers."""
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(STOP_S)
            self._server = None

    def _handlers(self) -> grpc.GenericRpcHandler:
        coders = {
            "request_deserializer": wire.EmitRequest.FromString,
            "response_serializer": wire.EmitResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Emit": grpc.unary_unary_rpc_method_handler(self._emit, **coders),
                "Stream": grpc.stream_stream_rpc_method_handler(self._stream, **coders),
            },
        )

    async def _emit(self, request: wire.EmitRequest, context: grpc.aio.ServicerContext) -> wire.EmitResponse:
        permission = await self._permission(context)
        answer = await self._fate(request, permission)
        if answer.HasField("receipt"):
            return answer
        refusal = answer.refusal
        await _abort(context, _STATUS.get(refusal.reason, grpc.StatusCode.INVALID_ARGUMENT), refusal)
        raise AssertionError("abort raises")

    async def _stream(
        self, requests: AsyncIterator[wire.EmitRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[wire.EmitResponse]:
        """Read on while there is room for another batch; answer each as its fate becomes known."""
        permission = await self._permission(context)
        under_way: set[asyncio.Task[Any]] = set()
        reading: asyncio.Task[Any] | None = asyncio.ensure_future(anext(requests, None))
        try:
            while reading is not None or under_way:
                full = len(under_way) >= STREAM_BATCHES_MAX
                waited = under_way if full or reading is None else under_way | {reading}
                done, _pending = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {reading}:
                    under_way.discard(task)
                    yield task.result()
                if reading in done:
                    assert reading is not None
                    request = reading.result()
                    reading = None
                    if request is not None:
                        under_way.add(asyncio.ensure_future(self._fate(request, permission, patient=True)))
                        reading = asyncio.ensure_future(anext(requests, None))
        finally:
            for task in (*under_way, *([reading] if reading else [])):
                task.cancel()

    async def _permission(self, context: grpc.aio.ServicerContext) -> Permission:
        """What the sender of a call may emit; one that is nobody we know is sent away."""
        metadata = dict(context.invocation_metadata() or ())
        authorization = metadata.get("authorization")
        shown = authorization if isinstance(authorization, str) else None
        peer = Peer.of(shown, names_of_auth(context.auth_context()))
        try:
            return self._senders.permission(peer)
        except RecordError as error:
            refusal = wire.Refusal(field=CREDENTIALS, reason=SENDER, message=str(error))
        await _abort(context, grpc.StatusCode.UNAUTHENTICATED, refusal)
        raise AssertionError("abort raises")

    async def _fate(
        self, request: wire.EmitRequest, permission: Permission, *, patient: bool = False
    ) -> wire.EmitResponse:
        """What became of a batch; ``patient``: wait for room in the queue. Raises only when cancelled."""
        try:
            permission.demand(
                request.event,
                (event.source for event in request.events),
                (event.jurisdiction for event in request.events),
            )
            future = await self._submit(request, time.monotonic() + (COMMIT_S if patient else 0.0))
        except RecordError as error:
            return _refused(request, error.reason, str(error), field=error.field)
        except ConfigError as error:
            return _refused(request, "lane", error.problem, field="lane")
        except TransientError as error:
            return _refused(request, "busy", error.problem, retry=True)
        try:
            async with asyncio.timeout(COMMIT_S):
                receipt = await asyncio.wrap_future(future)
        except RecordError as error:
            return _refused(request, error.reason, str(error), field=error.field)
        except TimeoutError:
            return _refused(request, "unknown_outcome", f"not durable within {COMMIT_S:g} s")
        except PipelineError as error:
            log.warning("grpc: %s", error)
            return _refused(request, "unavailable", error.problem)
        return wire.EmitResponse(
            sequence=request.sequence,
            receipt=wire.Receipt(
                spool=receipt.spool, lane=receipt.lane, first_sequence=receipt.first_sequence,
                count=receipt.count, filtered=receipt.filtered,
            ),
        )  # fmt: skip

    async def _submit(self, request: wire.EmitRequest, deadline: float) -> Future[Receipt]:
        """Hand the batch to the spool's queue; asks again while it is full, until the deadline."""
        rows = [_row(event) for event in request.events]
        while True:
            try:
                return self._client.submit_many(request.event, rows, lane=request.lane or None, wait_s=0.0)
            except TransientError:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(FULL_PAUSE_S)


async def _abort(context: grpc.aio.ServicerContext, code: grpc.StatusCode, refusal: wire.Refusal) -> None:
    context.set_trailing_metadata((("field", refusal.field), ("reason", refusal.reason)))
    await context.abort(code, refusal.message)


def _credentials(listen: ListenConfig) -> grpc.ServerCredentials | None:
    """None without TLS. Raises ConfigError."""
    pair = key_pair(listen)
    if pair is None:
        return None
    key, chain, authority = pair
    return grpc.ssl_server_credentials([(key, chain)], authority, require_client_auth=authority is not None)


_STATUS = {
    SENDER: grpc.StatusCode.PERMISSION_DENIED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unknown_outcome": grpc.StatusCode.UNAVAILABLE,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}


def _row(event: wire.Event) -> dict[str, Any]:
    """The event as a row; a field whose value is empty is null."""
    row: dict[str, Any] = {}
    for name, value in event.fields.items():
        kind = value.WhichOneof("kind")
        row[name] = getattr(value, kind) if kind else None
    row["source"], row["event_time"] = event.source, event.event_time_us
    row["jurisdiction"] = event.jurisdiction
    return row


def _refused(
    request: wire.EmitRequest, reason: object, message: str, *, field: str = "", retry: bool = False
) -> wire.EmitResponse:
    refusal = wire.Refusal(field=field or "", reason=str(reason), message=message, retry=retry)
    return wire.EmitResponse(sequence=request.sequence, refusal=refusal)
