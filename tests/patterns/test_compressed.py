"""Recognising what is compressed already, and not being fooled by what only looks so."""

from __future__ import annotations

import gc

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.utils import make_postponed_constant

from ov_weight_compression.passes import WeightCompression, apply_weight_decompression
from ov_weight_compression.patterns import CompressedWeight, Kind, find_compressed, find_weights
from tests import models


def only(model: ov.Model) -> CompressedWeight:
    (found,) = find_compressed(model)
    weights, skips = find_weights(model)
    assert weights == []
    assert skips[0].reason.startswith("already compressed")
    return found


@pytest.mark.parametrize(
    ("storage", "zero_point", "scale", "group", "convert_to"),
    [
        ("u8", "u8", "f16", -1, "f16"),
        ("i8", None, "f16", -1, "f16"),
        ("u4", "u4", "f16", 32, "f16"),
        ("u4", "u8", "f16", 32, "f16"),
        ("u4", "u4", "f16", 64, "f16"),  # a row in one group
        ("u4", "f16", "f16", 32, "f16"),
        ("i4", None, "f16", 32, "f16"),
        ("u3", "scalar", "f16", 32, "f16"),
        ("u2", "scalar", "f16", 32, "f16"),
        ("u2", "u2", "f16", 16, "f16"),
        ("nf4", None, "f16", 32, "f16"),
        ("f4e2m1", None, "f8e8m0", 32, "f16"),
        ("f8e4m3", None, "f8e8m0", 32, "f16"),
        ("f8e4m3", None, "f16", 32, "f16"),
        ("u8", "u8", "f32", -1, "f32"),
    ],
)
def test_every_storage(storage: str, zero_point: str | None, scale: str, group: int, convert_to: str) -> None:
    model = models.compressed_linear(storage, zero_point=zero_point, scale=scale, group=group, convert_to=convert_to)
    found = only(model)
    assert found.name == "weight"
    assert (found.storage, found.scale_type, found.group_size) == (storage, scale, group)
    assert found.shape == (48, 64)
    assert found.reduction_axes == (1,)
    assert found.group_axis == (None if group == -1 else 1)
    assert (found.zero_point is None) == (zero_point is None)
    assert found.tensor_scale is None
    assert found.table is None
    assert found.kind is Kind.MATMUL
    assert [consumer.name for consumer in found.consumers] == ["layer"]
    assert found.last.get_type_name() == ("Multiply" if group == -1 else "Reshape")
    assert not found.is_fp8_source


@pytest.mark.parametrize("cloned", [False, True])
def test_postponed_constants(cloned: bool) -> None:
    """As they are in a model that this package has compressed and that has not been saved yet."""

    def make(kind: ov.Type, shape: tuple[int, ...]) -> ov.Node:
        return make_postponed_constant(kind, ov.Shape(shape), lambda: ov.Tensor(kind, ov.Shape(shape)), f"{kind}")

    value = op.convert(make(ov.Type.u4, (512, 2, 32)), "f16")
    value = op.subtract(value, op.convert(make(ov.Type.u4, (512, 2, 1)), "f16"))
    value = op.multiply(value, make(ov.Type.f16, (512, 2, 1)))
    value = op.convert(op.reshape(value, op.constant(np.array([512, 64])), False), "f32")
    x = op.parameter([-1, 64], np.float32)
    model = ov.Model([op.matmul(x, value, False, True)], [x])
    del value
    gc.collect()
    found = only(model.clone() if cloned else model)
    assert (found.storage, found.scale_type, found.group_size) == ("u4", "f16", 32)
    assert found.bytes == 512 * 32 + 512 + 512 * 2 * 2
    assert [skip.reason[:7] for skip in find_weights(model)[1]] == ["already", "scale, "]


def test_inside_a_body() -> None:
    x = op.parameter([2, 64], np.float32)
    state = op.parameter([2, 64], np.float32)
    codes = op.convert(op.constant(ov.Tensor(ov.Type.i8, ov.Shape((64, 64)))), "f32")
    layer = op.matmul(state, op.multiply(codes, op.constant(np.ones((64, 1), np.float32))), False, True)
    result, go_on = op.result(layer), op.result(op.constant(np.array(True)))
    node = op.loop(op.constant(np.int64(3)), op.constant(np.array(True)))
    node.set_function(ov.Model([go_on, result], [state], "body"))
    node.set_special_body_ports([-1, 0])
    node.set_merged_input(state, x.output(0), result.output(0))
    node.set_friendly_name("repeat")
    found = only(ov.Model([op.result(node.get_iter_value(result.output(0), -1))], [x]))
    assert found.body == "repeat/body"


