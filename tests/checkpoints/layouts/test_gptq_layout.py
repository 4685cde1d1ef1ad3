"""GPTQ's layout against a writer of its own: every width, both versions, groups in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov_weight_compression.checkpoints.layouts.gptq_layout import GptqVariant, gptq_weight
from ov_weight_compression.ir_utils.errors import ModelError
from tests.checkpoints.quantised_writers import Array, gptq, packed_rows, tensor

STORAGE = {2: ("u2", "u2"), 3: ("i4", "u4"), 4: ("i4", "u4"), 5: ("i8", "u8"), 8: ("i8", "u8")}


def layer(seed: int, bits: int, rows: int, index: Array, symmetric: bool) -> tuple[Array, Array, Array, Array]:
    """Codes, scales and zero points of a layer, and its values."""
    rng, top = np.random.default_rng(seed), 1 << bits
    groups = int(index.max()) + 1
    codes = rng.integers(0, top, (rows, index.size))
    zeros = np.full((rows, groups), top // 2) if symmetric else rng.integers(0, top, (rows, groups))
    scales = (rng.normal(size=(rows, groups)) / 8).astype(np.float16)
    values = scales.astype(np.float32)[:, index] * (codes - zeros[:, index]).astype(np.float32)
    return codes, scales, zeros, values


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([2, 3, 4, 5, 8]),
    group=st.sampled_from([8, 32, 64]),
    order=st.sampled_from(["absent", "rising", "shuffled", "reversed"]),
    symmetric=st.booleans(),
    version=st.sampled_from([1, 2]),
)
def test_values_are_those_of_the_definition(
    seed: int, bits: int, group: int, order: str, symmetric: bool, version: int
) -> None:
    rising = np.arange(64) // group
    rng = np.random.default_rng(seed)
    index = {"shuffled": rng.permutation(rising), "reversed": rising[::-1].copy()}.get(order, rising)
    codes, scales, zeros, values = layer(seed, bits, 32, index, symmetric)
    stored = packed_rows(zeros.T, bits) if version == 2 else None
    tensors = gptq("up", codes, scales, zeros, bits, None if order == "absent" else index, stored)
    weight = gptq_weight(tensors, "up", GptqVariant(bits, group, zeros_less_one=version == 1))
    np.testing.assert_array_equal(weight.values(0, 32), values)
    np.testing.assert_array_equal(weight.values(5, 19), values[5:19])
    assert weight.spec.format.storage == STORAGE[bits][0 if symmetric else 1] or (zeros == 1 << (bits - 1)).all()
    assert weight.group == group
    assert (weight.order is not None) == (bool((np.diff(index) < 0).any()) and order != "absent")
    assert set(weight.tensors) == set(tensors)
    assert weight.spec.scale_type == "f16"


def test_codes_are_kept_bit_for_bit() -> None:
    index = np.arange(64) // 32
    codes, scales, zeros, _ = layer(3, 4, 16, index, symmetric=False)
    weight = gptq_weight(gptq("up", codes, scales, zeros, 4, index), "up", GptqVariant(4, 32))
    rows = weight.rows(0, 16)
    np.testing.assert_array_equal(rows.codes, codes)
    np.testing.assert_array_equal(rows.zero_point, zeros)
    np.testing.assert_array_equal(rows.scale, scales)
    assert weight.described == "GPTQ 4 bit g32, codes kept"


@pytest.mark.parametrize("word", [8, 16, 64])
def test_other_words_hold_the_same_stream(word: int) -> None:
    index = np.arange(64) // 16
    codes, scales, zeros, values = layer(4, 4, 64, index, symmetric=False)
    weight = gptq_weight(gptq("up", codes, scales, zeros, 4, index, word=word), "up", GptqVariant(4, 16))
    np.testing.assert_array_equal(weight.values(0, 64), values)


def test_one_group_of_all_channels_is_per_channel() -> None:
    codes, scales, zeros, values = layer(5, 4, 32, np.zeros(64, int), symmetric=True)
    weight = gptq_weight(gptq("up", codes, scales, zeros, 4), "up", GptqVariant(4, -1))
    assert weight.spec.group_size == -1
    np.testing.assert_array_equal(weight.values(0, 32), values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ones_that_were_subtracted_from_whole_words_are_added_to_whole_words(bits: int) -> None:
    """A z of 0 beside others: its field borrows from the next one, which reading by fields would take for z − 1."""
    index, count = np.arange(64) // 32, 32 // bits
    codes, scales, zeros, values = layer(6, bits, 32, index, symmetric=False)
    zeros[1], zeros[2] = 0, 1
    values = scales.astype(np.float32)[:, index] * (codes - zeros[:, index]).astype(np.float32)
    ones = sum(1 << (place * bits) for place in range(count))
    stored = packed_rows(zeros.T, bits).view(np.uint32) - np.uint32(ones)
    tensors = gptq("up", codes, scales, None, bits, index, stored.view(np.int32))
    weight = gptq_weight(tensors, "up", GptqVariant(bits, 32, whole_words=True))
    np.testing.assert_array_equal(weight.values(0, 32), values)
    by_field = gptq_weight(tensors, "up", GptqVariant(bits, 32))
    assert not np.array_equal(by_field.values(0, 32), values)


def test_groups_of_other_sizes_are_cut_into_what_divides_them() -> None:
    index = np.random.default_rng(7).permutation(np.repeat([0, 1, 2], [16, 32, 16]))
    codes, scales, zeros, values = layer(7, 4, 32, index, symmetric=False)
    weight = gptq_weight(gptq("up", codes, scales, zeros, 4, index), "up", GptqVariant(4, 32))
    assert weight.group == 16
    np.testing.assert_array_equal(weight.values(0, 32), values)


def test_groups_without_a_common_size_are_requantised_and_said_to_be() -> None:
    index = np.repeat([0, 1, 2], [15, 32, 17])
    codes, scales, zeros, values = layer(8, 4, 32, index, symmetric=False)
    weight = gptq_weight(gptq("up", codes, scales, zeros, 4, index), "up", GptqVariant(4, 32))
    assert weight.described == "GPTQ 4 bit g22, requantised to int8_asym: its groups have no common size"
    span = values.max(axis=1) - values.min(axis=1)
    assert (np.abs(weight.values(0, 32) - values).max(axis=1) <= span / 255).all()


def test_negative_groups_are_counted_from_the_end() -> None:
    index = np.arange(64) // 32
    codes, scales, zeros, values = layer(9, 4, 8, index, symmetric=False)
    weight = gptq_weight(gptq("up", codes, scales, zeros, 4, index - 2), "up", GptqVariant(4, 32))
    np.testing.assert_array_equal(weight.values(0, 8), values)


def test_what_contradicts_itself_is_refused_by_name() -> None:
    index = np.arange(64) // 32
    codes, scales, zeros, _ = layer(10, 4, 32, index, symmetric=False)
    good = gptq("up", codes, scales, zeros, 4, index)
    cases = [
        ({"up.g_idx": tensor("I32", index + 5)}, "up.g_idx: names group 6, of 2"),
        ({"up.g_idx": tensor("I32", index[:40])}, r"up.g_idx: has shape \[40\], must be \[64\]"),
        ({"up.scales": tensor("I32", np.ones((2, 32)))}, "up.scales: is I32, must be F16 or BF16 or F32"),
        ({"up.scales": tensor("F16", np.ones((2, 31)))}, r"up.scales: has shape \[2, 31\], must be \[any, 32\]"),
        ({"up.qzeros": tensor("I32", np.ones((2, 3)))}, r"up.qzeros: has shape \[2, 3\], must be \[2, 4\]"),
        ({"up.qweight": tensor("F16", np.ones((8, 32)))}, "up.qweight: is F16"),
        ({"up.scales": tensor("F16", np.full((2, 32), np.nan))}, "up.weight: a scale is not finite"),
    ]
    for change, message in cases:
        with pytest.raises(ModelError, match=message):
            gptq_weight({**good, **change}, "up", GptqVariant(4, 32))
    with pytest.raises(ModelError, match=r"up.scales: the checkpoint has no such tensor"):
        gptq_weight({"up.qweight": good["up.qweight"]}, "up", GptqVariant(4, 32))
    with pytest.raises(ModelError, match="holds no whole number of 3-bit codes"):
        gptq_weight(good, "up", GptqVariant(3, 32))
