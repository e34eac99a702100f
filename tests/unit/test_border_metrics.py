"""A basis that ends soon shows 90 days before, without anyone touching the process."""

from __future__ import annotations

import time

import pytest
from prometheus_client import CollectorRegistry

from pipeline.metrics import BASIS_WARNING_DAYS, BorderMetrics

DAY_S = 86_400.0


@pytest.mark.parametrize(("days_left", "shown"), [(91, 0.0), (89, 1.0), (0.5, 1.0), (-1, 1.0), (None, 0.0)])
def test_it_warns_in_the_last_ninety_days(days_left, shown):
    assert BASIS_WARNING_DAYS == 90
    registry = CollectorRegistry()
    until_us = None if days_left is None else int((time.time() + days_left * DAY_S) * 1e6)
    BorderMetrics(registry, "core").of("uk", "a test", until_us)
    labels = {"from": "uk", "to": "core"}
    assert registry.get_sample_value("pipeline_transfer_basis_ends_soon", labels) == shown


def test_it_begins_to_warn_while_the_process_runs(monkeypatch):
    registry, now_s = CollectorRegistry(), time.time()
    BorderMetrics(registry, "core").of("uk", "a test", int((now_s + 100 * DAY_S) * 1e6))
    labels = {"from": "uk", "to": "core"}
    assert registry.get_sample_value("pipeline_transfer_basis_ends_soon", labels) == 0.0
    monkeypatch.setattr("pipeline.metrics.time.time", lambda: now_s + 11 * DAY_S)
    assert registry.get_sample_value("pipeline_transfer_basis_ends_soon", labels) == 1.0
