"""Weights of fp8 checkpoints are weights; what a compressor has made is not."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.patterns import Skip, Weight, find_weights
from tests.models import fp8_checkpoint, in_if, layers


def only(model: ov.Model) -> Weight:
    (weight,), skips = find_weights(model)
    assert skips == []  # scales are parts, not constants of their own
    return weight


@pytest.mark.parametrize("storage", ["f8e4m3", "f8e5m2"])
@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("scales", "size"), [("channel", 64 * 4), ("tensor", 4), ("block", 16 * 4), ("none", 0)])
def test_every_kind_of_scale(scales: str, size: int, to: str, storage: str) -> None:
    weight = only(fp8_checkpoint(scales, to, storage))
    assert (weight.name, weight.element_type, weight.shape) == ("weight", storage, (64, 128))
    assert (weight.reduction_axes, weight.channel_axes, weight.layout.groupable) == ((1,), (0,), True)
    assert [consumer.name for consumer in weight.consumers] == ["layer"]
    assert weight.bytes == 64 * 128 + size
    assert weight.stored_name == "weight"
    assert weight.is_last_layer
    assert tuple(weight.constant.shape) == (64, 128)


def test_a_recipe_makes_it_a_compressed_weight() -> None:
    for section in ("weight_compression", "nncf"):
        model = fp8_checkpoint("channel")
        path = [section, "weight_compression", "mode"] if section == "nncf" else [section, "mode"]
        model.set_rt_info("fp8_e4m3", path)
        weights, skips = find_weights(model)
        assert weights == []
        assert skips[0].reason == "already compressed (f8e4m3)"


def test_a_recipe_of_something_else_does_not() -> None:
    model = fp8_checkpoint("channel")
    model.set_rt_info("3.4.0", ["nncf", "version"])
    model.set_rt_info("1", ["optimum", "version"])
    assert only(model).name == "weight"


def test_groups_are_what_a_compressor_makes() -> None:
    weights, skips = find_weights(fp8_checkpoint("group"))
    assert weights == []
    assert skips[0].reason == "already compressed (f8e4m3, group 32)"


@pytest.mark.parametrize("name", ["weight", "layer"])
def test_ignored_by_either_name(name: str) -> None:
    weights, (skip,) = find_weights(fp8_checkpoint("channel"), [name])
    assert weights == []
    assert isinstance(skip, Skip)
    assert (skip.name, skip.reason) == ("weight", f"ignored: name '{name}'")
    assert skip.bytes == 64 * 128 + 64 * 4


def test_among_float_weights_in_order() -> None:
    model = layers(2)
    x = model.inputs[0].get_node()
    first = next(iter(x.output(0).get_target_inputs())).get_node()
    source = fp8_checkpoint("channel", shape=(64, 64))
    end = source.get_results()[0].input_value(0).get_node().input_value(1)
    first.input(1).replace_source_output(end)
    weights, _ = find_weights(model)
    assert [(weight.name, weight.element_type) for weight in weights] == [("weight", "f8e4m3"), ("weight_1", "f32")]


def test_float_models_have_no_parts() -> None:
    assert find_weights(in_if())[0][0].parts == ()
    assert np.prod(find_weights(in_if())[0][0].shape) == 64 * 64
