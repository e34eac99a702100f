"""A reader whose group is in trouble: what it took from the broker is handed out, the trouble comes after."""

from __future__ import annotations

import numpy as np
import pytest

from connectors.kafka import KafkaReader
from connectors.kafka_records import Fetched
from pipeline.config import ClusterConfig, LimitsConfig
from pipeline.errors import TransientError


class TroubledMember:
    """Fails the checks whose numbers are given."""

    def __init__(self, failing: set[int]) -> None:
        self.failing, self.checks = failing, 0

    def check(self) -> None:
        self.checks += 1
        if self.checks in self.failing:
            raise TransientError("the group is in trouble")


class OneRun:
    """A source that has one run of records, and then nothing."""

    def __init__(self) -> None:
        self.runs = [Fetched("topic", 0, 0, 10, np.arange(10))]

    async def take(self, timeout_s: float) -> list[Fetched]:
        return [self.runs.pop()] if self.runs else []


def reader(failing: set[int]) -> KafkaReader:
    made = KafkaReader(ClusterConfig(bootstrap="127.0.0.1:1"), "group", LimitsConfig())
    made._member, made._source, made._joined = TroubledMember(failing), OneRun(), True  # type: ignore[assignment]
    return made


async def test_records_taken_while_the_group_fails_are_not_lost():
    troubled = reader(failing={2})
    assert [(run.first_offset, run.next_offset) for run in await troubled.fetch(0.1)] == [(0, 10)]
    with pytest.raises(TransientError):
        await troubled.fetch(0.1)
    assert await troubled.fetch(0.1) == []


async def test_the_trouble_shows_at_once_when_nothing_was_taken():
    troubled = reader(failing={3})
    await troubled.fetch(0.1)
    with pytest.raises(TransientError):
        await troubled.fetch(0.1)
