"""Sums of squares of rows, by numpy and by the compiled model."""

from __future__ import annotations

import numpy as np
import pytest

from ov_weight_compression.quantization.kernels import row_sums


@pytest.mark.parametrize("shape", [(3, 8), (1100, 1024), (4099, 256)])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_both_ways_give_the_sums(shape: tuple[int, int], kind: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(shape).astype(kind)
    weights = rng.random(shape[1]).astype(np.float32)
    expected = (values.astype(np.float64) ** 2 * weights).sum(axis=1)
    np.testing.assert_allclose(row_sums(values, weights), expected, rtol=1e-5)
