"""Adapters beside layers as a pass of its own: `model` beside `model_ref`, values against numpy, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.passes import Manager

from ov_weight_compression.passes import OptionError, apply_weight_compression
from ov_weight_compression.passes.lora import AddAdapters
from tests import models
from tests.running import run, stored

RANDOM = np.random.default_rng(6)
A = RANDOM.standard_normal((4, 64)).astype(np.float32)
B = RANDOM.standard_normal((48, 4)).astype(np.float32)
X = RANDOM.standard_normal((2, 5, 64)).astype(np.float32)


def named(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    return node


def net(layer: Callable[[Any], Any], shape: list[int]) -> ov.Model:
    x = named(op.parameter(shape, np.float32, name="x"), "x")
    end = layer(x)
    end.output(0).set_names({"y"})
    return ov.Model([named(op.result(end), "result")], [x], "net")


def rows(x: Any) -> Any:
    return named(op.matmul(x, models.constant((48, 64)), False, True), "layer")


def columns(x: Any) -> Any:
    return named(op.matmul(models.constant((64, 48)), x, True, False), "layer")


def a() -> Any:
    return named(op.constant(A), "layer/lora_A")


def b() -> Any:
    return named(op.constant(B), "layer/lora_B")


def rows_with(x: Any) -> Any:
    thin = named(op.matmul(x, a(), False, True), "layer/lora_down")
    return named(op.add(rows(x), named(op.matmul(thin, b(), False, True), "layer/lora_up")), "layer/lora_add")


def columns_with(x: Any) -> Any:
    thin = named(op.matmul(a(), x, False, False), "layer/lora_down")
    return named(op.add(columns(x), named(op.matmul(b(), thin, False, False), "layer/lora_up")), "layer/lora_add")


def added(model: ov.Model, adapters: dict[str, Any]) -> ov.Model:
    manager = Manager()
    manager.register_pass(AddAdapters(adapters))
    manager.run_passes(model)
    return model


@pytest.mark.parametrize(
    ("build", "reference", "shape"),
    [(rows, rows_with, [-1, -1, 64]), (columns, columns_with, [-1, 64, -1])],
    ids=["last dimension", "the one before"],
)
def test_two_thin_layers_and_a_sum(build: Any, reference: Any, shape: list[int], tmp_path: Path) -> None:
    model = added(net(build, shape), {"layer": (A, B)})
    assert stored(model, tmp_path, "model") == stored(net(reference, shape), tmp_path, "model_ref")
    turned = shape[1] == 64
    x = np.ascontiguousarray(X.swapaxes(1, 2)) if turned else X
    found, before = run(model, {0: x})[0], run(net(build, shape), {0: x})[0]
    expected = X @ A.T @ B.T
    np.testing.assert_allclose(found - before, expected.swapaxes(1, 2) if turned else expected, rtol=1e-4, atol=1e-4)


def test_beside_a_compressed_layer() -> None:
    model = apply_weight_compression(net(rows, [-1, -1, 64]), mode="int8_sym", lazy=False)
    before = run(model, {0: X})[0]
    found = run(added(model, {"layer": (A, B)}), {0: X})[0]
    np.testing.assert_allclose(found - before, X @ A.T @ B.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "adapters", "message"),
    [
        (models.linear(48, 64), {"else": (A, B)}, "adapters: the model has no layer 'else' with a weight"),
        (models.linear(48, 64), {"layer": (B, A)}, r"must be A \[rank, 64\] and B \[48, rank\], got \[48, 4\] and"),
        (models.linear(48, 64, batch=(3,)), {"layer": (A, B)}, "cannot stand beside the layer: experts side by side"),
        (models.embedding(), {"layer": (A, B)}, "cannot stand beside the layer: a Gather reads the weight"),
    ],
)
def test_what_cannot_be(model: ov.Model, adapters: dict[str, Any], message: str) -> None:
    count = len(model.get_ops())
    with pytest.raises(OptionError, match=message):
        AddAdapters(adapters).run_on_model(model)
    assert len(model.get_ops()) == count
