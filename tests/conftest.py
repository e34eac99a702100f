"""What all tests share: one real broker per run, a name of its own per test, and no process left behind."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from connectors.broker import BrokerOptions, LocalBroker
from pipeline.config import ClusterConfig
from pipeline.topics import Topics

PROJECT = Path(__file__).resolve().parent.parent
JARS = PROJECT / ".pipeline" / "jars"  # fetched once, shared by all runs
SESSION_VARIABLE = "PIPELINE_TEST_SESSION"


def pytest_configure(config: pytest.Config) -> None:
    """Mark every process that this run starts, and keep its files inside the project."""
    os.environ[SESSION_VARIABLE] = uuid.uuid4().hex
    scratch = PROJECT / ".pipeline" / "tests"
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(scratch))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for a broker is a kafka test, also when nobody wrote the marker."""
    for item in items:
        if {"broker", "own_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


@pytest.hookimpl(trylast=True)  # after the last fixture is torn down
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process that it started still runs; end that process."""
    left = processes_of_this_run()
    if not left:
        return
    names = ", ".join(f"{process.pid} {' '.join(command)[:120]}" for process, command in left)
    for process, _ in left:
        process.kill()
    psutil.wait_procs([process for process, _ in left], timeout=10)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.get_terminal_writer().line(f"\nprocesses left behind (killed now): {names}", red=True)


def processes_of_this_run() -> list[tuple[psutil.Process, list[str]]]:
    """Living processes with this run's mark in their environment, this one aside.

    The mark finds what a look at children would not: a process whose parent has ended.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = process.cmdline()
            if any("resource_tracker" in part for part in command):  # multiprocessing's own, ends with us
                continue
            if process.environ().get(SESSION_VARIABLE) == os.environ[SESSION_VARIABLE]:
                found.append((process, command))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A real Kafka broker for the whole run; it dies with this process, whatever happens to it."""
    state = tmp_path_factory.mktemp("broker")
    with LocalBroker(state, BrokerOptions(heap_mb=256, jars=JARS)) as running:
        yield running
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def broker_options() -> BrokerOptions:
    """For a test with a broker of its own: small, the jars of the project."""
    return BrokerOptions(heap_mb=192, jars=JARS)


@pytest.fixture
def own_broker(tmp_path: Path, broker_options: BrokerOptions) -> Iterator[LocalBroker]:
    """A broker that the test may start, stop and kill; not started yet."""
    own = LocalBroker(tmp_path / "a state, of its own: 100 %", broker_options)
    yield own
    own.kill9()


@pytest.fixture
def bootstrap(broker: LocalBroker) -> str:
    """``host:port`` of the run's broker."""
    return broker.bootstrap


@pytest.fixture
def cluster(broker: LocalBroker) -> ClusterConfig:
    """The run's broker as configuration."""
    return ClusterConfig(bootstrap=broker.bootstrap)


@pytest.fixture
def topic_prefix() -> str:
    """A prefix no other test has, for topics and groups on the shared broker."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
def topics(topic_prefix: str) -> Topics:
    """Topic names of this test alone."""
    return Topics(topic_prefix)
