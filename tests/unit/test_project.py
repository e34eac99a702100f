"""The project's own files: locks with hashes and without addresses, and matching what is declared."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from connectors.broker_jars import read_lock
from tests.shared_data import PROJECT

DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text())
LOCKS = ["requirements.lock", "requirements-build.lock", "requirements-dev.lock"]


def locked(name: str) -> dict[str, set[Version]]:
    found: dict[str, set[Version]] = {}
    for package, version in re.findall(
        r"^([\w.\[\],-]+)==([^\s;]+)", (PROJECT / name).read_text(), re.MULTILINE
    ):
        found.setdefault(canonicalize_name(package.split("[")[0]), set()).add(Version(version))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_no_lock_names_a_host(name: str) -> None:
    text = (PROJECT / name).read_text()
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "index" not in text.replace("index=", "index")


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("requirements.lock", DECLARED["project"]["dependencies"]),
        ("requirements-dev.lock", DECLARED["project"]["dependencies"]),
        (
            "requirements-dev.lock",
            [one for one in DECLARED["dependency-groups"]["dev"] if isinstance(one, str)],
        ),
        ("requirements-build.lock", DECLARED["dependency-groups"]["build"]),
        ("requirements-build.lock", DECLARED["build-system"]["requires"]),
    ],
)
def test_the_lock_satisfies_what_is_declared(lock: str, declared: list[str]) -> None:
    versions = locked(lock)
    for requirement in map(Requirement, declared):
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement.name} is not in {lock}: run make lock"
        assert all(version in requirement.specifier for version in found), requirement.name


def test_the_locks_agree_on_every_package_they_share() -> None:
    whole = locked("requirements-dev.lock")
    for name in LOCKS[:2]:
        for package, versions in locked(name).items():
            assert whole[package] == versions, package


def test_the_jars_are_all_of_one_kafka() -> None:
    versions = {jar.version for jar in read_lock() if jar.group == "org.apache.kafka"}
    assert len(versions) == 1
