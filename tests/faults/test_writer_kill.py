"""kill -9 of the store writer, at random moments and inside transactions: nothing lost, nothing doubled."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.lake import open_reader
from pipeline.balance import BALANCED, Evidence, balance
from pipeline.edge.ledger import LaneLedger
from tests.shared_data import PROJECT
from tests.store_world import EVENTS, REGION, TOPICS, World

KILLS = 8
DEADLINE_S = 60


def run_writer(path: Path, world_seed: int, chance: random.Random, *, to_the_end: bool) -> int:
    """One life of the writer; its exit code."""
    syncs = 0 if to_the_end or chance.random() < 0.5 else chance.randint(1, 60)
    arguments = [str(path), str(world_seed), str(chance.randrange(2**32)), str(syncs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.store_process", *arguments],
        cwd=PROJECT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        if not to_the_end and syncs == 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.0, 1.0))
            process.kill()
        return process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()


@pytest.mark.faults
def test_a_writer_killed_again_and_again_stores_every_row_once(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    path, world_seed = tmp_path / "store", chance.randrange(2**32)
    world = World(world_seed)
    killed = 0
    for _ in range(KILLS):
        killed += run_writer(path, world_seed, chance, to_the_end=False) == -9
        check_what_is_there(path, world)
    assert killed > 0
    assert run_writer(path, world_seed, chance, to_the_end=True) == 0

    with open_reader(path) as reader:
        totals = reader.totals(distinct=True)
        for (event, number), truth in world.truth.items():
            account = totals.accounts[world.raw(event, number)]
            assert account.accounted == truth.end
            found = {
                "passed": account.passed, "filtered": account.filtered,
                "quarantined": account.quarantined, "repeat": account.repeats,
            }  # fmt: skip
            assert found == truth.counts
            sql = f"SELECT raw_offset FROM {event} WHERE raw_partition = ? ORDER BY raw_offset"
            assert reader.query(sql, [number])["raw_offset"].to_pylist() == truth.passed

    ends = {key: len(log) for key, log in world.logs.items()}
    ends |= {(TOPICS.raw(REGION, event), number): truth.end for (event, number), truth in world.truth.items()}
    accepted = sum(
        sum(n for fate, n in truth.counts.items() if fate != "repeat") for truth in world.truth.values()
    )
    ledgers = [LaneLedger(1, 1, REGION, accepted, accepted, 0, 0)]
    raw_topics = frozenset(TOPICS.raw(REGION, event) for event in EVENTS)
    report = balance(Evidence(ledgers, totals, ends, raw_topics, ledgers))
    assert (report.status, report.findings, report.unread) == (BALANCED, (), 0)
    assert report.stored == sum(len(truth.passed) for truth in world.truth.values())


def check_what_is_there(path: Path, world: World) -> None:
    """After each kill: rows, account and positions are of one commit, and nothing is doubled."""
    if not (path / "catalogue.sqlite").exists():
        return
    with open_reader(path) as reader:
        tables = set(reader.query("SHOW TABLES")["name"].to_pylist())
        if not tables.issuperset(EVENTS):
            return
        totals = reader.totals(distinct=True)
    print(f"snapshot {totals.snapshot}, rows {totals.committed}")
    report = balance(Evidence([], totals, {}, frozenset()))
    findings = [finding for finding in report.findings if "ends at" not in finding]
    assert findings == []
    for (event, number), truth in world.truth.items():
        account = totals.accounts.get(world.raw(event, number))
        rows = totals.rows.get((event, number))
        if account is not None and rows is not None:
            passed = [offset for offset in truth.passed if offset < account.accounted]
            assert account.passed == len(passed)
            assert rows.below <= len(passed)
