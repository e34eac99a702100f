"""Tokens: one per subject and purpose in a region, across processes; gone for ever once forgotten."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.token_vault import SqliteTokenVault, create_vault
from pipeline.errors import ConfigError, StoreCorrupt, TransientError
from pipeline.policy.operators import OPERATORS, Context
from pipeline.policy.plan import compile_plan
from pipeline.policy.terms import landing_terms
from pipeline.policy.tokens import (
    TOKEN_BYTES,
    Tokeniser,
    domains,
    forget_subject,
    subject_hash,
    vault_key,
)
from tests.shared_data import PROJECT
from tests.unit.policy.cases import NOW_US, Keys, event, field, pack, small_batch

SUBJECTS = st.lists(
    st.one_of(st.none(), st.sampled_from(["a", "b", "ä", ""]), st.text(max_size=6)), max_size=12
)
DOMAIN = "identifier.device"
TOKENISING = {
    ("landing", "rules", "identifier"): {
        "operator": "tokenise",
        "with": {"purpose": "care"},
        "source": "a test",
    }
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "vault.sqlite"
    assert create_vault(file)
    return file


@pytest.fixture
def vault(path):
    made = SqliteTokenVault(path)
    yield made
    made.close()


def hashes(*names):
    key = vault_key(Keys(), "eu", "care")
    return [subject_hash(key, DOMAIN, name) for name in names]


def tokenised(values, vault, *, region="eu", purpose="care", domain=DOMAIN):
    operator = OPERATORS["tokenise"]
    context = Context(domain, None, None, tokens=Tokeniser(Keys(), region, vault))
    column = pa.array(values, pa.string())
    return operator.run([column], operator.parameters.model_validate({"purpose": purpose}), context)


@settings(max_examples=25)
@given(SUBJECTS, SUBJECTS)
def test_one_subject_has_one_token_and_two_have_two(first, second):
    with TemporaryDirectory() as folder:
        create_vault(Path(folder) / "vault.sqlite")
        vault = SqliteTokenVault(Path(folder) / "vault.sqlite")
        found = [tokenised(values, vault) for values in (first, second)]
        vault.close()
        again = tokenised(first, SqliteTokenVault(Path(folder) / "vault.sqlite"))
    assert again.equals(found[0]), "also for the next process"
    pairs = set(zip(first + second, found[0].to_pylist() + found[1].to_pylist(), strict=True))
    assert len(pairs) == len(set(first + second)) == len({token for _, token in pairs})
    for subject, token in pairs:
        assert (token is None) == (subject is None)
        if token is not None:
            assert len(bytes.fromhex(token)) == TOKEN_BYTES == 16


def test_regions_purposes_and_domains_share_no_token(vault):
    found = {
        tokenised(["x"], vault, region=region, purpose=purpose, domain=domain)[0].as_py()
        for region in ("eu", "br")
        for purpose in ("care", "service")
        for domain in ("identifier.device", "identifier.direct")
    }
    assert len(found) == 8


def test_a_token_says_nothing_of_its_subject_and_no_key_makes_it_again(tmp_path):
    made = []
    for name in ("one", "two"):
        create_vault(tmp_path / name)
        made.append(tokenised(["x"], SqliteTokenVault(tmp_path / name))[0].as_py())
    assert made[0] != made[1], "the same subject under the same key, in two vaults"


def test_forgetting_unlinks_for_ever_in_every_domain_and_leaves_the_others(vault):
    before = {domain: tokenised(["x", "y"], vault, domain=domain).to_pylist() for domain in domains()}
    elsewhere = tokenised(["x"], vault, purpose="service")
    assert forget_subject(vault, Keys(), "eu", ["care"], "x") == len(domains()) == 3
    assert forget_subject(vault, Keys(), "eu", ["care"], "x") == 0
    for domain, (old, other) in before.items():
        new, same = tokenised(["x", "y"], vault, domain=domain).to_pylist()
        assert new != old
        assert same == other
    assert tokenised(["x"], vault, purpose="service").equals(elsewhere)


def files_of(path):
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_the_bytes_of_a_forgotten_entry_are_gone_from_the_files(path, vault):
    """Over many pages, in another order than they came: no leaf, index or free page keeps any."""
    names = [f"subject {number}" for number in range(3000)]
    tokens = dict(zip(names, vault.tokens("eu", "care", hashes(*names)), strict=True))
    gone = names[::7]
    for start in range(0, len(gone), 50):
        some = gone[start : start + 50]
        assert vault.forget("eu", "care", hashes(*some)) == len(some)
    found = files_of(path)
    for name, known in zip(names, hashes(*names), strict=True):
        kept = name not in gone
        assert (known in found) == kept
        assert (bytes.fromhex(tokens[name]) in found) == kept


def test_the_vault_never_holds_a_subject(path, vault):
    vault.tokens("eu", "care", hashes("a subject of one's own"))
    assert b"subject of" not in files_of(path)


# --- several at once, and the disk

ASK = """
import sys
from pathlib import Path
from connectors.token_vault import SqliteTokenVault
vault = SqliteTokenVault(Path(sys.argv[1]), wait_s=30)
sys.stdin.readline()
for start in range(0, 200, 20):
    subjects = [number.to_bytes(32, "big") for number in range(start, start + 40)]
    print(" ".join(vault.tokens("eu", "care", subjects)), flush=True)
