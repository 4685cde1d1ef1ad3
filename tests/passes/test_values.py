"""Weights whose values are the difficulty: NaN, what f16 cannot hold, zeros, doubles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.passes import Report, WeightCompression
from tests.models import layers, op
from tests.running import matrix_of, run, stored

ALL = ["int8_asym", "int8_sym", "int4_asym", "int4_sym", "int3_sym", "int2_sym", "int2_asym", "nf4", "fp4"]
ALL += ["mxfp4", "nvfp4", "fp8_e4m3", "mxfp8_e4m3", "cb4"]
LIMIT = {"int8": 0.01, "int4": 0.13, "int3": 0.3, "int2": 0.65, "fp8": 0.04, "mxfp8": 0.05, "nf4": 0.12}


def with_values(values: np.ndarray, kind: str = "f32") -> ov.Model:
    """A MatMul with the weight `values` `[out, in]` of an element type."""
    x = op.parameter([-1, values.shape[1]], np.float32)
    weight = op.constant(values, dtype=getattr(ov.Type, kind))
    weight.set_friendly_name("weight")
    read = weight if kind == "f32" else op.convert(weight, "f32")
    layer = op.matmul(x, read, False, True)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x], "values")


def compressed(model: ov.Model, mode: str, **options: object) -> Report:
    extra = {} if mode.startswith("int8") else {"all_layers": True}
    compression = WeightCompression(mode=mode, **extra, **options)
    compression.run_on_model(model)
    return compression.report


def random(scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((32, 128)) * scale


def limit_of(mode: str) -> float:
    return LIMIT.get(mode.split("_")[0], 0.16)


@pytest.mark.parametrize(("count", "text"), [(1, "1 NaN or infinite value"), (3, "3 NaN or infinite values")])
@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_weight_is_left_alone_and_the_rest_compressed(bad: float, kind: str, count: int, text: str) -> None:
    values = random()
    values.reshape(-1)[100 : 100 + count] = bad
    report = compressed(with_values(values, kind), "int8_sym")
    assert not report.rows
    assert [(skip.name, skip.reason) for skip in report.skips] == [("weight", text)]


def test_the_rest_of_the_model_is_compressed() -> None:
    model = layers(3)
    broken = next(node for node in model.get_ops() if node.get_friendly_name() == "weight_1")
    values = broken.data.copy()
    values[3, 4] = np.nan
    replacement = op.constant(values)
    replacement.set_friendly_name("weight_1")
    broken.output(0).replace(replacement.output(0))
    report = compressed(model, "int8_sym")
    assert {row.name for row in report.rows} == {"weight_0", "weight_2"}
    assert [skip.name for skip in report.skips] == ["weight_1"]


@pytest.mark.parametrize("scale", [3e4, 1e5, 1e6, 1e9, 1e20, 1e-7, 1e-9, 1e-12, 1e-20], ids=lambda scale: f"{scale:g}")
@pytest.mark.parametrize("mode", ALL)
def test_what_f16_cannot_hold_keeps_its_accuracy(mode: str, scale: float, tmp_path: Path) -> None:
    values = random(scale).astype(np.float32)
    model = with_values(values)
    report = compressed(model, mode)
    for read in (model, saved(model, tmp_path)):
        found = matrix_of(read, 128).T
        assert np.isfinite(found).all()
        if report.rows:
            error = np.linalg.norm((found - values) / scale) / np.linalg.norm(values / scale)
            assert error < limit_of(mode)
        else:
            assert report.skips[0].reason


@pytest.mark.parametrize("scale", [1e4, 3e4, 1e5, 1e9], ids=lambda scale: f"{scale:g}")
@pytest.mark.parametrize("mode", ALL)
def test_large_values_in_an_embedding(mode: str, scale: float, tmp_path: Path) -> None:
    values = random(scale).astype(np.float32)
    ids = op.parameter([-1], np.int64)
    model = ov.Model([op.result(op.gather(op.constant(values), ids, op.constant(np.int64(0))))], [ids], "table")
    assert compressed(model, mode).rows
    for read in (model, saved(model, tmp_path)):
        found = run(read, {0: np.arange(32)})[0]
        assert np.linalg.norm((found - values) / scale) < limit_of(mode) * np.linalg.norm(values / scale)


@pytest.mark.parametrize("kind", ["bf16", "f64"])
def test_large_values_of_wide_types(kind: str) -> None:
    values = random(3e5)
    model = with_values(values, kind)
    report = compressed(model, "int8_asym")
    assert report.rows[0].scale_type == "f32"  # f16 would hold the scale, but not the products
    found = matrix_of(model, 128).T
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - values) < 0.01 * np.linalg.norm(values)


@pytest.mark.parametrize("mode", ["int8_sym", "int8_asym"])
@pytest.mark.parametrize("size", [1e-3, 3e-4, 1e-4, 3e-5, 1e-6])
def test_a_small_weight_is_as_exact_as_another(mode: str, size: float, tmp_path: Path) -> None:
    """Scales below the normal numbers of f16 are coarse: the more bits, the sooner the error is made of that."""
    values = random()
    values *= size / np.abs(values).max()
    model = with_values(values)
    compressed(model, mode)
    found = matrix_of(saved(model, tmp_path), 128).T
    assert (np.abs(found - values).max(axis=1) < 0.011 * np.abs(values).max(axis=1)).all()


def test_doubles_beyond_f32_are_infinite_weights() -> None:
    values = random()
    values[0, 0] = 1e60
    report = compressed(with_values(values, "f64"), "int8_sym")
    assert report.skips[0].reason == "1 NaN or infinite value"


@pytest.mark.parametrize("mode", ALL)
def test_zeros_stay_zeros(mode: str, tmp_path: Path) -> None:
    values = np.zeros((32, 128), np.float32)
    values[16:] = random()[16:]
    values[16:, 64:] *= np.random.default_rng(1).integers(0, 2, (16, 64))
    model = with_values(values)
    assert compressed(model, mode).rows
    for read in (model, saved(model, tmp_path)):
        found = matrix_of(read, 128).T
        assert (found[:16] == 0).all()
        assert np.isfinite(found).all()
        if mode not in ("int3_sym", "int2_sym"):  # with few levels 0 is a level all the same, checked below
            assert (found[values == 0] == 0).all()
    assert (found[values == 0] == 0).all()


@pytest.mark.parametrize("mode", ALL)
def test_nothing_but_zeros(mode: str) -> None:
    model = with_values(np.zeros((32, 128), np.float32))
    assert compressed(model, mode).rows
    assert (matrix_of(model, 128) == 0).all()


@pytest.mark.parametrize("mode", ALL)
def test_groups_of_very_different_sizes(mode: str) -> None:
    """A group of tiny weights beside large ones neither overflows nor spoils its neighbours."""
    values = random().astype(np.float32)
    values[:, :32] *= 1e-9
    values[3] *= 1e4
    model = with_values(values)
    compressed(model, mode)
    found = matrix_of(model, 128).T
    assert np.isfinite(found).all()
    assert np.abs(found[:, :32][[0, 1, 2, *range(4, 32)]]).max() < 1
    assert np.linalg.norm(found[3] - values[3]) < 2 * limit_of(mode) * np.linalg.norm(values[3])


@pytest.mark.parametrize("mode", ["int8_asym", "int4_asym", "int2_asym"])
@pytest.mark.parametrize("shift", [5.0, -5.0, 300.0])
def test_ranges_without_zero(mode: str, shift: float) -> None:
    values = (random() + shift).astype(np.float32)
    model = with_values(values)
    compressed(model, mode, scale_search="off")
    found = matrix_of(model, 128).T
    bits = int(mode[3])
    widest = np.maximum(values.max(), 0) - np.minimum(values.min(), 0)
    assert np.abs(found - values).max() <= widest / (2**bits - 1) * 1.01


def saved(model: ov.Model, folder: Path) -> ov.Model:
    stored(model, folder)
    return ov.Core().read_model(folder / "model.xml")


@pytest.mark.parametrize("mode", ["int8_asym", "int4_asym", "int4_sym", "nf4", "mxfp4", "nvfp4"])
def test_values_beyond_what_scales_reach_are_left_alone(mode: str) -> None:
    """Scales end at 2^100; larger values would be cut off in silence."""
    values = random(1e30).astype(np.float32)
    values[0, 0] = 2e31
    report = compressed(with_values(values), mode)
    assert [skip.reason for skip in report.skips] == ["values up to 2.0e+31, beyond what scales reach"]


@pytest.mark.parametrize(("largest", "skipped"), [(65504.0, True), (32000.0, False)])
def test_values_at_the_end_of_f16_that_are_read_in_f16(largest: float, skipped: bool) -> None:
    """Rounding puts some of them above 65504, and a Transpose in f16 would make them infinite."""
    values = np.clip(random() * largest, -largest, largest).astype(np.float16)
    x = op.parameter([-1, 128], np.float32)
    turned = op.transpose(op.constant(np.ascontiguousarray(values.T)), op.constant(np.array([1, 0])))
    model = ov.Model([op.result(op.matmul(x, op.convert(turned, "f32"), False, True))], [x])
    report = compressed(model, "int8_asym")
    assert bool(report.rows) is not skipped
    if skipped:
        assert report.skips[0].reason == "values up to 65504, which f16 does not hold once they are rounded"
    assert np.isfinite(matrix_of(model, 128)).all()


@pytest.mark.parametrize("columns", [128, 20])
@pytest.mark.parametrize("lowest", [0.0, 0.5, -1.0])
def test_two_bits_without_negative_values_compile(lowest: float, columns: int, tmp_path: Path) -> None:
    """OpenVINO drops zero points that are all 0, and its CPU plugin does not compile u2 without any."""
    values = np.maximum(np.abs(random()[:, :columns]), lowest).astype(np.float32) if lowest >= 0 else np.zeros((8, 128))
    float_model = with_values(values.astype(np.float32))
    model = float_model.clone()
    compressed(model, "int2_asym", group_size=-1, scale_search="off")
    read = saved(model, tmp_path)
    zeros = next(node.data for node in read.get_ops() if node.get_friendly_name() == "weight/zero_point")
    assert zeros.reshape(-1)[0] == 3
    assert not zeros.reshape(-1)[1:].any()
    found = matrix_of(read, values.shape[1]).T
    assert np.abs(found - values).max() <= values.max(initial=0) / 3 * 0.51
    x = np.random.default_rng(0).standard_normal((3, values.shape[1])).astype(np.float32)
    expected = x @ found.T
    for properties in ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}):
        outputs = ov.Core().compile_model(read, "CPU", properties)(x)[0]
        assert np.abs(outputs - expected).max() <= 0.02 * np.abs(expected).max(initial=0) + 1e-30
