"""What an edge agent has on its disk: configuration, schemas, policy packs, names of topics.

Comes in: configuration. Goes out: an Installation, checked. Invariant: nothing here, and nothing that it
imports, belongs to another role: an agent's memory holds an agent. Everything is a file, so an agent starts
while the core and every broker are away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.config import ClusterConfig, Config
from pipeline.keyring import Keyring
from pipeline.policy.load import load_packs
from pipeline.policy.packs import Packs
from pipeline.schemas import SchemaStore
from pipeline.topics import Topics

if TYPE_CHECKING:
    from connectors.broker import LocalBroker


@dataclass(frozen=True)
class Installation:
    """Configuration with everything that is read from files: schemas, packs, topic names."""

    config: Config
    schemas: SchemaStore
    packs: Packs
    topics: Topics

    @classmethod
    def open(cls, config: Config) -> Self:
        """Load and cross-check. Raises ConfigError with every fault; nothing has been started then."""
        folder = config.schemas_path()
        schemas = SchemaStore.load(folder)
        packs = load_packs(folder / "policies", schemas.events)
        for region in config.regions:
            packs.pack(region)
        return cls(config, schemas, packs, Topics(config.topic_prefix))

    def cluster(self, region: str) -> ClusterConfig:
        """How to reach the region's Kafka: as configured, else the local stack's broker."""
        cluster = self.config.region(region).cluster
        if cluster.bootstrap:
            return cluster
        return cluster.model_copy(update={"bootstrap": self.broker().bootstrap})

    def broker(self, *, detached: bool = True) -> LocalBroker:
        """The local stack's broker; not started here."""
        from connectors.broker import BrokerOptions, LocalBroker  # an agent in production has none

        stack = self.config.stack
        options = BrokerOptions(
            port=stack.broker_port, heap_mb=stack.broker_heap_mb, start_timeout_s=stack.start_timeout_s,
            stop_timeout_s=stack.stop_timeout_s, jars=_jars_path(), detached=detached,
        )  # fmt: skip
        return LocalBroker(self.config.state, options)

    def collects(self, region: str) -> bool:
        """Whether events land here from edges; a region that does not only receives over borders."""
        return self.packs.pack(region).collects

    @cached_property
    def keys(self) -> Keyring:
        """The key stores of the regions."""
        return Keyring(self.config)


def _jars_path() -> Path:
    """Where the local broker's jars are kept: beside the project, so that every state folder shares them."""
    beside = Path(__file__).resolve().parent.parent
    home = beside if (beside / "pyproject.toml").exists() else Path.cwd()
    return home / ".pipeline" / "jars"
