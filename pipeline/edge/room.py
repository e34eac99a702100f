"""Who may stay when the spool is full: shares kept, room lent, the oldest of the lowest given up first.

Comes in: what each lane holds, what of it cannot go (in flight), what each brings. Goes out: which lanes are
refused, and how much each lane gives up. Pure. Invariants:
- A lane that blocks never gives up an event. It takes its own share and what no share is kept for, so what
  it holds beyond its share is never somebody else's.
- A lane that sheds may fill whatever is free, and gives back what it holds beyond its share, lowest lane
  first. Only what it brings itself ever pushes it below its share, and only when the disk leaves less room
  than the shares add up to.
- What is new is never given up in the transaction that takes it: it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.config import EdgeConfig


@dataclass(frozen=True, slots=True)
class LaneRule:
    """A lane's class. ``share`` is a fraction of what the spool may hold, which the disk may make smaller."""

    share: float
    sheds: bool
    summarises: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What a lane holds, and how much of it is in flight and stays."""

    used: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Lanes whose events are refused, and bytes that lanes give up (at least)."""

    refused: frozenset[int] = frozenset()
    shed: Mapping[int, int] = field(default_factory=dict)


def lane_rules(lanes: Iterable[str], settings: EdgeConfig) -> dict[int, LaneRule]:
    """The rules of the configured lanes, by number."""
    rules = {}
    for number, name in enumerate(lanes):
        kind = settings.lane_class(name)
        rules[number] = LaneRule(kind.share, kind.when_full != "block", kind.when_full == "summarise")
    return rules


def largest(rules: Mapping[int, LaneRule], lane: int, limit: int) -> int:
    """The most a lane could ever hold: what the others' shares leave."""
    return limit - sum(int(rule.share * limit) for number, rule in rules.items() if number != lane)


def make_room(
    rules: Mapping[int, LaneRule], held: Mapping[int, Held], brought: Mapping[int, int], limit: int
) -> Plan:
    """Decide, lane by lane, the highest first. ``limit``: bytes that the spool may hold now."""
    taken: dict[int, int] = {}
    refused: set[int] = set()
    shed: dict[int, int] = {}
    for lane in sorted(brought):
        trial = {**taken, lane: brought[lane]}
        plan = _shed(rules, held, trial, limit)
        if plan is None or not _shares_are_kept(rules, held, trial, limit, lane):
            refused.add(lane)
        else:
            taken, shed = trial, plan
    return Plan(frozenset(refused), shed)


def _shares_are_kept(
    rules: Mapping[int, LaneRule], held: Mapping[int, Held], brought: Mapping[int, int], limit: int, lane: int
) -> bool:
    """Whether every other lane could still have its share after a lane that never gives way took more."""
    if rules[lane].sheds:
        return True
    claims = 0
    for number, rule in rules.items():
        mine = held.get(number, Held())
        stays = mine.kept if rule.sheds else mine.used + brought.get(number, 0)
        claims += max(int(rule.share * limit), stays)
    return claims <= limit


def _shed(
    rules: Mapping[int, LaneRule], held: Mapping[int, Held], brought: Mapping[int, int], limit: int
) -> dict[int, int] | None:
    """Bytes to give up per lane; None when that is not enough."""
    over = sum(one.used for one in held.values()) + sum(brought.values()) - limit
    shed: dict[int, int] = {}
    shedding = [lane for lane in sorted(rules, reverse=True) if rules[lane].sheds]
    for lane in shedding:
        mine = held.get(lane, Held())
        beyond = mine.used + brought.get(lane, 0) - int(rules[lane].share * limit)
        give = max(0, min(over, mine.used - mine.kept, beyond))
        shed[lane] = give
        over -= give
    for lane in shedding:
        mine = held.get(lane, Held())
        if lane in brought:
            give = max(0, min(over, mine.used - mine.kept - shed[lane]))
            shed[lane] += give
            over -= give
    return None if over > 0 else {lane: give for lane, give in shed.items() if give}
