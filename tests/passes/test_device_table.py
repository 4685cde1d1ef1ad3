"""The table of what devices run from codes, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

from ov_weight_compression.passes.device_rules import EXECUTED, EXECUTED_ROWS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "devices.md"


def test_the_page_shows_the_table() -> None:
    shown = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(("| CPU", "| GPU", "| NPU"))
    ]
    assert shown == [
        f"| {row.device} | {row.layer} | {' '.join(sorted(row.storage)) or 'none'} | {row.openvino} | {row.source} |"
        for row in EXECUTED_ROWS
    ]


def test_a_device_has_one_row_for_a_layer() -> None:
    assert sum(map(len, EXECUTED.values())) == len(EXECUTED_ROWS)
