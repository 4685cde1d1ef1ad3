"""Weights whose values come from elsewhere: the graph's constants only keep their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration import filled_copy
from ov_weight_compression.evaluation import compare
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.weight_source import Layout, Slab, WeightSource
from ov_weight_compression.passes import WeightCompression, apply_weight_compression
from ov_weight_compression.patterns import Weight, find_weights, sources_of
from tests.models import in_if, llama, tied_head
from tests.running import EXACT

TOKENS = list(np.random.default_rng(0).integers(0, 160, (4, 1, 16)))


class Elsewhere(WeightSource):
    """A newcomer's source: whatever has the values, it hands out rows of them."""

    def __init__(self, weight: Weight, values: Array) -> None:
        self.layout, self.element_type = weight.layout, weight.element_type
        self._matrix = weight.layout.to_matrix(values)

    def read(self, slab: Slab) -> Array:
        return self._matrix[slab.start : slab.stop]


def emptied(model: ov.Model) -> tuple[ov.Model, dict[str, Array]]:
    """The model with zeros in place of its matrices, and those."""
    kept = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.data.ndim == 2 and node.get_output_element_type(0).is_real():
            kept[node.get_friendly_name()] = node.data.copy()
            zeros = op.constant(np.zeros_like(node.data))
            zeros.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(zeros.output(0))
    return model, kept


def written(model: ov.Model, folder: Path) -> bytes:
    save_model(model, folder / "m.xml")
    return (folder / "m.bin").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ratio": 0.5},
        {"mode": "adaptive_codebook", "group_size": 16},
        {"awq": True},
        {"accuracy": "fast", "dataset": TOKENS},
        {"ratio": 0.5, "sensitivity_metric": "max_activation_variance", "dataset": TOKENS},
        {"gptq": True, "dataset": TOKENS},
        {"accuracy": "best", "lora_correction": True, "awq": True, "dataset": TOKENS},
    ],
    ids=lambda options: ", ".join(name for name in options if name != "dataset") or "plain",
)
def test_the_same_bytes_as_from_constants(options: dict[str, Any], tmp_path: Path) -> None:
    dtype = "f32" if "gptq" in options else "f16"
    options = {"mode": "int4_asym", "group_size": 32, **options}
    expected = written(apply_weight_compression(llama(dtype=dtype), **options), tmp_path)
    model, kept = emptied(llama(dtype=dtype))
    assert len(kept) == 16

    def given(weight: Weight) -> WeightSource | None:
        return Elsewhere(weight, kept[weight.name])

    assert written(apply_weight_compression(model, **options, sources=given), tmp_path) == expected


def test_some_from_elsewhere_by_name(tmp_path: Path) -> None:
    model, kept = emptied(llama())
    weights: dict[str, Weight] = {}
    WeightCompression(sources=lambda weight: weights.setdefault(weight.name, weight) and None).preview(model)
    expected = written(apply_weight_compression(llama()), tmp_path)
    sources = {name: Elsewhere(weight, kept[name]) for name, weight in weights.items()}
    assert written(apply_weight_compression(model, sources=sources), tmp_path) == expected


def test_what_it_cost_is_measured_against_the_same_values() -> None:
    compressed = apply_weight_compression(llama(), mode="int4_sym", group_size=32)
    expected = compare(llama(), compressed, windows=2).to_dict()
    model, kept = emptied(llama())
    sources = {weight.name: Elsewhere(weight, kept[weight.name]) for weight in find_weights(model)[0]}
    found = compare(model, compressed, windows=2, sources=sources)
    assert found.to_dict() == expected
    assert found.language is not None
    with pytest.raises(OptionError, match="is no weight of the model"):
        compare(model, compressed, sources={"tabel": sources.popitem()[1]})
    inside = find_weights(in_if())[0][0]
    with pytest.raises(OptionError, match="lies inside"):
        compare(in_if(), in_if(), sources={inside.name: Elsewhere(inside, inside.constant.data)})


def test_an_embedding_from_elsewhere_is_seen_by_its_other_readers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "int4_sym", "group_size": 32, "gptq": True, "dataset": TOKENS}
    expected = written(apply_weight_compression(llama(tied=True), **options), tmp_path)
    model, kept = emptied(llama(tied=True))
    options["sources"] = lambda weight: Elsewhere(weight, kept[weight.name])
    assert written(apply_weight_compression(model, **options), tmp_path) == expected


def test_a_copy_with_the_values_in_it_runs_as_the_model_with_constants() -> None:
    model, kept = emptied(llama(tied=True))
    weights, _ = find_weights(model)
    sources = sources_of(weights, lambda weight: Elsewhere(weight, kept[weight.name]))
    copy = filled_copy(model, weights, sources)
    found, expected = (ov.Core().compile_model(one, "CPU", EXACT)(TOKENS[0])[0] for one in (copy, llama(tied=True)))
    np.testing.assert_array_equal(found, expected)


class Nothing(WeightSource):
    element_type = "f32"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.layout = Layout.of(shape, (1,))

    def read(self, slab: Slab) -> Array:
        raise AssertionError("not to be read")


def test_a_source_of_another_shape_is_refused() -> None:
    with pytest.raises(OptionError, match=r"sources: 'weight' has the shape \[80, 64\], .* its source has \[64, 80\]"):
        apply_weight_compression(tied_head(), sources={"weight": Nothing((64, 80))})


def test_a_source_of_no_weight_is_refused() -> None:
    with pytest.raises(OptionError, match="sources: 'tabel' is no weight of the model"):
        apply_weight_compression(tied_head(), sources={"tabel": Nothing((80, 64))})
    with pytest.raises(OptionError, match="sources: must be a mapping from weights' names"):
        apply_weight_compression(tied_head(), sources=4)  # type: ignore[arg-type]


def test_inside_a_body_data_cannot_meet_them() -> None:
    def given(weight: Weight) -> WeightSource | None:
        return Elsewhere(weight, np.ones(weight.shape, np.float32)) if weight.body else None

    dataset = [{"x": np.ones((2, 64), np.float32), "flag": np.array(True)}]
    with pytest.raises(OptionError, match=r"sources: .* lies inside .* compress without data"):
        apply_weight_compression(in_if(), mode="int4_sym", dataset=dataset, sources=given)


def test_statistics_are_not_kept_of_them(tmp_path: Path) -> None:
    options: dict[str, Any] = {"mode": "int4_sym", "dataset": TOKENS, "statistics_path": tmp_path}
    with pytest.raises(OptionError, match=r"statistics_path: means nothing with sources, which"):
        apply_weight_compression(llama(), sources={}, **options)
