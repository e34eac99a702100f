"""Waiting in tests: for a condition, under a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PAUSE = threading.Event()  # never set: its wait is a pause


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Return once the condition holds; fail the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        PAUSE.wait(0.01)
