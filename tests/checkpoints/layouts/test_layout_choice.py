"""Which layout a checkpoint has: its configuration, held to its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from ov_weight_compression.checkpoints.layouts.layout_choice import quantised_weights
from ov_weight_compression.ir_utils.errors import ModelError
from tests.checkpoints.quantised_writers import (
    E4M3_CODES,
    MemoryTensor,
    awq,
    compressed_tensors_packed,
    gptq,
    nibble_pairs,
    packed_rows,
    tensor,
)

RNG = np.random.default_rng(0)
CODES, ZEROS = RNG.integers(0, 16, (32, 64)), RNG.integers(0, 16, (32, 2))
SCALES = RNG.normal(size=(32, 2)).astype(np.float16)
INDEX = np.arange(64) // 32
VALUES = SCALES.astype(np.float32)[:, INDEX] * (CODES - ZEROS[:, INDEX]).astype(np.float32)
GPTQ = gptq("a.up", CODES, SCALES, ZEROS, 4, INDEX)
V2 = gptq("a.up", CODES, SCALES, ZEROS, 4, None, packed_rows(ZEROS.T, 4))
AWQ = awq("a.up", CODES, SCALES, ZEROS)
PACKED = compressed_tensors_packed("a.up", CODES, tensor("F16", SCALES), ZEROS, 4)
OTHERS = {"a.norm.weight": tensor("F16", np.ones(64)), "a.up.bias": tensor("F16", np.ones(32))}


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, GPTQ),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}, V2),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, GPTQ),  # the tensors say 4 bits and groups of 32
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, AWQ),  # called by the other's name
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, AWQ),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"}, AWQ),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, GPTQ),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_gptq"}, GPTQ),
        ({"quant_method": "intel/auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round"}, V2),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 32, "packing_format": "auto_round:auto_awq"}, AWQ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
            },
            PACKED,
        ),
        (
            {
                "format": "mixed-precision",
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}},
                    "group_1": {"targets": ["re:.*up"], "weights": {"num_bits": 4}, "format": "pack-quantized"},
                },
            },
            PACKED,
        ),
    ],
)
def test_a_layer_is_found_and_read(config: dict[str, Any], tensors: dict[str, MemoryTensor]) -> None:
    found = quantised_weights(config, {**OTHERS, **tensors})
    assert list(found) == ["a.up.weight"]
    np.testing.assert_array_equal(found["a.up.weight"].values(0, 32), VALUES)


def test_gptqmodels_first_version_is_read_by_words() -> None:
    stored = packed_rows(ZEROS.T, 4).view(np.uint32) - np.uint32(0x11111111)
    tensors = gptq("a.up", CODES, SCALES, None, 4, INDEX, stored.view(np.int32))
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "meta": {"quantizer": ["gptqmodel:1.9.0"]}}
    np.testing.assert_array_equal(quantised_weights(config, tensors)["a.up.weight"].values(0, 32), VALUES)


def test_each_method_finds_its_weights() -> None:
    eight = tensor("F8_E4M3", RNG.choice(E4M3_CODES, (16, 32)))
    cases: list[tuple[dict[str, Any], dict[str, MemoryTensor], dict[str, str], str]] = [
        (
            {"quant_method": "fp8", "weight_block_size": [16, 16]},
            {"a.up.weight": eight, "a.up.weight_scale_inv": tensor("F32", np.ones((1, 2)))},
            {},
            "FP8 g16, codes kept",
        ),
        (
            {"quant_method": "fbgemm_fp8"},
            {"a.up.weight": eight, "a.up.weight_scale": tensor("F32", np.ones((16, 1)))},
            {},
            "FP8 per channel, codes kept",
        ),
        (
            {"quant_method": "mxfp4"},
            {
                "a.up.weight_blocks": tensor("U8", np.zeros((2, 8, 1, 16))),
                "a.up.weight_scales": tensor("U8", np.full((2, 8, 1), 127)),
            },
            {},
            "MXFP4 g32, codes kept",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            {"a.up.weight": tensor("I8", np.ones((8, 16))), "a.up.SCB": tensor("F32", np.ones(8))},
            {},
            "bitsandbytes int8 per channel, codes kept",
        ),
        (
            {"quant_method": "torchao"},
            {
                "a.up._weight_qdata": tensor("I8", np.ones((8, 32))),
                "a.up._weight_scale": tensor("BF16", np.full((8, 2), 0x3F80)),
                "a.up._weight_zero_point": tensor("I8", np.zeros((8, 2))),
            },
            {"a.up.weight": json.dumps({"_type": "IntxUnpackedToInt8Tensor", "_data": {"block_size": [1, 16]}})},
            "torchao int8 g16, codes kept",
        ),
        (
            {"quant_method": "torchao"},
            {
                "a.up._weight_qdata": tensor("U8", nibble_pairs(RNG.integers(0, 16, (8, 32)))),
                "a.up._weight_scale": tensor("F16", np.ones((2, 8))),
                "a.up._weight_zero_point": tensor("F16", np.zeros((2, 8))),
            },
            {"a.up.weight": json.dumps({"_type": "Int4Tensor", "_data": {"block_size": [1, 16]}})},
            "torchao 4 bit g16, codes kept",
        ),
    ]
    for config, tensors, metadata, described in cases:
        found = quantised_weights(config, {**OTHERS, **tensors}, metadata)
        assert {name: weight.described for name, weight in found.items()} == {"a.up.weight": described}
        assert set(found["a.up.weight"].tensors) == set(tensors)


def test_torchaos_codes_are_signed() -> None:
    codes = RNG.integers(-8, 8, (8, 32))
    tensors = {
        "a._weight_qdata": tensor("U8", nibble_pairs(codes & 15)),
        "a._weight_scale": tensor("F16", np.full((2, 8), 0.5)),
        "a._weight_zero_point": tensor("F16", np.zeros((2, 8))),
    }
    metadata = {"a.weight": json.dumps({"_type": "Int4Tensor", "_data": {"block_size": [1, 16]}})}
    found = quantised_weights({"quant_method": "torchao"}, tensors, metadata)
    np.testing.assert_array_equal(found["a.weight"].values(0, 8), codes * np.float32(0.5))
    tensors["a._weight_zero_point"] = tensor("F16", np.full((2, 8), 0.25))
    with pytest.raises(ModelError, match=r"a._weight_zero_point: fractional zero points are not read"):
        quantised_weights({"quant_method": "torchao"}, tensors, metadata)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "hqq"}, "its quant_method is 'hqq'; those that are read: gptq, awq, auto-round"),
        ({"bits": 4}, "its quant_method is not said"),
        (
            {"quant_method": "gptq", "checkpoint_format": "marlin"},
            "'marlin' is arranged for a kernel",
        ),
        ({"quant_method": "awq", "version": "gemv"}, "version: 'gemv' of AWQ is arranged for a kernel"),
        (
            {"quant_method": "auto-round", "packing_format": "auto_round:mx_fp4"},
            "'mx_fp4' of AutoRound is not read",
        ),
        ({"quant_method": "compressed-tensors"}, "has no config_groups"),
        ({"quant_method": "mxfp4"}, "says mxfp4, but none of the tensors is quantised so"),
        ({"quant_method": "gptq", "bits": 4, "group_size": "x"}, "a.up: group_size is 'x', must be a whole number"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    tensors = PACKED if config.get("quant_method") == "compressed-tensors" else GPTQ
    with pytest.raises(ModelError, match=message):
        quantised_weights(config, tensors)


@pytest.mark.parametrize(
    "expression",
    [
        "re:(a+)+$",
        "re:(a|aa)*b",
        "re:" + "a" * 501,
        "re:(.*.)*x",
        "re:((.)+[)]?)*x",
        "re:(?:.*a){20}x",
        r"re:[\][](.+)+x]",
        "re:(?#[)(.+)+x(?#])",
        "re:" + ".*" * 40 + "x",
        "re:" + ".?" * 30 + "x",
        "re:" + "(.|a)" * 30 + "x",
    ],
)
def test_expressions_that_could_take_forever_are_refused(expression: str) -> None:
    with pytest.raises(ModelError, match="is not evaluated: it could take forever"):
        quantised_weights(config_for(expression), named(PACKED, "a" * 60))


def config_for(expression: str) -> dict[str, Any]:
    group = {"targets": [expression], "weights": {"num_bits": 4}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}


def named(tensors: Mapping[str, MemoryTensor], layer: str) -> dict[str, MemoryTensor]:
    """The tensors of `a.up` under another layer's name."""
    return {name.replace("a.up", layer): one for name, one in tensors.items()}


@pytest.mark.parametrize(
    "expression",
    [
        r"re:.*self_attn\.(q|k|v|o)_proj.*",
        r"re:model\.layers\.(?:[0-9]|1[0-9]|2[0-7])\..*\.(?P<which>up|down)_proj$",
        r"re:.*layers\.\d+\.(mlp|block_sparse_moe)\.experts\.\d{1,3}\..*",
    ],
)
def test_expressions_as_tools_write_them_are_evaluated(expression: str) -> None:
    layer = "model.language_model.layers.27.block_sparse_moe.experts.127.down_proj"
    assert list(quantised_weights(config_for(expression), named(PACKED, layer))) == [f"{layer}.weight"]
