"""Find real clips, if there are any."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_clips() -> Path:
    """The folder that holds the real data sets, by default beside the checkout."""
    folder = Path(os.environ.get("MARDINI_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; MARDINI_SHARED_DATA names their folder")
    return folder
