"""Group commit: many producers, one order, one fsync; the bad ones fail alone, the queue is bounded."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.edge.ledger import Settlement
from pipeline.edge.spool import read_ledger
from pipeline.edge.submission import Refused
from pipeline.errors import RecordError, StoreCorrupt, TransientError
from tests.edge_world import PlainEncoder, open_spool, put, stored, submission


class HeldEncoder(PlainEncoder):
    """Encodes only when let: keeps the writer busy as long as a test needs."""

    def __init__(self) -> None:
        super().__init__("held")
        self.reached, self.go = threading.Event(), threading.Event()

    def encode(self, parts, stamp):
        self.reached.set()
        assert self.go.wait(20)
        return super().encode(parts, stamp)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool.sqlite"


@pytest.fixture
def spool(path):
    with open_spool(path) as opened:
        yield opened


@pytest.fixture
def held(spool):
    """The writer is busy until ``held.go`` is set."""
    encoder = HeldEncoder()
    put(spool, encoder, [b"h"], lane=2)
    assert encoder.reached.wait(10)
    yield encoder
    encoder.go.set()


def test_receipts_of_many_threads_cover_each_sequence_once(spool):
    encoder = PlainEncoder()

    def produce(number: int) -> list[range]:
        ranges = []
        for size in range(1, 12):
            receipt = put(spool, encoder, [b"%d" % number] * size).result(20)
            assert (receipt.spool, receipt.lane, receipt.count) == (spool.spool, 1, size)
            ranges.append(range(receipt.first_sequence, receipt.first_sequence + size))
        assert ranges == sorted(ranges, key=lambda r: r.start)  # a thread's own events keep their order
        return ranges

    with ThreadPoolExecutor(16) as pool:
        ranges = [one for many in pool.map(produce, range(16)) for one in many]
    taken = sorted(sequence for one in ranges for sequence in one)
    assert taken == list(range(1, 16 * 66 + 1))
    logs = [block.values.to_pylist() for block in stored(spool)]
    found = sorted(int(record.split(b":")[1]) for log in logs for record in log)
    assert found == taken


def test_what_waits_together_is_committed_together(spool, held):
    encoder = PlainEncoder()
    futures = [put(spool, encoder, [b"0"]) for _ in range(50)]
    held.go.set()
    assert [future.result(10).first_sequence for future in futures] == list(range(1, 51))
    assert [len(block.values) for block in stored(spool, lanes=[1])] == [50]


def test_a_commit_takes_no_more_than_configured(path):
    with open_spool(path, commit_events_max=10) as spool:
        held, encoder = HeldEncoder(), PlainEncoder()
        put(spool, held, [b"h"])
        held.reached.wait(10)
        futures = [put(spool, encoder, [b"0"] * 4) for _ in range(5)] + [put(spool, encoder, [b"0"] * 30)]
        held.go.set()
        assert [future.result(10).count for future in futures] == [4] * 5 + [30]
        assert [len(block.values) for block in stored(spool)] == [1, 8, 8, 4, 30]


def test_lanes_count_for_themselves(spool):
    encoder = PlainEncoder()
    receipts = [put(spool, encoder, [b"0"] * 2, lane=lane).result(10) for lane in (0, 1, 0, 2, 1)]
    assert [(r.lane, r.first_sequence) for r in receipts] == [(0, 1), (1, 1), (0, 3), (2, 1), (1, 3)]


def test_several_events_of_a_lane_share_its_sequences(spool, held):
    first, second = PlainEncoder("first"), PlainEncoder("second")
    futures = [put(spool, encoder, [b"0"] * 3) for encoder in (first, second, first)]
    held.go.set()
    starts = sorted(future.result(10).first_sequence for future in futures)
    assert starts == [1, 4, 7]
    assert spool.ledger()[0].accepted == 9


class Picky(PlainEncoder):
    def encode(self, parts, stamp):
        bad = {i: RecordError("too big", reason="oversize") for i, part in enumerate(parts) if b"bad" in part}
        if bad:
            raise Refused(bad)
        return super().encode(parts, stamp)


class Panic(BaseException):
    """As a panic of a Rust library arrives: no Exception."""


class Panicking(PlainEncoder):
    def encode(self, parts, stamp):
        if any(b"bad" in part for part in parts):
            raise Panic
        return super().encode(parts, stamp)


@pytest.mark.parametrize(("kind", "reason"), [(Picky, "oversize"), (Panicking, "undecodable")])
def test_a_bad_submission_fails_alone_and_uses_no_sequence(spool, held, kind, reason):
    encoder = kind()
    futures = [put(spool, encoder, [b"bad"] if n in (3, 4, 8) else [b"0", b"0"]) for n in range(9)]
    held.go.set()
    errors = [future.exception(10) for future in futures]
    assert [n for n, error in enumerate(errors) if error] == [3, 4, 8]
    assert {error.reason for error in errors if error} == {reason}
    good = [future.result().first_sequence for n, future in enumerate(futures) if not errors[n]]
    assert good == list(range(1, 13, 2))
    assert put(spool, encoder, [b"0"]).result(10).first_sequence == 13


def test_a_full_queue_makes_the_producer_wait_and_then_says_so(path):
    with open_spool(path, queue_events_max=10) as spool:
        held, encoder = HeldEncoder(), PlainEncoder()
        put(spool, held, [b"h"], lane=2)
        held.reached.wait(10)
        first = put(spool, encoder, [b"0"] * 8)
        started = time.monotonic()
        with pytest.raises(TransientError, match="wait for a commit already"):
            spool.submit(submission(encoder, [b"0"] * 3), wait_s=0.05)
        assert time.monotonic() - started >= 0.05
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(spool.submit, submission(encoder, [b"0"] * 3), 20)
            held.go.set()
            assert waiting.result(20).result(20).first_sequence == 9
        assert first.result().count == 8


def test_a_submission_larger_than_the_queue_is_taken_alone(path):
    with open_spool(path, queue_events_max=10) as spool:
        assert put(spool, PlainEncoder(), [b"0"] * 100).result(10).count == 100


def test_closing_commits_what_is_queued(path):
    spool = open_spool(path)
    held, encoder = HeldEncoder(), PlainEncoder()
    put(spool, held, [b"h"], lane=2)
    held.reached.wait(10)
    futures = [put(spool, encoder, [b"0"]) for _ in range(20)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(spool.close)
        held.go.set()
        closing.result(20)
    assert [future.result(0).first_sequence for future in futures] == list(range(1, 21))
    with pytest.raises(TransientError, match="closing"):
        put(spool, encoder, [b"0"])
    with open_spool(path) as again:
        assert put(again, encoder, [b"0"]).result(10).first_sequence == 21


def test_a_flush_waits_for_what_was_submitted_before_it(spool, held):
    futures = [put(spool, PlainEncoder(), [bytes([number])]) for number in range(20)]
    flushing = threading.Thread(target=spool.flush)
    flushing.start()
    assert not any(future.done() for future in futures)
    held.go.set()
    flushing.join(20)
    assert not flushing.is_alive()
    assert all(future.done() for future in futures)


def test_a_withdrawn_submission_is_not_stored(spool, held):
    encoder = PlainEncoder()
    first, second = put(spool, encoder, [b"0"]), put(spool, encoder, [b"0"])
    assert first.cancel()
    held.go.set()
    assert second.result(10).first_sequence == 1
    assert not second.cancel()


def test_without_room_new_events_are_refused_and_settlements_go_on(path):
    with open_spool(path, spool_bytes_max=140_000) as spool:
        encoder = PlainEncoder()
        put(spool, encoder, [b"0" * 90_000]).result(10)
        with pytest.raises(TransientError, match="no room for more events in lane 'normal'"):
            put(spool, encoder, [b"0" * 90_000]).result(10)
        with pytest.raises(TransientError, match="no room"):  # at once: nobody asks the disk again so soon
            spool.submit(submission(encoder, [b"0" * 90_000]), wait_s=0.0).result(10)
        assert spool.ledger()[0].accepted == 1
        (block,) = stored(spool)
        held = HeldEncoder()
        put(spool, held, [b"h"], lane=0)
        held.reached.wait(10)
        late = put(spool, encoder, [b"0" * 90_000])  # in one transaction with the settlement
        settled = spool.settle(Settlement("eu", 1, block.identity))
        held.go.set()
        assert late.result(10).first_sequence == 2  # what leaves makes room in the same transaction
        assert settled.result(10) is None


def test_a_nearly_full_disk_refuses_before_it_is_full(path):
    with open_spool(path) as spool:
        put(spool, PlainEncoder(), [b"0"]).result(10)
    with open_spool(path, free_bytes_min=1 << 60) as spool:
        with pytest.raises(TransientError, match="no room"):
            put(spool, PlainEncoder(), [b"0" * 9_000_000]).result(10)
        (block,) = stored(spool)
        spool.settle(Settlement("eu", 1, block.identity)).result(10)
        assert spool.ledger()[0].pending == 0


def test_listeners_hear_of_new_events_until_they_are_forgotten(spool):
    heard = threading.Event()
    forget = spool.on_commit(heard.set)
    put(spool, PlainEncoder(), [b"0"]).result(10)
    assert heard.wait(10)
    heard.clear()
    forget()
    put(spool, PlainEncoder(), [b"0"]).result(10)
    spool.losses().result(10)  # the commit's turn is over
    assert not heard.is_set()


def test_a_spool_taken_away_refuses_instead_of_acknowledging(spool, path):
    put(spool, PlainEncoder(), [b"0"]).result(10)
    path.unlink()
    with pytest.raises(StoreCorrupt):
        put(spool, PlainEncoder(), [b"0"]).result(10)


def test_the_ledger_is_consistent_for_a_reader_outside_at_every_moment(spool, path):
    encoder, stop = PlainEncoder(), threading.Event()

    def produce() -> None:
        while not stop.is_set():
            put(spool, encoder, [b"0", b"1", b"2"]).result(10)
            blocks = spool.read("eu", 1, 1).result(10)
            spool.settle(Settlement("eu", 1, blocks[-1].identity)).result(10)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(produce)
        try:
            seen = [read_ledger(path) for _ in range(100)]
        finally:
            stop.set()
        running.result(20)
    for counts in (one for ledger in seen for one in ledger):
        assert counts.accepted == counts.forwarded + counts.evicted + counts.pending
        assert counts.accepted % 3 == 0
