"""8-bit floats with scales of every form, and gpt-oss's experts, against the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from ov_weight_compression.checkpoints.layouts.float_layouts import fp8_weight, gpt_oss_weight
from ov_weight_compression.ir_utils.errors import ModelError, WorkError
from tests.checkpoints.quantised_writers import E2M1_VALUES, E4M3_CODES, E4M3_VALUES, Array, nibble_pairs, tensor


def in_blocks(scales: Array, rows: int, columns: int, block: int) -> Array:
    """One scale for each element."""
    return np.repeat(np.repeat(scales, block, axis=-2), block, axis=-1)[..., :rows, :columns]


@pytest.mark.parametrize(("rows", "columns"), [(130, 256), (128, 320), (256, 128)])
def test_blocks_of_128_the_last_ones_in_part(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    codes = rng.choice(E4M3_CODES, (rows, columns))
    scales = rng.random((-(-rows // 128), -(-columns // 128)), np.float32)
    tensors = {"up.weight": tensor("F8_E4M3", codes), "up.weight_scale_inv": tensor("F32", scales)}
    weight = fp8_weight(tensors, "up.weight", "up.weight_scale_inv", (128, 128))
    expected = E4M3_VALUES[codes] * in_blocks(scales, rows, columns, 128)
    np.testing.assert_array_equal(weight.values(0, rows), expected)
    np.testing.assert_array_equal(weight.values(100, 128), expected[100:128])
    np.testing.assert_array_equal(weight.rows(0, rows).codes, codes)
    assert weight.group == {256: 128, 320: 64, 128: 128}[columns]
    assert weight.spec.scale_type == "f32"
    assert weight.described == f"FP8 {'per channel' if columns == 128 else f'g{weight.group}'}, codes kept"


def test_experts_have_blocks_of_their_own() -> None:
    rng = np.random.default_rng(1)
    codes, scales = rng.choice(E4M3_CODES, (3, 24, 32)), rng.random((3, 2, 2), np.float32)
    tensors = {"gate": tensor("F8_E4M3", codes), "gate_scale_inv": tensor("F32", scales)}
    weight = fp8_weight(tensors, "gate", "gate_scale_inv", (16, 16))
    expected = (E4M3_VALUES[codes] * in_blocks(scales, 24, 32, 16)).reshape(72, 32)
    np.testing.assert_array_equal(weight.values(0, 72), expected)
    np.testing.assert_array_equal(weight.values(20, 50), expected[20:50])


def test_powers_of_two_in_blocks() -> None:
    rng = np.random.default_rng(2)
    codes, exponents = rng.choice(E4M3_CODES, (32, 32)), rng.integers(120, 130, (2, 2))
    tensors = {"up": tensor("F8_E4M3", codes), "up_scale_inv": tensor("F8_E8M0", exponents)}
    weight = fp8_weight(tensors, "up", "up_scale_inv", (16, 16))
    scales = (np.float32(2) ** (exponents - 127)).astype(np.float32)
    np.testing.assert_array_equal(weight.values(0, 32), E4M3_VALUES[codes] * in_blocks(scales, 32, 32, 16))
    assert weight.spec.scale_type == "f16"


@pytest.mark.parametrize("form", [(), (1,), (16,), (16, 1)])
def test_one_scale_for_all_or_for_each_channel(form: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    codes, scales = rng.choice(E4M3_CODES, (16, 32)), np.asarray(rng.random(form or 1, np.float32)).reshape(form)
    tensors = {"up": tensor("F8_E4M3", codes), "up_scale": tensor("F32", scales)}
    tensors["up_scale"] = type(tensors["up"])("F32", scales)
    weight = fp8_weight(tensors, "up", "up_scale", None)
    np.testing.assert_array_equal(weight.values(0, 16), E4M3_VALUES[codes] * scales.reshape(-1, 1))
    assert weight.spec.group_size == -1


def test_what_does_not_fit_is_refused_and_nan_is_not_written() -> None:
    codes = np.full((16, 32), 0x38)
    tensors = {"up": tensor("F8_E4M3", codes), "up_scale": tensor("F32", np.ones((3, 7)))}
    with pytest.raises(ModelError, match=r"up_scale: has shape \[3, 7\], which does not fit a weight of \[16, 32\]"):
        fp8_weight(tensors, "up", "up_scale", (128, 128))
    with pytest.raises(ModelError, match="other_scale: the checkpoint has no such tensor"):
        fp8_weight(tensors, "up", "other_scale", None)
    codes[3, 4] = 0xFF
    tensors = {"up": tensor("F8_E4M3", codes), "up_scale": tensor("F32", np.ones(1))}
    weight = fp8_weight(tensors, "up", "up_scale", None)
    with pytest.raises(WorkError, match="up: a value is not a number"):
        weight.rows(0, 16)
    with pytest.raises(ModelError, match="up: a scale is not finite"):
        fp8_weight({**tensors, "up_scale": tensor("F32", np.array([np.inf]))}, "up", "up_scale", None)


def test_experts_of_gpt_oss() -> None:
    rng = np.random.default_rng(4)
    codes, exponents = rng.integers(0, 16, (2, 6, 64)), rng.integers(100, 140, (2, 6, 2))
    tensors = {
        "experts.up_blocks": tensor("U8", nibble_pairs(codes).reshape(2, 6, 2, 16)),
        "experts.up_scales": tensor("U8", exponents),
    }
    weight = gpt_oss_weight(tensors, "experts.up")
    factors = np.repeat(np.float32(2) ** (exponents - 127), 32, axis=2).astype(np.float32)
    expected = (E2M1_VALUES[codes] * factors).reshape(12, 64)
    np.testing.assert_array_equal(weight.values(0, 12), expected)
    np.testing.assert_array_equal(weight.values(4, 9), expected[4:9])
    assert weight.float_shape == (2, 64, 6)
    assert weight.spec.format.name == "mxfp4"