def two_level(storage: str = "f4e2m1") -> ov.Model:
    codes = op.constant(ov.Tensor(getattr(ov.Type, storage), ov.Shape((48, 4, 16))))
    scale = op.constant(ov.Tensor(ov.Type.f8e4m3, ov.Shape((48, 4, 1))))
    whole = op.constant(np.full((1, 1, 1), 0.5, np.float32))
    factor = op.convert(op.multiply(op.convert(scale, "f32"), whole), "f16")
    value = op.reshape(op.multiply(op.convert(codes, "f16"), factor), op.constant(np.array([48, 64])), False)
    x = op.parameter([-1, 64], np.float32)
    return ov.Model([op.matmul(x, op.convert(value, "f32"), False, True)], [x])


def test_a_scale_of_two_levels() -> None:
    found = only(two_level())
    assert (found.scale_type, found.group_size) == ("f8e4m3", 16)
    assert found.tensor_scale is not None
    assert tuple(found.tensor_scale.shape) == (1, 1, 1)
    assert found.bytes == 48 * 64 // 2 + 48 * 4 + 4


def codebook(table: np.ndarray | ov.Tensor, indices: str = "u4", scaled: bool = True) -> ov.Model:
    stored = op.constant(table)
    codes = op.constant(ov.Tensor(getattr(ov.Type, indices), ov.Shape((48, 64))))
    codes.set_friendly_name("weight")
    values: ov.Node = op.gather(op.convert(stored, "f16"), op.convert(codes, "u8"), op.constant(np.int64(0)))
    if scaled:
        values = op.multiply(values, op.constant(np.ones((48, 1), np.float16)))
    x = op.parameter([-1, 64], np.float32)
    return ov.Model([op.matmul(x, op.convert(values, "f32"), False, True)], [x])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("indices", ["u4", "u8", "u16"])
def test_a_codebook(indices: str, scaled: bool) -> None:
    found = only(codebook(ov.Tensor(ov.Type.f8e4m3, ov.Shape((16,))), indices, scaled))
    assert found.storage == indices
    assert found.table is not None
    assert found.table.get_element_type() == ov.Type.f8e4m3
    assert (found.scale is not None) == scaled
    assert found.format == f"codebook of f8e4m3, {indices}"


def test_a_table_of_two_dimensions_is_an_embedding() -> None:
    """Rows picked by numbers of few bits: nothing is compressed here."""
    rows = op.parameter([3, 5], np.uint8)
    picked = op.gather(models.constant((80, 64)), op.convert(rows, "i32"), op.constant(np.int64(0)))
    x = op.parameter([-1, 64], np.float32)
    model = ov.Model([op.matmul(x, picked, False, True)], [x, rows])
    assert find_compressed(model) == []
    assert [weight.kind for weight in find_weights(model)[0]] == [Kind.GATHER]


@pytest.mark.parametrize(("scale", "source"), [((), True), ((48, 1), True), (None, True)])
def test_an_fp8_checkpoint_is_a_source(scale: tuple[int, ...] | None, source: bool) -> None:
    value: ov.Node = op.convert(op.constant(ov.Tensor(ov.Type.f8e4m3, ov.Shape((48, 64)))), "f32")
    if scale is not None:
        value = op.multiply(value, op.constant(np.ones(scale, np.float32)))
    x = op.parameter([-1, 64], np.float32)
    (found,) = find_compressed(ov.Model([op.matmul(x, value, False, True)], [x]))
    assert found.is_fp8_source is source
    assert found.end == found.last
    assert found.shape == (48, 64)
    assert (found.scale is None) == (scale is None)


def test_an_fp8_checkpoint_of_blocks_is_a_source() -> None:
    value = op.convert(op.constant(ov.Tensor(ov.Type.f8e4m3, ov.Shape((48, 64)))), "f32")
    blocks = op.reshape(value, op.constant(np.array([3, 16, 4, 16])), False)
    scaled = op.multiply(blocks, op.constant(np.ones((3, 1, 4, 1), np.float32)))
    whole = op.reshape(scaled, op.constant(np.array([48, 64])), False)
    x = op.parameter([-1, 64], np.float32)
    (found,) = find_compressed(ov.Model([op.matmul(x, whole, False, True)], [x]))
    assert found.is_fp8_source
    assert found.end == whole
    assert found.code_shape == (3, 16, 4, 16)


def test_a_shared_compressed_embedding() -> None:
    codes = op.convert(op.constant(ov.Tensor(ov.Type.i8, ov.Shape((80, 64)))), "f16")
    table = op.convert(op.multiply(codes, op.constant(np.ones((80, 1), np.float16))), "f32")
    ids = op.parameter([-1, -1], np.int64)
    embedded = op.gather(table, ids, op.constant(np.int64(0)))
    found = only(ov.Model([op.matmul(embedded, table, False, True)], [ids]))
    assert found.kind is Kind.GATHER
    assert [consumer.role.kind for consumer in found.consumers] == [Kind.GATHER, Kind.MATMUL]