"""


def asking(path):
    return subprocess.Popen(
        [sys.executable, "-c", ASK, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT, text=True,
    )  # fmt: skip


def test_processes_at_once_are_given_the_same_token_for_a_subject(path):
    processes = [asking(path) for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(outputs[0].split()) == 400
    assert len(set(outputs)) == 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM token").fetchone() == (220,)


def test_two_that_both_found_a_subject_new_are_given_the_token_of_the_first(path):
    holder = sqlite3.connect(path, isolation_level=None)
    vaults = [SqliteTokenVault(path, wait_s=30) for _ in range(2)]
    both_have_looked = threading.Barrier(3, timeout=30)
    found = []

    def at_the_lock(statement):
        if statement.startswith("BEGIN"):
            both_have_looked.wait()

    for vault in vaults:
        vault.tokens("eu", "care", [])
    holder.execute("BEGIN IMMEDIATE")  # readers look, writers wait
    threads = []
    for vault in vaults:
        vault._connection.set_trace_callback(at_the_lock)
        threads.append(
            threading.Thread(target=lambda v=vault: found.append(v.tokens("eu", "care", hashes("a"))))
        )
        threads[-1].start()
    both_have_looked.wait()
    holder.execute("ROLLBACK")
    for thread in threads:
        thread.join(30)
    holder.close()
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_token_that_was_given_out_survives_kill(path):
    process = asking(path)
    process.stdin.write("go\n")
    process.stdin.flush()
    first = process.stdout.readline().split()
    process.kill()
    process.communicate(timeout=30)
    subjects = [number.to_bytes(32, "big") for number in range(40)]
    assert SqliteTokenVault(path).tokens("eu", "care", subjects) == first


def test_a_commit_waits_for_the_disk(path, vault):
    vault.tokens("eu", "care", hashes("a"))
    settings_of = {
        name: vault._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("synchronous", "journal_mode", "secure_delete")
    }
    assert settings_of == {"synchronous": 3, "journal_mode": "delete", "secure_delete": 1}


def test_threads_take_turns(vault):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(tuple(vault.tokens("eu", "care", hashes("a", "b")))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_held_vault_is_a_transient_error_and_works_afterwards(path):
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    vault = SqliteTokenVault(path, wait_s=0.05)
    with pytest.raises(TransientError, match="SQLITE_BUSY"):
        vault.tokens("eu", "care", hashes("a"))
    holder.execute("ROLLBACK")
    assert len(vault.tokens("eu", "care", hashes("a"))) == 1
    holder.close()


# --- what is refused


def test_the_file_is_closed_to_others_and_never_made_anew(path, tmp_path):
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert not create_vault(path)
    with pytest.raises(ConfigError, match="no token vault here"):
        SqliteTokenVault(tmp_path / "lost.sqlite").tokens("eu", "care", hashes("a"))
    assert not (tmp_path / "lost.sqlite").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_reach_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(ConfigError, match="expected mode 0600"):
        SqliteTokenVault(path).tokens("eu", "care", hashes("a"))


def test_a_folder_that_others_can_write_and_a_link_are_refused(path):
    link = path.with_name("link.sqlite")
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="plain file"):
        SqliteTokenVault(link).tokens("eu", "care", hashes("a"))
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="its folder has mode"):
        SqliteTokenVault(path).tokens("eu", "care", hashes("a"))


def test_a_damaged_file_stops_and_tells_nothing_of_its_content(path):
    path.write_bytes(b"not a database, and longer than a header " * 50)
    with pytest.raises(StoreCorrupt, match="damaged") as caught:
        SqliteTokenVault(path).tokens("eu", "care", hashes("a"))
    assert caught.value.__context__ is None


def test_a_key_that_is_missing_or_short_stops(vault):
    class Short(Keys):
        def key(self, region, purpose, epoch):
            return b"short"

    for keys in (Keys(missing=frozenset({"0000-01"})), Short()):
        with pytest.raises(ConfigError, match="key"):
            Tokeniser(keys, "eu", vault).column(pa.array(["x"]), "care", DOMAIN)


# --- in a plan


def test_a_plan_that_tokenises_does_not_start_without_a_vault(vault):
    terms = landing_terms(pack(TOKENISING))
    with pytest.raises(ConfigError, match="there is no token vault"):
        compile_plan(terms, event(), Keys(), now_us=NOW_US)
    lost = SqliteTokenVault(Path("/nowhere/vault.sqlite"))
    with pytest.raises(ConfigError, match="no token vault here"):
        compile_plan(terms, event(), Keys(), now_us=NOW_US, vault=lost)


def test_a_plan_gives_tokens_that_outlive_the_epoch(vault):
    plan = compile_plan(landing_terms(pack(TOKENISING)), event(), Keys(), now_us=NOW_US, vault=vault)
    year_us = 366 * 86_400_000_000
    rows = [{"person": "p"}, {"person": "p", "event_time": NOW_US + year_us}, {"source": "press-2"}]
    batch = plan.apply(small_batch(rows)).batch.to_pydict()
    assert batch["person"][0] == batch["person"][1] != batch["source"][0]
    assert batch["person"][2] is None
    assert batch["source"][0] == batch["source"][1] != batch["source"][2]


def test_tokens_alone_need_no_time_of_the_event(vault):
    timeless = event(fields=[field("source", "string", "identifier.device")])
    plan = compile_plan(landing_terms(pack(TOKENISING)), timeless, Keys(), now_us=NOW_US, vault=vault)
    batch = pa.RecordBatch.from_pydict({"source": ["a"]}, schema=timeless.arrow)
    assert len(plan.apply(batch).batch.column("source")[0].as_py()) == 32
