"""Numbers of OpenVINO's types as numpy has them."""

from __future__ import annotations

import numpy as np
import pytest

from ov_weight_compression.ir_utils.types import to_f32

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize(
    "values",
    [
        HALVES,
        HALVES[np.isfinite(HALVES)],
        np.tile(HALVES[np.isfinite(HALVES)], 3)[1:],
        HALVES[: 1 << 12].reshape(64, 64).T,
        HALVES[:0],
        HALVES[5],
        HALVES.astype(np.float64)[: 1 << 10],
    ],
)
def test_wide_floats_have_the_same_values(values: np.ndarray) -> None:
    """Bit by bit: zeros of both signs and subnormal numbers too."""
    wide = to_f32(np.asarray(values))
    expected = np.asarray(values).astype(np.float32)
    assert wide.dtype == np.float32
    assert wide.shape == expected.shape
    known = ~np.isnan(expected)
    assert (np.isnan(wide) == ~known).all()
    assert (wide[known].view(np.uint32) == expected[known].view(np.uint32)).all()


def test_floats_that_are_wide_stay_where_they_are() -> None:
    values = np.ones(3, dtype=np.float32)
    assert to_f32(values) is values
