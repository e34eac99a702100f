"""One question to a Kafka port: is a broker of this cluster ready for work?

Comes in: a port on this machine. Goes out: the cluster's id once a broker is in service, else None. An open
port is not enough: a KRaft broker answers before it is unfenced, and a topic created then has no home.
Source: Kafka protocol, Metadata request (key 3) version 2, KIP-631 for fencing.
"""

from __future__ import annotations

import socket
import struct

METADATA_KEY, METADATA_VERSION = 3, 2
CORRELATION = 0x70726F62


def serving_cluster(port: int, timeout_s: float = 1.0) -> str | None:
    """The cluster id told by the broker at 127.0.0.1:``port``; None while none is in service there."""
    request = struct.pack(
        ">hhihi", METADATA_KEY, METADATA_VERSION, CORRELATION, -1, 0
    )  # no client id, no topics
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack(">i", len(request)) + request)
            size, correlation = struct.unpack(">ii", _read(connection, 8))
            if correlation != CORRELATION or not 4 <= size <= 65_536:
                return None
            return _cluster_id(_read(connection, size - 4))
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def _cluster_id(body: bytes) -> str | None:
    (brokers,) = struct.unpack_from(">i", body)
    if brokers < 1:
        return None
    at = 4
    for _ in range(brokers):  # node id, host, port, rack
        at = _skip_string(body, at + 4) + 4
        at = _skip_string(body, at)
    (length,) = struct.unpack_from(">h", body, at)
    return body[at + 2 : at + 2 + length].decode("ascii") if length > 0 else None


def _skip_string(body: bytes, at: int) -> int:
    (length,) = struct.unpack_from(">h", body, at)
    return at + 2 + max(0, length)


def _read(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        chunk = connection.recv(size - len(parts))
        if not chunk:
            raise ConnectionResetError("closed in the middle of an answer")
        parts += chunk
    return bytes(parts)
