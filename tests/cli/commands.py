"""Ways to run the command."""

from __future__ import annotations

import sys

import pytest

from ov_weight_compression.cli import main

COMMAND = [sys.executable, "-m", "ov_weight_compression.cli"]


def failing(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """The one line that a failing command prints."""
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("ov-compress: ")
    assert captured.err.count("\n") == 1, captured.err
    return captured.err
