"""The bar is drawn for somebody who looks at a terminal, and for nobody else."""

from __future__ import annotations

import sys

import pytest

from ov_weight_compression.ir_utils.printing import progress_bar


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(
    ("terminal", "quiet", "drawn"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_bar(
    shares: bool,
    terminal: bool,
    quiet: bool,
    drawn: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar(quiet=quiet, shares=shares) as bar:
        advance = bar.start("Reading", 3)
        advance(1)
        advance(2)
        bar.show("Scoring", 2, 5)
        bar.show("Scoring", 4, 5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("Reading" in captured.err) == drawn
    assert (("100%" if shares else "3/3") in captured.err) == drawn
    assert (("80%" if shares else "4/5") in captured.err) == drawn


def test_stages_are_forgotten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as bar:
        bar.start("First", 1)
        bar.clear()
        bar.show("Second", 1, 2)
    last = capsys.readouterr().err.rpartition("Second")
    assert "1/2" in last[2]
    assert "First" not in last[2]
