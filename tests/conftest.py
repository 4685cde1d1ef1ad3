"""Fixtures for every room's tests, and the way to the builders: `from tests.models import ...`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# A shell's background jobs are started with Ctrl-C ignored, and so would be whatever they start: tests that press it
# have to hold there too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models and texts beside the repository, which not every machine has."""
    folder = ROOT.parent / "shared"
    if not (folder / "zoo").is_dir():
        pytest.skip(f"the folder of shared models is not there: {folder}")
    return folder
