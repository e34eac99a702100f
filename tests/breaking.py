"""The real writer, with a hook that may fail a send before or after it reached the broker."""

from __future__ import annotations

import random
from typing import Any

from connectors.kafka import KafkaWriter
from pipeline.errors import TransientError


class Breaking:
    """Its writer is set when there is one; until then nothing is sent."""

    def __init__(self, writer: KafkaWriter | None = None) -> None:
        self._writer = writer
        self.before: dict[str, list[Exception]] = {}  # part of a topic's name -> errors still to raise
        self.after: dict[str, list[Exception]] = {}
        self.chance: random.Random | None = None  # then one send in eight fails, before or after

    async def send(self, topic: str, partition: int, values: Any, keys: Any = None) -> int:
        """As the writer's."""
        assert self._writer is not None
        _raise_next(self.before, topic)
        failing = self.chance.random() if self.chance else 1.0
        if failing < 1 / 16:
            raise TransientError("not sent, says the test")
        offset = await self._writer.send(topic, partition, values, keys)
        _raise_next(self.after, topic)
        if failing < 1 / 8:
            raise TransientError("sent, but who knows, says the test")
        return offset


def _raise_next(errors: dict[str, list[Exception]], topic: str) -> None:
    for part, waiting in errors.items():
        if part in topic and waiting:
            raise waiting.pop()
