"""Every place that a weight can be in, and every place that looks like one and is not."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.utils import make_postponed_constant

from ov_weight_compression.patterns import Kind, Skip, Weight, find_weights
from tests import models


def only_weight(model: ov.Model) -> Weight:
    weights, skips = find_weights(model)
    assert skips == []
    assert [weight.name for weight in weights] == ["weight"]
    return weights[0]


def only_skip(model: ov.Model) -> Skip:
    weights, skips = find_weights(model)
    assert weights == []
    assert [skip.name for skip in skips] == ["weight"]
    return skips[0]


@pytest.mark.parametrize("port", [0, 1])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
def test_matmul_on_either_port(port: int, transpose: bool, dtype: str) -> None:
    weight = only_weight(models.linear(48, 64, port=port, transpose=transpose, dtype=dtype))
    assert weight.kind is Kind.MATMUL
    assert weight.shape[weight.reduction_axes[0]] == 64
    assert weight.shape[weight.channel_axes[0]] == 48
    assert weight.batch_axes == ()
    assert (weight.rows, weight.columns) == (48, 64)
    assert weight.element_type == dtype
    assert [(consumer.name, consumer.port) for consumer in weight.consumers] == [("layer", port)]
    assert weight.bytes == 48 * 64 * {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}[dtype]


@pytest.mark.parametrize("port", [0, 1])
@pytest.mark.parametrize("transpose", [False, True])
def test_experts_keep_their_batch_axis(port: int, transpose: bool) -> None:
    weight = only_weight(models.linear(48, 64, port=port, transpose=transpose, batch=(4,)))
    assert weight.kind is Kind.EXPERTS
    assert weight.batch_axes == (0,)
    assert weight.shape[weight.reduction_axes[0]] == 64
    assert (weight.rows, weight.columns) == (4 * 48, 64)
    assert weight.layout.order == (0, *weight.channel_axes, *weight.reduction_axes)


def test_a_batch_of_one_is_a_plain_matmul() -> None:
    assert only_weight(models.linear(batch=(1,))).kind is Kind.MATMUL


def test_experts_in_two_batch_axes() -> None:
    weight = only_weight(models.linear(16, 32, batch=(2, 3)))
    assert (weight.batch_axes, weight.channel_axes, weight.reduction_axes) == ((0, 1), (2,), (3,))


def test_grouped_matmul() -> None:
    weight = only_weight(models.grouped_matmul())
    assert weight.kind is Kind.EXPERTS
    assert (weight.batch_axes, weight.channel_axes, weight.reduction_axes) == ((0,), (1,), (2,))


@pytest.mark.parametrize(
    ("shape", "axis", "reduction"), [((80, 64), 0, (1,)), ((80, 64), -2, (1,)), ((80, 4, 16), 0, (1, 2))]
)
def test_gather(shape: tuple[int, ...], axis: int, reduction: tuple[int, ...]) -> None:
    weight = only_weight(models.embedding(shape, axis))
    assert weight.kind is Kind.GATHER
    assert (weight.channel_axes, weight.reduction_axes) == ((0,), reduction)
    assert (weight.rows, weight.columns) == (80, 64)
    assert weight.layout.groupable


@pytest.mark.parametrize(("shape", "axis"), [((64, 80), 1), ((64, 80), -1), ((4, 80, 16), 1)])
def test_gather_along_another_axis(shape: tuple[int, ...], axis: int) -> None:
    weights, skips = find_weights(models.embedding(shape, axis))
    assert not weights
    assert "does not pick along the first axis" in skips[0].reason


@pytest.mark.parametrize(
    ("form", "batch", "channel", "reduction"),
    [
        ("Convolution", (), (0,), (1, 2, 3)),
        ("ConvolutionBackpropData", (), (1,), (0, 2, 3)),
        ("GroupConvolution", (0,), (1,), (2, 3, 4)),
        ("GroupConvolutionBackpropData", (0,), (2,), (1, 3, 4)),
    ],
)
def test_convolutions(form: str, batch: tuple[int, ...], channel: tuple[int, ...], reduction: tuple[int, ...]) -> None:
    weight = only_weight(models.convolution(form))
    assert weight.kind is Kind.CONVOLUTION
    assert (weight.batch_axes, weight.channel_axes, weight.reduction_axes) == (batch, channel, reduction)


def test_a_convolution_of_one_by_one() -> None:
    weight = only_weight(models.convolution(kernel=(16, 8, 1, 1)))
    assert (weight.rows, weight.columns) == (16, 8)


def test_a_kernel_stored_taps_first() -> None:
    """As TensorFlow stores it: the Transpose is looked through, and the order of the inputs is remembered."""
    x = op.parameter([1, 8, 12, 12], np.float32)
    kernel = op.transpose(models.constant((3, 3, 8, 16)), op.constant(np.array([3, 2, 0, 1])))
    layer = op.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    weight = only_weight(ov.Model([layer], [x]))
    assert (weight.channel_axes, weight.reduction_axes, weight.input_axes) == ((3,), (0, 1, 2), (2, 0, 1))


def to_shape(*shape: int) -> object:
    return lambda node: op.reshape(node, op.constant(np.array(shape)), False)


def in_order(*order: int) -> object:
    return lambda node: op.transpose(node, op.constant(np.array(order)))


def chain(*steps: object) -> object:
    def through(node: ov.Node) -> ov.Node:
        for step in steps:
            node = step(node)
        return node

    return through


@pytest.mark.parametrize(
    ("through", "shape", "reduction"),
    [
        pytest.param(in_order(1, 0), (64, 48), (0,), id="transpose"),
        pytest.param(to_shape(48, 64), (48, 2, 32), (1,), id="reshape that merges inputs"),
        pytest.param(to_shape(48, 64), (6, 8, 64), (1,), id="reshape that merges outputs"),
        pytest.param(to_shape(48, 64), (1, 48, 64, 1), (1,), id="reshape that drops ones"),
        pytest.param(to_shape(48, 64), (96, 32), (1,), id="reshape across an axis"),
        pytest.param(chain(to_shape(64, 48), in_order(1, 0)), (64, 6, 8), (0,), id="reshape, then transpose"),
        pytest.param(chain(in_order(2, 0, 1), to_shape(48, 64)), (2, 32, 48), (0, 1), id="transpose, then reshape"),
        pytest.param(chain(to_shape(48, 8, 8), to_shape(48, 64)), (48, 64), (1,), id="cut and joined again"),
        pytest.param(lambda node: op.unsqueeze(op.squeeze(node, 0), 0), (1, 48, 64), (2,), id="squeeze, unsqueeze"),
    ],
)
def test_through_reshape_and_transpose(through: object, shape: tuple[int, ...], reduction: tuple[int, ...]) -> None:
    weight = only_weight(models.linear(48, 64, through=through, shape=shape))
    assert weight.reduction_axes == reduction
    assert weight.input_axes == reduction
    assert (weight.rows, weight.columns) == (48, 64)


def test_through_fake_convert() -> None:
    scaled = models.linear(through=lambda node: op.fake_convert(node, op.constant(np.float32(2.0))))
    assert only_weight(scaled).reduction_axes == (1,)


@pytest.mark.parametrize(
    ("through", "shape", "reason"),
    [
        pytest.param(chain(in_order(1, 0), to_shape(48, 64)), (32, 96), "cuts axis 1", id="part of an axis"),
        pytest.param(chain(in_order(1, 0), to_shape(48, 64)), (96, 32), "cuts", id="across both axes"),
    ],
)
def test_a_reduction_axis_in_pieces_is_refused(through: object, shape: tuple[int, ...], reason: str) -> None:
    assert reason in only_skip(models.linear(48, 64, through=through, shape=shape)).reason


def test_inputs_shuffled_behind_a_reshape() -> None:
    through = chain(to_shape(48, 8, 8), in_order(0, 2, 1), to_shape(48, 64))
    weight = only_weight(models.linear(48, 64, through=through, shape=(48, 64)))
    assert (weight.shape, weight.reduction_axes, weight.input_axes) == ((48, 8, 8), (1, 2), (2, 1))


def test_a_reshape_of_one_of_two_readers_is_not_the_weights_own() -> None:
    x = op.parameter([-1, 64], np.float32)
    constant = models.constant((48, 2, 32))
    joined = op.reshape(constant, op.constant(np.array([48, 64])), False)
    other = op.reduce_sum(constant, op.constant(np.array([0])), False)
    weight = only_weight(ov.Model([op.result(op.matmul(x, joined, False, True)), op.result(other)], [x]))
    assert (weight.shape, weight.reduction_axes) == ((48, 2, 32), (1, 2))


def test_a_reshape_to_a_shape_of_run_time_is_refused() -> None:
    x = op.parameter([-1, 64], np.float32)
    shape = op.parameter([2], np.int64)
    layer = op.matmul(x, op.reshape(models.constant((48, 64)), shape, False), False, True)
    assert "known only at run time" in only_skip(ov.Model([layer], [x, shape])).reason


@pytest.mark.parametrize("make", [models.in_if, models.in_loop, models.in_tensor_iterator])
def test_inside_a_body(make: object) -> None:
    weight = only_weight(make())
    assert weight.body
    assert weight.reduction_axes == (1,)
    assert not weight.is_last_layer


def test_a_constant_that_enters_a_body_is_refused() -> None:
    assert "enters the body of Loop 'repeat'" in only_skip(models.in_loop(outer=True)).reason


def test_recurrent_layers_are_refused() -> None:
    weights, skips = find_weights(models.lstm())
    assert weights == []
    assert {skip.name for skip in skips} == {"weight", "weight_1"}
    assert all("recurrent layer (LSTMSequence)" in skip.reason for skip in skips)


@pytest.mark.parametrize("make", [models.rotary, models.fourier_features])
def test_positions_are_refused(make: object) -> None:
    assert "rotary or positional" in only_skip(make()).reason


def test_an_activation_by_sine_is_no_position() -> None:
    x = op.parameter([-1, 64], np.float32)
    hidden = op.sin(op.multiply(op.matmul(x, models.constant((64, 64)), False, True), op.constant(np.float32(30))))
    assert only_weight(ov.Model([hidden], [x])).kind is Kind.MATMUL


def test_one_dimensional_constants_are_refused() -> None:
    x = op.parameter([-1, 64], np.float32)
    assert "one-dimensional" in only_skip(ov.Model([op.matmul(x, models.constant((64,)), False, False)], [x])).reason
    ids = op.parameter([-1], np.int64)
    picked = op.gather(models.constant((2000,)), ids, op.constant(np.int64(0)))
    assert "one-dimensional" in only_skip(ov.Model([picked], [ids])).reason


def test_tiny_constants_are_refused() -> None:
    assert "tiny: 63 elements" in only_skip(models.linear(7, 9)).reason
    assert only_weight(models.linear(8, 8)).elements == 64


def test_nothing_to_gain() -> None:
    """Three halves are six bytes; three codes, a scale and a zero point are six as well."""
    assert "nothing to gain" in only_skip(models.linear(400, 3, dtype="f16")).reason
    assert only_weight(models.linear(400, 3)).columns == 3


def test_a_product_of_constants_is_refused() -> None:
    product = op.matmul(models.constant((64, 64), "weight_0"), models.constant((64, 64)), False, True)
    weights, skips = find_weights(ov.Model([op.relu(product)], []))
    assert weights == []
    reason = f"'{product.get_friendly_name()}' reads constants alone: it is computed once, when the model is compiled"
    assert [skip.reason for skip in skips] == [reason] * 2


def by_rows(x: ov.Node, weight: ov.Node) -> ov.Node:
    return op.matmul(x, weight, False, True)


def by_columns(x: ov.Node, weight: ov.Node) -> ov.Node:
    return op.matmul(x, weight, False, False)


def added(x: ov.Node, weight: ov.Node) -> ov.Node:
    return op.add(op.reduce_sum(x, op.constant(np.array([0])), True), weight)


def test_shared_by_layers_that_agree() -> None:
    weight = only_weight(models.shared_constant(by_rows, by_rows))
    assert {consumer.name for consumer in weight.consumers} == {"layer_0", "layer_1"}


def test_shared_by_layers_that_disagree() -> None:
    reason = only_skip(models.shared_constant(by_rows, by_columns)).reason
    assert reason.startswith("its consumers disagree about its axes")
    assert "'layer_0'" in reason
    assert "'layer_1'" in reason


def test_shared_with_an_operation_that_is_no_layer() -> None:
    weight = only_weight(models.shared_constant(by_rows, added))
    assert [consumer.name for consumer in weight.consumers] == ["layer_0"]
    assert weight.other_uses == ("layer_1",)


def test_tied_embedding_and_head_are_one_weight() -> None:
    (weight, hidden), skips = find_weights(models.tied_head())
    assert skips == []
    assert weight.kind is Kind.GATHER
    assert [(consumer.name, consumer.role.kind) for consumer in weight.consumers] == [
        ("embedding", Kind.GATHER),
        ("layer", Kind.MATMUL),
    ]
    assert weight.backup_reason == "embedding"
    assert hidden.backup_reason is None


def test_a_shape_is_no_use() -> None:
    x = op.parameter([-1, 64], np.float32)
    weight = models.constant((64, 64))
    layer = op.matmul(x, weight, False, True)
    model = ov.Model([op.result(op.reshape(layer, op.shape_of(weight), False))], [x])
    assert only_weight(model).other_uses == ()


def test_a_constant_of_no_layer_has_a_reason_from_1024_elements_on() -> None:
    assert only_skip(models.only_result((32, 32))).reason == "feeds only Result, which takes no compressed weights"
    assert find_weights(models.only_result((31, 33))) == ([], [])


def test_a_long_bias_has_a_reason() -> None:
    x = op.parameter([-1, 2048], np.float32)
    skip = only_skip(ov.Model([op.add(x, models.constant((1, 2048)))], [x]))
    assert skip.reason == "one-dimensional, feeds only Add, which takes no compressed weights"
    assert (skip.shape, skip.element_type, skip.bytes) == ((1, 2048), "f32", 8192)


def test_no_weights_at_all() -> None:
    assert find_weights(models.no_weights()) == ([], [])


def test_names_are_made_unique() -> None:
    x = op.parameter([-1, 64], np.float32)
    hidden = by_rows(by_rows(x, models.constant((64, 64))), models.constant((64, 64)))
    weights, _ = find_weights(ov.Model([hidden], [x]))
    assert [weight.name for weight in weights] == ["weight", "weight#2"]


def test_the_last_matmul_is_marked() -> None:
    weights, _ = find_weights(models.layers(3))
    assert [weight.backup_reason for weight in weights] == [None, None, "last layer"]


def test_an_ignored_last_layer_leaves_none_marked() -> None:
    """As NNCF has it: the layer before the ignored one is no last layer."""
    weights, skips = find_weights(models.layers(3), ["layer_2"])
    assert [weight.backup_reason for weight in weights] == [None, None]
    assert [(skip.name, skip.reason) for skip in skips] == [("weight_2", "ignored: name 'layer_2'")]


def test_a_compressed_last_layer_leaves_none_marked() -> None:
    """What is left of a model that was compressed before keeps its place: its last layer is not a new last layer."""
    x = op.parameter([-1, 64], np.float32)
    codes = op.convert(op.constant(ov.Tensor(ov.Type.i8, ov.Shape((64, 64)))), "f32")
    head = op.multiply(codes, op.constant(np.ones((64, 1), np.float32)))
    weights, _ = find_weights(ov.Model([by_rows(by_rows(x, models.constant((64, 64))), head)], [x]))
    assert [weight.backup_reason for weight in weights] == [None]


def test_a_postponed_weight_is_refused() -> None:
    kind, shape = ov.Type.f32, ov.Shape((64, 64))
    weight = make_postponed_constant(kind, shape, lambda: ov.Tensor(kind, shape), "weight")
    x = op.parameter([-1, 64], np.float32)
    assert "computed only when" in only_skip(ov.Model([by_rows(x, weight)], [x])).reason


def test_a_fake_quantized_weight_is_refused() -> None:
    ends = [op.constant(np.float32(value)) for value in (-1, 1, -1, 1)]
    skip = only_skip(models.linear(through=lambda node: op.fake_quantize(node, *ends, 255)))
    assert skip.reason == "behind a FakeQuantize: its values are quantised already"


def test_the_order_is_that_of_the_graph() -> None:
    weights, _ = find_weights(models.layers(12))
    assert [weight.name for weight in weights] == [f"weight_{number}" for number in range(12)]


def test_the_model_is_not_changed() -> None:
    model = models.layers(2)
    before = [(node.get_friendly_name(), node.get_type_name()) for node in model.get_ordered_ops()]
    find_weights(model)
    assert [(node.get_friendly_name(), node.get_type_name()) for node in model.get_ordered_ops()] == before