def test_a_compressed_convolution_and_the_groups_of_a_transposed_matmul() -> None:
    kernel = op.convert(op.constant(ov.Tensor(ov.Type.i8, ov.Shape((16, 8, 3, 3)))), "f32")
    kernel = op.multiply(kernel, op.constant(np.ones((16, 1, 1, 1), np.float32)))
    x = op.parameter([1, 8, 12, 12], np.float32)
    found = only(ov.Model([op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])], [x]))
    assert found.kind is Kind.CONVOLUTION
    assert found.group_size == -1

    codes = op.convert(op.constant(ov.Tensor(ov.Type.i4, ov.Shape((2, 4, 16, 48)))), "f16")
    value = op.multiply(codes, op.constant(np.ones((2, 4, 1, 48), np.float16)))
    value = op.convert(op.reshape(value, op.constant(np.array([2, 64, 48])), False), "f32")
    x = op.parameter([2, -1, 64], np.float32)
    found = only(ov.Model([op.matmul(x, value, False, False)], [x]))
    assert found.kind is Kind.EXPERTS
    assert (found.group_axis, found.group_size, found.reduction_axes) == (1, 16, (1,))


def masked(x: ov.Node) -> ov.Node:
    """Added, never multiplied: a mask of bytes, made into large negative numbers."""
    mask = op.convert(op.constant(ov.Tensor(ov.Type.u8, ov.Shape((64, 64)))), "f32")
    return op.add(op.reduce_sum(x, op.constant(np.array([0])), True), op.multiply(mask, op.constant(np.float32(-1e4))))


def ordinary(x: ov.Node) -> ov.Node:
    """A float weight times a constant."""
    return op.matmul(x, op.multiply(models.constant((64, 64)), op.constant(np.float32(2))), False, True)


def integers(x: ov.Node) -> ov.Node:
    """Integers without a scale, as an integer model might multiply them."""
    return op.matmul(x, op.convert(op.constant(ov.Tensor(ov.Type.i8, ov.Shape((64, 64)))), "f32"), False, True)


def scaled_by_data(x: ov.Node) -> ov.Node:
    """A scale that is known only at run time."""
    codes = op.convert(op.constant(ov.Tensor(ov.Type.i8, ov.Shape((64, 64)))), "f32")
    scale = op.reduce_mean(x, op.constant(np.array([0, 1])), True)
    return op.matmul(x, op.multiply(codes, scale), False, True)


def numbers(x: ov.Node) -> ov.Node:
    """Rows of the input, picked by constant numbers."""
    rows = op.convert(op.constant(ov.Tensor(ov.Type.u8, ov.Shape((64, 1)))), "i32")
    return op.gather(x, rows, op.constant(np.int64(0)))


@pytest.mark.parametrize("make", [masked, ordinary, integers, scaled_by_data, numbers])
def test_not_fooled(make: object) -> None:
    x = op.parameter([-1, 64], np.float32)
    assert find_compressed(ov.Model([make(x)], [x])) == []


@pytest.mark.parametrize("make", [models.in_if, models.in_loop, models.layers, models.embedding, models.lstm])
def test_float_models_hold_nothing_compressed(make: object) -> None:
    assert find_compressed(make()) == []


def test_the_parts_of_a_compressed_weight_have_reasons() -> None:
    model = models.compressed_linear("u4", out=512, columns=64, group=32, zero_point="f16")
    weights, skips = find_weights(model)
    assert weights == []
    assert {skip.name: skip.reason for skip in skips} == {
        "weight": "already compressed (u4, group 32)",
        "weight/zero_point": "scale, zero point or table of a weight that is already compressed",
        "weight/scale": "scale, zero point or table of a weight that is already compressed",
    }


@pytest.mark.parametrize(
    ("shape", "mode", "group"),
    [((24, 4, 56), "int4_sym", 32), ((24, 4, 64), "int2_asym", 64), ((24, 4, 64), "nf4", 128)],
)
def test_groups_across_two_axes_of_a_table(shape: tuple[int, ...], mode: str, group: int) -> None:
    """What the compression writes is recognised, and is a float table again once it is decompressed."""
    model = models.embedding(shape)
    compression = WeightCompression(mode=mode, all_layers=True)
    compression.run_on_model(model)
    found = only(model)
    size = compression.report.rows[0].group_size
    assert (found.shape, found.group_size) == (shape, -1 if size == shape[-1] else size)
    assert size == group
    apply_weight_decompression(model)
    assert find_compressed(model) == []


def test_channels_that_a_reshape_cuts_are_no_groups() -> None:
    """[6, 8, 64] of [48, 64] with a scale for each of the 48 rows."""
    value = op.multiply(op.convert(op.constant(np.ones((3, 48, 64), np.int8)), "f16"), scales((3, 48, 1)))
    value = op.convert(op.reshape(value, op.constant(np.array([3, 6, 8, 64])), False), "f32")
    x = op.parameter([3, 6, 5, 64], np.float32)
    assert only(ov.Model([op.matmul(x, value, False, True)], [x])).group_size == -1


def scales(shape: tuple[int, ...]) -> ov.Node:
    return op.constant(np.full(shape, 0.5, np.float16))
