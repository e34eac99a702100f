"""A producer in another process: events to an edge agent's HTTP door.

Comes in: events as for the edge client. Goes out: receipts. Standard library only. It tries again when the
agent says that it is busy or does not listen, because nothing was taken then; an answer that never came is an
unknown outcome and is left to the caller, who alone can tell whether twice is worse than never.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from connectors.cloudevents import BATCH, STRUCTURED
from pipeline.edge import Receipt
from pipeline.errors import ConfigError, RecordError, TransientError
from pipeline.reasons import Reason

BATCH_EVENTS_MAX = 1_000
BATCH_BYTES_MAX = 1 << 20
IDLE_S = 5.0  # the agent may close a connection that rests; a new one is cheaper than an unknown outcome
_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.05, 1.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Access:
    """What a producer shows an agent, and whom it trusts. Files are PEM.

    ``authority``: of the agent's certificate; None: the system's. ``token`` goes over TLS or loopback alone.
    """

    token: str | None = field(default=None, repr=False)
    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS of a client. ConfigError when a file is unfit."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise ConfigError(
                f"authority, certificate or key: {error.strerror or error}", operation="edge agent",
                remedy="expected PEM that fits",
            ) from None  # fmt: skip
        return context


class AgentClient:
    """One connection to one agent; not safe in several threads. ``patience_s`` bounds a call."""

    def __init__(self, url: str, patience_s: float = 30.0, access: Access | None = None) -> None:
        parts, access = urlsplit(url), access or Access()
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError("expected http[s]://host:port", operation="edge agent", place=url)
        if access.token and parts.scheme == "http" and host not in LOOPBACK:
            raise ConfigError("a token goes over https only", operation="edge agent", place=url)
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            port = parts.port or 443
            self._connection = http.client.HTTPSConnection(
                host, port, timeout=patience_s, context=access.context()
            )
        else:
            port = parts.port or 80
            self._connection = http.client.HTTPConnection(host, port, timeout=patience_s)
        self._place, self._patience_s, self._used = f"{host}:{port}", patience_s, 0.0
        self._headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}

    def emit(
        self, event: str, fields: Mapping[str, Any], *, source: str, event_time: datetime | int,
        jurisdiction: str,
    ) -> Receipt:  # fmt: skip
        """One event, durable when it returns. RecordError: refused; TransientError: agent away or unsure."""
        row = {"source": source, "event_time": event_time, "jurisdiction": jurisdiction}
        return self._post(STRUCTURED, _encoded(_cloud_event(event, {**fields, **row})))

    def emit_many(self, event: str, rows: Sequence[Mapping[str, Any]]) -> list[Receipt]:
        """Rows with ``source``, ``event_time``, ``jurisdiction`` and fields, in batches that are taken whole.

        A batch that fails ends the call: the receipts so far are lost with the error, the rest is not sent.
        """
        return [self._post(BATCH, body) for body in _batches(event, rows)]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, content_type: str, body: bytes) -> Receipt:
        deadline, attempt = time.monotonic() + self._patience_s, 0
        while True:
            status, answer, retry_after = self._request(content_type, body)
            if status == 202:
                return Receipt(
                    answer["spool"], answer["lane"], answer["first_sequence"], answer["count"],
                    answer.get("filtered", 0),
                )  # fmt: skip
            problem = str(answer.get("message", "")) or f"answered {status}"
            if status in (400, 401, 403, 413, 415):
                reason, field = str(answer.get("reason", "refused")), str(answer.get("field", ""))
                raise RecordError(problem.partition(": ")[2] or problem, reason=reason, field=field)
            attempt += 1
            wait = max(retry_after, min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2 ** min(attempt, 10)))
            wait *= random.uniform(0.5, 1.0)
            if status not in (0, 429) or time.monotonic() + wait > deadline:
                raise TransientError(
                    problem, operation="emit", place=self._place, remedy="is the edge agent running?"
                )
            time.sleep(wait)

    def _request(self, content_type: str, body: bytes) -> tuple[int, dict[str, Any], float]:
        """Status (0: nobody listens), answer, seconds to wait."""
        connection = self._connection
        try:
            if connection.sock is None or time.monotonic() - self._used > IDLE_S:
                connection.close()
                connection.connect()
        except ssl.SSLError as error:  # waiting does not mend it
            problem = f"no TLS with the agent: {error.reason or type(error).__name__}"
            remedy = "compare authority, certificate and host name"
            raise ConfigError(problem, operation="emit", place=self._place, remedy=remedy) from None
        except OSError as error:
            return 0, {"message": f"cannot connect: {error.strerror or type(error).__name__}"}, 0.0
        try:
            connection.request("POST", "/v1/events", body, self._headers | {"Content-Type": content_type})
            response = connection.getresponse()
            answer = json.loads(response.read() or b"{}")
            self._used = time.monotonic()
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            problem = f"no answer ({type(error).__name__}); whether the events were taken is unknown"
            raise TransientError(problem, operation="emit", place=self._place) from error
        return response.status, answer, float(response.headers.get("Retry-After", 0) or 0)


def _cloud_event(event: str, row: Mapping[str, Any]) -> dict[str, Any]:
    given = ("source", "event_time", "jurisdiction")
    data = {name: value for name, value in row.items() if name not in given}
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "type": event,
        "source": row.get("source"),
        "time": _rfc3339(row.get("event_time")),
        "jurisdiction": row.get("jurisdiction"),
        "data": data,
    }


def _rfc3339(moment: Any) -> Any:
    """Text for an aware datetime or int µs; anything else is for the agent to refuse."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            problem = "expected a datetime with a time zone, got one without"
            raise RecordError(problem, reason=Reason.TYPE, field="event_time")
        return moment.isoformat()
    if isinstance(moment, int):
        try:
            return (_EPOCH + timedelta(microseconds=moment)).isoformat()
        except OverflowError:
            problem = "expected a time in the years 1 to 9999"
            raise RecordError(problem, reason=Reason.RANGE, field="event_time") from None
    return moment


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, UnicodeEncodeError) as error:
        problem = f"has no JSON form ({type(error).__name__}); numbers must be finite"
        raise RecordError(problem, reason=Reason.TYPE) from None


def _batches(event: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for row in rows:
        one = _encoded(_cloud_event(event, row))
        if waiting and (len(waiting) == BATCH_EVENTS_MAX or size + len(one) > BATCH_BYTES_MAX):
            yield b"[%s]" % b",".join(waiting)
            waiting, size = [], 0
        waiting.append(one)
        size += len(one)
    if waiting:
        yield b"[%s]" % b",".join(waiting)
