"""One local stack for all tests that need the whole way; a test leaves it running, at rest and in balance."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.local_stack import LocalStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Two regions with their processes, started by ``pipeline up``."""
    with LocalStack(tmp_path_factory.mktemp("stack")) as running:
        yield running
