"""A checkpoint's codes in a graph: the values, the chain, what runs from codes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.checkpoints.insertion import insert_codes, turned_in_place
from ov_weight_compression.checkpoints.layouts.float_layouts import gpt_oss_weight
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import apply_weight_compression, apply_weight_decompression
from ov_weight_compression.patterns import find_compressed
from tests import models
from tests.checkpoints.quantised_layers import KINDS, gptq_layer, packed_layer
from tests.checkpoints.quantised_writers import nibble_pairs, tensor
from tests.running import constants, layer_types, matrix_of, run

STORED = {
    "gptq 4": "u4", "gptq 4 symmetric": "i4", "gptq 4 act-order": "u4", "gptq 2": "u2", "gptq 2 symmetric": "u2",
    "gptq 3": "u4", "gptq 8": "u8", "gptq 8 symmetric": "i8", "awq": "u4", "compressed-tensors 8": "i8",
    "fp8 blocks": "f8e4m3", "mxfp4": "f4e2m1", "nvfp4": "f4e2m1", "nf4": "nf4", "fp4": "u4",
}  # fmt: skip
EXPANDED = ("fp8 blocks", "fp4")


def insert(model: ov.Model, quantised: Any, name: str = "weight", **options: Any) -> Any:
    return insert_codes(model, {constants(model)[name]: quantised}, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_with_the_checkpoints_values(kind: str, tmp_path: Path) -> None:
    quantised = KINDS[kind]("up.weight", 64, 64)
    model = models.linear(64, 64, dtype="f16")
    report = insert(model, quantised)
    expected = quantised.values(0, 64).T
    save_model(model, tmp_path / "own.xml")
    ov.save_model(model, tmp_path / "openvino.xml")
    for path in (tmp_path / "own.xml", tmp_path / "openvino.xml"):
        read = ov.Core().read_model(path)
        np.testing.assert_allclose(matrix_of(read, 64), expected, rtol=1e-6, atol=1e-7)
        (found,) = find_compressed(read)
        assert found.storage == STORED[kind]
        (layer,) = (layer for layer in layer_types(read) if layer.startswith("FullyConnected"))
        assert (
            layer in ("FullyConnected f32", "FullyConnected bf16") if kind in EXPANDED else layer.endswith(STORED[kind])
        )
        assert found.name == "weight"
    (row,) = report.rows
    assert row.reason.startswith(quantised.kind)
    assert row.bytes_before == 64 * 64 * 2
    stored = sum(
        part.get_byte_size() for part in find_compressed(ov.Core().read_model(tmp_path / "own.xml"))[0].constants
    )
    assert row.bytes_after == stored


@pytest.mark.parametrize("kind", ["gptq 4", "awq", "gptq 2", "nvfp4"])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_weight_that_lies_the_other_way_round(kind: str, lazy: bool) -> None:
    quantised = KINDS[kind]("up.weight", 64, 64)
    model = models.linear(64, 64, transpose=False)
    insert(model, quantised, lazy=lazy)
    np.testing.assert_allclose(matrix_of(model, 64), quantised.values(0, 64).T, rtol=1e-6, atol=1e-7)


def experts_turned(outside: bool = False) -> ov.Model:
    """Experts' weight `[experts, in, out]` as bf16, which its MatMul, and perhaps something else, reads as f32."""
    x = op.parameter([3, -1, 64], np.float32, name="x")
    weight = op.constant(np.zeros((3, 64, 32), np.float32), ov.Type.bf16)
    weight.set_friendly_name("weight")
    wide = op.convert(weight, ov.Type.f32)
    results = [op.result(op.matmul(x, wide, False, False)), *([op.result(wide)] if outside else [])]
    return ov.Model(results, [x], "experts")


