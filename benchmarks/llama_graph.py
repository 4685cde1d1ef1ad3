"""The graph of a Llama as optimum-intel exports it, without torch: operations, names, inputs, state.

    input_ids, attention_mask, position_ids [batch, tokens], beam_idx [batch]  →  logits [batch, tokens, vocabulary]

Weights are f16 constants behind a Convert, ``[out, in]`` with ``transpose_b=True``; keys and values live in variables.
One embedding constant serves Gather and the head, as in the tied models of this family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
import openvino.opset15 as op

LOWEST = -65504.0  # what a masked score gets, as exported
Weights = Callable[[str, tuple[int, ...]], ov.Node]


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; ``heads`` query heads share ``kv_heads`` keys and values."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    head: int

    def weights(self) -> dict[str, tuple[int, int]]:
        """Every matrix by its exported name, in the order of the graph."""
        sizes = {
            "self_attn.q_proj": (self.heads * self.head, self.hidden),
            "self_attn.k_proj": (self.kv_heads * self.head, self.hidden),
            "self_attn.v_proj": (self.kv_heads * self.head, self.hidden),
            "self_attn.o_proj": (self.hidden, self.heads * self.head),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        found = {"self.model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            found |= {f"self.model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
        return found

    @property
    def parameters(self) -> int:
        """Numbers in the matrices."""
        return sum(rows * columns for rows, columns in self.weights().values())


class Builder:
    """Builds the model; ``weight(name, shape)`` gives the f16 constant of a matrix."""

    def __init__(self, shape: Shape, weight: Weights) -> None:
        self.shape = shape
        self.weight = weight
        self.sinks: list[ov.Node] = []
        self.input_ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        self.attention_mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        self.position_ids = _parameter("position_ids", [-1, -1], ov.Type.i64)
        self.beam_idx = _parameter("beam_idx", [-1], ov.Type.i32)

    def build(self) -> ov.Model:
        """The whole model."""
        batch = op.gather(op.shape_of(self.input_ids), _ints([0]), _ints(0))
        embedding = self.floats("self.model.embed_tokens.weight")
        tokens = op.convert(self.input_ids, "i32")
        hidden = _named(op.gather(embedding, tokens, _int32(0)), "__module.model.embed_tokens/aten::embedding/Gather")
        mask, cos_sin = self.mask(), self.rotary()
        for layer in range(self.shape.layers):
            hidden = self.block(layer, hidden, batch, mask, cos_sin)
        hidden = self.norm(hidden, "__module.model.norm")
        logits = _named(op.matmul(hidden, embedding, False, True), "__module.lm_head/aten::linear/MatMul")
        logits.output(0).get_tensor().set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        return ov.Model([op.result(logits)], self.sinks, inputs, "Model0")

    def floats(self, name: str) -> ov.Node:
        """f16 constant → Convert to f32, named as in exported models."""
        constant = self.weight(name, self.shape.weights()[name])
        constant.output(0).get_tensor().set_names({name})
        return _named(op.convert(_named(constant, f"{name}_compressed"), "f32"), name)

    def linear(self, x: ov.Node, module: str) -> ov.Node:
        """x Wᵀ of one projection."""
        weight = self.floats(f"self.{module}.weight")
        return _named(op.matmul(x, weight, False, True), f"__module.{module}/aten::linear/MatMul")

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        """RMSNorm: γ x / sqrt(mean x² + ε)."""
        gain = op.convert(op.constant(_gain(name, self.shape.hidden)), "f32")
        square = op.power(x, _floats([[[2.0]]]))
        mean = op.add(op.reduce_mean(square, _ints([-1]), True), _floats([[[1e-5]]]))
        unit = op.multiply(x, op.divide(_floats([[[1.0]]]), op.sqrt(mean)))
        return _named(op.multiply(gain, unit), f"{name}/aten::mul/Multiply_1")

    def mask(self) -> ov.Node:
        """Additive causal mask ``[batch, 1, tokens, all tokens]``: 0 where a token may look, else the lowest half."""
        every = op.gather(op.shape_of(self.attention_mask), _ints(1), _ints(0))
        new = op.gather(op.shape_of(self.input_ids), _ints(1), _ints(0))
        keys = op.unsqueeze(op.range(_ints(0), every, _ints(1), "i64"), _ints(0))
        queries = op.unsqueeze(op.range(op.subtract(every, new), every, _ints(1), "i64"), _ints(1))
        causal = op.unsqueeze(op.less_equal(keys, queries), _ints([0, 1]))
        present = op.unsqueeze(op.convert(self.attention_mask, "boolean"), _ints([1, 2]))
        return op.select(op.logical_and(causal, present), _floats(0.0), _floats(LOWEST))

    def rotary(self) -> tuple[ov.Node, ov.Node]:
        """cos and sin ``[batch, 1, tokens, head]`` of the positions."""
        half = self.shape.head // 2
        frequencies = (500000.0 ** (-np.arange(half) / half)).astype(np.float32).reshape(1, half, 1)
        positions = op.convert(op.unsqueeze(self.position_ids, _ints(1)), "f32")
        angles = op.matmul(op.constant(frequencies), positions, False, False)
        angles = op.transpose(_named(angles, "__module.model.rotary_emb/aten::matmul/MatMul"), _ints([0, 2, 1]))
        angles = op.concat([angles, angles], -1)
        return op.unsqueeze(op.cos(angles), _ints(1)), op.unsqueeze(op.sin(angles), _ints(1))

    def rotate(self, x: ov.Node, cos_sin: tuple[ov.Node, ov.Node]) -> ov.Node:
        """x cos + rotate_half(x) sin."""
        half, end = self.shape.head // 2, np.iinfo(np.int64).max
        low = op.slice(x, _ints([0]), _ints([half]), _ints([1]), _ints([3]))
        high = op.slice(x, _ints([half]), _ints([end]), _ints([1]), _ints([3]))
        turned = op.concat([op.multiply(high, _floats(-1.0)), low], -1)
        return op.add(op.multiply(x, cos_sin[0]), op.multiply(turned, cos_sin[1]))

    def remembered(self, new: ov.Node, name: str, batch: ov.Node) -> ov.Node:
        """Keys or values of all tokens: the variable's content in the order of ``beam_idx``, then the new ones."""
        count, head = self.shape.kv_heads, self.shape.head
        empty = op.broadcast(_floats(0.0), op.concat([batch, _ints([count]), _ints([0]), _ints([head])], 0))
        shape = ov.PartialShape([-1, count, -1, head])
        number, kind = name.split(".")
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type = shape, ov.Type.f32
        info.variable_id = f"past_key_values.{number}.{kind}present.{number}.{kind}"
        variable = ov.op.util.Variable(info)
        past = ov.opset6.read_value(empty, variable)
        every = op.concat([op.gather(past, self.beam_idx, _ints(0)), new], -2)
        self.sinks.append(ov.opset6.assign(every, variable))
        return every

    def heads(self, x: ov.Node, count: int) -> ov.Node:
        """``[batch, tokens, count · head]`` → ``[batch, count, tokens, head]``."""
        return op.transpose(op.reshape(x, _ints([0, 0, count, self.shape.head]), True), _ints([0, 2, 1, 3]))

    def repeated(self, x: ov.Node) -> ov.Node:
        """Each key or value once for every query head that shares it."""
        times = self.shape.heads // self.shape.kv_heads
        wide = op.broadcast(op.unsqueeze(x, _ints(2)), _ints([1, 1, times, 1, 1]), broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, _ints([0, self.shape.heads, -1, self.shape.head]), True)

    def block(self, layer: int, x: ov.Node, batch: ov.Node, mask: ov.Node, cos_sin: tuple[ov.Node, ov.Node]) -> ov.Node:
        """Attention and the gated feed-forward part, each behind its norm, each added to the stream."""
        module, shape = f"model.layers.{layer}", self.shape
        normed = self.norm(x, f"__module.{module}.input_layernorm")
        query = self.rotate(self.heads(self.linear(normed, f"{module}.self_attn.q_proj"), shape.heads), cos_sin)
        key = self.rotate(self.heads(self.linear(normed, f"{module}.self_attn.k_proj"), shape.kv_heads), cos_sin)
        value = self.heads(self.linear(normed, f"{module}.self_attn.v_proj"), shape.kv_heads)
        key = self.repeated(self.remembered(key, f"{layer}.key", batch))
        value = self.repeated(self.remembered(value, f"{layer}.value", batch))
        attended = op.scaled_dot_product_attention(query, key, value, mask, _floats(shape.head**-0.5))
        attended = op.reshape(
            op.transpose(attended, _ints([0, 2, 1, 3])), _ints([0, 0, shape.heads * shape.head]), True
        )
        x = op.add(x, self.linear(attended, f"{module}.self_attn.o_proj"))
        normed = self.norm(x, f"__module.{module}.post_attention_layernorm")
        gate = op.swish(self.linear(normed, f"{module}.mlp.gate_proj"))
        inner = op.multiply(gate, self.linear(normed, f"{module}.mlp.up_proj"))
        return op.add(x, self.linear(inner, f"{module}.mlp.down_proj"))


def _parameter(name: str, shape: Sequence[int], element_type: ov.Type) -> ov.Node:
    node = op.parameter(ov.PartialShape(list(shape)), element_type, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _named(node: ov.Node, name: str) -> ov.Node:
    node.set_friendly_name(name)
    return node


def _gain(name: str, hidden: int) -> np.ndarray:
    """A norm's gain around 1, its own for each norm and the same every time."""
    seed = sum(name.encode())
    return np.random.default_rng(seed).normal(1.0, 0.2, (1, 1, hidden)).astype(np.float16)


def _ints(value: int | Sequence[int]) -> ov.Node:
    return op.constant(np.array(value, np.int64))


def _int32(value: int) -> ov.Node:
    return op.constant(np.array(value, np.int32))


def _floats(value: float | list[list[list[float]]]) -> ov.Node:
    return op.constant(np.array(value, np.float32))
