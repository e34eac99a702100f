"""Configuration: one TOML file, one loader, every fault reported in one go.

Comes in: a path (or nothing: the local stack's defaults). Goes out: a frozen :class:`Config`.
An unknown key is an error; relations between values are checked here, before anything starts.
Units are last in names. Secrets are masked in ``repr``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.key_config import KeysConfig
from pipeline.listen_config import ListenConfig, SenderClass, demand_guarded
from pipeline.mqtt_config import MqttConfig

REGION_NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterConfig(_Strict):
    """How to reach one Kafka cluster."""

    bootstrap: str = ""  # host:port[,host:port]; empty: the local stack's broker
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    compression: Literal["none", "gzip", "lz4", "zstd"] = "lz4"
    request_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    replication_factor: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_username and self.sasl_password.get_secret_value()
        ):
            raise ValueError("security_protocol SASL needs sasl_username and sasl_password")
        return self


class RegionConfig(_Strict):
    """One legal area: its cluster, its store, its keys."""

    cluster: ClusterConfig = ClusterConfig()
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    store: Path | None = None  # default: <state>/store/<region>
    keys: Path | None = None  # default: <state>/keys/<region>
    wrapping: KeysConfig | None = None  # what wraps this region's roots; default: [keys]


class LimitsConfig(_Strict):
    """Bounds on what one record may be; beyond them it is refused or quarantined."""

    record_bytes_max: Annotated[int, Field(ge=256, le=8_000_000)] = 65_536
    batch_decompressed_bytes_max: Annotated[int, Field(ge=65_536)] = 67_108_864
    event_age_max_s: Annotated[float, Field(gt=0)] = 20 * 365.25 * 86_400
    event_future_max_s: Annotated[float, Field(ge=0)] = 300.0


class LaneClass(_Strict):
    """What one lane of the spool is promised, and what gives way when it is full.

    ``share`` of ``spool_bytes_max`` is kept for the lane. ``block`` refuses new events and never gives one
    up; ``drop_oldest`` gives up the oldest; ``summarise`` does too and keeps count, minimum, maximum and mean
    of what it measured. ``drain_order`` newest: after an outage fresh events go before the backlog.
    """

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    when_full: Literal["block", "drop_oldest", "summarise"] = "block"
    drain_order: Literal["oldest", "newest"] = "oldest"


LANE_CLASSES = {
    "urgent": LaneClass(share=0.2),
    "normal": LaneClass(share=0.5),
    "bulk": LaneClass(share=0.1, when_full="drop_oldest"),
}
STEPS_PER_SPOOL_MIN = 16  # a step in flight cannot be given up: it must be a small part of the spool


class EdgeConfig(_Strict):
    """The spool and its forwarder."""

    commit_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 2.0  # how long a commit waits for company
    commit_events_max: Annotated[int, Field(ge=1)] = 50_000
    forward_bytes_max: Annotated[int, Field(ge=4096)] = 4_194_304  # one forward step per lane
    forward_linger_ms: Annotated[float, Field(ge=0, le=1000)] = 10.0  # a small step lets company gather
    backoff_min_s: Annotated[float, Field(gt=0)] = 0.1
    backoff_max_s: Annotated[float, Field(gt=0)] = 5.0
    queue_events_max: Annotated[int, Field(ge=1)] = (
        200_000  # waiting for a commit; full means the caller waits
    )
    lanes: tuple[str, ...] = ("urgent", "normal", "bulk")  # index = lane number on the wire
    event_lanes: dict[str, str] = {}  # event -> lane; otherwise "normal"
    classes: dict[str, LaneClass] = LANE_CLASSES  # by lane; what is not named keeps its default
    spool_bytes_max: Annotated[int, Field(ge=65_536)] = 1 << 30  # events that wait, and their rows
    spool_age_max_s: Annotated[float, Field(gt=0)] | None = None  # older ones are given up, in every class
    free_bytes_min: Annotated[int, Field(ge=0)] = (
        64 << 20
    )  # with less free on the disk the spool does not grow
    drain_events_per_s: Annotated[float, Field(gt=0)] | None = None  # of a backlog, per region
    drain_bytes_per_s: Annotated[float, Field(gt=0)] | None = None
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 0  # 0: a free one, written to the run folder
    grpc: bool = True  # the gRPC door; without it an agent is smaller
    grpc_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    listen: ListenConfig = ListenConfig()
    senders: dict[str, SenderClass] = {}  # who may send; empty: whoever is on this machine
    mqtt: MqttConfig | None = None  # a broker whose messages become events

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.backoff_min_s > self.backoff_max_s:
            raise ValueError("backoff_min_s must not be above backoff_max_s")
        if "normal" not in self.lanes or len(set(self.lanes)) != len(self.lanes):
            raise ValueError("lanes must be distinct and contain 'normal'")
        unknown = sorted(set(self.event_lanes.values()) - set(self.lanes))
        if unknown:
            raise ValueError(f"event_lanes names lanes that do not exist: {', '.join(unknown)}")
        unknown = sorted(set(self.classes) - set(self.lanes) - set(LANE_CLASSES))
        if unknown:
            raise ValueError(f"classes names lanes that do not exist: {', '.join(unknown)}")
        unknown = sorted((self.mqtt.lanes if self.mqtt else set()) - set(self.lanes))
        if unknown:
            raise ValueError(f"mqtt.routes name lanes that do not exist: {', '.join(unknown)}")
        shares = sum(self.lane_class(name).share for name in self.lanes)
        if shares > 1 + 1e-9:
            raise ValueError(f"the lanes' shares must not add up to more than 1, got {shares:g}")
        demand_guarded(self.listen, self.senders)
        return self

    def lane_class(self, name: str) -> LaneClass:
        """The class of a lane: configured, or the default of that name."""
        return self.classes.get(name) or LANE_CLASSES.get(name) or LaneClass()

    @property
    def step_bytes(self) -> int:
        """What one forward step of a lane may take out of the spool at once."""
        return min(self.forward_bytes_max, self.spool_bytes_max // STEPS_PER_SPOOL_MIN)


class ProcessorConfig(_Strict):
    """The landing leg."""

    fetch_bytes_max: Annotated[int, Field(ge=65_536)] = 1_048_576  # per partition and fetch
    fetch_wait_max_ms: Annotated[int, Field(ge=1)] = 100
    fetch_linger_ms: Annotated[float, Field(ge=0, le=1000)] = 35.0  # between small fetches, so batches form
    session_timeout_s: Annotated[float, Field(ge=6)] = 15.0


class FlushConfig(_Strict):
    """When the store writer commits: whichever comes first."""

    age_s: Annotated[float, Field(gt=0)] = 1.0
    rows: Annotated[int, Field(ge=1)] = 200_000
    bytes: Annotated[int, Field(ge=65_536)] = 67_108_864


class StackConfig(_Strict):
    """The local stack of ``pipeline up``."""

    broker_port: Annotated[int, Field(ge=0, le=65_535)] = 0  # 0: a free one, kept across restarts
    broker_heap_mb: Annotated[int, Field(ge=128)] = 512
    start_timeout_s: Annotated[float, Field(gt=0)] = 90.0
    stop_timeout_s: Annotated[float, Field(gt=0)] = 20.0


class RecordConfig(_Strict):
    """Who answers for the processing, for its record (GDPR 30(1)(a)); empty: not said."""

    organisation: str = ""
    contact: str = ""
    dpo: str = ""


class Config(_Strict):
    """Everything; ``state`` is the folder for all that a run leaves behind."""

    state: Path = Path(".pipeline")
    schemas: Path | None = None  # default: the folder shipped with the project
    topic_prefix: str = ""
    regions: dict[Annotated[str, Field(pattern=REGION_NAME)], RegionConfig] = {
        "eu": RegionConfig(),
        "us-ca": RegionConfig(),
        "br": RegionConfig(),
        "core": RegionConfig(),
    }
    limits: LimitsConfig = LimitsConfig()
    edge: EdgeConfig = EdgeConfig()
    processor: ProcessorConfig = ProcessorConfig()
    flush: FlushConfig = FlushConfig()
    stack: StackConfig = StackConfig()
    keys: KeysConfig = KeysConfig()
    record: RecordConfig = RecordConfig()
    metrics_host: str = "127.0.0.1"

    def region(self, name: str) -> RegionConfig:
        """The region's part; an unknown name is a ConfigError that lists the known ones."""
        if name not in self.regions:
            raise ConfigError(
                f"no region {name!r}; configured: {', '.join(sorted(self.regions))}", operation="config"
            )
        return self.regions[name]

    def store_path(self, region: str) -> Path:
        """Folder of the region's catalogue and data."""
        return self.region(region).store or self.state / "store" / region

    def keys_path(self, region: str) -> Path:
        """Folder of the region's key store."""
        return self.region(region).keys or self.state / "keys" / region

    def vault_path(self, region: str) -> Path:
        """The region's token vault."""
        return self.keys_path(region) / "vault.sqlite"

    def key_wrapping(self, region: str) -> KeysConfig:
        """What wraps the region's root keys."""
        return self.region(region).wrapping or self.keys

    def spool_path(self, name: str) -> Path:
        """The spool file of one edge agent."""
        return self.state / "edge" / name / "spool.sqlite"

    def run_path(self) -> Path:
        """Folder of the processes now running (ports, pids, logs)."""
        return self.state / "run"

    def schemas_path(self) -> Path:
        """The schemas folder: configured, beside the package, or inside the installed wheel."""
        if self.schemas is not None:
            return self.schemas
        package = Path(__file__).parent
        beside = package.parent / "schemas"
        return beside if (beside / "lock.json").exists() or beside.is_dir() else package / "_schemas"


def load_config(path: Path | None = None) -> Config:
    """Read a TOML file, or ``pipeline.toml`` here, or the defaults.

    Raises ConfigError with one line per fault: ``field: expected …, got …``.
    """
    if path is None:
        path = Path("pipeline.toml")
        if not path.exists():
            return Config()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read: {error.strerror}", operation="config", place=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not TOML: {error}", operation="config", place=str(path)) from error
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, object], place: str) -> Config:
    """A Config from plain values; ``place`` names the source in the message."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("; ".join(faults), operation="config", place=place) from None
