"""Convolutions of one tap beside Transposes and Reshapes: a model read from a file gives what the floats give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.passes import WeightCompression, save_model
from tests import models
from tests.running import EXACT, layer_types

TURNED, BACK = [0, 3, 1, 2], [0, 2, 3, 1]


def order(*axes: int) -> ov.Node:
    return op.constant(np.array(axes, dtype=np.int64))


def pointwise(x: ov.Node, stride: int = 1, pad: int = 0) -> ov.Node:
    weight = models.constant((48, 64, 1, 1))
    return op.convolution(x, weight, [stride] * 2, [pad] * 2, [pad] * 2, [1, 1])


def between(first: list[int], last: list[int], stride: int = 1, pad: int = 0, bias: bool = False) -> ov.Model:
    """Between two Transposes."""
    shape = [0] * 4
    for place, size in zip(first, (2, 64, 5, 5), strict=True):
        shape[place] = size
    x = op.parameter(shape, np.float32)
    layer = pointwise(op.transpose(x, order(*first)), stride, pad)
    if bias:
        layer = op.add(layer, models.constant((1, 48, 1, 1), "bias"))
    return ov.Model([op.transpose(layer, order(*last))], [x])


def single_position(unsqueezed: bool, bias: bool) -> ov.Model:
    """Rows as images of one position."""
    x = op.parameter([3, 64], np.float32)
    seen = op.unsqueeze(x, order(2, 3)) if unsqueezed else op.reshape(x, order(3, 64, 1, 1), False)
    layer = pointwise(seen)
    return ov.Model([op.add(layer, models.constant((1, 48, 1, 1), "bias")) if bias else layer], [x])


STRIDES = "strides of a 1x1 convolution"
PADDING = "padding of a 1x1 convolution"
BEFORE = "behind a Transpose of other axes"
BEHIND = "in front of a Transpose of other axes"
SINGLE = "behind a Reshape to a single position"

MISREAD = {
    "strides": (lambda: between(TURNED, BACK, stride=2), STRIDES),
    "padding": (lambda: between(TURNED, BACK, pad=1), PADDING),
    "other axes before": (lambda: between([1, 0, 2, 3], BACK), BEFORE),
    "other axes behind": (lambda: between(TURNED, [1, 0, 2, 3]), BEHIND),
    "other axes behind a bias": (lambda: between(TURNED, [0, 3, 2, 1], bias=True), BEHIND),
    "reshaped": (lambda: single_position(unsqueezed=False, bias=False), SINGLE),
    "unsqueezed, with a bias": (lambda: single_position(unsqueezed=True, bias=True), SINGLE),
}


@pytest.mark.parametrize("mode", ["int8_asym", "fp8_e4m3"])
@pytest.mark.parametrize("kind", MISREAD)
def test_what_cpus_misread_is_stored_so_that_they_expand_it(kind: str, mode: str, tmp_path: Path) -> None:
    build, reason = MISREAD[kind]
    options = {} if mode == "int8_asym" else {"all_layers": True, "group_size": -1}
    model, compression = build(), WeightCompression(mode=mode, **options)
    expected = outputs(model.clone())
    compression.run_on_model(model)
    (row,) = compression.report.rows
    assert reason in row.reason
    save_model(model, tmp_path / "model.xml")
    found = outputs(ov.Core().read_model(tmp_path / "model.xml"))
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("bias", [False, True])
def test_what_they_take_for_a_matrix_product_runs_from_codes(bias: bool, tmp_path: Path) -> None:
    model, compression = between(TURNED, BACK, bias=bias), WeightCompression(mode="int8_sym")
    expected = outputs(model.clone())
    compression.run_on_model(model)
    assert [row.reason for row in compression.report.rows] == [""]
    save_model(model, tmp_path / "model.xml")
    read = ov.Core().read_model(tmp_path / "model.xml")
    assert layer_types(read) == ["FullyConnected i8"]
    np.testing.assert_allclose(outputs(read), expected, atol=0.02 * np.abs(expected).max())


def outputs(model: ov.Model) -> np.ndarray:
    shape = model.inputs[0].get_shape()
    feed = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    return np.array(ov.Core().compile_model(model, "CPU", EXACT)([feed])[0])