def test_experts_whose_float_weight_is_the_other_way_round() -> None:
    """Their codes lie along the input channels, as gpt-oss has them: the MatMul is told so."""
    rng = np.random.default_rng(0)
    codes, exponents = rng.integers(0, 16, (3, 32, 64)), rng.integers(120, 130, (3, 32, 2))
    stored = {"e_blocks": nibble_pairs(codes).reshape(3, 32, 2, 16), "e_scales": exponents.astype(np.uint8)}
    quantised = gpt_oss_weight({name: tensor("U8", data) for name, data in stored.items()}, "e")
    model = experts_turned()
    constant = turned_in_place(constants(model)["weight"])
    assert constant is not None
    assert list(constant.get_output_shape(0)) == [3, 32, 64]
    insert_codes(model, {constant: quantised})
    x = rng.normal(size=(3, 5, 64)).astype(np.float32)
    expected = x @ quantised.values(0, 96).reshape(3, 32, 64).transpose(0, 2, 1)
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)
    other = experts_turned(outside=True)
    assert turned_in_place(constants(other)["weight"]) is None
    assert [node.get_attributes()["transpose_b"] for node in other.get_ops() if node.get_type_name() == "MatMul"] == [
        False
    ]


def test_codes_come_back_from_the_file_bit_for_bit(tmp_path: Path) -> None:
    quantised = gptq_layer("up.weight", 64, 64)
    model = models.linear(64, 64)
    insert(model, quantised)
    save_model(model, tmp_path / "m.xml")
    read = constants(ov.Core().read_model(tmp_path / "m.xml"))
    rows = quantised.rows(0, 64)
    nibbles = np.asarray(read["weight"].data).reshape(-1).view(np.uint8)
    codes = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(64, 64)
    np.testing.assert_array_equal(codes, rows.codes)
    np.testing.assert_array_equal(np.asarray(read["weight/scale"].data).reshape(64, 2), rows.scale)


def test_decompressing_gives_the_checkpoints_values(tmp_path: Path) -> None:
    quantised = KINDS["awq"]("up.weight", 64, 64)
    model = models.linear(64, 64)
    insert(model, quantised)
    values = constants(apply_weight_decompression(model, "f32", lazy=False))["weight"].data
    np.testing.assert_array_equal(values, quantised.values(0, 64))


def test_layers_that_read_the_same_input_in_the_same_order_share_a_gather() -> None:
    x = op.parameter([-1, 64], np.float32, name="x")
    weights = [models.constant((32, 64), f"weight_{n}") for n in range(3)]
    results = [op.result(op.matmul(x, weight, False, True)) for weight in weights]
    model = ov.Model(results, [x], "three")
    first, second = np.random.default_rng(1).permutation(64), np.random.default_rng(2).permutation(64)
    layers = [gptq_layer(f"{n}.weight", 32, 64, order=order) for n, order in enumerate((first, first, second))]
    found = {constants(model)[f"weight_{n}"]: layer for n, layer in enumerate(layers)}
    report = insert_codes(model, found)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("Gather") == 2
    for result, layer in zip(run(model, {0: np.eye(64, dtype=np.float32)}), layers, strict=True):
        np.testing.assert_allclose(result, layer.values(0, 32).T, rtol=1e-6, atol=1e-7)
    assert {row.reason for row in report.rows} == {
        "GPTQ 4 bit g32, codes kept; act-order, its input brought into order by a Gather"
    }


