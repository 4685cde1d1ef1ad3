"""Small models, one for every place that a weight can be in; made on the spot, the same bytes every time.

Each builder returns an `ov.Model`. The weight in question is called "weight" (or "weight_0", …) and the layer that uses
it "layer", so that tests can name them. `constant` makes one of any floating-point type.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


def constant(shape: Sequence[int], name: str = "weight", dtype: str = "f32", scale: float = 0.1) -> ov.Node:
    """A constant of normally distributed values that depend on its name and shape only."""
    seed = zlib.crc32(f"{name}{tuple(shape)}".encode())
    values = (np.random.default_rng(seed).standard_normal(tuple(shape)) * scale).astype(np.float32)
    node = (
        op.constant(values, dtype=getattr(ov.Type, dtype))
        if dtype == "bf16"
        else op.constant(values.astype(FLOATS[dtype]))
    )
    node.set_friendly_name(name)
    return node


def in_f32(node: ov.Node) -> ov.Node:
    """Behind a Convert to f32, as exporters write f16 weights; nothing where it is f32 already."""
    if node.get_output_element_type(0) == ov.Type.f32:
        return node
    convert = op.convert(node, "f32")
    convert.set_friendly_name(node.get_friendly_name() + "/convert")
    return convert


def linear(
    out: int = 48,
    columns: int = 64,
    *,
    dtype: str = "f32",
    port: int = 1,
    transpose: bool = True,
    batch: Sequence[int] = (),
    through: Callable[[ov.Node], ov.Node] | None = None,
    shape: Sequence[int] | None = None,
) -> ov.Model:
    """One MatMul. `transpose` is the flag of the weight's own port; `through` puts something behind the constant.

    The constant is `[*batch, out, columns]` where the flag and the port say so, else `[*batch, columns, out]`; `shape`
    overrides it for constants that `through` brings to that shape.
    """
    last_is_out = transpose if port == 0 else not transpose
    own = (*batch, columns, out) if last_is_out else (*batch, out, columns)
    weight = in_f32(constant(shape or own, dtype=dtype))
    if through:
        weight = through(weight)
    if port == 1:
        x = op.parameter([*batch, -1, columns], np.float32, name="x")
        layer = op.matmul(x, weight, False, transpose)
    else:
        x = op.parameter([*batch, columns, -1], np.float32, name="x")
        layer = op.matmul(weight, x, transpose, False)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x], "linear")


def grouped_matmul(experts: int = 3, out: int = 32, columns: int = 64) -> ov.Model:
    """A GroupedMatMul of `[tokens, columns]` with `[experts, out, columns]`."""
    x = op.parameter([-1, columns], np.float32, name="x")
    offsets = op.parameter([experts], np.int32, name="offsets")
    opset17 = pytest.importorskip("openvino.opset17", reason="this OpenVINO has no GroupedMatMul")
    layer = opset17.grouped_matmul(x, constant((experts, out, columns)), offsets)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x, offsets], "grouped")


def embedding(shape: Sequence[int] = (80, 64), axis: int = 0, dtype: str = "f32") -> ov.Model:
    """A Gather of rows of a table."""
    ids = op.parameter([-1, -1], np.int64, name="ids")
    layer = op.gather(in_f32(constant(shape, dtype=dtype)), ids, op.constant(np.int64(axis)))
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [ids], "embedding")


def tied_head(rows: int = 80, columns: int = 64, dtype: str = "f32") -> ov.Model:
    """One table that is both embedding and head, with one layer ("weight_0") between."""
    ids = op.parameter([-1, -1], np.int64, name="ids")
    table = in_f32(constant((rows, columns), dtype=dtype))
    embedded = op.gather(table, ids, op.constant(np.int64(0)))
    embedded.set_friendly_name("embedding")
    hidden = op.matmul(embedded, in_f32(constant((columns, columns), "weight_0", dtype)), False, True)
    hidden.set_friendly_name("hidden")
    layer = op.matmul(hidden, table, False, True)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [ids], "tied")


def convolution(form: str = "Convolution", *, dtype: str = "f32", kernel: Sequence[int] | None = None) -> ov.Model:
    """One of the four convolutions; the weight's shape is OpenVINO's for that form."""
    shapes = {
        "Convolution": (16, 8, 3, 3),
        "ConvolutionBackpropData": (8, 16, 3, 3),
        "GroupConvolution": (2, 8, 4, 3, 3),
        "GroupConvolutionBackpropData": (2, 4, 8, 3, 3),
    }
    x = op.parameter([1, 8, 12, 12], np.float32, name="x")
    weight = in_f32(constant(kernel or shapes[form], dtype=dtype))
    plain = ([1, 1], [1, 1], [1, 1], [1, 1])
    strides, begin, end, dilations = plain
    if form == "Convolution":
        layer = op.convolution(x, weight, strides, begin, end, dilations)
    elif form == "GroupConvolution":
        layer = op.group_convolution(x, weight, strides, begin, end, dilations)
    elif form == "ConvolutionBackpropData":
        layer = op.convolution_backprop_data(x, weight, strides, pads_begin=begin, pads_end=end, dilations=dilations)
    else:
        layer = op.group_convolution_backprop_data(
            x, weight, strides, pads_begin=begin, pads_end=end, dilations=dilations
        )
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x], form)


Use = Callable[[ov.Node, ov.Node], ov.Node]


def shared_constant(first: Use, second: Use) -> ov.Model:
    """A square constant read by two operations, each given the input `[?, 64]` and the constant `[64, 64]`."""
    x = op.parameter([-1, 64], np.float32, name="x")
    weight = constant((64, 64))
    ends = [first(x, weight), second(x, weight)]
    for number, end in enumerate(ends):
        end.set_friendly_name(f"layer_{number}")
    return ov.Model([op.result(end) for end in ends], [x], "shared")


def layers(count: int = 3, columns: int = 64, dtype: str = "f32") -> ov.Model:
    """A row of MatMuls, "layer_0" with "weight_0" and so on, each with a bias and a ReLU."""
    x = op.parameter([-1, columns], np.float32, name="x")
    hidden: ov.Node = x
    for number in range(count):
        hidden = op.matmul(hidden, in_f32(constant((columns, columns), f"weight_{number}", dtype)), False, True)
        hidden.set_friendly_name(f"layer_{number}")
        hidden = op.relu(op.add(hidden, constant((1, columns), f"bias_{number}")))
        hidden.set_friendly_name(f"relu_{number}")
    return ov.Model([op.result(hidden)], [x], "layers")


def in_if(columns: int = 64) -> ov.Model:
    """An If with a MatMul of a constant of its own ("weight") in its then body, and none in the other."""
    x = op.parameter([2, columns], np.float32, name="x")
    flag = op.parameter([], np.bool_, name="flag")
    inner = op.parameter([2, columns], np.float32)
    layer = op.matmul(inner, constant((columns, columns)), False, True)
    layer.set_friendly_name("layer")
    then = ov.Model([op.result(layer)], [inner], "then")
    passed = op.parameter([2, columns], np.float32)
    other = ov.Model([op.result(op.relu(passed))], [passed], "else")
    node = op.if_op(flag.output(0))
    node.set_then_body(then)
    node.set_else_body(other)
    node.set_input(x.output(0), inner, passed)
    node.set_output(then.results[0], other.results[0])
    node.set_friendly_name("branch")
    return ov.Model([op.result(node.output(0))], [x, flag], "if")


def in_loop(columns: int = 64, *, outer: bool = False) -> ov.Model:
    """A Loop of three steps around a MatMul; with `outer` the weight lies outside and enters as an invariant input."""
    x = op.parameter([2, columns], np.float32, name="x")
    state = op.parameter([2, columns], np.float32)
    weight = constant((columns, columns))
    entered = op.parameter([columns, columns], np.float32)
    layer = op.matmul(state, entered if outer else weight, False, True)
    layer.set_friendly_name("layer")
    go_on = op.constant(np.array(True))
    results = [op.result(go_on), op.result(layer)]
    body = ov.Model(results, [state, entered] if outer else [state], "body")
    node = op.loop(op.constant(np.int64(3)), op.constant(np.array(True)))
    node.set_function(body)
    node.set_special_body_ports([-1, 0])
    node.set_merged_input(state, x.output(0), results[1].output(0))
    if outer:
        node.set_invariant_input(entered, weight.output(0))
    end = node.get_iter_value(results[1].output(0), -1)
    node.set_friendly_name("repeat")
    return ov.Model([op.result(end)], [x], "loop")


def in_tensor_iterator(columns: int = 64) -> ov.Model:
    """A TensorIterator over the first axis of `[3, columns]` around a MatMul."""
    x = op.parameter([3, columns], np.float32, name="x")
    step = op.parameter([1, columns], np.float32)
    layer = op.matmul(step, constant((columns, columns)), False, True)
    layer.set_friendly_name("layer")
    result = op.result(layer)
    node = op.tensor_iterator()
    node.set_body(ov.Model([result], [step], "body"))
    node.set_sliced_input(step, x.output(0), 0, 1, 1, -1, 0)
    end = node.get_concatenated_slices(result.output(0), 0, 1, 1, -1, 0)
    node.set_friendly_name("iterate")
    return ov.Model([op.result(end)], [x], "iterator")


def lstm(columns: int = 32) -> ov.Model:
    """An LSTMSequence; its weights are "weight" (of the input) and "weight_1" (of the state)."""
    x = op.parameter([1, 4, columns], np.float32, name="x")
    zeros = op.constant(np.zeros((1, 1, columns), np.float32))
    lengths = op.constant(np.array([4], np.int32))
    weight, recurrent = constant((1, 4 * columns, columns)), constant((1, 4 * columns, columns), "weight_1")
    bias = constant((1, 4 * columns), "bias")
    layer = op.lstm_sequence(x, zeros, zeros, lengths, weight, recurrent, bias, columns, "forward")
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer.output(0))], [x], "lstm")


def rotary(frequencies: int = 64) -> ov.Model:
    """Rotary embedding: inverse frequencies `[1, n, 1]` times positions, into Sin and Cos."""
    positions = op.parameter([-1, 1, -1], np.float32, name="positions")
    layer = op.matmul(constant((1, frequencies, 1)), positions, False, False)
    layer.set_friendly_name("layer")
    angles = op.transpose(layer, op.constant(np.array([0, 2, 1])))
    both = op.concat([angles, angles], -1)
    return ov.Model([op.result(op.cos(both)), op.result(op.sin(both))], [positions], "rotary")


def fourier_features(columns: int = 64) -> ov.Model:
    """Random Fourier features, as Segment Anything has them: a full matrix whose products become angles."""
    x = op.parameter([-1, 8], np.float32, name="x")
    layer = op.matmul(x, constant((8, columns)), False, False)
    layer.set_friendly_name("layer")
    angles = op.multiply(layer, op.constant(np.float32(6.283)))
    return ov.Model([op.result(op.concat([op.sin(angles), op.cos(angles)], -1))], [x], "fourier")


def only_result(shape: Sequence[int] = (64, 64)) -> ov.Model:
    """A constant that nothing but a Result reads, beside an input."""
    x = op.parameter([-1, 64], np.float32, name="x")
    return ov.Model([op.result(op.relu(x)), op.result(constant(shape))], [x], "result")


def no_weights() -> ov.Model:
    """A model of one ReLU."""
    x = op.parameter([-1, 64], np.float32, name="x")
    return ov.Model([op.result(op.relu(x))], [x], "empty")


def compressed_linear(
    storage: str = "u4",
    *,
    out: int = 48,
    columns: int = 64,
    group: int = 32,
    zero_point: str | None = "u4",
    scale: str = "f16",
    convert_to: str = "f16",
) -> ov.Model:
    """A MatMul whose weight is stored as codes behind a decompression chain; `group=-1` is one scale per channel.

    `zero_point` is a type, "scalar" (one i8), or None. The values are random and mean nothing.
    """
    shape = (out, columns) if group == -1 else (out, columns // group, group)
    codes = op.constant(ov.Tensor(getattr(ov.Type, storage), ov.Shape(shape)))
    codes.set_friendly_name("weight")
    value = op.convert(codes, convert_to)
    if zero_point:
        kind = "i8" if zero_point == "scalar" else zero_point
        tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape([] if zero_point == "scalar" else (*shape[:-1], 1)))
        stored = op.constant(tensor)
        stored.set_friendly_name("weight/zero_point")
        value = op.subtract(value, stored if kind == convert_to else op.convert(stored, convert_to))
    factor: ov.Node = op.constant(ov.Tensor(getattr(ov.Type, scale), ov.Shape((*shape[:-1], 1))))
    factor.set_friendly_name("weight/scale")
    value = op.multiply(value, factor if scale == convert_to else op.convert(factor, convert_to))
    if group != -1:
        value = op.reshape(value, op.constant(np.array([out, columns])), False)
    if convert_to != "f32":
        value = op.convert(value, "f32")
    x = op.parameter([-1, columns], np.float32, name="x")
    layer = op.matmul(x, value, False, True)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x], "compressed")


def rms_norm(x: ov.Node, size: int, name: str, dtype: str = "f32") -> ov.Node:
    """x over the root of its mean square, times a gain called `name`, as exporters of Llama write it."""
    squares = op.power(x, op.constant(np.full((1, 1, 1), 2.0, np.float32)))
    mean = op.reduce_mean(squares, op.constant(np.array([-1])), True)
    divisor = op.sqrt(op.add(mean, op.constant(np.full((1, 1, 1), 1e-5, np.float32))))
    normed = op.multiply(x, op.divide(op.constant(np.ones((1, 1, 1), np.float32)), divisor))
    return op.multiply(in_f32(constant((1, 1, size), name, dtype, scale=1.0)), normed)


def layer_norm(x: ov.Node, size: int, name: str) -> ov.Node:
    """MVN, times a gain, plus a bias."""
    normed = op.mvn(x, op.constant(np.array([-1])), True, 1e-5, "INSIDE_SQRT")
    return op.add(op.multiply(normed, constant((1, 1, size), name, scale=1.0)), constant((1, 1, size), f"{name}.bias"))


def heads_of(x: ov.Node, heads: int, size: int) -> ov.Node:
    """`[batch, length, heads · size]` as `[batch, heads, length, size]`."""
    split = op.reshape(x, op.constant(np.array([0, 0, heads, size])), True)
    return op.transpose(split, op.constant(np.array([0, 2, 1, 3])))


def repeat_heads(x: ov.Node, heads: int, times: int, size: int) -> ov.Node:
    """Every key-value head `times` times in a row, as exporters write it: Unsqueeze, Broadcast, Reshape."""
    if times == 1:
        return x
    lengths = op.gather(op.shape_of(x), op.constant(np.array([0, 2])), op.constant(np.int64(0)))
    batch, length = op.split(lengths, op.constant(np.int64(0)), 2).outputs()
    fixed = [op.constant(np.array([number])) for number in (heads, times, size)]
    shape = op.concat([batch, fixed[0], fixed[1], length, fixed[2]], 0)
    wide = op.broadcast(op.unsqueeze(x, op.constant(np.int64(2))), shape, broadcast_spec="BIDIRECTIONAL")
    return op.reshape(wide, op.constant(np.array([0, heads * times, -1, size])), True)


def llama(
    hidden: int = 64,
    heads: int = 4,
    key_heads: int = 2,
    inner: int = 96,
    layers: int = 2,
    vocabulary: int = 160,
    *,
    dtype: str = "f32",
    tied: bool = False,
    decomposed: bool = False,
) -> ov.Model:
    """A Llama without rotary embedding or cache: ids `[batch, length]` to logits.

    Weights are called as optimum-intel calls them (`model.layers.0.self_attn.q_proj.weight`); `decomposed` writes the
    attention as MatMul, Softmax, MatMul and the SiLU as x · sigmoid(x).
    """
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    table = in_f32(constant((vocabulary, hidden), "model.embed_tokens.weight", dtype))
    x: ov.Node = op.gather(table, ids, op.constant(np.int64(0)))
    size = hidden // heads

    def linear_of(value: ov.Node, out: int, name: str) -> ov.Node:
        weight = in_f32(constant((out, value.get_output_partial_shape(0)[-1].get_length()), f"{name}.weight", dtype))
        layer = op.matmul(value, weight, False, True)
        layer.set_friendly_name(f"{name}/MatMul")
        return layer

    for number in range(layers):
        name = f"model.layers.{number}"
        normed = rms_norm(x, hidden, f"{name}.input_layernorm.weight", dtype)
        q = heads_of(linear_of(normed, hidden, f"{name}.self_attn.q_proj"), heads, size)
        k, v = (
            repeat_heads(
                heads_of(linear_of(normed, key_heads * size, f"{name}.self_attn.{which}_proj"), key_heads, size),
                key_heads,
                heads // key_heads,
                size,
            )
            for which in "kv"
        )
        if decomposed:
            scores = op.softmax(op.multiply(op.matmul(q, k, False, True), op.constant(np.float32(size**-0.5))), -1)
            mixed = op.matmul(scores, v, False, False)
        else:
            mixed = op.scaled_dot_product_attention(q, k, v)
        joined = op.transpose(mixed, op.constant(np.array([0, 2, 1, 3])))
        joined = op.reshape(joined, op.constant(np.array([0, 0, hidden])), True)
        x = op.add(x, linear_of(joined, hidden, f"{name}.self_attn.o_proj"))
        normed = rms_norm(x, hidden, f"{name}.post_attention_layernorm.weight", dtype)
        gate = linear_of(normed, inner, f"{name}.mlp.gate_proj")
        up = linear_of(normed, inner, f"{name}.mlp.up_proj")
        act = op.multiply(gate, op.sigmoid(gate)) if decomposed else op.swish(gate)
        x = op.add(x, linear_of(op.multiply(act, up), hidden, f"{name}.mlp.down_proj"))
    x = rms_norm(x, hidden, "model.norm.weight", dtype)
    if tied:
        logits = op.matmul(x, table, False, True)
        logits.set_friendly_name("lm_head/MatMul")
    else:
        logits = linear_of(x, vocabulary, "lm_head")
    result = op.result(logits)
    result.get_output_tensor(0).set_names({"logits"})
    return ov.Model([result], [ids], "llama")


def fp8_checkpoint(
    scales: str = "channel", to: str = "f32", storage: str = "f8e4m3", shape: Sequence[int] = (64, 128), out: int = 0
) -> ov.Model:
    """A MatMul whose weight is stored in fp8, as checkpoints have it: `[out, in]`, or `[in, out]` for `out=1`.

    `scales` is channel, tensor, block (16 × 32), none, or group (32 along the last axis, as a compressor makes them);
    `to` the type that the chain computes in.
    """
    values = constant(shape).data
    rows, columns = shape
    cut = {"block": (rows // 16, 16, columns // 32, 32), "group": (rows, columns // 32, 32)}.get(scales, tuple(shape))
    axes = {"channel": (1 - out,), "tensor": None, "block": (1, 3), "group": (2,)}.get(scales)
    blocks = values.reshape(cut)
    factors = np.abs(blocks).max(axes, keepdims=scales != "tensor") / np.float32(448)
    scaled = (blocks if scales == "none" else blocks / factors).reshape(shape)
    codes = op.constant(scaled, dtype=getattr(ov.Type, storage))
    codes.set_friendly_name("weight")
    value: ov.Node = op.convert(codes, to)
    if cut != tuple(shape):
        value = op.reshape(value, op.constant(np.array(cut)), False)
    if scales != "none":
        scale = op.constant(factors.astype(np.float32))
        value = op.multiply(value, scale if to == "f32" else op.convert(scale, to))
    if cut != tuple(shape):
        value = op.reshape(value, op.constant(np.array(shape)), False)
    x = op.parameter([-1, shape[1 - out]], np.float32, name="x")
    layer = op.matmul(x, value if to == "f32" else op.convert(value, "f32"), False, out == 0)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x], "fp8")
