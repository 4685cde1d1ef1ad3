"""A MatMul that reads its weight through a Transpose turns it itself; `model` beside `model_ref`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.passes import Manager

from ov_weight_compression.passes.rewrite import FuseWeightTranspose
from tests.models import constant
from tests.running import run, stored


def transposed(value: Any, order: list[int]) -> Any:
    return op.transpose(value, np.array(order, np.int64))


def as_f32(value: Any) -> Any:
    convert = op.convert(value, "f32")
    convert.set_friendly_name("as_f32")
    return convert


def net(layer: Callable[[Any], Any], width: int = 64) -> ov.Model:
    x = op.parameter([-1, -1, width], np.float32, name="x")
    node = layer(x)
    node.set_friendly_name("layer")
    return ov.Model([op.result(node)], [x], "net")


def fused(model: ov.Model) -> ov.Model:
    manager = Manager()
    manager.register_pass(FuseWeightTranspose())
    manager.run_passes(model)
    return model


CASES = {
    "second input": (
        lambda x: op.matmul(x, transposed(constant((48, 64)), [1, 0]), False, False),
        lambda x: op.matmul(x, constant((48, 64)), False, True),
    ),
    "already turned": (
        lambda x: op.matmul(x, transposed(constant((64, 48)), [1, 0]), False, True),
        lambda x: op.matmul(x, constant((64, 48)), False, False),
    ),
    "first input": (
        lambda x: op.matmul(transposed(constant((64, 48)), [1, 0]), x, False, True),
        lambda x: op.matmul(constant((64, 48)), x, True, True),
    ),
    "a Convert behind it": (
        lambda x: op.matmul(x, as_f32(transposed(constant((48, 64), dtype="f16"), [1, 0])), False, False),
        lambda x: op.matmul(x, as_f32(constant((48, 64), dtype="f16")), False, True),
    ),
    "experts": (
        lambda x: op.matmul(op.unsqueeze(x, np.int64(1)), transposed(constant((3, 48, 64)), [0, 2, 1]), False, False),
        lambda x: op.matmul(op.unsqueeze(x, np.int64(1)), constant((3, 48, 64)), False, True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_matmul_turns_the_weight_itself(name: str, tmp_path: Path) -> None:
    build, reference = CASES[name]
    model, before = fused(net(build)), net(build)
    assert stored(model, tmp_path, "model") == stored(net(reference), tmp_path, "model_ref")
    feed = {0: np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)}
    np.testing.assert_allclose(run(model, feed)[0], run(before, feed)[0], rtol=1e-5, atol=1e-5)


def test_other_readers_of_a_transpose_keep_it(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        turned = transposed(constant((64, 64)), [1, 0])
        return op.add(op.matmul(x, turned, False, False), turned)

    def reference(x: Any) -> Any:
        weight = constant((64, 64))
        return op.add(op.matmul(x, weight, False, True), transposed(weight, [1, 0]))

    assert stored(fused(net(build)), tmp_path, "model") == stored(net(reference), tmp_path, "model_ref")


@pytest.mark.parametrize(
    "build",
    [
        lambda x: op.matmul(x, transposed(constant((64, 3, 16)), [1, 0, 2]), False, False),
        lambda x: op.matmul(transposed(x, [0, 2, 1]), constant((64, 48)), True, False),
    ],
    ids=["other axes", "the activation's"],
)
def test_other_transposes_stay(build: Callable[[Any], Any], tmp_path: Path) -> None:
    assert stored(fused(net(build)), tmp_path, "model") == stored(net(build), tmp_path, "model_ref")
