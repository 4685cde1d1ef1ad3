"""bitsandbytes' layouts against writers of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ov_weight_compression.checkpoints.layouts.bitsandbytes_layout import bitsandbytes_int8, bitsandbytes_weight
from ov_weight_compression.ir_utils.errors import ModelError
from tests.checkpoints.quantised_writers import FP4_VALUES, NF4_VALUES, Array, MemoryTensor, nibble_pairs, tensor


def four_bits(
    rows: int, columns: int, kind: str = "nf4", nested: bool = False
) -> tuple[dict[str, MemoryTensor], Array, Array]:
    """A weight `up.weight` with blocks of 64 over the flattened matrix: its tensors, codes and values."""
    rng = np.random.default_rng(columns)
    table = NF4_VALUES if kind == "nf4" else FP4_VALUES
    codes, blocks = rng.integers(0, 16, (rows, columns)), -(-rows * columns // 64)
    said = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    tensors = {
        "up.weight": tensor("U8", nibble_pairs(codes.reshape(-1), high_first=True)[:, None]),
        "up.weight.quant_map": tensor("F32", table),
    }
    if nested:
        levels, places = rng.normal(size=256).astype(np.float32), rng.integers(0, 256, blocks)
        outer, offset = rng.random(-(-blocks // 256), np.float32), 0.25
        absmax = levels[places] * np.repeat(outer, 256)[:blocks] + np.float32(offset)
        tensors["up.weight.absmax"] = tensor("U8", places)
        tensors["up.weight.nested_absmax"] = tensor("F32", outer)
        tensors["up.weight.nested_quant_map"] = tensor("F32", levels)
        said.update(nested_blocksize=256, nested_dtype="float32", nested_offset=offset)
    else:
        absmax = rng.random(blocks, np.float32)
        tensors["up.weight.absmax"] = tensor("F32", absmax)
    state = np.frombuffer(json.dumps(said).encode(), np.uint8)
    tensors[f"up.weight.quant_state.bitsandbytes__{kind}"] = tensor("U8", state)
    values = table[codes.reshape(-1)] * np.repeat(absmax, 64)[: codes.size]
    return tensors, codes, values.reshape(rows, columns)


@pytest.mark.parametrize("columns", [64, 128, 96, 200])
@pytest.mark.parametrize("nested", [False, True])
def test_values_are_those_of_the_definition(columns: int, nested: bool) -> None:
    """Of 96 and of 200 columns blocks of 64 run on into the next row: 32 and 8 in a row always share a scale."""
    tensors, codes, values = four_bits(12, columns, nested=nested)
    weight = bitsandbytes_weight(tensors, "up.weight")
    np.testing.assert_array_equal(weight.values(0, 12), values)
    np.testing.assert_array_equal(weight.values(5, 8), values[5:8])
    np.testing.assert_array_equal(weight.rows(0, 12).codes, codes)
    assert weight.spec.format.name == "nf4"
    assert weight.group == {64: 64, 128: 64, 96: 32, 200: 8}[columns]
    assert set(weight.tensors) == set(tensors)


def test_blocks_that_run_across_rows_of_an_odd_size_are_requantised() -> None:
    tensors, _, values = four_bits(12, 34)
    weight = bitsandbytes_weight(tensors, "up.weight")
    assert weight.described == "bitsandbytes nf4 g64, requantised to int8_asym: blocks of 64 run across rows"
    span = values.max(axis=1) - values.min(axis=1)
    assert (np.abs(weight.values(0, 12) - values).max(axis=1) <= span / 255).all()


def test_fp4_is_a_table_of_its_own() -> None:
    tensors, codes, values = four_bits(12, 64, "fp4")
    weight = bitsandbytes_weight(tensors, "up.weight")
    np.testing.assert_array_equal(weight.values(0, 12), values)
    np.testing.assert_array_equal(weight.rows(0, 12).codes, codes)
    assert weight.spec.format.storage == "u4"
    assert weight.described == "bitsandbytes fp4 per channel, codes kept; in a table that plugins expand"


def test_eight_bits() -> None:
    rng = np.random.default_rng(1)
    codes, maxima = rng.integers(-127, 128, (16, 32)), rng.random(16, np.float32)
    tensors = {"up.weight": tensor("I8", codes), "up.SCB": tensor("F32", maxima)}
    tensors["up.weight_format"] = MemoryTensor("U8", np.array(0, np.uint8))
    weight = bitsandbytes_int8(tensors, "up")
    expected = codes * (maxima / np.float32(127))[:, None]
    np.testing.assert_array_equal(weight.values(0, 16), expected.astype(np.float32))
    np.testing.assert_array_equal(weight.rows(0, 16).codes.view(np.int8), codes)
    tensors["up.weight_format"] = MemoryTensor("U8", np.array(2, np.uint8))
    with pytest.raises(ModelError, match=r"up.weight_format: its weight is arranged for a GPU's kernel"):
        bitsandbytes_int8(tensors, "up")


def test_a_description_that_is_none_is_refused() -> None:
    tensors, _, _ = four_bits(8, 64)
    name = "up.weight.quant_state.bitsandbytes__nf4"
    for text in (b"{", b"[]", b'{"shape": [0, 64], "blocksize": 64, "quant_type": "nf4"}', b'{"shape": 3}'):
        with pytest.raises(ModelError, match=rf"{name}: (is no description of|describes no) .*weight"):
            bitsandbytes_weight({**tensors, name: tensor("U8", np.frombuffer(text, np.uint8))}, "up.weight")
    with pytest.raises(ModelError, match=r"up.weight.absmax: has shape \[3\], must be \[8\]"):
        bitsandbytes_weight({**tensors, "up.weight.absmax": tensor("F32", np.ones(3))}, "up.weight")