def mlp(outside: bool = False) -> ov.Model:
    """down(act(gate) · up) with biases behind gate and up; `outside`: something else reads what down reads."""
    x = op.parameter([-1, 64], np.float32, name="x")
    sides = []
    for name in ("gate", "up"):
        layer = op.matmul(x, models.constant((96, 64), name), False, True)
        sides.append(op.add(layer, models.constant((1, 96), f"{name}_bias")))
    inner = op.multiply(op.swish(sides[0]), sides[1])
    results = [op.result(op.matmul(inner, models.constant((64, 96), "down"), False, True))]
    if outside:
        results.append(op.result(op.relu(inner)))
    return ov.Model(results, [x], "mlp")


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("kind", ["gptq", "compressed-tensors"])
def test_an_order_is_folded_into_what_makes_the_input(outside: bool, kind: str) -> None:
    """Into the rows of gate and up and their biases; where somebody else would see that, there is a Gather."""
    model = mlp(outside)
    order = np.random.default_rng(3).permutation(96)
    make = gptq_layer if kind == "gptq" else packed_layer
    layers = {"gate": make("gate.weight", 96, 64), "up": make("up.weight", 96, 64)}
    layers["down"] = gptq_layer("down.weight", 64, 96, order=order)
    feed = {0: np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)}
    reference = model.clone()
    for name, layer in layers.items():
        node = constants(reference)[name]
        node.output(0).replace(ov.op.Constant(layer.values(0, layer.row_count)).output(0))
    expected = run(reference, feed)
    report = insert_codes(model, {constants(model)[name]: layer for name, layer in layers.items()})
    for got, wanted in zip(run(model, feed), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    reasons = {row.name: row.reason for row in report.rows}
    on_input = [node for node in model.get_ops() if node.get_friendly_name().endswith("input_in_channel_order")]
    if outside:
        assert reasons["down"].endswith("; act-order, its input brought into order by a Gather")
        assert len(on_input) == 1
    else:
        assert reasons["down"].endswith("; act-order, folded into the rows of gate.weight and up.weight")
        assert reasons["up"].endswith("codes kept; its rows in the order of the layer behind it")
        assert not on_input


def test_an_order_that_cannot_be_followed_is_given_up_and_said_to_be() -> None:
    """The layer sums over the first dimension of its input: there the Gather would be another one."""
    x = op.parameter([64, -1], np.float32, name="x")
    model = ov.Model([op.result(op.matmul(x, models.constant((32, 64)), True, True))], [x], "turned")
    layer = gptq_layer("up.weight", 32, 64, order=np.random.default_rng(1).permutation(64))
    (row,) = insert(model, layer).rows
    assert row.reason == (
        "GPTQ 4 bit g32, requantised to int8_asym: its input cannot be brought into the order of its codes"
    )
    values = layer.values(0, 32)
    got = run(model, {0: np.eye(64, dtype=np.float32)})[0]
    assert np.abs(got - values.T).max() < (values.max() - values.min()) / 200


@pytest.mark.parametrize(
    ("columns", "group", "stored", "said"),
    [
        (192, 96, 32, "in groups of 32, because CPUs misread groups of 96"),
        (144, 72, 72, "CPUs misread u4 in groups of 72 (no power of two), so it is stored in a way that they expand"),
    ],
)
def test_groups_that_cpus_misread(columns: int, group: int, stored: int, said: str) -> None:
    layer = gptq_layer("up.weight", 32, columns, group=group)
    model = models.linear(32, columns)
    (row,) = insert(model, layer).rows
    assert row.reason == f"GPTQ 4 bit g{group}, codes kept; {said}"
    assert row.group_size == stored
    np.testing.assert_allclose(matrix_of(model, columns), layer.values(0, 32).T, rtol=1e-6, atol=1e-7)


def test_an_embedding_in_groups() -> None:
    model = models.embedding((80, 64))
    for kind in ("gptq 4 symmetric", "fp8 blocks"):
        changed = model.clone()
        quantised = KINDS[kind]("table.weight", 80, 64)
        insert(changed, quantised)
        np.testing.assert_allclose(
            run(changed, {0: np.arange(80)[None]})[0].reshape(80, 64), quantised.values(0, 80), rtol=1e-6, atol=1e-7
        )


def test_what_is_left_in_floats_is_compressed_afterwards() -> None:
    model = models.layers(3, 64)
    names = [name for name in constants(model) if name.startswith("weight")]
    quantised = gptq_layer("up.weight", 64, 64)
    insert(model, quantised, names[0])
    apply_weight_compression(model, mode="int8_sym")
    assert sorted(found.storage for found in find_compressed(model)) == ["i8", "i8", "u4"]


def test_what_does_not_fit_is_refused_and_nothing_is_changed() -> None:
    model = models.linear(64, 64)
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    with pytest.raises(ModelError, match=r"up.weight: has 32 rows of 64, the graph's 'weight' has 64 of 64"):
        insert(model, gptq_layer("up.weight", 32, 64))
    other = models.only_result((64, 64))
    with pytest.raises(ModelError, match=r"up.weight: the graph uses 'weight' otherwise than as a layer's weight"):
        insert(other, gptq_layer("up.weight", 64, 64))
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before
