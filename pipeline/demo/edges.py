"""The demonstration's edges: one per region, in this process, ended side by side.

Comes in: a project and regions. Goes out: a client per region. An edge that loses its broker needs seconds to
notice; one after another they would add up.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from pipeline.edge import EdgeClient, read_ledger
from pipeline.edge_session import drained_edge
from pipeline.errors import TransientError
from pipeline.service import Project


class Edges:
    """Use as a context manager; :meth:`drain` ends them when the broker has everything. Left without it
    (after an error), they end at once and keep what they accepted."""

    def __init__(self, project: Project, regions: list[str]) -> None:
        self._project = project
        self._open: list[AbstractContextManager[EdgeClient]] = []
        self._names = {region: f"demo-{region}" for region in regions}
        self.clients: dict[str, EdgeClient] = {}

    def __enter__(self) -> Edges:
        with ExitStack() as undo:
            undo.push(self.__exit__)
            for region, name in self._names.items():
                edge = drained_edge(self._project, name)
                self.clients[region] = edge.__enter__()
                self._open.append(edge)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(hasty=True)

    def drain(self) -> None:
        """Return when every spool is empty. Raises TransientError when the broker stays away."""
        self._leave(hasty=False)

    def pending(self) -> dict[str, int]:
        """Events that wait in the spools, per region."""
        paths = {region: self._project.config.spool_path(name) for region, name in self._names.items()}
        return {region: sum(lane.pending for lane in read_ledger(path)) for region, path in paths.items()}

    def _leave(self, *, hasty: bool) -> None:
        edges, self._open = self._open, []
        if not edges:
            return
        with ThreadPoolExecutor(len(edges)) as pool:
            futures = [pool.submit(_leave_hastily if hasty else _leave_drained, edge) for edge in edges]
        for future in futures:
            future.result()


def _leave_drained(edge: AbstractContextManager[EdgeClient]) -> None:
    edge.__exit__(None, None, None)


def _leave_hastily(edge: AbstractContextManager[EdgeClient]) -> None:
    ended = TransientError("ended early", operation="demo")
    edge.__exit__(TransientError, ended, None)
