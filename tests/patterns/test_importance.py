"""What the graph says about the size of input channels, checked against what the models really compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.patterns import Weight, find_weights
from ov_weight_compression.patterns.provenance import (
    ImportanceSource,
    NormGain,
    RowNormProduct,
    RowNorms,
    importance_sources,
)
from tests import models


def sources_of(model: ov.Model) -> tuple[dict[str, Weight], dict[str, ImportanceSource]]:
    weights, _ = find_weights(model)
    return {weight.name: weight for weight in weights}, importance_sources(weights)


def names(gain: ImportanceSource) -> tuple[list[str], list[str]]:
    assert isinstance(gain, NormGain)
    return [one.get_friendly_name() for one in gain.gains], [one.get_friendly_name() for one in gain.biases]


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_llama(dtype: str, decomposed: bool) -> None:
    _, sources = sources_of(models.llama(dtype=dtype, decomposed=decomposed, layers=1))
    layer = "model.layers.0"
    for which in "qkv":
        assert names(sources[f"{layer}.self_attn.{which}_proj.weight"]) == ([f"{layer}.input_layernorm.weight"], [])
    for which in ("gate", "up"):
        assert names(sources[f"{layer}.mlp.{which}_proj.weight"]) == ([f"{layer}.post_attention_layernorm.weight"], [])
    assert names(sources["lm_head.weight"]) == (["model.norm.weight"], [])
    values = sources[f"{layer}.self_attn.o_proj.weight"]
    assert isinstance(values, RowNorms)
    assert values.weight.name == f"{layer}.self_attn.v_proj.weight"
    assert values.rows() == [(head // 2) * 16 + j for head in range(4) for j in range(16)]
    product = sources[f"{layer}.mlp.down_proj.weight"]
    assert isinstance(product, RowNormProduct)
    assert {factor.weight.name for factor in product.factors} == {
        f"{layer}.mlp.gate_proj.weight",
        f"{layer}.mlp.up_proj.weight",
    }
    assert all(factor.rows() == list(range(96)) for factor in product.factors)


def test_a_tied_head_has_the_gain_of_the_last_norm() -> None:
    _, sources = sources_of(models.llama(tied=True, layers=1))
    assert names(sources["model.embed_tokens.weight"]) == (["model.norm.weight"], [])


def matmul(x: ov.Node, out: int, name: str) -> ov.Node:
    weight = models.constant((out, x.get_output_partial_shape(0)[-1].get_length()), name)
    return op.matmul(x, weight, False, True)


def ending(build: Callable[[ov.Node], ov.Node]) -> ImportanceSource | None:
    """What is known of the input of "weight", which is what `build` makes of the model's input."""
    x = op.parameter([-1, -1, 64], np.float32)
    value = build(x)
    weight = models.constant((8, 64))
    return sources_of(ov.Model([op.matmul(value, weight, False, True)], [x]))[1].get("weight")


def test_layer_norm() -> None:
    assert names(ending(lambda x: models.layer_norm(x, 64, "gain"))) == (["gain"], ["gain.bias"])


def test_through_what_moves_positions_only() -> None:
    def build(x: ov.Node) -> ov.Node:
        normed = op.transpose(models.rms_norm(x, 64, "gain"), op.constant(np.array([1, 0, 2])))
        last = op.gather(normed, op.constant(np.array([-1])), op.constant(np.int64(0)))
        return op.reshape(last, op.constant(np.array([-1, 64])), False)

    assert names(ending(build)) == (["gain"], [])


def plain(activation: Callable[[ov.Node], ov.Node]) -> Callable[[ov.Node], ov.Node]:
    return lambda x: activation(op.add(matmul(x, 64, "weight_0"), models.constant((1, 1, 64), "bias")))


def erf_gelu(x: ov.Node) -> ov.Node:
    inside = op.erf(op.multiply(x, op.constant(np.float32(0.7))))
    return op.multiply(op.multiply(x, op.constant(np.float32(0.5))), op.add(inside, op.constant(np.float32(1))))


