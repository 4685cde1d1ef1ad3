"""A few of the damaged files; thousands with `python -m tests.fuzz.files`."""

from __future__ import annotations

from tests.fuzz.files import campaign


def test_damaged_and_strange_files() -> None:
    assert campaign(120, 0) == []
