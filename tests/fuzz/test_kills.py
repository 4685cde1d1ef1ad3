"""A few runs that are ended at random moments, or whose place goes away; more with `python -m tests.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import places
from tests.fuzz.kills import check_case


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks there for when a process can be signalled")
def test_runs_that_are_ended() -> None:
    assert [failure for case in range(6) for failure in check_case(0, case)] == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks there for when the command has begun")
@pytest.mark.parametrize("hazard", ["limit", "renamed"])
def test_places_that_stop_taking_what_is_written(hazard: str) -> None:
    assert places.check_case(0, places.HAZARDS.index(hazard)) == []
