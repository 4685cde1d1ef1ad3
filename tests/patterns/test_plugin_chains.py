"""Which chains the patterns of plugins that are not here take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.evaluation import inspect
from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.patterns import find_compressed
from ov_weight_compression.patterns.device_layer import PATTERNS
from tests import expert_models, models


def reasons(model: ov.Model, device: str) -> dict[str, str | None]:
    found = find_compressed(model)
    return {weight.name: PATTERNS[device](weight, use) for weight in found for use in weight.consumers}


def llama(dtype: str) -> ov.Model:
    return models.llama(hidden=256, inner=512, layers=1, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "devices"),
    [
        (lambda: llama("f16"), ("GPU", "NPU")),
        (lambda: llama("f32"), ("GPU", "NPU")),
        (expert_models.two_gemms, ("GPU", "NPU")),
        (expert_models.three_gemms, ("GPU", "NPU")),
        (models.grouped_matmul, ("GPU",)),
        (lambda: models.tied_head(256, 128, "f16"), ("GPU", "NPU")),
    ],
    ids=["f16", "f32", "2 GEMMs", "3 GEMMs", "grouped", "tied"],
)
@pytest.mark.parametrize(
    "mode", ["int8_asym", "int4_sym", "int4_asym", "nf4", "mxfp4", "nvfp4", "int3_sym", "fp8_e4m3"]
)
def test_what_is_made_for_a_device_is_matched_by_it(
    make: Callable[[], ov.Model], devices: tuple[str, ...], mode: str, tmp_path: Path
) -> None:
    for device in devices:
        if device == "NPU" and mode not in ("int8_asym", "int4_sym"):
            continue
        model = make()
        WeightCompression(mode=mode, device=device).run_on_model(model)
        ov.save_model(model, tmp_path / f"{device}.xml")
        read = ov.Core().read_model(tmp_path / f"{device}.xml")
        assert set(reasons(read, device).values()) == {None}
        del read


@pytest.mark.parametrize(
    ("mode", "device", "reason"),
    [
        ("nf4", "GPU", "no kernel reads nf4"),
        ("nvfp4", "GPU", "no kernel reads f4e2m1"),
        ("cb4", "GPU", "no pattern for a codebook"),
        ("int4_asym", "NPU", "groups with zero points match a pattern and fail in its compiler"),
        ("nf4", "NPU", "no pattern for nf4 in groups"),
        ("cb4", "NPU", "a codebook is read in embeddings only"),
        ("int2_sym", "NPU", "no pattern for u2"),
    ],
)
def test_what_is_not_made_for_it_is_not(mode: str, device: str, reason: str) -> None:
    model = models.linear(64, 256, dtype="f16")
    WeightCompression(rules=[("*", mode)]).run_on_model(model)
    (found,) = reasons(model, device).values()
    assert found is not None
    assert found.startswith(reason) or (mode == "int2_sym" and "zero point" in found)


def chain(*, zero_point: bool, converted_scale: bool) -> ov.Model:
    """u4 in groups, with its scale a Constant or behind a Convert."""
    shape = (32, 4, 16)
    codes = op.convert(op.constant(ov.Tensor(ov.Type.u4, ov.Shape(shape))), "f16")
    value: Any = codes
    if zero_point:
        value = op.subtract(codes, op.convert(op.constant(ov.Tensor(ov.Type.u4, ov.Shape((32, 4, 1)))), "f16"))
    ones = np.linspace(1, 2, 128).reshape(32, 4, 1)
    scale = op.constant(ones.astype(np.float32 if converted_scale else np.float16))
    value = op.multiply(value, op.convert(scale, "f16") if converted_scale else scale)
    weight = op.convert(op.reshape(value, op.constant(np.array([32, 64])), False), "f32")
    x = op.parameter([-1, 64], np.float32)
    return ov.Model([op.result(op.matmul(x, weight, False, True))], [x])


def test_a_gpu_wants_a_bare_scale_beside_a_zero_point() -> None:
    (bare,) = reasons(chain(zero_point=True, converted_scale=False), "GPU").values()
    (converted,) = reasons(chain(zero_point=True, converted_scale=True), "GPU").values()
    (alone,) = reasons(chain(zero_point=False, converted_scale=True), "GPU").values()
    assert (bare, alone) == (None, None)
    assert converted == "beside a zero point the scale must be a constant itself, with nothing between"


def test_experts_outside_a_tiled_block_are_not_gathered() -> None:
    model = models.linear(batch=(3,))
    WeightCompression(mode="int4_asym", all_layers=True, group_size=32).run_on_model(model)
    assert list(reasons(model, "GPU").values()) == ["these experts are in no tiled block that is gathered"]


def test_an_npu_chooses_among_experts_with_one_scale_a_channel() -> None:
    told = set()
    for group in (32, -1):
        model = expert_models.three_gemms()
        WeightCompression(mode="int4_sym", all_layers=True, group_size=group).run_on_model(model)
        own = reasons(model, "NPU")
        assert len({own[name] for name in ("gate", "up", "down")}) == 1
        told.add(own["gate"])
    assert told == {
        None,
        "experts are chosen from among those with one scale a channel alone: all of these would be computed",
    }


def embedding(mode: str, group: int, ids: Callable[[ov.Node], ov.Node] = lambda ids: ids) -> str | None:
    table = op.constant(np.random.default_rng(0).normal(size=(96, 64)).astype(np.float16))
    x = op.parameter([1, -1], np.int64)
    rows = op.gather(op.convert(table, "f32"), ids(x), op.constant(0))
    model = ov.Model([op.result(rows)], [x])
    WeightCompression(rules=[("*", {"mode": mode, "group_size": group})]).run_on_model(model)
    (found,) = reasons(model, "NPU").values()
    return found


def test_an_npu_reads_embeddings_by_the_models_own_ids() -> None:
    assert embedding("int8_asym", -1) is None
    assert embedding("int4_sym", 32) is None
    assert embedding("int4_sym", 32, lambda ids: op.convert(ids, "i32")) is None
    assert embedding("int4_asym", 32) == "no pattern lifts groups with zero points"
    by_other = "an embedding is read only by the model's own input of ids"
    assert embedding("int8_asym", -1, lambda ids: op.add(ids, op.constant(np.int64(2)))) == by_other
    assert embedding("cb4", 32) == "a codebook is read in embeddings of u4 with 2048 channels and more"


@pytest.mark.parametrize("moved", [True, False])
def test_a_convolution_of_one_tap_is_a_matmul_between_transposes(moved: bool) -> None:
    random = np.random.default_rng(0)
    x = op.parameter([1, 8, 8, 16] if moved else [1, 16, 8, 8], np.float32)
    kernel = op.constant(random.normal(size=(32, 16, 1, 1)).astype(np.float32))
    ones, zeros = [1, 1], [0, 0]
    first = op.transpose(x, op.constant([0, 3, 1, 2])) if moved else op.relu(x)
    made = op.add(
        op.convolution(first, kernel, ones, zeros, zeros, ones), op.constant(np.ones((1, 32, 1, 1), np.float32))
    )
    last = op.transpose(made, op.constant([0, 2, 3, 1])) if moved else op.relu(made)
    model = ov.Model([op.result(last)], [x])
    WeightCompression(mode="int8_sym").run_on_model(model)
    (found,) = reasons(model, "GPU").values()
    assert found == (None if moved else "a convolution is run as a MatMul only between two Transposes or Reshapes")
    (found,) = reasons(model, "NPU").values()
    assert found == "a convolution is read only between two Transposes"  # with nothing between, a bias neither


@pytest.mark.parametrize("device", ["GPU", "NPU"])
def test_inspect_says_that_it_was_not_run(device: str) -> None:
    if any(name.startswith(device) for name in ov.Core().available_devices):
        pytest.skip(f"there is a {device} here")
    model = llama("f16")
    WeightCompression(mode="int4_asym", all_layers=True).run_on_model(model)
    found = inspect(model, device)
    assert found.device is not None
    assert found.device["name"] == "not here"
    assert found.device["method"] == "by its patterns as in OpenVINO 2026.4, not run here"
    told = {one.executed for one in found.weights}
    if device == "GPU":
        assert told == {"its patterns match"}
    else:
        assert "no pattern matches: groups with zero points match a pattern and fail in its compiler" in told
