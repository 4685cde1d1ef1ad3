"""Sums of squares of rows, by numpy and by the compiled model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.ir_utils.file_io import FileMappings, FileRows
from ov_weight_compression.passes.channel_importance import row_sums
from tests.running import linux


@pytest.mark.parametrize("shape", [(3, 8), (1100, 1024), (4099, 256)])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_both_ways_give_the_sums(shape: tuple[int, int], kind: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape).astype(kind)
    weights = rng.random(shape[1]).astype(np.float32)
    expected = (values.astype(np.float64) ** 2 * weights).sum(axis=1)
    np.testing.assert_allclose(row_sums(values, weights), expected, rtol=1e-5)


@linux
@pytest.mark.parametrize("shape", [(64, 256), (4099, 256)])
def test_rows_that_lie_in_a_file_are_summed_from_there(shape: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal(shape).astype(np.float16), rng.random(shape[1]).astype(np.float32)
    values.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float16, "r", shape=shape)
    rows = FileRows(np.asarray(mapped), FileMappings().around(mapped).read_into)
    np.testing.assert_array_equal(row_sums(rows, weights), row_sums(values, weights))
