"""compressed-tensors' layouts against writers of their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov_weight_compression.checkpoints.layouts.compressed_tensors_layout import (
    CompressedTensorsScheme,
    compressed_tensors_weight,
)
from ov_weight_compression.ir_utils.errors import ModelError
from tests.checkpoints.quantised_writers import (
    E2M1_VALUES,
    E4M3_CODES,
    E4M3_VALUES,
    MemoryTensor,
    bf16,
    compressed_tensors_packed,
    nibble_pairs,
    tensor,
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 8),
    columns=st.sampled_from([64, 96, 104]),
    group=st.sampled_from([8, -1]),
    form=st.sampled_from(["symmetric", "zero points", "act-order", "order kept"]),
    wasteful=st.booleans(),
)
def test_packed_codes(seed: int, bits: int, columns: int, group: int, form: str, wasteful: bool) -> None:
    rng, rows, top = np.random.default_rng(seed), 20, 1 << bits
    groups = 1 if group < 0 else columns // group
    index = np.arange(columns) // (columns if group < 0 else group)
    if form == "act-order":
        index = rng.permutation(index)
    codes = rng.integers(0, top, (rows, columns))
    zeros = rng.integers(0, top, (rows, groups)) if form == "zero points" else np.full((rows, groups), top // 2)
    exact = np.round(rng.normal(size=(rows, groups)) * 64) / 1024  # what bf16 holds
    stated = {"act-order": index, "order kept": np.full(columns, -1)}.get(form)
    tensors = compressed_tensors_packed(
        "up", codes, tensor("BF16", bf16(exact)), zeros if form == "zero points" else None, bits, stated, wasteful
    )
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme("pack-quantized", bits))
    scales = (bf16(exact).astype(np.uint32) << 16).view(np.float32)
    values = scales[:, index] * (codes - zeros[:, index]).astype(np.float32)
    np.testing.assert_array_equal(weight.values(0, rows), values)
    np.testing.assert_array_equal(weight.values(7, 19), values[7:19])
    assert weight.spec.scale_type == "f16"
    assert set(weight.tensors) == set(tensors)


def test_zero_points_of_older_versions_are_plain_bytes() -> None:
    rng = np.random.default_rng(8)
    codes, zeros = rng.integers(0, 16, (8, 64)), rng.integers(0, 16, (8, 2))
    tensors = compressed_tensors_packed("up", codes, tensor("F16", np.ones((8, 2))), zeros, 4)
    tensors["up.weight_zero_point"] = tensor("I8", zeros - 8)
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme("pack-quantized", 4))
    np.testing.assert_array_equal(weight.values(0, 8), codes - np.repeat(zeros, 32, axis=1))
    np.testing.assert_array_equal(weight.values(3, 7), weight.values(0, 8)[3:7])


def test_floats_may_have_zero_points_of_zero() -> None:
    tensors = {
        "up.weight": tensor("F8_E4M3", np.full((8, 32), 0x38)),
        "up.weight_scale": tensor("F32", np.ones((8, 1))),
        "up.weight_zero_point": tensor("F8_E4M3", np.zeros((8, 1))),
    }
    scheme = CompressedTensorsScheme("float-quantized", 8)
    assert set(compressed_tensors_weight(tensors, "up", scheme).tensors) == set(tensors)
    tensors["up.weight_zero_point"] = tensor("F8_E4M3", np.ones((8, 1)))
    with pytest.raises(ModelError, match=r"up.weight_zero_point: floats have no zero points, and these are not 0"):
        compressed_tensors_weight(tensors, "up", scheme)


def test_scales_that_f16_cannot_hold_stay_f32() -> None:
    codes, scales = np.zeros((8, 32), int), tensor("F32", np.full((8, 1), 1e-6))
    weight = compressed_tensors_weight(
        compressed_tensors_packed("up", codes, scales, None, 4), "up", CompressedTensorsScheme("pack-quantized", 4)
    )
    assert weight.spec.scale_type == "f32"
    np.testing.assert_array_equal(weight.values(0, 8), np.full((8, 32), np.float32(1e-6) * -8))


def test_experts_side_by_side() -> None:
    rng = np.random.default_rng(2)
    codes, zeros = rng.integers(0, 16, (3, 16, 32)), rng.integers(0, 16, (3, 16, 2))
    scales = rng.normal(size=(3, 16, 2)).astype(np.float16)
    each = [compressed_tensors_packed("e", codes[n], tensor("F16", scales[n]), zeros[n], 4) for n in range(3)]
    tensors = {
        name: MemoryTensor(first.dtype, np.stack([one[name].data for one in each])) for name, first in each[0].items()
    }
    weight = compressed_tensors_weight(tensors, "e", CompressedTensorsScheme("pack-quantized", 4))
    index = np.arange(32) // 16
    values = scales.astype(np.float32)[..., index] * (codes - zeros[..., index]).astype(np.float32)
    assert weight.shape == (3, 16, 32)
    np.testing.assert_array_equal(weight.values(0, 48), values.reshape(48, 32))
    np.testing.assert_array_equal(weight.values(13, 35), values.reshape(48, 32)[13:35])


@pytest.mark.parametrize("form", [(1,), (16, 1), (16, 4)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_plain_bytes(form: tuple[int, ...], asymmetric: bool) -> None:
    rng = np.random.default_rng(3)
    codes, zeros = rng.integers(-128, 128, (16, 32)), rng.integers(-128, 128, form)
    scales = rng.normal(size=form).astype(np.float16)
    tensors = {"up.weight": tensor("I8", codes), "up.weight_scale": tensor("F16", scales)}
    if asymmetric:
        tensors["up.weight_zero_point"] = tensor("I8", zeros)
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme("int-quantized", 8))

    def wide(small: np.ndarray) -> np.ndarray:
        return np.repeat(np.broadcast_to(small, (16, form[-1])), 32 // form[-1], axis=1)

    values = wide(scales).astype(np.float32) * (codes - (wide(zeros) if asymmetric else 0)).astype(np.float32)
    np.testing.assert_array_equal(weight.values(0, 16), values)
    assert weight.spec.format.name == ("int8_asym" if asymmetric else "int8_sym")
    assert weight.spec.group_size == (8 if form[-1] == 4 else -1)


@pytest.mark.parametrize("layout", ["float-quantized", "naive-quantized"])
@pytest.mark.parametrize("form", [(1,), (20, 1), (20, 4), (3, 2)])
def test_floats_of_eight_bits(layout: str, form: tuple[int, ...]) -> None:
    """Blocks of 8 × 24 leave four rows and eight columns over."""
    rng = np.random.default_rng(4)
    codes = rng.choice(E4M3_CODES, (20, 32))
    scales = rng.normal(size=form).astype(np.float32)
    tensors = {"up.weight": tensor("F8_E4M3", codes), "up.weight_scale": tensor("F32", scales)}
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme(layout, 8, (8, 24)))
    if form == (3, 2):
        wide = np.repeat(np.repeat(scales, 8, axis=0)[:20], 24, axis=1)[:, :32]
    else:
        wide = np.repeat(np.broadcast_to(scales, (20, form[-1])), 32 // form[-1], axis=1)
    np.testing.assert_array_equal(weight.values(0, 20), wide * E4M3_VALUES[codes])
    np.testing.assert_array_equal(weight.rows(0, 20).codes, codes)
    assert weight.spec.format.name == "fp8_e4m3"


def test_nvfp4_divides_by_its_global_scale() -> None:
    rng = np.random.default_rng(5)
    codes, scales = rng.integers(0, 16, (8, 64)), rng.integers(1, 0x7E, (8, 4))
    tensors = {
        "up.weight_packed": tensor("U8", nibble_pairs(codes)),
        "up.weight_scale": tensor("F8_E4M3", scales),
        "up.weight_global_scale": tensor("F32", np.array([0.5])),
    }
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme("nvfp4-pack-quantized", 4))
    values = E2M1_VALUES[codes] * np.repeat(E4M3_VALUES[scales] / np.float32(0.5), 16, axis=1)
    np.testing.assert_array_equal(weight.values(0, 8), values)
    np.testing.assert_array_equal(weight.rows(2, 5).codes, codes[2:5])
    assert weight.tensor_scale == np.float32(2)
    assert weight.spec.format.name == "nvfp4"
    with pytest.raises(ModelError, match=r"up.weight_global_scale: is 0.0, which scales nothing"):
        compressed_tensors_weight(
            {**tensors, "up.weight_global_scale": tensor("F32", np.zeros(1))},
            "up",
            CompressedTensorsScheme("nvfp4-pack-quantized", 4),
        )


def test_mxfp4_and_mxfp8_have_powers_of_two() -> None:
    rng = np.random.default_rng(6)
    exponents = rng.integers(110, 140, (8, 2))
    factors = np.repeat(np.float32(2) ** (exponents - 127), 32, axis=1).astype(np.float32)
    four = rng.integers(0, 16, (8, 64))
    tensors = {
        "up.weight_packed": tensor("U8", nibble_pairs(four)),
        "up.weight_scale": tensor("U8", exponents),
    }
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme("mxfp4-pack-quantized", 4))
    np.testing.assert_array_equal(weight.values(0, 8), E2M1_VALUES[four] * factors)
    np.testing.assert_array_equal(weight.rows(0, 8).scale, exponents)
    eight = rng.choice(E4M3_CODES, (8, 64))
    tensors = {"up.weight": tensor("F8_E4M3", eight), "up.weight_scale": tensor("U8", exponents)}
    weight = compressed_tensors_weight(tensors, "up", CompressedTensorsScheme("mxfp8-quantized", 8))
    np.testing.assert_array_equal(weight.values(0, 8), E4M3_VALUES[eight] * factors)
    assert weight.spec.format.name == "mxfp8_e4m3"


def test_what_is_not_read_or_does_not_fit_is_refused() -> None:
    good = compressed_tensors_packed("up", np.zeros((8, 32), int), tensor("F16", np.ones((8, 2))), None, 4)
    with pytest.raises(ModelError, match="up: its format is 'marlin-24'; those that are read: pack-quantized, int-"):
        compressed_tensors_weight(good, "up", CompressedTensorsScheme("marlin-24", 4))
    scheme = CompressedTensorsScheme("pack-quantized", 4)
    cases = [
        ({"up.weight_shape": tensor("I64", np.array([9, 32]))}, r"has 8 rows, where up.weight_shape says \[9, 32\]"),
        ({"up.weight_shape": tensor("I64", np.array([8, 77]))}, "4 words do not hold 77 codes of 4 bits"),
        ({"up.weight_scale": tensor("F16", np.ones((8, 5)))}, r"has shape \[8, 5\], which does not fit a weight of"),
        ({"up.weight_scale": tensor("I32", np.ones((8, 2)))}, "up.weight_scale: is I32"),
        ({"up.weight_packed": tensor("U8", np.ones((8, 4)))}, "up.weight_packed: is U8"),
    ]
    for change, message in cases:
        with pytest.raises(ModelError, match=message):
            compressed_tensors_weight({**good, **change}, "up", scheme)
