"""The bar is drawn for somebody who looks at a terminal, and for nobody else."""

from __future__ import annotations

import sys

import pytest

from ov_weight_compression.calibration.progress import progress


@pytest.mark.parametrize(
    ("terminal", "quiet", "drawn"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_bar(
    terminal: bool, quiet: bool, drawn: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("Reading", 3, quiet=quiet) as advance:
        advance(1)
        advance(2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("Reading" in captured.err) == drawn
    assert ("3/3" in captured.err) == drawn
