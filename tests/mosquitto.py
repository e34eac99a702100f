"""A real MQTT broker for tests: mosquitto from PATH, or from its Debian package unpacked without root.

Each instance listens on a free loopback port, keeps its state in a folder of the test and is ended by pid.
A test that needs it skips where neither is to be had.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.shared_data import PROJECT
from tests.waiting import wait_for

TOOLS = PROJECT / ".pipeline" / "tools" / "mosquitto"
PACKAGE_S = 120.0
LEVELS_MAX = 4  # of libraries that need libraries
CONFIG = """
listener {port} 127.0.0.1
persistence true
persistence_location {folder}/
max_queued_messages 0
max_queued_bytes 0
retain_available true
log_type error
log_type notice
"""


@cache
def mosquitto() -> tuple[Path, dict[str, str]]:
    """The program and the environment to run it in; skips the calling test when there is none."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found:
        return Path(found), dict(os.environ)
    root = TOOLS / "root"
    program = root / "usr" / "sbin" / "mosquitto"
    if not program.exists():
        _unpack(root)
    return program, _environment(root)


def _environment(root: Path) -> dict[str, str]:
    folders = sorted({str(path.parent) for path in root.rglob("*.so*")})
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def _unpack(root: Path) -> None:
    """The package and those of its libraries that this machine has not."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and shutil.which("ldd")):
        pytest.skip("no mosquitto on PATH, and no apt-get to fetch its package with")
    made = TOOLS / f"root.{os.getpid()}"
    shutil.rmtree(made, ignore_errors=True)
    wanted, had = ["mosquitto"], set()
    for _ in range(LEVELS_MAX):
        _download(wanted, made)
        had.update(wanted)
        missing = _run(["ldd", str(made / "usr/sbin/mosquitto")], env=_environment(made))
        if "not found" not in missing:
            break
        wanted = [name for name in _libraries(wanted) if name not in had]
    else:
        pytest.skip("mosquitto's package needs libraries that were not found")
    made.rename(root)


def _download(names: Sequence[str], root: Path) -> None:
    folder = root / "debs"
    folder.mkdir(parents=True, exist_ok=True)
    private = []
    for attempt in ("system", "private"):
        try:
            for name in names:
                _run(["apt-get", *private, "download", name], cwd=folder)
            break
        except subprocess.SubprocessError:
            if attempt == "private":
                shutil.rmtree(root)
                pytest.skip("no mosquitto on PATH, and its package cannot be fetched")
            private = _private_lists()
    for package in sorted(folder.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(root)])
        package.unlink()


@cache
def _private_lists() -> list[str]:
    """Options of apt with package lists of our own: the machine's may be empty, and are root's to fill."""
    lists, cached = TOOLS / "apt" / "lists", TOOLS / "apt" / "cache"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (cached / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cached}"]
    try:
        _run(["apt-get", *options, "update"])
    except subprocess.SubprocessError:
        pytest.skip("no mosquitto on PATH, and no package lists")
    return options


def _libraries(names: Sequence[str]) -> list[str]:
    lines = _run(["apt-cache", "depends", *names]).splitlines()
    found = [line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("Depends:")]
    return [name for name in dict.fromkeys(found) if name.startswith("lib") and name != "libc6"]


def _run(argv: Sequence[str], **settings: object) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=PACKAGE_S, **settings)
    return done.stdout


class Mosquitto:
    """One broker; the port stays over restarts, and so do its sessions."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self._program, self._environment = mosquitto()
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        access = "" if "allow_anonymous" in extra else "allow_anonymous true\n"
        user = f"user {os.environ.get('USER', 'root')}\n" if os.geteuid() == 0 else ""
        text = CONFIG.format(port=self.port, folder=folder)
        self._config.write_text(text.replace("\nlistener", f"\n{user}listener") + extra + "\n" + access)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "mosquitto.log"

    def start(self) -> None:
        """Start, and wait until it listens."""
        argv = [str(self._program), "-c", str(self._config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log)
        wait_for(self._listens)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it: SIGTERM writes its sessions down first, SIGKILL does not."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