@pytest.mark.parametrize(
    "activation", [op.relu, lambda x: op.gelu(x, "ERF"), lambda x: op.swish(x), erf_gelu, lambda x: x], ids=range(5)
)
def test_a_plain_mlp(activation: Callable[[ov.Node], ov.Node]) -> None:
    source = ending(plain(activation))
    assert isinstance(source, RowNorms)
    assert (source.weight.name, source.rows()) == ("weight_0", list(range(64)))


def test_squared_relu_counts_its_rows_twice() -> None:
    source = ending(plain(lambda x: op.power(op.relu(x), op.constant(np.float32(2)))))
    assert isinstance(source, RowNormProduct)
    assert [factor.weight.name for factor in source.factors] == ["weight_0", "weight_0"]


def test_fused_gate_and_up() -> None:
    def build(x: ov.Node) -> ov.Node:
        both = matmul(x, 128, "weight_0")
        gate, up = op.variadic_split(both, op.constant(np.int64(-1)), op.constant(np.array([64, 64]))).outputs()
        return op.multiply(up, op.swish(gate))

    source = ending(build)
    assert isinstance(source, RowNormProduct)
    assert sorted(factor.offset for factor in source.factors) == [0, 64]


def test_interleaved_gate_and_up() -> None:
    def half(x: ov.Node, start: int) -> ov.Node:
        ends = [np.array([start]), np.array([2**31]), np.array([2]), np.array([-1])]
        return op.slice(x, *(op.constant(end) for end in ends))

    def build(x: ov.Node) -> ov.Node:
        both = matmul(x, 128, "weight_0")
        return op.multiply(op.swish(half(both, 0)), half(both, 1))

    source = ending(build)
    assert isinstance(source, RowNormProduct)
    assert {tuple(factor.rows()) for factor in source.factors} == {tuple(range(0, 128, 2)), tuple(range(1, 128, 2))}


def channel_gain(x: ov.Node) -> ov.Node:
    return op.multiply(matmul(x, 64, "weight_0"), models.constant((1, 1, 64), "vector"))


def inverse(x: ov.Node) -> ov.Node:
    return op.divide(op.constant(np.float32(1)), matmul(x, 64, "weight_0"))


def no_norm(x: ov.Node) -> ov.Node:
    """A vector of gains on something of unknown size."""
    return op.multiply(x, models.constant((1, 1, 64), "vector"))


def centred(x: ov.Node) -> ov.Node:
    """MVN without the variance."""
    return op.mvn(x, op.constant(np.array([-1])), False, 1e-5, "INSIDE_SQRT")


def norm_over_tokens(x: ov.Node) -> ov.Node:
    return op.mvn(x, op.constant(np.array([1])), True, 1e-5, "INSIDE_SQRT")


def residual(x: ov.Node) -> ov.Node:
    return op.add(matmul(x, 64, "weight_0"), matmul(x, 64, "weight_1"))


def mixed_channels(x: ov.Node) -> ov.Node:
    """Channels and positions change places, and a fold follows."""
    value = op.reshape(matmul(x, 64, "weight_0"), op.constant(np.array([-1, 32, 64])), False)
    turned = op.transpose(value, op.constant(np.array([0, 2, 1])))
    return op.reshape(turned, op.constant(np.array([-1, 1, 64])), False)


def three_factors(x: ov.Node) -> ov.Node:
    first, second = matmul(x, 64, "weight_0"), matmul(x, 64, "weight_1")
    return op.multiply(op.multiply(first, second), matmul(x, 64, "weight_2"))


@pytest.mark.parametrize(
    "build",
    [channel_gain, inverse, no_norm, centred, norm_over_tokens, residual, mixed_channels, three_factors, lambda x: x],
    ids=lambda build: build.__name__,
)
def test_nothing_is_said_where_nothing_is_certain(build: Callable[[ov.Node], ov.Node]) -> None:
    assert ending(build) is None


def test_shared_by_layers_behind_different_norms() -> None:
    x = op.parameter([-1, -1, 64], np.float32)
    weight = models.constant((64, 64))
    first = op.matmul(models.rms_norm(x, 64, "gain_0"), weight, False, True)
    second = op.matmul(models.rms_norm(first, 64, "gain_1"), weight, False, True)
    assert sources_of(ov.Model([second], [x]))[1] == {}


Inputs = dict[str, np.ndarray]


