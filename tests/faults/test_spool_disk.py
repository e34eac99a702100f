"""The spool over a disk that loses power at every moment, and one that fails at every moment.

SEEDS=n runs more of each; a failing seed is in the test's name.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import EdgeConfig
from pipeline.edge.blocks import Block, Change
from pipeline.edge.ledger import Settlement
from pipeline.edge.spool import SpoolFile
from pipeline.errors import TransientError
from tests.edge_world import LANES
from tests.faults.sqlite_disk import (
    FULL,
    IOERR_FSYNC,
    IOERR_WRITE,
    Disk,
    Op,
    after_power_loss,
    disk_under_sqlite,
    reachable,
)  # fmt: skip

SEEDS = range(int(os.environ.get("SEEDS", "1")))
SETTINGS = EdgeConfig(spool_bytes_max=65_536, forward_bytes_max=4_096)
ROOMY = EdgeConfig(forward_bytes_max=4_096)
URGENT, BULK = 0, 2
State = tuple[tuple[tuple[int, int, bytes], ...], tuple[tuple[int, int, int, int], ...]]

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not reachable(), reason="this Python hides its SQLite: no disk can be put under it"),
]


def change(file: SpoolFile, rng: random.Random, lane: int) -> Change:
    """One to four blocks of random bytes at the lane's end."""
    first, blocks = file.next_sequence[lane], []
    for _ in range(rng.randint(1, 4)):
        rows = [rng.randbytes(rng.choice([30, 900, 5_000])) for _ in range(rng.randint(1, 3))]
        values = pa.array(rows, pa.binary())
        blocks.append(Block(lane, "eu", "event", 0, first, first + len(rows) - 1, 1_700_000_000_000, values))
        first += len(rows)
    return Change(blocks, {lane: first})


def state(file: SpoolFile) -> State:
    """Everything that waits, and the counters."""
    waiting = []
    for lane in range(3):
        after = 0
        while blocks := file.read("eu", lane, 1 << 30, after):
            after = blocks[-1].identity
            for one in blocks:
                rows = one.values.to_pylist()
                waiting += [(lane, one.first_sequence + n, row) for n, row in enumerate(rows)]
    counts = sorted((c.lane, c.accepted, c.forwarded, c.evicted) for c in file.ledger())
    return tuple(sorted(waiting)), tuple(counts)


def workload(file: SpoolFile, rng: random.Random) -> Iterator[None]:
    """Commits, settlements, checkpoints, tidying; bulk grows beyond its room and is shed."""
    for _ in range(16):
        act = rng.random()
        if act < 0.6:
            file.write(change(file, rng, rng.choice([URGENT, BULK, BULK])))
        elif act < 0.8:
            lane = rng.choice([URGENT, BULK])
            if blocks := file.read("eu", lane, 8_192):
                file.write(Change(settlements=[Settlement("eu", lane, blocks[-1].identity)]))
        elif act < 0.9:
            file.checkpoint()
        else:
            file.tidy()
        yield


@pytest.mark.parametrize("seed", SEEDS)
def test_after_power_loss_at_any_moment_every_acknowledged_change_is_there(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    with disk_under_sqlite() as disk:
        file = SpoolFile(tmp_path / "spool.sqlite", LANES, SETTINGS)
        file.write(change(file, rng, URGENT))
        disk.mark("ready")
        for _ in workload(file, rng):
            disk.mark("done")
        log = list(disk.log)
        file.close()
    # The same once more without looking: what the states were, from a run that nothing disturbed.
    states = states_of(tmp_path / "again", seed)
    print("shed:", states[-1][1])
    begin = next(at for at, op in enumerate(log) if op.kind == "mark")
    for until in range(begin + 1, len(log) + 1):
        done = sum(op.kind == "mark" for op in log[:until]) - 1
        place = tmp_path / "lost"
        place.mkdir(exist_ok=True)
        for old in place.iterdir():
            old.unlink()
        for name, data in after_power_loss(log, until, rng).items():
            (place / name).write_bytes(data)
        with closing(SpoolFile(place / "spool.sqlite", LANES, SETTINGS)) as found:
            assert state(found) in states[done : done + 2], f"seed {seed}, before operation {until}"
            assert not list(place.glob("*.damaged-*"))


def states_of(folder: Path, seed: int) -> list[State]:
    """The states between the steps of the seed's workload."""
    rng = random.Random(seed)
    with closing(SpoolFile(folder / "spool.sqlite", LANES, SETTINGS)) as file:
        file.write(change(file, rng, URGENT))
        states = [copy_state(file, folder)]
        for _ in workload(file, rng):
            states.append(copy_state(file, folder))
    return states


def copy_state(file: SpoolFile, folder: Path) -> State:
    """The state of a copy: reading the file itself would put all of it in flight."""
    copy = folder / "copy.sqlite"
    for end in ("", "-wal"):
        Path(f"{copy}{end}").write_bytes(Path(f"{file.path}{end}").read_bytes())
    with closing(SpoolFile(copy, LANES, SETTINGS)) as found:
        return state(found)


@pytest.mark.parametrize("code", [FULL, IOERR_WRITE, IOERR_FSYNC])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_that_fails_once_at_any_moment_keeps_what_was_acknowledged(
    tmp_path: Path, seed: int, code: int
):
    kinds = ("sync",) if code == IOERR_FSYNC else ("write",)
    at, met = 0, True
    while met:
        at += 1 + at // 8  # every one of the first, then fewer
        with disk_under_sqlite() as disk:
            met = fail_once(tmp_path / f"{at}", disk, (at, code, kinds), random.Random(seed))


def fail_once(folder: Path, disk: Disk, when: tuple[int, int, tuple[str, ...]], rng: random.Random) -> bool:
    """Fail the n-th operation of the kinds; returns whether there were so many."""
    nth, code, kinds = when
    file = SpoolFile(folder / "spool.sqlite", LANES, ROOMY)
    left = nth

    def fault(op: Op) -> int:
        nonlocal left
        left -= op.kind in kinds and op.name != ""
        return code if left == 0 and op.kind in kinds else 0

    disk.fault = fault
    taken: dict[tuple[int, int], bytes] = {}
    never: set[bytes] = set()
    for _ in range(6):
        lane = rng.choice([URGENT, 1])
        new = change(file, rng, lane)
        rows = [row for block in new.blocks for row in block.values.to_pylist()]
        try:
            file.write(new)
        except TransientError as error:
            if "unknown" not in str(error):
                never |= set(rows)
            try:
                file.ready()
            except TransientError:
                file.ready()  # the fault was for one moment
            continue
        taken |= {(lane, new.blocks[0].first_sequence + n): row for n, row in enumerate(rows)}
        try:
            file.checkpoint()
        except TransientError:
            file.ready()
    disk.fault = lambda _: 0
    for again in (file, None):
        if again is None:
            file.close()
            again = SpoolFile(folder / "spool.sqlite", LANES, ROOMY)
        waiting, counts = state(again)
        stored = {(lane, sequence): row for lane, sequence, row in waiting}
        assert {key: stored[key] for key in taken} == taken
        assert not never & set(stored.values()), "an event that was refused is stored"
        assert sum(accepted for _, accepted, _, _ in counts) == len(stored)
    again.close()
    return left <= 0
