"""Scale folding as a pass of its own: `model` beside `model_ref`, and what it refuses."""

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
from ov_weight_compression.passes.scale_folding import ScaleFolding
from tests.running import constants, run, stored

WIDTH, HIDDEN = 64, 96
RANDOM = np.random.default_rng(2)
GAIN, BIAS = (RANDOM.standard_normal((1, 1, WIDTH)).astype(np.float32) for _ in range(2))
FIRST = RANDOM.standard_normal((HIDDEN, WIDTH)).astype(np.float32)
SECOND = RANDOM.standard_normal((WIDTH, HIDDEN)).astype(np.float32)
FACTORS = {size: np.exp2(RANDOM.integers(-3, 4, size)).astype(np.float32) for size in (WIDTH, HIDDEN)}


def named(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    return node


def behind_norm(gain: np.ndarray, bias: np.ndarray, weight: np.ndarray) -> ov.Model:
    x = named(op.parameter([-1, -1, WIDTH], np.float32, name="x"), "x")
    scaled = named(op.multiply(x, named(op.constant(gain), "gain")), "scaled")
    moved = named(op.add(scaled, named(op.constant(bias), "bias")), "moved")
    layer = named(op.matmul(moved, named(op.constant(weight), "weight"), False, True), "layer")
    return ov.Model([named(op.result(layer), "y")], [x], "norm")


def behind_weight(first: np.ndarray, second: np.ndarray) -> ov.Model:
    x = named(op.parameter([-1, -1, WIDTH], np.float32, name="x"), "x")
    hidden = named(op.relu(named(op.matmul(x, named(op.constant(first), "first"), False, True), "up")), "hidden")
    layer = named(op.matmul(hidden, named(op.constant(second), "second"), False, True), "down")
    return ov.Model([named(op.result(layer), "y")], [x], "mlp")


def behind_gelu(second: np.ndarray, inverse: np.ndarray | None) -> ov.Model:
    x = named(op.parameter([-1, -1, HIDDEN], np.float32, name="x"), "x")
    hidden = named(op.gelu(x, "erf"), "hidden")
    if inverse is not None:
        hidden = named(op.multiply(hidden, named(op.constant(inverse), "down/smoothing/factors")), "down/smoothing")
    layer = named(op.matmul(hidden, named(op.constant(second), "second"), False, True), "down")
    return ov.Model([named(op.result(layer), "y")], [x], "gelu")


def folded(model: ov.Model, factors: Callable[[Any], Any] | None, **more: Any) -> tuple[ov.Model, ScaleFolding]:
    manager, folding = Manager(), ScaleFolding(factors, **more)
    manager.register_pass(folding)
    manager.run_passes(model)
    return model, folding


def of_width(group: Any) -> np.ndarray:
    return FACTORS[group.columns]


def only(*names: str) -> Callable[[Any], Any]:
    return lambda group: of_width(group) if group.weights[0].name in names else None


w, h = FACTORS[WIDTH], FACTORS[HIDDEN]
CASES = {
    "a gain and its bias": (
        lambda: behind_norm(GAIN, BIAS, FIRST),
        only("weight"),
        lambda: behind_norm(GAIN / w, BIAS / w, FIRST * w),
    ),
    "the rows of a weight": (
        lambda: behind_weight(FIRST, SECOND),
        only("second"),
        lambda: behind_weight(FIRST / h[:, None], SECOND * h),
    ),
    "a Multiply": (
        lambda: behind_gelu(SECOND, None),
        only("second"),
        lambda: behind_gelu(SECOND * h, (1 / h).reshape(1, 1, HIDDEN)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_takes_the_factors(name: str, tmp_path: Path) -> None:
    build, factors, reference = CASES[name]
    model, folding = folded(build(), factors, insert=True)
    assert [len(group.weights) for group in folding.folded] == [1]
    assert stored(model, tmp_path, "model") == stored(reference(), tmp_path, "model_ref")
    before, after = run(build())[0], run(model)[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_without_insert_or_factors_nothing_changes(tmp_path: Path) -> None:
    asked = []
    model, folding = folded(behind_gelu(SECOND, None), lambda group: asked.append(group))
    assert (asked, folding.folded) == ([], ())
    assert stored(model, tmp_path, "model") == stored(behind_gelu(SECOND, None), tmp_path, "model_ref")


def test_by_default_small_columns_are_lifted_as_awq_does_without_data() -> None:
    weight = FIRST.copy()
    weight[:, ::5] /= 16
    model, folding = folded(behind_norm(GAIN, BIAS, weight), None, group_size=32)
    assert len(folding.folded) == 1
    found = {name: node.data for name, node in constants(model).items()}
    factors = (GAIN / found["gain"]).reshape(-1)
    assert np.all((factors == 1) == (np.arange(WIDTH) % 5 != 0))
    assert np.all(factors[::5] > 8)
    np.testing.assert_allclose(found["weight"], weight * factors, rtol=1e-6)
    other = apply_weight_compression(
        behind_norm(GAIN, BIAS, weight), mode="int4_sym", group_size=32, all_layers=True, awq=True, lazy=False
    )
    np.testing.assert_array_equal(constants(other)["gain"].data, found["gain"])


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (np.ones(3), r"factors for the group of 'weight': must have the shape \[64\], got \[3\]"),
        (np.zeros(WIDTH), "factors for the group of 'weight': must be positive and finite"),
        (np.full(WIDTH, np.inf), "factors for the group of 'weight': must be positive and finite"),
    ],
)
def test_factors_that_cannot_be(factors: np.ndarray, message: str, tmp_path: Path) -> None:
    model = behind_norm(GAIN, BIAS, FIRST)
    with pytest.raises(OptionError, match=message):
        ScaleFolding(lambda group: factors).run_on_model(model)
    assert stored(model, tmp_path, "model") == stored(behind_norm(GAIN, BIAS, FIRST), tmp_path, "model_ref")
