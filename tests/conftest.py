"""Fixtures for every room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models and texts beside the repository, which not every machine has."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "zoo").is_dir():
        pytest.skip(f"the folder of shared models is not there: {folder}")
    return folder
