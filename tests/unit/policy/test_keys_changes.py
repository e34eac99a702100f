"""Roots that exist: wrapped anew, followed by another generation, destroyed; each step whole or not done."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, TransientError
from pipeline.policy import FileKeyStore, compile_plan, create_keys
from pipeline.policy.key_changes import destroy_keys, rewrap_keys, rotate_key
from pipeline.policy.root_files import RootName
from pipeline.policy.wrapping import LocalWrapping, Wrapping
from tests.unit.policy.cases import NOW_US as THEN_US
from tests.unit.policy.cases import event, terms

OLD, NEW = LocalWrapping(b"\1" * 32), LocalWrapping(b"\2" * 32)
NAMES = [("eu", purpose, epoch) for purpose in ("care", "service", "training") for epoch in ("2026-q1", "1")]
NOW_US = 1_795_374_000_000_000  # 2026-11-22, in the epochs 2026-11 and 2026-q4
YEAR_US = 366 * 86_400_000_000
CARE = RootName("eu", "care", "2027-q1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_keys(tmp_path / "keys", "eu", ["care", "service", "training"], OLD)
    return tmp_path / "keys"


def keys_of(folder: Path, wrapping: Wrapping) -> list[bytes]:
    store = FileKeyStore(folder, wrapping)
    return [store.key(*name) for name in NAMES]


class Dying(LocalWrapping):
    """A wrapping that is cut off at its n-th call of one kind, as by a power loss."""

    def __init__(self, master: bytes, wraps: int, unwraps: int = 1000) -> None:
        super().__init__(master)
        self.left = {"wrap": wraps, "unwrap": unwraps}

    def wrap(self, plain: bytes, context: bytes) -> str:
        return self._spent("wrap") or super().wrap(plain, context)

    def unwrap(self, text: str, context: bytes) -> bytes:
        self._spent("unwrap")
        return super().unwrap(text, context)

    def _spent(self, kind: str) -> str:
        self.left[kind] -= 1
        if self.left[kind] < 0:
            raise KeyboardInterrupt
        return ""


def test_rewrapped_roots_give_the_same_keys_and_open_under_the_new_secret_alone(folder: Path):
    before = keys_of(folder, OLD)
    assert [change.changed for change in rewrap_keys(folder, OLD, NEW)] == [True] * 3
    assert keys_of(folder, NEW) == before
    with pytest.raises(ConfigError, match="under another master key"):
        keys_of(folder, OLD)
    assert [change.changed for change in rewrap_keys(folder, OLD, NEW)] == [False] * 3


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_rewrap_that_was_cut_off_is_finished_by_the_next_run(folder: Path, done: int):
    before = keys_of(folder, OLD)
    with pytest.raises(KeyboardInterrupt):
        list(rewrap_keys(folder, OLD, Dying(b"\2" * 32, wraps=done)))
    changed = [change.changed for change in rewrap_keys(folder, OLD, NEW)]
    assert changed == [False] * done + [True] * (3 - done)
    assert keys_of(folder, NEW) == before


def test_what_a_killed_command_left_aside_is_removed(folder: Path):
    leftover = folder / ".eu.care.key.0011223344556677.aside"
    leftover.write_text("root-key v1 local - x:y\n")
    list(rewrap_keys(folder, OLD, NEW))
    assert sorted(path.name for path in folder.iterdir()) == [
        "eu.care.key", "eu.service.key", "eu.training.key",
    ]  # fmt: skip


def test_a_root_that_opens_under_neither_secret_stays_as_it_is(folder: Path):
    lines = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="under another master key"):
        list(rewrap_keys(folder, LocalWrapping(b"\3" * 32), NEW))
    assert {path: path.read_bytes() for path in folder.iterdir()} == lines


def test_a_root_whose_new_text_does_not_open_stays_as_it_is(folder: Path):
    class Wrong(LocalWrapping):
        def wrap(self, plain: bytes, context: bytes) -> str:
            return super().wrap(bytes(32), context)

    with pytest.raises(ConfigError, match="did not open again"):
        list(rewrap_keys(folder, OLD, Wrong(b"\2" * 32)))
    assert keys_of(folder, OLD)


def test_a_new_generation_changes_the_keys_of_its_epochs_alone(folder: Path):
    store = FileKeyStore(folder, OLD)  # a stage that runs all the while
    before = {epoch: store.key("eu", "care", epoch) for epoch in ("2025-q4", "2026-q4", "2027-q1", "2027-q2")}
    other = store.key("eu", "service", "2027-q1")
    assert rotate_key(folder, CARE, OLD, NOW_US).changed
    after = {epoch: store.key("eu", "care", epoch) for epoch in before}
    assert [epoch for epoch in before if after[epoch] != before[epoch]] == ["2027-q1", "2027-q2"]
    assert store.key("eu", "service", "2027-q1") == other
    assert {epoch: FileKeyStore(folder, OLD).key("eu", "care", epoch) for epoch in before} == after


def test_months_and_quarters_agree_on_where_a_generation_begins(folder: Path):
    rotate_key(folder, CARE, OLD, NOW_US)
    list(rewrap_keys(folder, OLD, NEW))
    (folder / "eu.care.2027-q1.key").unlink()
    store = FileKeyStore(folder, NEW)
    for epoch in ("2026-12", "2026-q4", "consent", "0000-01"):
        assert store.key("eu", "care", epoch)
    for epoch in ("2027-01", "2027-q1", "2027-12", "2031-q2"):
        with pytest.raises(ConfigError, match=r"2027-q1\.key: no key here.*generation before this one ended"):
            store.key("eu", "care", epoch)


@pytest.mark.parametrize("since", ["2026-q4", "2026-11", "2026-q1", "1999-01"])
def test_an_epoch_that_has_begun_gets_no_other_root(folder: Path, since: str):
    with pytest.raises(ConfigError, match="has begun"):
        rotate_key(folder, RootName("eu", "care", since), OLD, NOW_US)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("since", ["2027-13", "2027-q5", "soon", "2027"])
def test_what_is_no_epoch_gets_no_root(folder: Path, since: str):
    with pytest.raises(ConfigError, match="expected an epoch"):
        rotate_key(folder, RootName("eu", "care", since), OLD, NOW_US)


@pytest.mark.parametrize("wraps", [0, 1])
def test_a_rotation_that_was_cut_off_is_finished_by_the_next_run(folder: Path, wraps: int):
    before = FileKeyStore(folder, OLD).key("eu", "care", "2026-q4")
    with pytest.raises(KeyboardInterrupt):
        rotate_key(folder, CARE, Dying(b"\1" * 32, wraps), NOW_US)
    mid = FileKeyStore(folder, OLD).key("eu", "care", "2027-q1")
    assert rotate_key(folder, CARE, OLD, NOW_US + (YEAR_US if wraps else 0)).changed
    assert not rotate_key(folder, CARE, OLD, NOW_US).changed
    store = FileKeyStore(folder, OLD)
    assert store.key("eu", "care", "2026-q4") == before
    assert (store.key("eu", "care", "2027-q1") == mid) == bool(wraps)


def test_no_generation_is_put_before_another(folder: Path):
    rotate_key(folder, RootName("eu", "care", "2028-q1"), OLD, NOW_US)
    with pytest.raises(ConfigError, match="a later one exists"):
        rotate_key(folder, CARE, OLD, NOW_US)


def test_a_destroyed_generation_takes_its_epochs_with_it_and_no_other(folder: Path):
    rotate_key(folder, CARE, OLD, NOW_US)
    rotate_key(folder, RootName("eu", "care", "2028-q1"), OLD, NOW_US)
    store = FileKeyStore(folder, OLD)
    kept = store.key("eu", "care", "2027-q4")
    gone = destroy_keys(folder, "eu", "care", "2027-q4", NOW_US + 2 * YEAR_US)
    assert [change.path.name for change in gone] == ["eu.care.key"]
    assert store.key("eu", "care", "2027-q4") == kept
    with pytest.raises(ConfigError, match="no key here"):
        store.key("eu", "care", "2026-q4")


def test_a_generation_that_an_event_may_still_need_is_not_destroyed(folder: Path):
    rotate_key(folder, CARE, OLD, NOW_US)
    with pytest.raises(ConfigError, match=r"still taken.*event_age_max_s"):
        destroy_keys(folder, "eu", "care", "2027-q1", NOW_US)
    assert destroy_keys(folder, "eu", "service", "2026-q1", NOW_US) == []  # nor the last one, ever
    assert len(list(folder.iterdir())) == 4


def test_a_wrapping_that_is_away_for_a_moment_is_named_with_the_file(folder: Path):
    class Away(LocalWrapping):
        def unwrap(self, text: str, context: bytes) -> bytes:
            raise TransientError("no answer", place="https://vault")

    with pytest.raises(TransientError, match=r"eu\.care\.key https://vault: no answer"):
        FileKeyStore(folder, Away(b"\1" * 32)).key("eu", "care", "2026-q1")


def test_a_stage_that_holds_a_root_learns_that_it_ended(folder: Path):
    store = FileKeyStore(folder, OLD)
    assert store.key("eu", "care", "2027-q1")
    rotate_key(folder, CARE, OLD, NOW_US)
    (folder / "eu.care.2027-q1.key").unlink()
    with pytest.raises(ConfigError, match="generation before this one ended"):
        store.key("eu", "care", "2027-q1")


def test_wrong_keys_stop_a_plan_before_its_first_row(folder: Path):
    """The stage's own first question: compiling asks for the keys of the current epoch."""
    with pytest.raises(ConfigError, match="under another master key"):
        compile_plan(terms(), event(), FileKeyStore(folder, NEW), now_us=THEN_US)
    (folder / "eu.care.key").unlink()
    with pytest.raises(ConfigError, match="no key here"):
        compile_plan(terms(), event(), FileKeyStore(folder, OLD), now_us=THEN_US)
