"""AWQ's layout against a writer of its own."""

from __future__ import annotations

import numpy as np
import pytest

from ov_weight_compression.checkpoints.layouts.gptq_layout import awq_weight
from ov_weight_compression.ir_utils.errors import ModelError
from tests.checkpoints.quantised_writers import awq, tensor


@pytest.mark.parametrize("group", [16, 64, -1])
def test_codes_zero_points_and_scales_are_the_writers(group: int) -> None:
    rng = np.random.default_rng(group + 1)
    groups = 1 if group < 0 else 64 // group
    codes, zeros = rng.integers(0, 16, (40, 64)), rng.integers(0, 16, (40, groups))
    scales = rng.normal(size=(40, groups)).astype(np.float16)
    weight = awq_weight(awq("up", codes, scales, zeros), "up", group)
    rows = weight.rows(0, 40)
    np.testing.assert_array_equal(rows.codes, codes)
    np.testing.assert_array_equal(rows.zero_point, zeros)
    np.testing.assert_array_equal(rows.scale, scales)
    np.testing.assert_array_equal(weight.rows(11, 30).codes, codes[11:30])
    np.testing.assert_array_equal(weight.rows(11, 30).zero_point, zeros[11:30])
    index = np.arange(64) // (64 if group < 0 else group)
    values = scales.astype(np.float32)[:, index] * (codes - zeros[:, index]).astype(np.float32)
    np.testing.assert_array_equal(weight.values(0, 40), values)
    assert (weight.spec.format.name, weight.spec.group_size) == ("int4_asym", -1 if group in (64, -1) else group)
    assert weight.kind == f"AWQ 4 bit {'g16' if group == 16 else 'per channel'}"


def test_shapes_are_checked() -> None:
    rng = np.random.default_rng(1)
    good = awq("up", rng.integers(0, 16, (16, 32)), np.ones((16, 2)), rng.integers(0, 16, (16, 2)))
    with pytest.raises(ModelError, match=r"up.qzeros: has shape \[3, 2\], must be \[2, 2\]"):
        awq_weight({**good, "up.qzeros": tensor("I32", np.ones((3, 2)))}, "up", 16)
    with pytest.raises(ModelError, match="7 groups do not fit 32 input channels"):
        awq_weight({**good, "up.scales": tensor("F16", np.ones((7, 16)))}, "up", 16)
