"""A full spool: who waits, who gives way, what is written down about it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from pipeline.config import Config, EdgeConfig, LaneClass
from pipeline.edge.client import EdgeClient
from pipeline.edge.committer import Spool
from pipeline.edge.ledger import SECOND, LaneLedger, LossReason, Settlement, without_copies
from pipeline.edge.summary import FieldSummary, Summariser, from_text, merged, to_text
from pipeline.errors import RecordError, TransientError
from tests.edge_world import EVENT, JURISDICTIONS, LANES, PlainEncoder, put, schemas, stored, vehicles
from tests.waiting import wait_for

URGENT, NORMAL, BULK = range(3)
CAP = 1_600_000


def full_spool(path: Path, **settings) -> Spool:
    """Small; one step is at most 100,000 bytes."""
    return Spool(path, LANES, EdgeConfig(spool_bytes_max=CAP, **settings), None, Summariser(schemas()))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


def rows(size: int, count: int = 1) -> list[bytes]:
    return [b"0" * (size // count) for _ in range(count)]


def fill(spool: Spool, lane: int, size: int, step: int = 50_000) -> None:
    for _ in range(size // step):
        put(spool, PlainEncoder(), rows(step), lane=lane).result(10)


def counts(spool: Spool, lane: int) -> LaneLedger:
    (one,) = [one for one in spool.ledger() if one.lane == lane]
    assert one.accepted == one.forwarded + one.evicted + one.pending
    return one


def lost(spool: Spool, lane: int, reason: str) -> int:
    return sum(loss.count for loss in spool.losses().result(10) if (loss.lane, loss.reason) == (lane, reason))


def test_the_oldest_of_the_lowest_lane_gives_way_and_the_loss_ledger_has_each_of_them(path):
    with full_spool(path) as spool:
        fill(spool, BULK, 2 * CAP)
        bulk = counts(spool, BULK)
        assert bulk.evicted == lost(spool, BULK, "bytes") > 30
        left = [block.first_sequence for block in stored(spool, lanes=[BULK])]
        assert left == list(range(bulk.evicted + 1, bulk.accepted + 1))  # the newest stayed
        assert path.stat().st_size < 2 * CAP + (20 << 20)


def test_urgent_events_take_back_what_bulk_had_borrowed(path):
    with full_spool(path) as spool:
        fill(spool, BULK, CAP)
        fill(spool, URGENT, 300_000)
        assert counts(spool, URGENT).pending == 6
        assert counts(spool, BULK).evicted >= 6
        assert {block.values[0].as_py()[:2] for block in stored(spool, lanes=[URGENT])} == {b"0:"}


def test_a_lane_that_blocks_refuses_and_the_others_go_on(path):
    with full_spool(path) as spool:
        with pytest.raises(TransientError, match="no room for more events in lane 'normal'"):
            fill(spool, NORMAL, CAP)
        assert counts(spool, NORMAL).evicted == 0
        fill(spool, URGENT, 100_000)
        fill(spool, BULK, 400_000)
        assert counts(spool, URGENT).pending == 2


def test_a_producer_waits_for_room_no_longer_than_it_said_and_gets_it_when_there_is(path):
    with full_spool(path) as spool:
        with pytest.raises(TransientError):
            fill(spool, NORMAL, CAP)
        encoder = PlainEncoder()
        (block, *_) = spool.read("eu", NORMAL, 1).result(10)
        with pytest.raises(TransientError, match="lane 'normal'"):
            put(spool, encoder, rows(100_000)).result(10)
        spool.settle(Settlement("eu", NORMAL, block.identity + 3)).result(10)
        assert put(spool, encoder, rows(50_000)).result(10).count == 1


def test_a_batch_that_never_fits_is_refused_for_good_and_takes_nobody_with_it(path):
    with full_spool(path) as spool:
        encoder = PlainEncoder()
        futures = [put(spool, encoder, rows(size), lane=BULK) for size in (100, CAP, 200)]
        assert [futures[0].result(10).count, futures[2].result(10).count] == [1, 1]
        with pytest.raises(RecordError, match="holds at most"):
            futures[1].result(10)
        assert counts(spool, BULK).accepted == 2


def test_what_is_in_flight_is_never_given_up_also_after_a_restart(path):
    with full_spool(path) as spool:
        fill(spool, BULK, 1_000_000)
        flying = [block.first_sequence for block in spool.read("eu", BULK, 100_000).result(10)]
        assert flying == [1]
        fill(spool, BULK, CAP)
        assert min(loss.first_sequence for loss in spool.losses().result(10)) == 2
    with full_spool(path) as spool:  # nobody knows what the broker has of it
        fill(spool, BULK, CAP)
        sent = spool.read("eu", BULK, 1).result(10)
        assert [block.first_sequence for block in sent] == [1]
        spool.settle(Settlement("eu", BULK, sent[-1].identity)).result(10)
        assert counts(spool, BULK).forwarded == 1
        fill(spool, BULK, CAP)
        assert counts(spool, BULK).forwarded == 1


def test_what_is_too_old_goes_in_every_class_and_the_young_stays(path):
    with full_spool(path) as spool:
        fill(spool, NORMAL, 100_000)
        fill(spool, BULK, 50_000)
    with full_spool(path, forward_bytes_max=4096) as spool:
        spool.settle(Settlement("eu", NORMAL, 0)).result(10)
    later = time.time()
    with full_spool(path, spool_age_max_s=1.0) as spool:
        wait_for(lambda: time.time() > later + 1.1)
        fill(spool, URGENT, 50_000)
        # The first step of each lane may be with the broker already.
        wait_for(lambda: counts(spool, NORMAL).evicted == 1)
        assert (counts(spool, NORMAL).pending, lost(spool, NORMAL, "age")) == (1, 1)
        assert counts(spool, URGENT).pending == 1


def test_at_the_disks_guard_the_spool_does_not_grow(path):
    with full_spool(path) as spool:
        fill(spool, BULK, 800_000)
        fill(spool, URGENT, 100_000)
    size = path.stat().st_size
    with full_spool(path, free_bytes_min=1 << 60) as spool:
        fill(spool, BULK, 400_000)
        assert lost(spool, BULK, "disk") == counts(spool, BULK).evicted >= 7
        with pytest.raises(TransientError):
            fill(spool, NORMAL, 900_000)
    assert path.stat().st_size <= size + 200_000


def test_lines_of_the_loss_ledger_grow_until_they_are_sent_and_are_sent_once(path):
    with full_spool(path) as spool:
        fill(spool, BULK, CAP + 300_000)
        (first,) = spool.unsent_losses("eu", 10).result(10)
        fill(spool, BULK, 100_000)
        spool.losses_sent([first]).result(10)
        grown = spool.unsent_losses("eu", 10).result(10)
        assert first.line in [line.line for line in grown]  # it had grown: it goes again
        spool.losses_sent(grown).result(10)
        assert spool.unsent_losses("eu", 10).result(10) == []
        assert spool.unsent_losses("br", 10).result(10) == []
        assert lost(spool, BULK, "bytes") == counts(spool, BULK).evicted
        fill(spool, BULK, 100_000)
        assert [line.line > first.line for line in spool.unsent_losses("eu", 10).result(10)] == [True]


def test_a_lane_that_summarises_keeps_what_was_measured_and_nothing_of_whom(path):
    classes = {"bulk": LaneClass(share=0.1, when_full="summarise")}
    with full_spool(path, classes=classes) as spool:
        client = EdgeClient(Config(), schemas(), spool, JURISDICTIONS.get)
        given = []
        for seed in range(12):
            batch = vehicles(1500, seed)
            given += batch
            client.emit_many(EVENT, batch, lane="bulk")
        gone = [loss for loss in spool.losses().result(10) if loss.count]
        assert sum(loss.count for loss in gone) == counts(spool, BULK).evicted > 0
        whole: dict[str, FieldSummary] = {}
        for loss in gone:
            whole = merged(whole, loss.summary)
        measured = {f.name for f in schemas().events[EVENT].own_fields if f.tags == {"measurement"}}
        assert set(whole) == {"speed_m_s"} <= measured
        speeds = [row["speed_m_s"] for row in given if row["speed_m_s"] is not None]
        assert min(speeds) <= whole["speed_m_s"].minimum <= whole["speed_m_s"].mean <= max(speeds)
        assert all(loss.first_ms and loss.bytes for loss in gone)


def test_summaries_add_up_as_if_made_at_once():
    rng = random.Random(7)
    values = [rng.uniform(-5, 5) for _ in range(100)]
    one = lambda part: FieldSummary(len(part), min(part), max(part), sum(part))  # noqa: E731
    both = merged({"x": one(values[:30])}, {"x": one(values[30:]), "y": one(values)})
    assert both["x"].count == 100
    assert both["x"].mean == pytest.approx(sum(values) / 100)
    assert from_text(to_text(both)) == both
    assert from_text(to_text({})) == {}


def test_a_copys_ledger_counts_once():
    mine, copy = LaneLedger(7, 1, "eu", 10, 6, 0, 4), LaneLedger(7, 1, "eu", 10, 2, 0, 8)
    other = LaneLedger(8, 1 + SECOND, "eu", 3, 3, 0, 0)
    assert without_copies([mine, copy, other]) == [mine, other]


def test_every_reason_has_a_name():
    assert {str(reason) for reason in LossReason} == {"age", "bytes", "disk", "damaged", "oversize"}
