"""The local Kafka: Apache Kafka itself, one KRaft node that is broker and controller, on 127.0.0.1 only.

Comes in: a state folder and :class:`BrokerOptions`. Goes out: a bootstrap address that answers.
Everything it writes is in ``<state>/broker``: configuration, data, log; ``<state>/run/broker.json`` names
the process. Invariant: the folder ``data`` exists only formatted, so its cluster id is one for all time;
both ports are kept across restarts.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from connectors.broker_config import HOST, JVM, LOGGING, PROPERTIES, Ports, is_free, require_free
from connectors.broker_jars import Progress, find_java, resolve_jars
from connectors.broker_probe import serving_cluster
from connectors.processes import Launch, ProcessRecord, kill, launch, log_start, stop, tail
from pipeline.errors import ConfigError, PipelineError, TransientError


@dataclass(frozen=True)
class BrokerOptions:
    """``port`` 0: a free one, then kept. ``jars``: their cache, default ``<state>/jars``.

    ``detached``: the broker outlives this process on purpose and is found again by its record.
    """

    port: int = 0
    heap_mb: int = 512
    start_timeout_s: float = 90.0
    stop_timeout_s: float = 20.0
    jars: Path | None = None
    detached: bool = False


class LocalBroker:
    """Start, stop and kill one broker; usable as a context manager."""

    def __init__(self, state: Path, options: BrokerOptions | None = None) -> None:
        self._options = options or BrokerOptions()
        self.state = state.resolve()
        self._home = self.state / "broker"
        self._record_path = self.state / "run" / "broker.json"
        self._jars = (self._options.jars or state / "jars").resolve()
        self._ports_path = self._home / "ports.json"
        self._ports: Ports | None = None
        self._told = False  # whether this object's address may be in use: then it must not change
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # where this start's lines begin
        self.log = self._home / "kafka.log"

    @property
    def port(self) -> int:
        """Where clients connect. Known before the start; settled by it."""
        return self._known_ports().broker

    @property
    def bootstrap(self) -> str:
        """``host:port`` for a Kafka client."""
        return f"{HOST}:{self.port}"

    @property
    def cluster_id(self) -> str:
        """The id given when the data folder was made. Raises ConfigError before the first start."""
        try:
            text = (self._home / "data" / "meta.properties").read_text(encoding="utf-8")
        except OSError:
            raise ConfigError("never started", operation="local broker", place=str(self._home)) from None
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)["cluster.id"]

    def record(self) -> ProcessRecord | None:
        """The broker process of this state folder, if one runs, whoever started it."""
        record = ProcessRecord.read(self._record_path)
        return record if record is not None and record.alive() else None

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.record() is not None

    def start(self, progress: Progress | None = None) -> None:
        """Return when it takes work; at once when it does already. Blocks; downloads at the first use ever.

        Raises ConfigError (port taken, jar not the pinned one, no Java) and TransientError (did not come up
        in time; the message ends with the log's last lines). After an error nothing that it started is left.
        """
        if self.alive():
            self._wait_until_ready()
            return
        try:
            self._launch(progress)
            self._wait_until_ready()
        except BaseException:
            self.kill9()
            raise

    def stop(self) -> bool:
        """End it in an orderly way, then True; False when the deadline passed and SIGKILL was needed."""
        record = self.record()
        orderly = record is None or all(stop([record], self._options.stop_timeout_s))
        self._forget()
        return orderly

    def kill9(self) -> None:
        """SIGKILL, as a crash would: nothing is flushed by Kafka, the data folder stays as it is."""
        record = self.record()
        if record is not None:
            kill(record)
        self._forget()

    def restart(self) -> None:
        """An orderly stop and a start on the same ports and data."""
        self.stop()
        self.start()

    def __enter__(self) -> LocalBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self, progress: Progress | None) -> None:
        java = find_java()
        jars = resolve_jars(self._jars, progress)
        self._home.mkdir(parents=True, exist_ok=True)
        ports = self._ports_for_start()
        command = self._prepare(java, jars, ports)
        self._log_start = log_start(self.log)
        # Relative names in the configuration, the folder as working directory: a path may hold any character.
        self._child = launch(
            Launch(
                [*command, f"-Xmx{self._options.heap_mb}m", "kafka.Kafka", "server.properties"],
                self.log,
                cwd=self._home,
                detached=self._options.detached,
            )
        )
        if not self._options.detached:
            atexit.register(self.kill9)
        record = ProcessRecord.of("broker", self._child.pid, self.log)
        if record is not None:
            replace(record, port=ports.broker).write(self._record_path)

    def _prepare(self, java: Path, jars: list[Path], ports: Ports) -> list[str]:
        """Write the configuration, format the data folder once; the common part of the command line."""
        values = {"port": ports.broker, "controller": ports.controller}
        (self._home / "log4j2.properties").write_text(LOGGING, encoding="utf-8")
        (self._home / "server.properties").write_text(
            PROPERTIES.format(data="data", **values), encoding="utf-8"
        )
        natives = self._home / "tmp"  # where the compression libraries unpack themselves; a crash leaves them
        shutil.rmtree(natives, ignore_errors=True)
        natives.mkdir()
        command = [
            str(java),
            *JVM,
            f"-Djava.io.tmpdir={natives}",
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            ":".join(map(str, jars)),
        ]
        if not (self._home / "data").exists():
            fresh = PROPERTIES.format(data="data.new", **values)
            (self._home / "format.properties").write_text(fresh, encoding="utf-8")
            self._format(command)
        return command

    def _format(self, command: list[str]) -> None:
        """A new cluster id; the folder gets its name only when it is whole."""
        fresh = self._home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if cluster_id.startswith("-"):  # would be read as an option
            cluster_id = "A" + cluster_id[1:]
        argv = [*command, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", "format.properties"]
        timeout_s = self._options.start_timeout_s
        try:
            done = subprocess.run(argv, cwd=self._home, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failed(f"the data folder was not formatted within {timeout_s:.0f} s", "") from None
        if done.returncode != 0:
            raise self._failed("the data folder could not be formatted", done.stdout + done.stderr)
        fresh.rename(self._home / "data")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._options.start_timeout_s
        expected = self.cluster_id
        while (found := serving_cluster(self.port)) != expected:
            if found is not None:
                raise ConfigError(
                    "another Kafka cluster answers there", operation="local broker", place=self.bootstrap
                )
            if not self.alive():
                raise self._failed("the process ended", tail(self.log, self._log_start))
            if time.monotonic() > deadline:
                waited = f"not ready after {self._options.start_timeout_s:.0f} s"
                raise self._failed(waited, tail(self.log, self._log_start))
            time.sleep(0.02)

    def _failed(self, problem: str, output: str) -> PipelineError:
        detail = f"{problem}; last lines:\n{output.strip()}" if output else problem
        return TransientError(detail, operation="local broker start", place=str(self.log))

    def _forget(self) -> None:
        self._record_path.unlink(missing_ok=True)
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(5)  # ended already: this only takes its exit status
            self._child = None
        atexit.unregister(self.kill9)

    def _known_ports(self) -> Ports:
        """The ports of this state folder: kept ones, else drawn and kept from now on. Looks at no socket."""
        if self._ports is None:
            wanted, kept = self._options.port, Ports.read(self._ports_path)
            if kept is None or (wanted not in (0, kept.broker) and not self.alive()):
                kept = Ports.draw(broker=wanted, controller=kept.controller if kept else 0)
                kept.write(self._ports_path)
            self._ports = kept
        return self._ports

    def _ports_for_start(self) -> Ports:
        """The known ports, free ones. What nobody was told yet is drawn anew when it is taken meanwhile."""
        ports = self._known_ports()
        told = self._options.port != 0 or self._told
        if told:
            require_free(ports.broker)
        if not (is_free(ports.broker) and is_free(ports.controller)):
            controller = ports.controller if is_free(ports.controller) else 0
            ports = Ports.draw(broker=ports.broker if is_free(ports.broker) else 0, controller=controller)
            ports.write(self._ports_path)
        self._ports, self._told = ports, True
        return ports
