"""How the local broker is set: Kafka's properties, the JVM's flags, the ports it may take.

Each value differs from Kafka's default for a reason that stands beside it; the largest message does not, so
that a batch too large for an ordinary cluster is refused here as well.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError

HOST = "127.0.0.1"
# Below every system's range for outgoing connections: a client that dials its dead broker's port could be
# given that very number as its own, connect to itself, and keep the broker from coming back.
PORTS = range(20_000, 30_000)
# Measured against the JVM's second compiler on two cores: start 1.6 s instead of 3.3 s; CPU for the first
# 4 million events of 104 bytes 3.3 s instead of 4.3 s, for the second 1.6 s instead of 2.0 s.
JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError")
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
# One node: nothing can be copied.
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A topic is made on purpose, with its partition count; a mistyped name is an error.
auto.create.topics.enable=false
delete.topic.enable=true
# Time-based retention goes by the records' own times: a replayed recording would be gone at once.
log.retention.ms=-1
log.segment.bytes=134217728
# Small: two shared cores, a few hundred partitions.
num.network.threads=2
num.io.threads=4
background.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=1
# After kill -9 the node waits until its own old session has run out: 9 s by default.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Groups settle at once, and a dead member is noticed as soon as its client asks for.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""
LOGGING = """\
status=error
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c{1})%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


@dataclass(frozen=True)
class Ports:
    """Where the node listens: for clients, and for itself as controller."""

    broker: int
    controller: int

    @classmethod
    def draw(cls, broker: int = 0, controller: int = 0) -> Ports:
        """These ports where they are given (not 0) and differ; free ones, drawn by chance, for the others."""
        free = _free_ports()
        broker = broker or next(port for port in free if port != controller)
        if controller in (0, broker):
            controller = next(port for port in free if port != broker)
        return cls(broker, controller)

    @classmethod
    def read(cls, path: Path) -> Ports | None:
        """The ports noted in a file; None when there is none or it is not one."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Note them, in one step: other processes read the file to find the broker."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        fresh.replace(path)


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closing connections do not count
        try:
            candidate.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_ports() -> Iterator[int]:
    unseeded = random.SystemRandom()  # two runs of one seeded test must not meet on a port
    for port in unseeded.sample(PORTS, len(PORTS)):
        if is_free(port):
            yield port


def require_free(port: int) -> None:
    """Raises ConfigError, naming the port, when something listens there."""
    if not is_free(port):
        raise ConfigError(
            f"port {port} is taken",
            operation="local broker",
            place=f"{HOST}:{port}",
            remedy="stop what listens there, or set stack.broker_port to another one (0: a free one)",
        )
