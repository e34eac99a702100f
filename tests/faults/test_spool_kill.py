"""kill -9 and a disk that refuses: nothing acknowledged is lost, nothing is numbered twice, the sum is right.

SEEDS=n runs more of each; a failing seed is in the test's name.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.edge.spool import SpoolFile, read_ledger
from tests.edge_world import LANES
from tests.shared_data import PROJECT

SEEDS = range(int(os.environ.get("SEEDS", "2")))
KILLS = 4

pytestmark = pytest.mark.faults


def child(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.faults.spool_child", *map(str, arguments)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, bufsize=0)


def receipts_until_killed(process: subprocess.Popen, after_s: float) -> list[list[str]]:
    """Let it run for a while after its first receipt, kill it, return the whole lines it wrote."""
    assert process.stdout is not None
    read = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], 0.005)
        if ready:
            if not read:
                deadline = time.monotonic() + after_s
            read += os.read(process.stdout.fileno(), 1 << 20)
    process.kill()
    process.wait(20)
    while chunk := os.read(process.stdout.fileno(), 1 << 20):
        read += chunk
    process.stdout.close()
    assert read, "no receipt before the deadline"
    return [line.split() for line in read.decode().split("\n")[:-1]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cap", [1 << 30, 150_000])
def test_killed_at_any_moment_the_spool_keeps_what_it_acknowledged(tmp_path: Path, seed: int, cap: int):
    path, log = tmp_path / "spool.sqlite", tmp_path / "forwarded.log"
    rng = random.Random(seed)
    acknowledged: dict[tuple[int, int], str] = {}
    for run in range(KILLS):
        for lane, first, *tokens in receipts_until_killed(
            child("produce", path, log, seed * 100 + run, cap), rng.uniform(0.0, 0.4)
        ):
            for place, token in enumerate(tokens):
                key = (int(lane), int(first) + place)
                assert key not in acknowledged, "a sequence was given out twice"
                acknowledged[key] = token
        ledger = read_ledger(path)  # also of a spool whose process was killed
        assert all(c.accepted == c.forwarded + c.evicted + c.pending for c in ledger)
    assert acknowledged
    check_complete(path, log, acknowledged)


def check_complete(path: Path, log: Path, acknowledged: dict[tuple[int, int], str]) -> None:
    """Forwarded, waiting and lost events together are every sequence of every lane, as acknowledged.

    Which ones were lost only the loss ledger says: as many as are missing, within its ranges, in one lane.
    """
    found: dict[tuple[int, int], str] = {}
    order: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for line in log.read_bytes().split(b"\n"):
        if not line.endswith(b"|."):
            continue
        partition, record, _ = line.split(b"|")
        note(record, partition, found, order)
    with closing(SpoolFile(path, LANES)) as file:
        waiting = {lane: file.read("eu", lane, 1 << 40) for lane in range(3)}
        for block in (block for blocks in waiting.values() for block in blocks):
            for record in block.values.to_pylist():
                note(record, b"%d" % block.partition, found, order)
        missing: set[tuple[int, int]] = set()
        for lane in range(3):
            all_of_it = {(lane, sequence) for sequence in range(1, file.next_sequence[lane])}
            here = {key for key in found if key[0] == lane}
            assert here <= all_of_it
            missing |= all_of_it - here
            gone = [loss for loss in file.losses() if loss.lane == lane]
            evicted = sum(counts.evicted for counts in file.ledger() if counts.lane == lane)
            assert len(all_of_it - here) == evicted == sum(loss.count for loss in gone)
            for _, sequence in all_of_it - here:
                assert any(loss.first_sequence <= sequence <= loss.last_sequence for loss in gone)
        assert all(lane == 2 for lane, _ in missing)
        for counts in file.ledger():
            assert counts.pending == sum(len(block.values) for block in waiting[counts.lane])
            assert counts.accepted == file.next_sequence[counts.lane] - 1
    for key, token in acknowledged.items():
        assert key in missing or found[key] == token
    for sequences in order.values():
        distinct = list(dict.fromkeys(sequences))
        assert distinct == sorted(distinct)


def note(record: bytes, partition: bytes, found: dict, order: dict) -> None:
    lane, sequence, row = record.split(b":", 2)
    key, token = (int(lane), int(sequence)), row.split()[2].decode()
    assert found.setdefault(key, token) == token, "one sequence, two events"
    order[int(lane), partition].append(int(sequence))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_refuses_loses_nothing_it_acknowledged_and_recovers(tmp_path: Path, seed: int):
    path = tmp_path / "spool.sqlite"
    process = child("refuse", path, seed)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [line.split() for line in out.decode().splitlines()]
    outcomes = {line[1] for line in lines}
    assert {"taken", "refused"} <= outcomes | ({"refused"} if "unknown" in outcomes else set())
    assert lines[-1][:2] == ["40", "taken"]
    expected: dict[int, str] = {}
    for line in lines:
        if line[1] == "taken":
            expected[int(line[2])] = line[3]
    with closing(SpoolFile(path, LANES)) as file:
        blocks = file.read("eu", 1, 1 << 40)
        stored = {int(r.split(b":")[1]): r.split()[2].decode() for b in blocks for r in b.values.to_pylist()}
        assert sorted(stored) == list(range(1, file.next_sequence[1]))
    assert {sequence: stored[sequence] for sequence in expected} == expected
    refused = {line[2] for line in lines if line[1] == "refused"}
    assert not refused & set(stored.values()), "an event that was refused is stored"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    path = tmp_path / "spool.sqlite"
    process = child("produce", path, tmp_path / "log", 1, 1 << 30)
    receipts_until_killed(process, 0.0)
    SpoolFile(path, LANES).close()
