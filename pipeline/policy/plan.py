"""A checked flow, compiled: a batch of events in, what the destination may hold out.

Comes in: decoded, checked rows of one event type, raw ones for a landing, the origin's curated ones (with
their raw position) for a border; where the policy asks for consent, what people have said. Goes out:
:class:`Applied`. Invariants: same rows, keys and choices give the same result; the result has exactly the
compiled columns, each with tags the destination may hold, looked at again on every batch; whatever goes wrong
raises, and the message names fields and never holds a value.

Whole rows are judged three times: by the pack's filters, by their person's choice, and, once the operators
have done their work, by the crowd that shares what they became.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, PipelineError
from pipeline.events import EventType
from pipeline.policy.crowd import SUPPRESSED, too_few
from pipeline.policy.derive import curated_arrow, curated_schema
from pipeline.policy.encryption import Encrypter
from pipeline.policy.filters import dropped
from pipeline.policy.flow import EVENT_TIME, Decision, Flow
from pipeline.policy.keys import KeyStore
from pipeline.policy.operators import Context, KeyedParameters, TokenParameters
from pipeline.policy.pseudonyms import EpochKind, Epochs, Pseudonymiser, epoch_index, epoch_name
from pipeline.policy.recognisers import Recogniser, plugged
from pipeline.policy.rules import Consent
from pipeline.policy.tags import uncovered
from pipeline.policy.terms import Terms
from pipeline.policy.tokens import Tokeniser, TokenVault
from pipeline.policy.typecheck import check_flow

Result = TypeVar("Result")


@dataclass(frozen=True)
class Applied:
    """``batch``: the curated rows, without raw position (and origin). ``kept``: their input rows, ascending.

    ``filtered``: rows of the input per filter, ascending and disjoint.
    """

    batch: pa.RecordBatch
    kept: np.ndarray
    filtered: dict[str, np.ndarray]


class Choices(Protocol):
    """What people have said; :class:`pipeline.policy.consent.ConsentBook` holds it for a region."""

    def unwanted(self, rule: Consent, subjects: pa.Array) -> dict[str, np.ndarray]:
        """Rows (ascending) that may not be processed, by reason."""
        ...


class Plan:
    """One event on one leg. Reusable over batches, not shared between threads (it remembers pseudonyms)."""

    def __init__(self, flow: Flow, keys: KeyStore, vault: TokenVault | None = None) -> None:
        terms = flow.terms
        self.event: EventType = flow.input
        self.terms: Terms = terms
        self.region: str = terms.destination
        self.policy_hash: str = terms.hash
        self.schema: dict[str, Any] = curated_schema(flow)
        self.arrow: pa.Schema = curated_arrow(flow, self.schema)
        self._flow = flow
        self._tags = {str(decision.output): decision.result for decision in flow.columns}
        self._epoch: EpochKind = terms.epoch
        self._pseudonyms = Pseudonymiser(keys, flow.region, terms.epoch)
        self._encrypter = Encrypter(keys, flow.region, terms.epoch)
        self._tokens = Tokeniser(keys, flow.region, vault)
        keyed = {d.parameters for d in flow.columns if isinstance(d.parameters, KeyedParameters)}
        lasting = {parameters for parameters in keyed if isinstance(parameters, TokenParameters)}
        self._purposes = sorted({parameters.purpose for parameters in keyed - lasting})
        self._token_purposes = sorted({parameters.purpose for parameters in lasting})

    def require_keys(self, now_us: int) -> None:
        """Ask for the keys of the epoch of ``now_us`` and for the vault, where the flow needs them;
        ConfigError when one is missing."""
        epoch = epoch_name(int(epoch_index(np.array([now_us]), self._epoch)[0]), self._epoch)
        for purpose in self._purposes:
            self._pseudonyms.key(purpose, epoch)
        self._tokens.demand(self._token_purposes)

    @property
    def consent(self) -> Consent | None:
        """What people are asked before their events are processed; None: nothing."""
        return self._flow.consent

    @property
    def hold_s(self) -> float:
        """How long rows should wait so that a crowd can gather; 0 where none is needed."""
        return self._flow.crowd.hold_s if self._flow.crowd else 0.0

    def apply(self, batch: pa.RecordBatch, choices: Choices | None = None) -> Applied:
        """Filter, transform what is left, and keep back whom no crowd hides."""
        filtered = self.filter(batch, choices)
        kept = _without(np.arange(len(batch)), filtered)
        wanted = batch.take(pa.array(kept)) if filtered else batch
        result = self.transform(wanted)
        alone = self.alone(wanted, result)
        if len(alone):
            filtered[SUPPRESSED] = kept[alone]
            together = np.setdiff1d(np.arange(len(kept)), alone, assume_unique=True)
            result, kept = result.take(pa.array(together)), kept[together]
        return Applied(result, kept, filtered)

    def filter(self, batch: pa.RecordBatch, choices: Choices | None = None) -> dict[str, np.ndarray]:
        """Rows that each filter drops, and those that their person does not want processed: ascending,
        disjoint, reasons without any row left out. Raises ConfigError where consent is asked for and
        ``choices`` are not given."""
        self._demand_input(batch)
        found = self._guarded("filter", lambda: dropped(self._flow.filters, batch))
        rule = self._flow.consent
        if rule is None:
            return found
        if choices is None:
            raise self._stop("consent", "what people have said is not known here")
        asked = self._guarded("consent", lambda: choices.unwanted(rule, batch.column(rule.subject)))
        for reason, rows in asked.items():
            if len(rows := _without(rows, found)):
                found[reason] = rows
        return found

    def alone(self, batch: pa.RecordBatch, result: pa.RecordBatch) -> np.ndarray:
        """Rows (ascending) of a transformed batch that no crowd hides; none where none is asked for."""
        crowd = self._flow.crowd
        if crowd is None:
            return np.empty(0, dtype=np.int64)
        traits = [result.column(name) for name in self._flow.crowd_columns]
        subjects, times = batch.column(crowd.subject), batch.column(EVENT_TIME)
        return self._guarded("crowd", lambda: too_few(crowd, traits, subjects, times))

    def transform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Every row through the operators, with the schema :attr:`arrow`. Raises ConfigError, then nothing
        of the batch may go on: a wrong schema, a missing key, a value an operator cannot work on."""
        self._demand_input(batch)
        epochs = self._guarded(EVENT_TIME, lambda: self._epochs(batch))
        columns = [self._run(decision, batch, epochs) for decision in self._flow.columns]
        result = self._guarded("result", lambda: pa.RecordBatch.from_arrays(columns, schema=self.arrow))
        self._guarded("result", result.validate)
        self._demand_output(result, len(batch))
        return result

    def _epochs(self, batch: pa.RecordBatch) -> Epochs | None:
        return Epochs(batch.column(EVENT_TIME), self._epoch) if self._purposes else None

    def _run(self, decision: Decision, batch: pa.RecordBatch, epochs: Epochs | None) -> pa.Array:
        run = decision.operator.run
        assert run is not None, "a flow's columns have operators that leave one"
        domain = ",".join(sorted(decision.taken))
        context = Context(
            domain, epochs, self._pseudonyms, self._encrypter, self.terms.hierarchies, self._tokens
        )
        columns = [batch.column(field.name) for field in decision.fields]
        return self._guarded(
            f"{decision.operator.name} on {decision.fields[0].name}",
            lambda: run(columns, decision.parameters, context),
        )

    def _guarded(self, step: str, work: Callable[[], Result]) -> Result:
        """Do it, or stop with the type of the error alone: the texts of kernels quote values."""
        try:
            return work()
        except PipelineError:
            raise  # the key store's, already worded: a key is missing, or the store away for a moment
        except Exception as error:
            kind = type(error).__name__
        # Raised out here, so that the error carries no context that a log could print.
        raise self._stop(step, f"failed ({kind})")

    def _demand_input(self, batch: pa.RecordBatch) -> None:
        if not batch.schema.equals(self.event.arrow):
            raise self._stop("input", "the batch does not have the schema this plan was compiled for")

    def _demand_output(self, result: pa.RecordBatch, rows: int) -> None:
        """The type check's second half, on what is really there."""
        if not result.schema.equals(self.arrow) or len(result) != rows:
            raise self._stop("result", "columns or rows differ from what was compiled")
        for column in result.schema:
            tags = self._tags.get(column.name, frozenset())
            if not tags or uncovered(tags, self._flow.allowed):
                raise self._stop("result", f"{column.name} has a tag that {self.region} may not hold")
            if not column.nullable and result.column(column.name).null_count:
                raise self._stop("result", f"{column.name} has nulls and must not")

    def _stop(self, step: str, problem: str) -> ConfigError:
        return ConfigError(
            f"{step}: {problem}",
            operation="apply policy",
            place=f"{self.terms.origin} to {self.region}, {self.event.name}",
            remedy="nothing of this batch has passed",
        )


def _without(rows: np.ndarray, found: dict[str, np.ndarray]) -> np.ndarray:
    """The rows that nothing has dropped yet."""
    return np.setdiff1d(rows, np.concatenate(list(found.values())), assume_unique=True) if found else rows


def compile_plan(
    terms: Terms,
    event: EventType,
    keys: KeyStore,
    *,
    now_us: int | None = None,
    vault: TokenVault | None = None,
    recognisers: Mapping[str, Recogniser] | None = None,
) -> Plan:
    """Type-check the flow of an event (on a border: of the origin's curated event) and make it runnable.

    Raises ConfigError when a tag would be left that the destination may not hold, when the transfer's basis
    has ended, when a key of the current epoch (of ``now_us``, microseconds since 1970 UTC) is missing, or
    when the policy tokenises and there is no ``vault`` or redacts with a recogniser that is not among
    ``recognisers``. Keys of other epochs are asked for when their events
    come, in the destination's name. A plan does not look at the clock again: who runs one over a border asks
    ``plan.terms.demand_valid`` for every batch.
    """
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    terms.demand_valid(now_us)
    plan = Plan(plugged(check_flow(terms, event), recognisers or {}), keys, vault)
    plan.require_keys(now_us)
    return plan
