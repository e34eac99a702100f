"""Reads the metrics page of a process of the local stack.

Comes in: a port on loopback. Goes out: events handled so far and the lag. A process that does not answer
gives nothing: status must not fail because one role hangs.
"""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

EVENTS = (
    "pipeline_edge_accepted_events",
    "pipeline_processor_processed_events",
    "pipeline_store_stored_rows",
)
LAGS = ("pipeline_edge_spooled_events", "pipeline_processor_lag_records", "pipeline_store_lag_records")


def rates(port: int, timeout_s: float = 2.0) -> dict[str, int]:
    """``events`` handled since the process started, ``lag`` waiting in front of it; {} without an answer."""
    if port == 0:
        return {}
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout_s) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError):
        return {}
    totals = {"events": 0, "lag": 0}
    for family in text_string_to_metric_families(text):
        kind = "events" if family.name in EVENTS else "lag" if family.name in LAGS else None
        if kind is not None:
            totals[kind] += sum(int(s.value) for s in family.samples if not s.name.endswith("_created"))
    return totals
