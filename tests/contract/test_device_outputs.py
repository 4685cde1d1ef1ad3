"""The CPU computes what the stored constants say, in every precision, for awkward channel counts and groups."""

from __future__ import annotations

import functools

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.constant_values import ConstantValues
from ov_weight_compression.passes import apply_weight_compression
from ov_weight_compression.patterns import find_compressed
from tests.models import linear

PROPERTIES = (
    ({"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, 1e-4),
    ({"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, 0.05),
    ({}, 0.12),
)
"""With the largest difference that their arithmetic explains, in units of what an output is expected to be."""
CHANNELS = (17, 20, 31, 34, 48, 50, 80, 96, 127, 144, 240, 384, 640)
MODES = ("int8_asym", "int8_sym", "int4_asym", "int4_sym", "nf4", "fp4", "mxfp4", "nvfp4", "int2_sym", "int2_asym")


@functools.cache
def precisions() -> tuple[str, ...]:
    return tuple(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", [None, -1, 48])
def test_outputs_are_those_of_the_constants(mode: str, group: int | None) -> None:
    if group is not None and mode in ("int8_asym", "int8_sym", "mxfp4", "nvfp4"):
        pytest.skip("has one group size")
    options = {} if mode.startswith("int8") else {"all_layers": True}
    rng = np.random.default_rng(0)
    for columns in CHANNELS:
        model = linear(33, columns)
        given = {} if group is None else {"group_size": group}
        apply_weight_compression(model, mode=mode, lazy=False, scale_search="off", **options, **given)
        (weight,) = find_compressed(model)
        values = ConstantValues(weight.end.output(0)).whole().astype(np.float64)
        expected = np.linalg.norm(values, axis=1) + 1e-9
        for properties, limit in PROPERTIES:
            if properties.get("INFERENCE_PRECISION_HINT") == "bf16" and "BF16" not in precisions():
                continue
            compiled = ov.Core().compile_model(model, "CPU", properties)
            for rows in (1, 4, 5, 33):
                x = rng.standard_normal((rows, columns)).astype(np.float32)
                got = compiled([x])[0]
                off = np.abs(got - x @ values.T) / (expected * np.linalg.norm(x, axis=1)[:, None] / columns**0.5)
                assert off.max() < limit, (columns, properties, rows)
