"""Repeats: what the edge sends twice is found, whatever the cut between batches."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.processor.repeats import find_repeats


def plain(identities, seen):
    """One event at a time: the definition."""
    highest, repeats = dict(seen), []
    for row, (spool, lane, sequence) in enumerate(identities):
        if spool == 0:
            continue
        if sequence <= highest.get((spool, lane), 0):
            repeats.append(row)
        else:
            highest[(spool, lane)] = sequence
    return repeats, highest


identity = st.tuples(st.sampled_from([0, 3, 2**62]), st.integers(0, 2), st.integers(1, 30))


@given(st.lists(identity, max_size=60), st.integers(0, 60))
def test_agrees_with_one_event_at_a_time_over_any_cut(identities, cut):
    seen: dict[tuple[int, int], int] = {}
    found = []
    for base, part in ((0, identities[:cut]), (min(cut, len(identities)), identities[cut:])):
        columns = np.array(part, dtype=np.int64).reshape(-1, 3).T
        repeats, updates = find_repeats(columns[0], columns[1], columns[2], seen)
        seen.update(updates)
        found += [base + row for row in repeats.tolist()]
    repeats, highest = plain(identities, {})
    assert found == repeats
    assert seen == highest


def test_an_event_without_identity_is_never_a_repeat():
    zeros = np.zeros(5, dtype=np.int64)
    repeats, updates = find_repeats(zeros, zeros, zeros + 1, {})
    assert repeats.tolist() == []
    assert updates == {}


def test_ten_thousand_spools_in_one_batch():
    spools = np.repeat(np.arange(1, 10_001), 3)
    sequences = np.tile([1, 2, 2], 10_000)
    repeats, updates = find_repeats(spools, np.zeros(30_000, np.int64), sequences, {})
    assert len(repeats) == 10_000
    assert len(updates) == 10_000