def moved_channels(model: ov.Model, weight: Weight, producer: Weight, row: int, inputs: Inputs) -> set[int]:
    """The input channels of `weight` that change when one row of `producer` does: what the graph really computes."""
    layer = weight.consumers[-1]
    result = op.result(layer.node.input_value(1 - layer.port))
    probe = ov.Model([result], model.get_sinks(), model.get_parameters(), "probe")

    def run() -> np.ndarray:
        return np.array(ov.compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)[0])

    before = run()
    values = np.moveaxis(producer.constant.data.astype(np.float32), producer.layout.order, range(len(producer.shape)))
    changed = values.reshape(-1, producer.shape[producer.channel_axes[0]], producer.columns).copy()
    changed[:, row] *= 3
    changed = np.moveaxis(changed.reshape(values.shape), range(len(producer.shape)), producer.layout.order)
    other = op.constant(np.ascontiguousarray(changed, producer.constant.data.dtype))
    old = producer.constant.output(0)
    targets = old.get_target_inputs()
    for target in targets:
        target.replace_source_output(other.output(0))
    try:
        after = run()
    finally:
        for target in targets:
            target.replace_source_output(old)
    moved = np.abs(after - before).reshape(-1, before.shape[-1]).max(0)
    return set(np.flatnonzero(moved > 1e-6 * max(np.abs(before).max(), 1e-3)).tolist())


def check_rows(model: ov.Model, inputs: Inputs, most: int) -> int:
    """Hold every row map of a model to what it computes, for a few rows each; how many maps were checked."""
    weights, sources = sources_of(model)
    checked = 0
    for name, source in sources.items():
        factors = source.factors if isinstance(source, RowNormProduct) else (source,)
        for factor in factors:
            if not isinstance(factor, RowNorms) or checked >= most:
                continue
            rows = factor.rows()
            for row in {rows[0], rows[len(rows) // 3], rows[-1]}:
                expected = {channel for channel, own in enumerate(rows) if own == row}
                moved = moved_channels(model, weights[name], factor.weight, row, inputs)
                other = {f.weight.name for f in factors if isinstance(f, RowNorms)}
                if len(factors) == 2 and len(other) == 1:  # a fused weight: the row may also be the other factor's
                    assert moved in [{c for c, own in enumerate(f.rows()) if own == row} for f in factors]
                else:
                    assert moved == expected, (name, factor.weight.name, row)
            checked += 1
    return checked


@pytest.mark.parametrize("decomposed", [False, True])
def test_the_rows_are_those_that_the_model_computes(decomposed: bool) -> None:
    ids = np.arange(6, dtype=np.int64).reshape(1, 6)
    assert check_rows(models.llama(layers=1, decomposed=decomposed), {"input_ids": ids}, 9) == 3


@pytest.mark.parametrize("name", ["bert", "bloom", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama", "opt", "phi3"])
def test_the_rows_of_exported_models(shared: Path, name: str) -> None:
    model = ov.Core().read_model(shared / "zoo" / name / "openvino_model.xml")
    inputs: Inputs = {}
    for parameter in model.get_parameters():
        label = parameter.get_friendly_name()
        if label == "beam_idx":
            inputs[label] = np.zeros(1, np.int32)
        elif label in ("attention_mask", "input_ids", "position_ids"):
            base = np.arange(1, 9) if label == "input_ids" else np.arange(8) if label == "position_ids" else np.ones(8)
            inputs[label] = base.astype(np.int64).reshape(1, 8)
        else:
            inputs[label] = np.zeros((1, 8), np.int64)
    assert check_rows(model, inputs, 3) == 3


@pytest.mark.parametrize(
    ("name", "share"),
    [("llama", 1.0), ("qwen2", 1.0), ("phi3", 1.0), ("gpt2", 1.0), ("bloom", 1.0), ("gemma2", 1.0), ("bert", 1.0)],
)
def test_the_share_of_weights_that_something_is_known_of(shared: Path, name: str, share: float) -> None:
    weights, _ = find_weights(ov.Core().read_model(shared / "zoo" / name / "openvino_model.xml"))
    layers = [weight for weight in weights if any(one.node.get_type_name() == "MatMul" for one in weight.consumers)]
    assert len(importance_sources(weights)) >= share * len(layers)
