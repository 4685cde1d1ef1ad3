"""The longest window that a model takes, from its graph alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest

from ov_weight_compression.calibration import make_samples
from ov_weight_compression.calibration.model_inputs import read_language_model
from ov_weight_compression.evaluation.models import load

WIDTH = 16


def table(rows: int, *shape: int) -> Any:
    random = np.random.default_rng(0)
    return op.constant(random.normal(size=(*shape, rows, WIDTH)).astype(np.float32))


def of_length(ids: Any) -> Any:
    return op.gather(op.shape_of(ids, "i64"), op.constant(np.int64(1)), op.constant(np.int64(0)))


def counted(ids: Any) -> Any:
    return op.range(op.constant(np.int64(0)), of_length(ids), op.constant(np.int64(1)), "i64")


def zero() -> Any:
    return op.constant(np.int64(0))


def by_range(ids: Any, others: dict[str, Any]) -> Any:
    return op.gather(table(100), op.unsqueeze(counted(ids), zero()), zero())


def by_mask(ids: Any, others: dict[str, Any]) -> Any:
    mask = others["attention_mask"]
    places = op.add(op.subtract(op.cum_sum(mask, op.constant(1)), op.constant([[1]])), op.constant([[2]]))
    return op.gather(table(102), places, zero())


def by_input(ids: Any, others: dict[str, Any]) -> Any:
    return op.gather(table(100), others["position_ids"], zero())


def by_rotary_table(ids: Any, others: dict[str, Any]) -> Any:
    cosines = op.gather(table(100, 1), others["position_ids"], op.constant(np.int64(1)))
    return op.squeeze(cosines, zero())


def by_slice(ids: Any, others: dict[str, Any]) -> Any:
    end = op.unsqueeze(of_length(ids), zero())
    one = op.constant(np.array([1], np.int64))
    return op.slice(table(100, 1), op.constant(np.array([0], np.int64)), end, one, one)


def model(positions: Any, *names: str) -> ov.Model:
    """Token embeddings, plus something of the window's length that the constants limit to 100 positions."""
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    others = {name: op.parameter([-1, -1], np.int64, name=name) for name in names}
    for name, node in (("input_ids", ids), *others.items()):
        node.output(0).set_names({name})
    hidden = op.add(op.gather(table(50), ids, zero()), positions(ids, others))
    return ov.Model([op.matmul(hidden, table(50), False, True)], [ids, *others.values()])


@pytest.mark.parametrize(
    ("positions", "names"),
    [
        (by_range, ()),
        (by_mask, ("attention_mask",)),
        (by_input, ("position_ids",)),
        (by_rotary_table, ("position_ids",)),
        (by_slice, ()),
        (by_slice, ("attention_mask",)),
    ],
)
def test_the_graph_says_how_many_positions_there_are(positions: Any, names: tuple[str, ...]) -> None:
    made = model(positions, *names)
    found = read_language_model(made)
    assert found is not None
    assert found.positions == 100
    assert load(made, "base").usual_window == 100
    for dataset in ("random", np.arange(1000) % 50):
        assert {window["input_ids"].shape[1] for window in make_samples(made, dataset)} == {100}


def nothing(ids: Any, others: dict[str, Any]) -> Any:
    return op.constant(np.ones((1, 1, WIDTH), np.float32))


def as_many_as_there_are_experts(ids: Any, others: dict[str, Any]) -> Any:
    every = op.range(op.constant(np.int64(0)), op.constant(np.int64(4)), op.constant(np.int64(1)), "i64")
    return op.reduce_sum(op.gather(table(8), every, zero()), op.constant([0]), keep_dims=True)


@pytest.mark.parametrize("limit", [nothing, as_many_as_there_are_experts])
def test_where_nothing_limits_it(limit: Any) -> None:
    found = read_language_model(model(limit))
    assert found is not None
    assert found.positions is None


@pytest.mark.parametrize(
    ("path", "positions"),
    [("models/chargpt", 64), ("models/pylm", None), ("zoo/gpt2", 128), ("zoo/opt", 128), ("zoo/bert", 128)],
)
def test_real_models(shared: Path, path: str, positions: int | None) -> None:
    found = read_language_model(ov.Core().read_model(shared / path / "openvino_model.xml"))
    assert found is not None
    assert found.positions == positions
