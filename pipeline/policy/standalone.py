"""A plan run outside a processor: on a file, in a user's stream, in a comparison.

Comes in: a compiled plan and checked rows. Goes out: what the plan lets through, whole rows judged as on the
leg itself as far as that is possible here. Invariant: where it is not possible, less leaves, never more: rows
are their own crowd batch by batch, and a leg that asks people for consent does not run without their answers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.policy.crowd import SUPPRESSED, too_few
from pipeline.policy.plan import EVENT_TIME, Applied, Plan
from pipeline.policy.typecheck import check_flow


class Standalone:
    """A plan with its crowd. ``without_consent``: run although the leg asks for consent, every row passing
    that question; for those who only count.

    Raises ConfigError for a leg that asks for consent otherwise: people's choices are known to the processor.
    """

    def __init__(self, plan: Plan, *, without_consent: bool = False) -> None:
        self.plan = plan
        event = plan.event.name
        if plan.terms.consent(event) is not None and not without_consent:
            raise ConfigError(
                "the policy asks for consent, and people's choices are not known here",
                operation="apply policy", place=f"{plan.region}, {event}",
                remedy="send the events through the region's processor",
            )  # fmt: skip
        self._crowd = plan.terms.crowd(event)
        self._traits = check_flow(plan.terms, plan.event).crowd_columns if self._crowd else ()

    def apply(self, batch: pa.RecordBatch) -> Applied:
        """Filter, transform, and keep back whom no crowd hides. Raises like :meth:`Plan.apply`."""
        applied = self.plan.apply(batch)
        if self._crowd is None or len(applied.kept) == 0:
            return applied
        kept = pa.array(applied.kept)
        alone = too_few(
            self._crowd, [applied.batch.column(name) for name in self._traits],
            batch.column(self._crowd.subject).take(kept), batch.column(EVENT_TIME).take(kept),
        )  # fmt: skip
        if len(alone) == 0:
            return applied
        together = np.setdiff1d(np.arange(len(kept)), alone, assume_unique=True)
        filtered = {**applied.filtered, SUPPRESSED: applied.kept[alone]}
        return Applied(applied.batch.take(pa.array(together)), applied.kept[together], filtered)
