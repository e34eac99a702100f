"""The doorway of a server: connections let in one by one, never more than fit.

Comes in: an address, TLS, and a factory of protocols. Goes out: connected protocols. Invariant: at most
``connections_max`` connections are open, those whose TLS handshake is under way included. More wait in the
kernel, unaccepted and at no cost to this process, until one closes; that it closes is the protocol's duty
(a request that does not come) and ours (a handshake that does not end).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
BACKLOG = 128
FULL_POLL_S = 0.05  # only while full
_NO_DESCRIPTORS_S = 1.0


class Doorway:
    """Accepts connections. ``open_connections``: how many the protocols hold."""

    def __init__(
        self, factory: Callable[[], asyncio.Protocol], open_connections: Callable[[], int],
        connections_max: int, tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self._factory, self._open_connections = factory, open_connections
        self._connections_max, self._tls = connections_max, tls
        self._entering: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and say on which port. OSError when that is not possible."""
        loop = asyncio.get_running_loop()
        (family, *_, address), *_ = await loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setblocking(False)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="doorway")
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Let nobody in any more; who is in stays."""
        tasks = [*self._entering, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._accepting = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # A poll, and only while full: aiohttp does not say when a connection closes.
            while len(self._entering) + self._open_connections() >= self._connections_max:  # noqa: ASYNC110
                await asyncio.sleep(FULL_POLL_S)
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, or the peer went again
                log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(_NO_DESCRIPTORS_S)
                continue
            task = asyncio.create_task(self._enter(connection))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    async def _enter(self, connection: socket.socket) -> None:
        """Shake hands; who does not, or badly, goes without a word."""
        limit_s = HANDSHAKE_S if self._tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._factory, connection, ssl=self._tls,
                ssl_handshake_timeout=limit_s, ssl_shutdown_timeout=limit_s,
            )  # fmt: skip
        except OSError as error:  # ssl.SSLError is one; scanners and half-open connections
            log.debug("a connection did not come about: %s", type(error).__name__)
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
