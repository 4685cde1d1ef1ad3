"""Where a factor of the input channels can go: told by structure, and held to what the scaled models compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.patterns import find_weights
from ov_weight_compression.patterns.equalization import EqualizationGroup, equalization_groups
from ov_weight_compression.patterns.fold_targets import GainTarget, RowsTarget
from tests import models
from tests.running import EXACT, inputs_for, run
from tests.scaling import groups_of, scale_at_random


def matmul(x: ov.Node, out: int, name: str) -> ov.Node:
    columns = x.get_output_partial_shape(0)[-1].get_length()
    return op.matmul(x, models.constant((out, columns), name), False, True)


def model_of(build: Callable[[ov.Node], ov.Node | list[ov.Node]], size: int = 64) -> ov.Model:
    """`build` makes everything of the model's input; the layer in question is called "weight" where it has a name."""
    x = op.parameter([-1, -1, size], np.float32, name="x")
    ends = build(x)
    return ov.Model([op.result(end) for end in (ends if isinstance(ends, list) else [ends])], [x], "absorb")


def group(build: Callable[[ov.Node], ov.Node | list[ov.Node]]) -> EqualizationGroup:
    return groups_of(model_of(build))["weight"]


def test_the_groups_of_a_llama() -> None:
    groups = groups_of(models.llama(layers=1))
    layer = "model.layers.0"
    attention = groups[f"{layer}.self_attn.q_proj.weight"]
    assert {one.name.split(".")[-2] for one in attention.weights} == {"q_proj", "k_proj", "v_proj"}
    assert isinstance(attention.target, GainTarget)
    assert attention.target.name == f"{layer}.input_layernorm.weight"
    assert attention.classes == tuple(range(64))
    output = groups[f"{layer}.self_attn.o_proj.weight"]
    assert isinstance(output.target, RowsTarget)
    assert output.target.name == f"{layer}.self_attn.v_proj.weight"
    rows = [output.target.rows[one] for one in output.classes]
    assert rows == [head // 2 * 16 + j for head in range(4) for j in range(16)]
    down = groups[f"{layer}.mlp.down_proj.weight"].target
    assert isinstance(down, RowsTarget)
    assert (down.name, down.rows) == (f"{layer}.mlp.up_proj.weight", tuple(range(96)))
    assert groups["lm_head.weight"].target.name == "model.norm.weight"  # type: ignore[union-attr]
    assert len({id(one) for one in groups.values()}) == 5


def bias(x: ov.Node, size: int, name: str) -> ov.Node:
    return op.add(x, models.constant((1, 1, size), name))


def relu_mlp(x: ov.Node) -> ov.Node:
    hidden = op.relu(bias(matmul(models.layer_norm(x, 64, "gain"), 96, "weight_0"), 96, "bias"))
    return op.add(x, matmul(hidden, 64, "weight"))


def fused(x: ov.Node) -> ov.Node:
    both = bias(matmul(models.rms_norm(x, 64, "gain"), 192, "weight_0"), 192, "bias")
    gate, up = op.variadic_split(both, op.constant(np.int64(-1)), op.constant(np.array([96, 96]))).outputs()
    return matmul(op.multiply(op.swish(gate), up), 64, "weight")


def interleaved(x: ov.Node) -> ov.Node:
    both = matmul(models.rms_norm(x, 64, "gain"), 192, "weight_0")

    def half(start: int) -> ov.Node:
        ends = [np.array([start]), np.array([2**31]), np.array([2]), np.array([-1])]
        return op.slice(both, *(op.constant(end) for end in ends))

    return matmul(op.multiply(half(1), op.swish(half(0))), 64, "weight")


def behind_reshapes(x: ov.Node) -> list[ov.Node]:
    """One layer reads the norm, another a rearranged copy of it."""
    normed = models.layer_norm(x, 64, "gain")
    flat = op.reshape(normed, op.constant(np.array([-1, 64])), False)
    return [matmul(normed, 32, "weight_0"), matmul(flat, 48, "weight")]


def gelu_mlp(x: ov.Node) -> ov.Node:
    return matmul(op.gelu(matmul(x, 96, "weight_0"), "ERF"), 64, "weight")


def keys_twice_as_values(x: ov.Node) -> ov.Node:
    """One weight makes both keys and values, which are apart only in their rows."""
    both = models.heads_of(matmul(x, 128, "weight_0"), 2, 64)
    keys, values = op.split(both, op.constant(np.int64(-1)), 2).outputs()
    queries = models.heads_of(matmul(x, 64, "weight_1"), 2, 32)
    mixed = op.transpose(op.scaled_dot_product_attention(queries, keys, values), op.constant(np.array([0, 2, 1, 3])))
    return matmul(op.reshape(mixed, op.constant(np.array([0, 0, 64])), True), 64, "weight")


def gate_in_parts(x: ov.Node) -> ov.Node:
    """The way through the gate comes first and leads nowhere."""
    gate, up = matmul(x, 96, "weight_0"), matmul(x, 96, "weight_1")
    return matmul(op.multiply(op.multiply(gate, op.sigmoid(gate)), up), 64, "weight")


ABSORBED = [relu_mlp, fused, interleaved, behind_reshapes, keys_twice_as_values, gate_in_parts]


@pytest.mark.parametrize("build", ABSORBED, ids=lambda build: build.__name__)
def test_absorbed(build: Callable[[ov.Node], ov.Node | list[ov.Node]]) -> None:
    assert group(build).target is not None


def test_rows_of_the_linear_half_alone() -> None:
    target = group(interleaved).target
    assert isinstance(target, RowsTarget)
    assert target.rows == tuple(range(1, 192, 2))
    target = group(fused).target
    assert isinstance(target, RowsTarget)
    assert target.rows == tuple(range(96, 192))
    assert target.biases[0].classes == (*[-1] * 96, *range(96))


Builder = Callable[[], ov.Model]


@pytest.mark.parametrize(
    "build",
    [
        *(lambda build=build: model_of(build) for build in (*ABSORBED, gelu_mlp)),
        models.llama,
        lambda: models.llama(decomposed=True),
    ],
    ids=[*(build.__name__ for build in ABSORBED), "gelu_mlp", "llama", "decomposed"],
)
def test_the_scaled_model_computes_the_same(build: Builder) -> None:
    expected = run(build())
    scaled, halfway = build(), build()
    assert scale_at_random(scaled) == scale_at_random(halfway, completely=False) > 0
    for before, after, wrong in zip(expected, run(scaled), run(halfway), strict=True):
        size = np.abs(before).max()
        assert np.abs(after - before).max() < 1e-5 * size
        assert np.abs(wrong - before).max() > 1e-2 * size


def residual(x: ov.Node) -> ov.Node:
    normed = models.layer_norm(x, 64, "gain")
    return op.add(normed, matmul(normed, 64, "weight"))


def seen_outside(x: ov.Node) -> list[ov.Node]:
    up = matmul(x, 96, "weight_0")
    return [up, matmul(op.multiply(op.swish(matmul(x, 96, "weight_1")), up), 64, "weight")]


def gate_by_itself(x: ov.Node) -> ov.Node:
    """x · sigmoid(x): nothing linear leads here."""
    up = matmul(x, 96, "weight_0")
    return matmul(op.multiply(up, op.sigmoid(up)), 64, "weight")


def squared(x: ov.Node) -> ov.Node:
    up = matmul(x, 96, "weight_0")
    return matmul(op.multiply(up, up), 64, "weight")


def values_are_keys(x: ov.Node) -> ov.Node:
    keys, queries = (models.heads_of(matmul(x, 64, name), 2, 32) for name in ("weight_0", "weight_1"))
    mixed = op.transpose(op.scaled_dot_product_attention(queries, keys, keys), op.constant(np.array([0, 2, 1, 3])))
    return matmul(op.reshape(mixed, op.constant(np.array([0, 0, 64])), True), 64, "weight")


def both_halves(x: ov.Node) -> ov.Node:
    """The rows of the path are read by another slice as well."""
    both = matmul(x, 128, "weight_0")

    def piece(start: int) -> ov.Node:
        ends = [np.array([start]), np.array([start + 64]), np.array([1]), np.array([-1])]
        return op.slice(both, *(op.constant(end) for end in ends))

    return matmul(op.multiply(op.swish(piece(32)), piece(64)), 64, "weight")


def rounded_between(x: ov.Node) -> ov.Node:
    up = op.convert(op.convert(matmul(x, 96, "weight_0"), "i32"), "f32")
    return matmul(up, 64, "weight")


def shifted(x: ov.Node) -> ov.Node:
    """A scalar beside the channels would have to become a vector."""
    return matmul(op.add(matmul(x, 96, "weight_0"), op.constant(np.float32(1))), 64, "weight")


def sum_of_two(x: ov.Node) -> ov.Node:
    return matmul(op.add(matmul(x, 96, "weight_0"), matmul(x, 96, "weight_1")), 64, "weight")


def softmax(x: ov.Node) -> ov.Node:
    return matmul(op.softmax(matmul(x, 96, "weight_0"), -1), 64, "weight")


def shared_weight(x: ov.Node) -> ov.Node:
    """The producer is used a second time."""
    weight = models.constant((96, 64), "weight_0")
    first, second = (op.matmul(value, weight, False, True) for value in (x, op.relu(x)))
    return matmul(op.multiply(first, op.swish(second)), 64, "weight")


@pytest.mark.parametrize(
    "build",
    [
        *(residual, seen_outside, gate_by_itself, squared, values_are_keys, both_halves, rounded_between, shifted),
        *(sum_of_two, softmax, shared_weight, gelu_mlp),
    ],
    ids=lambda build: build.__name__,
)
def test_nothing_is_absorbed_where_something_else_would_see_it(
    build: Callable[[ov.Node], ov.Node | list[ov.Node]],
) -> None:
    found = group(build)
    assert found.target is None
    assert found.reason


def bounded(x: ov.Node) -> ov.Node:
    return matmul(op.clamp(matmul(x, 96, "weight_0"), -1, 1), 64, "weight")


def of_two(x: ov.Node) -> ov.Node:
    return matmul(op.multiply(matmul(x, 96, "weight_0"), matmul(x, 96, "weight_1")), 64, "weight")


def without_gain(x: ov.Node) -> ov.Node:
    squares = op.reduce_mean(op.multiply(x, x), op.constant(np.array([-1])), True)
    return matmul(op.multiply(x, op.divide(op.constant(np.float32(1)), op.sqrt(squares))), 64, "weight")


def computed_gain(x: ov.Node) -> ov.Node:
    gain = op.add(op.tanh(models.constant((1, 1, 64), "gain")), op.constant(np.float32(1)))
    return matmul(op.multiply(x, gain), 64, "weight")


@pytest.mark.parametrize(
    "build", [gelu_mlp, bounded, of_two, gate_in_parts, gate_by_itself], ids=lambda one: one.__name__
)
def test_activations_and_gates_are_worth_a_multiply(build: Callable[[ov.Node], ov.Node]) -> None:
    assert group(build).behind_activation


@pytest.mark.parametrize("build", [residual, without_gain, computed_gain], ids=lambda one: one.__name__)
def test_a_norm_is_no_gate(build: Callable[[ov.Node], ov.Node]) -> None:
    assert not group(build).behind_activation


def test_layers_of_a_group_are_in_graph_order() -> None:
    """Not in the order in which OpenVINO lists readers, which is another one in every process."""

    def many(x: ov.Node) -> list[ov.Node]:
        normed = models.layer_norm(x, 64, "gain")
        return [matmul(normed, 8, f"weight_{number}") for number in range(12)]

    model = model_of(many)
    weights, _ = find_weights(model)
    (found,) = equalization_groups(model, weights)
    assert [one.name for one in found.weights] == [one.name for one in weights]
    assert [node.get_friendly_name() for node, _ in found.layers] == [
        one.consumers[0].node.get_friendly_name() for one in weights
    ]


@pytest.mark.parametrize("producer", [False, True])
def test_a_tensor_that_is_squared_again_and_again_takes_no_time(producer: bool) -> None:
    """Each square has twice as many ways through it."""

    def squares(x: ov.Node) -> ov.Node:
        value = matmul(x, 64, "weight_0") if producer else x
        for _ in range(40):
            value = op.multiply(value, value)
        return matmul(value, 64, "weight")

    assert group(squares).target is None


def test_a_layer_that_is_left_alone_keeps_its_input() -> None:
    model = models.llama(layers=1)
    weights, _ = find_weights(model)
    left = [weight for weight in weights if "k_proj" not in weight.name and "up_proj" not in weight.name]
    groups = {one.name: group for group in equalization_groups(model, left) for one in group.weights}
    assert groups["model.layers.0.self_attn.q_proj.weight"].target is None
    assert groups["model.layers.0.mlp.gate_proj.weight"].target is None
    assert groups["model.layers.0.mlp.down_proj.weight"].target is None


def test_a_head_that_shares_the_embedding_belongs_to_no_group() -> None:
    assert "model.embed_tokens.weight" not in groups_of(models.llama(tied=True, layers=1))


def with_cache(start: str = "empty", *, kept: str = "variable", axis: int = 0) -> ov.Model:
    """Attention over caches of keys and values.

    They begin "empty", as "zeros" or as "ones", and are `kept` in a "variable", or "outside" as inputs and outputs;
    beams are reordered along `axis`.
    """
    x = op.parameter([1, -1, 64], np.float32, name="x")
    beams = op.parameter([2 if axis else 1], np.int32, name="beam_idx")
    inputs, results, sinks = [x, beams], [], []

    def cache(new: ov.Node, name: str) -> ov.Node:
        shape = [1, 2, -1, 32]
        if kept == "outside":
            past = op.parameter(shape, np.float32, name=name)
            inputs.append(past)
        else:
            fill = np.ones if start == "ones" else np.zeros
            first = op.constant(fill((1, 2, 0 if start == "empty" else 3, 32), np.float32))
            past = op.read_value(first, name, ov.Type.f32, ov.PartialShape(shape))
        whole = op.concat([op.gather(past, beams, op.constant(np.int64(axis))), new], 2)
        if kept == "outside":
            results.append(op.result(whole))
        else:
            sinks.append(op.assign(whole, name))
        return whole

    queries, keys, values = (models.heads_of(matmul(x, 64, f"weight_{which}"), 2, 32) for which in "qkv")
    mixed = op.scaled_dot_product_attention(queries, cache(keys, "past.key"), cache(values, "past.value"))
    joined = op.transpose(mixed, op.constant(np.array([0, 2, 1, 3])))
    layer = matmul(op.reshape(joined, op.constant(np.array([0, 0, 64])), True), 64, "weight")
    return ov.Model([op.result(layer), *results], sinks, inputs, "cache")


@pytest.mark.parametrize("start", ["empty", "zeros"])
def test_values_are_scaled_through_a_cache_that_holds_nothing_at_first(start: str) -> None:
    target = groups_of(with_cache(start))["weight"].target
    assert isinstance(target, RowsTarget)
    assert target.name == "weight_v"

    def two_calls(model: ov.Model) -> np.ndarray:
        request = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
        random = np.random.default_rng(1)
        for _ in range(2):
            feed = {"x": random.standard_normal((1, 4, 64)).astype(np.float32), "beam_idx": np.zeros(1, np.int32)}
            found = np.array(request.infer(feed)[0])
        return found

    scaled = with_cache(start)
    assert scale_at_random(scaled) == 2
    expected = two_calls(with_cache(start))
    assert np.abs(two_calls(scaled) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "model",
    [with_cache("ones"), with_cache(kept="outside"), with_cache(axis=1)],
    ids=["begins with values", "seen outside", "reordered by heads"],
)
def test_values_in_other_caches_are_not_scaled(model: ov.Model) -> None:
    assert groups_of(model)["weight"].target is None


ZOO = ["bert", "bloom", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama", "mamba", "opt", "phi3", "qwen2", "qwen2_moe"]


@pytest.mark.parametrize("name", ZOO)
def test_exported_models_compute_the_same(shared: Path, name: str) -> None:
    path = shared / "zoo" / name / "openvino_model.xml"
    scaled, halfway = (ov.Core().read_model(path) for _ in range(2))
    feed = inputs_for(scaled)
    assert scale_at_random(scaled) == scale_at_random(halfway, completely=False) > 0
    for before, after, wrong in zip(run(path, feed), run(scaled, feed), run(halfway, feed), strict=True):
        size = np.abs(before).max()
        assert np.abs(after - before).max() < 1e-5 * size
        assert np.abs(wrong - before).max() > 1e-2 * size


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("llama", "o_proj"),
        ("llama", "down_proj"),
        ("phi3", "o_proj"),
        ("phi3", "down_proj"),
        ("opt", "fc2"),
        ("gemma2", "o_proj"),
        ("qwen2_moe", "down_proj"),
        ("gpt_oss", "o_proj"),
    ],
)
def test_producers_of_exported_models_absorb(shared: Path, name: str, projection: str) -> None:
    groups = groups_of(ov.Core().read_model(shared / "zoo" / name / "openvino_model.xml"))
    found = [group for weight, group in groups.items() if projection in weight]
    assert found
    assert all(isinstance(group.target, RowsTarget) for group in found)
