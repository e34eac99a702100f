"""Pipelines with one promise broken on purpose, to see that the judge notices.

``python -m tests.faults.mutants MUTATION MODULE ARGUMENTS…`` runs a module as ``python -m`` does, with one
class replaced by a mutant of it. The mutations are mistakes that one could make; nothing else is changed.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import connectors.lake
import pipeline.edge.forwarder
import pipeline.processor.state
import pipeline.service
from pipeline.store.account import Source, StoreState


def forgetful_processor() -> None:
    """The watermarks are written and never read: what the edge sends again after a restart is new."""

    class Forgetful(pipeline.processor.state.StateLog):
        async def load(self, *arguments: Any) -> Any:
            states, end = await super().load(*arguments)
            for state in states.values():
                state.seen = {}
            return states, end

    pipeline.service.StateLog = Forgetful  # type: ignore[misc]


def trusting_writer() -> None:
    """The writer starts where Kafka's group says, and that hint had not been written when it was killed."""

    class Trusting(connectors.lake.Lake):
        def state(self) -> StoreState:
            return replace(super().state(), positions={}, next_raw={})

        def _verify(self, expected: Mapping[Source, int]) -> None:
            """Kafka is trusted, not the store."""

    pipeline.service.Lake = Trusting  # type: ignore[misc]


def careless_edge() -> None:
    """Every tenth step is taken for acknowledged and was never sent."""
    send, steps = pipeline.edge.forwarder._Lane._send, [0]

    async def careless(self: Any, step: Any) -> None:
        steps[0] += 1
        if steps[0] % 10:
            await send(self, step)

    pipeline.edge.forwarder._Lane._send = careless  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "forgetful-processor": forgetful_processor,
    "trusting-writer": trusting_writer,
    "careless-edge": careless_edge,
}


def main() -> None:
    """Mutate, then run the module."""
    mutation, module, *arguments = sys.argv[1:]
    MUTATIONS[mutation]()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
