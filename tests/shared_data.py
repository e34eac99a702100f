"""Where the real data sets are; a test that needs them skips where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


def shared_data(*parts: str) -> Path:
    """Path inside the data folder: ``$PIPELINE_SHARED_DATA``, else ``../shared/data`` beside the project.

    Skips the calling test when it is not there.
    """
    configured = os.environ.get("PIPELINE_SHARED_DATA")
    root = Path(configured) if configured else PROJECT.parent / "shared" / "data"
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(
            f"shared data absent: {'/'.join(parts) or root.name}; set PIPELINE_SHARED_DATA to its folder"
        )
    return path
