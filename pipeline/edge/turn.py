"""One turn of the spool's writer: what was queued, asked and settled since the last one.

Comes in: submissions, questions to the file, settlements. Goes out: the futures that wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pipeline.edge.ledger import Settlement
from pipeline.edge.submission import Submission
from pipeline.errors import PipelineError


@dataclass
class Call:
    """A question to the file, asked from another thread."""

    ask: Callable[[], Any]
    future: Future = field(default_factory=Future)


@dataclass
class Turn:
    """What is served together."""

    submissions: list[Submission] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    settlements: list[tuple[Settlement, Future[None]]] = field(default_factory=list)

    def futures(self) -> list[Future]:
        """All that someone waits for."""
        found: list[Future] = [call.future for call in self.calls]
        found += [submission.future for submission in self.submissions]
        return found + [future for _, future in self.settlements]


def begin(future: Future) -> bool:
    """Whether nobody cancelled it; from now on nobody can."""
    return future.set_running_or_notify_cancel()


def fail(futures: Sequence[Future], error: PipelineError) -> None:
    """Each waiter gets an exception of its own: they are raised in several threads."""
    for future in futures:
        again = type(error)(error.problem, operation=error.operation, place=error.place, remedy=error.remedy)
        future.set_exception(again)
