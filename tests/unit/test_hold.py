"""What is held back comes out whole, in order, and in time."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.processor.hold import Hold


def run(first: int, count: int, refused=()):
    offsets = np.arange(first, first + count)
    values = pa.array([str(n).encode() for n in offsets], pa.binary())
    return SimpleNamespace(
        topic="eu.raw.x", partition=3, first_offset=first, next_offset=first + count, offsets=offsets,
        timestamps_ms=offsets * 1000,
        values=values, refused=list(refused),
    )  # fmt: skip


def test_runs_come_out_as_one():
    hold = Hold(10.0)
    for part in (run(5, 3), run(8, 2, [(8, 9, "corrupt")]), run(10, 1)):
        hold.add(part, 0.0)
    joined = hold.take()
    assert (joined.topic, joined.partition, joined.first_offset, joined.next_offset) == ("eu.raw.x", 3, 5, 11)
    assert joined.offsets.tolist() == [5, 6, 7, 8, 9, 10]
    assert joined.values.to_pylist() == [b"5", b"6", b"7", b"8", b"9", b"10"]
    assert joined.refused == [(8, 9, "corrupt")]
    assert len(hold) == 0
    assert hold.due_in(99.0) is None


def test_it_is_due_by_age_or_by_size():
    hold = Hold(10.0, records_max=5)
    assert hold.due_in(0.0) is None
    hold.add(run(0, 2), 100.0)
    hold.add(run(2, 2), 104.0)
    assert hold.due_in(104.0) == pytest.approx(6.0)
    assert hold.due_in(111.0) == 0.0
    hold.add(run(4, 1), 104.0)
    assert hold.due_in(104.0) == 0.0


def test_what_does_not_wait_is_due_at_once():
    hold = Hold(0.0)
    only = run(0, 2)
    hold.add(only, 7.0)
    assert hold.due_in(7.0) == 0.0
    assert hold.take() is only


def test_a_gap_is_a_fault_of_the_caller():
    hold = Hold(1.0)
    hold.add(run(0, 2), 0.0)
    with pytest.raises(AssertionError):
        hold.add(run(3, 1), 0.0)


def test_cleared_is_empty():
    hold = Hold(1.0)
    hold.add(run(0, 2), 0.0)
    hold.clear()
    hold.add(run(7, 1), 0.0)
    assert hold.take().first_offset == 7
