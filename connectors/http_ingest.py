"""The edge agent's HTTP door: CloudEvents in, receipts out.

Comes in: ``POST /v1/events`` in binary, structured or batch mode (one event type per batch). Goes out: 202
with ``{spool, lane, first_sequence, count}`` after the durable commit. Everything else is an error as JSON
``{field, reason, message}``, without values: 400 bad event, 413 too large, 415 content type, 429 queue full
(with Retry-After), 503 disk; 401 unknown credentials, 403 not for this sender. ``GET /metrics`` and
``/healthz`` beside it.
Invariants: connections, headers, body, time and requests under way are bounded; after 202 the events are on
disk. A producer that gets no answer does not know the outcome: sending again can make the event twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from connectors.cloudevents import Incoming, Unsupported, is_batch, parse
from connectors.doorway import Doorway
from connectors.tls import names_of, server_context
from pipeline.edge import Receipt
from pipeline.edge.senders import CREDENTIALS, SENDER, Peer, Permission, Senders
from pipeline.errors import ConfigError, PipelineError, RecordError, TransientError
from pipeline.listen_config import ListenConfig
from pipeline.reasons import Reason

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 4 << 20
BODY_S = 10.0  # for the whole body to arrive
KEEPALIVE_S = 15.0  # for a request's whole header, from the connection or the last answer on
HEADER_BYTES_MAX = 8190  # of one field
HEADERS_MAX = 64
COMMIT_S = 60.0
STOP_S = 5.0
REQUESTS_MAX = 256  # under way at once; times BODY_BYTES_MAX bounds what bodies hold
RETRY_AFTER_S = 1
_THREAD_FROM_BYTES = 16_384  # checking a larger body would hold up the others
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Emitter(Protocol):
    """What the door needs of an edge client."""

    def submit(
        self, event: str, fields: Mapping[str, Any], *, source: str, event_time: int, jurisdiction: str,
        lane: str | None = None, wait_s: float = 0.0,
    ) -> Future[Receipt]:  # fmt: skip
        """One event."""
        ...

    def submit_many(
        self, event: str, rows: Sequence[Mapping[str, Any]], *, lane: str | None = None, wait_s: float = 0.0
    ) -> Future[Receipt]:
        """All or none."""
        ...


class HttpIngest:
    """The server; ``port`` 0 takes a free one, known after :meth:`start`."""

    def __init__(
        self, client: Emitter, registry: CollectorRegistry, port: int = 0,
        listen: ListenConfig | None = None, senders: Senders | None = None,
    ) -> None:  # fmt: skip
        self._client, self._registry, self.port = client, registry, port
        self._listen, self._senders = listen or ListenConfig(), senders or Senders()
        self._under_way = 0
        self._runner: web.AppRunner | None = None
        self._doorway: Doorway | None = None

    async def start(self) -> None:
        """Listen. ConfigError when the port is taken or the TLS files are unfit."""
        tls = server_context(self._listen)
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guarded])
        app.router.add_post("/v1/events", self._events)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=STOP_S, keepalive_timeout=KEEPALIVE_S,
            max_headers=HEADERS_MAX, max_line_size=HEADER_BYTES_MAX, max_field_size=HEADER_BYTES_MAX,
        )  # fmt: skip
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._doorway = Doorway(server, lambda: len(server.connections), self._listen.connections_max, tls)
        try:
            self.port = await self._doorway.start(self._listen.host, self.port)
        except OSError as error:
            await self.stop()
            raise ConfigError(
                f"cannot listen: {error.strerror}", operation="http",
                place=f"{self._listen.host}:{self.port}", remedy="choose another http_port, or 0",
            ) from error  # fmt: skip

    async def stop(self) -> None:
        """Take no more requests; those under way get their answers."""
        if self._doorway is not None:
            await self._doorway.stop()
            self._doorway = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """A web page that names loopback as its own host must not reach an open door (DNS rebinding)."""
        name = request.host.rsplit(":", 1)[0] if not request.host.endswith("]") else request.host
        if self._senders.open and name not in (*_LOOPBACK, self._listen.host):
            return _error(403, "", "host", "the Host header names another machine")
        try:
            return await handler(request)
        except RecordError as error:
            return _refused(error)
        except web.HTTPRequestEntityTooLarge:
            return _too_large()
        except web.HTTPException as error:
            return _error(error.status, "", "http", error.reason)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._under_way >= REQUESTS_MAX:
            return _busy(429, "too many requests under way")
        self._under_way += 1
        try:
            return await self._take(request)
        finally:
            self._under_way -= 1

    async def _take(self, request: web.Request) -> web.StreamResponse:
        permission = self._permission(request)  # before the body: who may not send does not upload either
        if request.content_length is not None and request.content_length > BODY_BYTES_MAX:
            return _too_large()
        try:
            async with asyncio.timeout(BODY_S):
                body = await request.read()
        except TimeoutError:
            return _error(408, "", "timeout", f"the body did not arrive within {BODY_S:g} s")
        try:
            if len(body) >= _THREAD_FROM_BYTES:
                future = await asyncio.to_thread(self._submit, request, body, permission)
            else:
                future = self._submit(request, body, permission)
        except Unsupported:
            return _error(415, "content-type", "content_type", "expected a CloudEvent as JSON")
        except TransientError as error:
            return _busy(429, error.problem)
        return await self._answer(future)

    def _permission(self, request: web.Request) -> Permission:
        """What the sender of a request may emit. RecordError when it is nobody we know."""
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        return self._senders.permission(Peer.of(request.headers.get("Authorization"), names_of(certificate)))

    def _submit(self, request: web.Request, body: bytes, permission: Permission) -> Future[Receipt]:
        content_type = request.headers.get("Content-Type", "")
        events = parse(content_type, request.headers.items(), body)
        for one in events:
            permission.demand(one.event, (one.source,), (one.jurisdiction,))
        if is_batch(content_type):
            return self._submit_batch(events)
        (one,) = events
        return self._client.submit(
            one.event, one.fields, source=one.source, event_time=one.event_time,
            jurisdiction=one.jurisdiction, wait_s=0.0,
        )  # fmt: skip

    def _submit_batch(self, events: Sequence[Incoming]) -> Future[Receipt]:
        if not events:
            nothing: Future[Receipt] = Future()
            nothing.set_result(Receipt(0, 0, 0, 0))
            return nothing
        if len({one.event for one in events}) > 1:
            problem = "one event type per batch: it is taken whole or not at all"
            raise RecordError(problem, reason="mixed", field="type")
        return self._client.submit_many(events[0].event, [one.row() for one in events], wait_s=0.0)

    async def _answer(self, future: Future[Receipt]) -> web.StreamResponse:
        try:
            async with asyncio.timeout(COMMIT_S):
                receipt = await asyncio.wrap_future(future)
        except TimeoutError:
            return _busy(503, f"not durable within {COMMIT_S:g} s; the outcome is unknown")
        except RecordError:
            raise
        except PipelineError as error:
            log.warning("http: %s", error)
            return _busy(503, error.problem)
        answer = {
            "spool": receipt.spool, "lane": receipt.lane, "first_sequence": receipt.first_sequence,
            "count": receipt.count,
        }  # fmt: skip
        if receipt.filtered:  # not taken, by the region's policy: nothing to send again
            answer["filtered"] = receipt.filtered
        return web.json_response(answer, status=202)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """For whoever is on this machine; where others reach the door, for those who may send."""
        if not self._listen.is_local:
            self._permission(request)
        page = generate_latest(self._registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _health(self, _: web.Request) -> web.StreamResponse:
        open_to = "everybody on this machine" if self._senders.open else "the configured senders"
        return web.json_response({"status": "ok", "open_to": open_to})


def _refused(error: RecordError) -> web.StreamResponse:
    if error.reason == SENDER and error.field == CREDENTIALS:
        response = _error(401, error.field, SENDER, str(error))
        response.headers["WWW-Authenticate"] = "Bearer"  # RFC 6750, 3
        return response
    status = {Reason.OVERSIZE: 413, SENDER: 403}.get(error.reason, 400)
    return _error(status, error.field, str(error.reason), str(error))


def _too_large() -> web.StreamResponse:
    return _error(413, "", str(Reason.OVERSIZE), f"the body is larger than {BODY_BYTES_MAX} bytes")


def _busy(status: int, problem: str) -> web.StreamResponse:
    response = _error(status, "", "busy", problem)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def _error(status: int, field: str, reason: str, message: str) -> web.Response:
    return web.json_response({"field": field, "reason": reason, "message": message}, status=status)
