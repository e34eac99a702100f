"""A plan run outside a processor: on a file, in a user's stream, in a comparison.

Comes in: a compiled plan and checked rows. Goes out: what the plan lets through. Invariant: where something
that the leg asks for cannot be known here, less leaves, never more: rows are their own crowd batch by batch,
and a leg that asks people for consent does not run without their answers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.policy.plan import Applied, Choices, Plan
from pipeline.policy.rules import Consent


class Unasked:
    """Choices for those who only count: as if nobody had been asked and all had agreed."""

    def unwanted(self, rule: Consent, subjects: pa.Array) -> dict[str, np.ndarray]:
        """No row."""
        return {}


class Standalone:
    """A plan that is asked for rows alone. ``without_consent``: run also a leg that asks for consent, every
    row passing that question; for those who only count.

    Raises ConfigError for a leg that asks for consent when there are no ``choices`` either.
    """

    def __init__(self, plan: Plan, *, choices: Choices | None = None, without_consent: bool = False) -> None:
        self._choices = Unasked() if without_consent else choices
        if plan.consent is not None and self._choices is None:
            raise ConfigError(
                "the policy asks for consent, and people's choices are not known here",
                operation="apply policy", place=f"{plan.region}, {plan.event.name}",
                remedy="send the events through the region's processor",
            )  # fmt: skip
        self.plan = plan

    def apply(self, batch: pa.RecordBatch) -> Applied:
        """See :meth:`Plan.apply`."""
        return self.plan.apply(batch, self._choices)
