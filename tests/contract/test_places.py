"""Every place that a weight can be in: compressed, saved, reloaded, compiled, and close to the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.passes import WeightCompression, apply_weight_compression
from tests import models
from tests.models import linear, op
from tests.running import files_of, run, stored


def transposed(value: ov.Node) -> ov.Node:
    return op.transpose(value, op.constant(np.array([1, 0])))


def reshaped(*shape: int) -> Callable[[ov.Node], ov.Node]:
    return lambda value: op.reshape(value, op.constant(np.array(shape)), False)


PLACES: dict[str, Callable[[], ov.Model]] = {
    "matmul": lambda: linear(48, 64),
    "matmul in-out": lambda: linear(48, 64, transpose=False),
    "matmul port 0": lambda: linear(48, 64, port=0),
    "matmul port 0 transposed": lambda: linear(48, 64, port=0, transpose=False),
    "f16": lambda: linear(48, 64, dtype="f16"),
    "bf16": lambda: linear(48, 64, dtype="bf16"),
    "f64": lambda: linear(48, 64, dtype="f64"),
    "odd sizes": lambda: linear(31, 77),
    "behind a transpose": lambda: linear(48, 64, transpose=False, shape=(48, 64), through=transposed),
    "behind a reshape": lambda: linear(48, 64, shape=(48, 8, 8), through=reshaped(48, 64)),
    "behind a reshape that splits": lambda: linear(48, 64, shape=(3072,), through=reshaped(48, 64)),
    "experts": lambda: linear(32, 64, batch=(3,)),
    "experts in-out": lambda: linear(32, 64, batch=(3,), transpose=False),
    "experts f16": lambda: linear(32, 64, batch=(3,), dtype="f16"),
    "one expert": lambda: linear(32, 64, batch=(1,)),
    "four axes": lambda: linear(32, 64, batch=(2, 3)),
    "embedding": lambda: models.embedding(),
    "embedding f16": lambda: models.embedding(dtype="f16"),
    "embedding, second axis": lambda: models.embedding((64, 80), axis=1),
    "tied": lambda: models.tied_head(),
    "convolution": lambda: models.convolution("Convolution"),
    "convolution f16": lambda: models.convolution("Convolution", dtype="f16"),
    "transposed convolution": lambda: models.convolution("ConvolutionBackpropData"),
    "grouped convolution": lambda: models.convolution("GroupConvolution"),
    "grouped transposed convolution": lambda: models.convolution("GroupConvolutionBackpropData"),
    "if": lambda: models.in_if(),
    "loop": lambda: models.in_loop(),
    "loop, weight outside": lambda: models.in_loop(outer=True),
    "tensor iterator": lambda: models.in_tensor_iterator(),
    "llama": lambda: models.llama(),
    "llama decomposed": lambda: models.llama(decomposed=True, tied=True, dtype="f16"),
}
SKIPPED = {"behind a reshape that splits", "embedding, second axis", "loop, weight outside"}


def inputs_of(model: ov.Model) -> dict[int, np.ndarray]:
    random = np.random.default_rng(3)
    feed = {}
    for number, port in enumerate(model.inputs):
        shape = [dim.get_length() if dim.is_static else 5 for dim in port.get_partial_shape()]
        kind = port.get_element_type().to_dtype()
        if kind == np.bool_:
            feed[number] = np.ones(shape, np.bool_)
        elif np.issubdtype(kind, np.integer):
            feed[number] = random.integers(0, 48, shape).astype(kind)
        else:
            feed[number] = random.standard_normal(shape).astype(kind)
    return feed


@pytest.mark.parametrize(
    ("mode", "lazy"),
    [("int8_asym", True), ("int8_sym", False), ("int4_asym", False), ("int4_sym", True), ("nf4", True)],
)
@pytest.mark.parametrize("name", PLACES)
def test_a_weight_anywhere(name: str, mode: str, lazy: bool, tmp_path: Path) -> None:
    model = PLACES[name]()
    feed = inputs_of(model)
    before = run(model.clone(), feed)[0]
    options = {} if mode.startswith("int8") else {"all_layers": True, "group_size": 16}
    compression = WeightCompression(mode=mode, lazy=lazy, **options)
    compression.run_on_model(model)
    assert compression.report.rows or name in SKIPPED, compression.report.skips
    after = run(model, feed)[0]
    stored(model, tmp_path)
    reloaded = run(tmp_path / "model.xml", feed)[0]
    np.testing.assert_allclose(after, reloaded, rtol=2e-3, atol=2e-3 * np.abs(after).max())
    limit = 0.03 if mode.startswith("int8") else 0.35
    assert np.linalg.norm(after - before) <= limit * np.linalg.norm(before)


@pytest.mark.parametrize("name", ["if", "loop", "tensor iterator"])
def test_bodies_are_the_same_bytes_lazy_or_not(name: str, tmp_path: Path) -> None:
    lazy = stored(apply_weight_compression(PLACES[name](), mode="int4_sym", all_layers=True), tmp_path / "lazy")
    plain = apply_weight_compression(PLACES[name](), mode="int4_sym", all_layers=True, lazy=False)
    assert stored(plain, tmp_path / "plain") == lazy
    assert (tmp_path / "lazy" / "model.bin").stat().st_size < 64 * 64 * 0.6 + 400
    second = WeightCompression(mode="int8_sym")
    assert second.run_on_model(ov.Core().read_model(tmp_path / "lazy" / "model.xml")) is False
    assert files_of(tmp_path / "lazy" / "model.xml") == lazy


def test_grouped_matmul(tmp_path: Path) -> None:
    model = models.grouped_matmul()
    feed = {0: np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32), 1: np.array([3, 5, 9], np.int32)}
    before = run(model.clone(), feed)[0]
    compression = WeightCompression(mode="int8_asym")
    compression.run_on_model(model)
    assert compression.report.rows
    after = run(model, feed)[0]
    stored(model, tmp_path)
    assert (run(tmp_path / "model.xml", feed)[0] == after).all()
    assert np.linalg.norm(after - before) < 0.02 * np.linalg.norm(before)


def test_a_constant_shared_by_layers_that_agree_is_stored_once(tmp_path: Path) -> None:
    def twice(first: bool) -> Callable[[ov.Node, ov.Node], ov.Node]:
        return lambda x, weight: op.matmul(x if first else op.relu(x), weight, False, True)

    model = models.shared_constant(twice(True), twice(False))
    compression = WeightCompression(mode="int8_sym")
    compression.run_on_model(model)
    assert len(compression.report.rows) == 1
    _, weights = stored(model, tmp_path)
    assert len(weights) < 64 * 64 + 64 * 2 + 200


def test_a_constant_shared_by_layers_that_disagree_is_left_alone(tmp_path: Path) -> None:
    model = models.shared_constant(
        lambda x, weight: op.matmul(x, weight, False, True), lambda x, weight: op.matmul(x, weight, False, False)
    )
    before = run(model.clone())
    compression = WeightCompression(mode="int8_sym")
    compression.run_on_model(model)
    assert not compression.report.rows
    assert compression.report.skips[0].name == "weight"
    assert compression.report.skips[0].reason
    assert all((one == other).all() for one, other in zip(run(model), before, strict=True))


@pytest.mark.parametrize("make", [models.no_weights, models.only_result, models.rotary, models.fourier_features])
def test_models_with_nothing_to_compress_stay_as_they_are(make: Callable[[], ov.Model], tmp_path: Path) -> None:
    model = make()
    before = stored(model.clone(), tmp_path / "before")
    assert WeightCompression(mode="int4_sym").run_on_model(model) is False
    assert stored(model, tmp_path / "after") == before
