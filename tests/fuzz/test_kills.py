"""A few runs that are ended at random moments; more with `python -m tests.fuzz kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.kills import check_case


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks there for when a process can be signalled")
def test_runs_that_are_ended() -> None:
    assert [failure for case in range(6) for failure in check_case(0, case)] == []
