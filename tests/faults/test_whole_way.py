"""kill -9 of everything from an edge to the core, by a seeded schedule: each event is in each store once.

``make test`` runs one seed; ``make faults SEEDS=n`` the seeds 1 to n; ``SEED=k`` runs that one again. EVENTS
and FLOW_S change how many events flow, and for how long.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time

import pytest

from tests.faults.campaign import Campaign
from tests.faults.schedule import EDGE, schedule
from tests.faults.verdict import judge, judge_core
from tests.whole_way import Setting, Way

EVENTS = int(os.environ.get("EVENTS", "200000"))
FLOW_S = float(os.environ.get("FLOW_S", "40"))
REST_S = 180.0


def seeds() -> list[int]:
    if "SEED" in os.environ:
        return [int(os.environ["SEED"])]
    return list(range(1, int(os.environ.get("SEEDS", "1")) + 1))


@pytest.mark.faults
@pytest.mark.parametrize("seed", seeds())
def test_every_accepted_event_lands_once_whatever_is_killed(seed, tmp_path):
    faults = schedule(seed)
    print(f"SEED={seed} EVENTS={EVENTS} FLOW_S={FLOW_S:g}", *faults, sep="\n")
    begun = time.monotonic()
    with Way(tmp_path, Setting(request_timeout_s=[2.0, 5.0, 10.0][seed % 3])) as way:
        campaign = Campaign(way, seed, EVENTS, FLOW_S, faults)
        asyncio.run(campaign.run())
        verdict = asyncio.run(judge(way, REST_S))
        at_the_core = asyncio.run(judge_core(way, verdict.report, REST_S))
        noticed = in_logs(way, b"another instance decided")
        print(
            f"{time.monotonic() - begun:.0f} s, {campaign.audits} audits, {len(noticed)} zombies: {verdict}"
        )
        assert verdict.findings == ()
        assert at_the_core == ()
        assert verdict.report.accepted == EVENTS
        assert campaign.edge.starts == 1 + sum(fault.kind == EDGE for fault in faults)
        assert verdict.raw.bad > 0
        assert verdict.raw.foreign
        assert in_logs(way, b"Traceback (most") == []  # an exception that came through to the top
    shutil.rmtree(tmp_path)  # a hundred seeds in one run would fill the disk; a failed one is kept


def in_logs(way: Way, words: bytes) -> list[str]:
    """The children that said so in their logs."""
    return [child.name for child in way.children if words in child.log.read_bytes()]
