"""Who may stay when the spool is full."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.edge.room import Held, LaneRule, largest, make_room

URGENT, NORMAL, BULK = 0, 1, 2
RULES = {URGENT: LaneRule(0.2, False), NORMAL: LaneRule(0.5, False), BULK: LaneRule(0.1, True)}
SHEDDING = {URGENT: LaneRule(0.2, False), NORMAL: LaneRule(0.5, True), BULK: LaneRule(0.1, True)}


NUMBERS = {"urgent": URGENT, "normal": NORMAL, "bulk": BULK}


def held(**used: int) -> dict[int, Held]:
    return {NUMBERS[name]: Held(size) for name, size in used.items()}


def test_a_lane_that_sheds_may_fill_all_that_is_free():
    assert make_room(RULES, held(bulk=900), {BULK: 100}, 1000).shed == {}
    plan = make_room(RULES, held(bulk=950), {BULK: 100}, 1000)
    assert (plan.refused, plan.shed) == (frozenset(), {BULK: 50})


def test_what_was_borrowed_is_given_back_to_whose_share_it_is():
    plan = make_room(RULES, held(bulk=1000), {URGENT: 150}, 1000)
    assert (plan.refused, plan.shed) == (frozenset(), {BULK: 150})


def test_a_lane_that_blocks_takes_its_share_and_what_is_nobodys():
    assert not make_room(RULES, held(normal=650), {NORMAL: 50}, 1000).refused
    assert make_room(RULES, held(normal=650), {NORMAL: 51}, 1000).refused == {NORMAL}
    assert largest(RULES, NORMAL, 1000) == 700


def test_a_full_lane_does_not_hold_the_others():
    plan = make_room(RULES, held(normal=700, bulk=300), {URGENT: 10, NORMAL: 10, BULK: 10}, 1000)
    assert (plan.refused, plan.shed) == ({NORMAL}, {BULK: 20})


def test_the_lowest_lane_gives_way_first_and_keeps_its_share():
    plan = make_room(SHEDDING, held(normal=700, bulk=300), {URGENT: 401}, 1000)
    assert plan.refused == {URGENT}  # the others' shares stay theirs
    plan = make_room(SHEDDING, held(normal=700, bulk=300), {URGENT: 200}, 1000)
    assert plan.shed == {BULK: 200}
    plan = make_room(SHEDDING, held(normal=850, bulk=150), {URGENT: 200}, 1000)
    assert plan.shed == {BULK: 50, NORMAL: 150}


def test_what_is_in_flight_stays():
    plan = make_room(RULES, {BULK: Held(1000, kept=1000)}, {URGENT: 10, BULK: 10}, 1000)
    assert plan.refused == {URGENT, BULK}


def test_what_is_larger_than_the_lane_is_refused_whatever_else_could_go():
    assert make_room(RULES, held(bulk=500), {BULK: 1200}, 1000).refused == {BULK}


lanes = st.dictionaries(st.integers(0, 3), st.integers(0, 600), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    rules=st.dictionaries(st.integers(0, 3), st.booleans(), min_size=4, max_size=4), used=lanes,
    brought=lanes, kept=st.floats(0, 1), limit=st.integers(1, 1500),
)  # fmt: skip
def test_in_every_case_bounds_shares_and_promises_hold(rules, used, brought, kept, limit):
    kinds = {lane: LaneRule(0.25, sheds) for lane, sheds in rules.items()}
    now = {lane: Held(size, int(size * kept)) for lane, size in used.items()}
    plan = make_room(kinds, now, brought, limit)
    taken = {lane: size for lane, size in brought.items() if lane not in plan.refused}
    after = {lane: used.get(lane, 0) + taken.get(lane, 0) - plan.shed.get(lane, 0) for lane in kinds}
    if taken:
        assert sum(after.values()) <= limit
    for lane, size in plan.shed.items():
        assert kinds[lane].sheds
        assert size <= now[lane].used - now[lane].kept
        assert lane in taken or after[lane] >= int(0.25 * limit)
    if not taken:
        assert not plan.shed
    for lane, size in taken.items():
        if not kinds[lane].sheds and size:
            others = sum(
                max(int(0.25 * limit), now.get(k, Held()).kept if kinds[k].sheds else after[k]) for k in kinds
            )
            assert others <= limit


@settings(max_examples=100, deadline=None)
@given(used=lanes, size=st.integers(1, 250))
def test_a_lane_gets_its_share_whatever_lanes_that_shed_have_borrowed(used, size):
    """Lanes that block stay where they may be: then every share is there for whoever asks."""
    kinds = {
        0: LaneRule(0.25, False),
        1: LaneRule(0.25, False),
        2: LaneRule(0.25, True),
        3: LaneRule(0.25, True),
    }
    now = {lane: Held(min(amount, 250) if lane < 2 else amount) for lane, amount in used.items()}
    for lane in kinds:
        room = 250 - now.get(lane, Held()).used
        if 0 < size <= room:
            assert not make_room(kinds, now, {lane: size}, 1000).refused
