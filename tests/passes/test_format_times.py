"""Times of formats: of what was not measured the nearest is taken, and a table of one's own is read or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.device_rules import FormatTime, read_format_times, time_of

TIMES = {"nf4": {128: FormatTime(1.5, 1.4), 16: FormatTime(1.9, 1.5)}, "int8_sym": {-1: FormatTime(1.2, 1.0)}}


@pytest.mark.parametrize(
    ("format", "group", "one_row"),
    [("nf4", 128, 1.5), ("nf4", 100, 1.5), ("nf4", 32, 1.9), ("nf4", -1, 1.5), ("int8_sym", -1, 1.2), ("cb4", 64, 1.0)],
)
def test_the_nearest_group_that_was_measured(format: str, group: int, one_row: float) -> None:
    assert time_of(format, group, TIMES).one_row == one_row


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text('{"nf4": {"64": [2.5, 1.5]}, "int8_sym": {"-1": [1.1, 1.0]}}')
    assert time_of("nf4", 128, read_format_times(path)) == FormatTime(2.5, 1.5)
    path.write_text('["nf4"]')
    with pytest.raises(OptionError, match=r"format_times: .* is no table of benchmarks\.format_times"):
        read_format_times(path)
    with pytest.raises(OptionError, match=r"format_times: .* cannot be read"):
        read_format_times(tmp_path / "none.json")
