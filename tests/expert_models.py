"""Blocks of experts as exporters write them: every expert computes every token, and the router's weights choose.

x ─ Reshape ─ Tile ─ Reshape ─ MatMul(s) … MatMul ─ [Add] ─ Reshape ─ Multiply(router) ─ ReduceSum
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

HIDDEN, INNER, EXPERTS, CHOSEN = 64, 96, 4, 2

_Expert = Callable[[ov.Node], ov.Node]


def three_gemms(dtype: str = "f16", seed: int = 0) -> ov.Model:
    """Gate, up and down without biases, as Qwen's."""
    weigh = _Weights(dtype, seed)

    def experts(tiled: ov.Node) -> ov.Node:
        gate = _silu(weigh.matmul(tiled, "gate", INNER, HIDDEN))
        up = weigh.matmul(tiled, "up", INNER, HIDDEN)
        return weigh.matmul(op.multiply(gate, up), "down", HIDDEN, INNER)

    return _block(weigh, experts)


def two_gemms(dtype: str = "f16", seed: int = 0, transpose: bool = True) -> ov.Model:
    """Gate and up in one, interleaved, and biases, as gpt-oss has them; `transpose` as its MatMuls' transpose_b."""
    weigh = _Weights(dtype, seed, transpose)

    def slice_of(value: ov.Node, start: int) -> ov.Node:
        ends = [op.constant(np.array([one])) for one in (start, 2**31 - 1, 2, 2)]
        return op.slice(value, *ends)

    def experts(tiled: ov.Node) -> ov.Node:
        both = op.add(weigh.matmul(tiled, "gate_up", 2 * INNER, HIDDEN), weigh.bias(2 * INNER))
        up = op.add(op.clamp(slice_of(both, 1), -7.0, 7.0), _scalar(1.0))
        gate = op.swish(op.minimum(slice_of(both, 0), _scalar(7.0)), op.constant(np.float32(1.702)))
        return op.add(weigh.matmul(op.multiply(up, gate), "down", HIDDEN, INNER), weigh.bias(HIDDEN))

    return _block(weigh, experts)


def _silu(x: ov.Node) -> ov.Node:
    """A Swish of one input, as the PyTorch frontend makes it: Python's own adds a beta of one, which does not match."""
    return NodeFactory("opset4").create("Swish", [x.output(0)], {})


def _scalar(value: float) -> ov.Node:
    return op.constant(np.full((1, 1, 1), value, np.float32))


class _Weights:
    """Constants with heavy tails and their layers, by name."""

    def __init__(self, dtype: str, seed: int, transpose: bool = True) -> None:
        self._dtype, self._random, self._transpose = dtype, np.random.default_rng(seed), transpose

    def matmul(self, x: ov.Node, name: str, out: int, columns: int, experts: int = EXPERTS) -> ov.Node:
        shape = (experts, out, columns) if experts else (out, columns)
        values = self._random.standard_t(5, shape).astype(np.float32) / np.sqrt(columns)
        if not self._transpose and experts:
            values = np.ascontiguousarray(values.transpose(0, 2, 1))
        weight = op.constant(values.astype(np.float16 if self._dtype == "f16" else np.float32), name=name)
        layer = op.matmul(
            x, op.convert(weight, "f32") if self._dtype == "f16" else weight, False, self._transpose or not experts
        )
        layer.set_friendly_name(f"{name}/MatMul")
        return layer

    def bias(self, out: int) -> ov.Node:
        return op.constant(self._random.standard_normal((EXPERTS, 1, out)).astype(np.float32) * 0.1)


def _block(weigh: _Weights, experts: _Expert) -> ov.Model:
    x = op.parameter([-1, -1, HIDDEN], np.float32, name="x")
    flat = op.reshape(x, op.constant([-1, HIDDEN]), False)
    scores = op.softmax(weigh.matmul(flat, "router", EXPERTS, HIDDEN, experts=0), -1)
    chosen = op.topk(scores, op.constant(CHOSEN), -1, "max", "value", index_element_type="i64")
    parts = op.divide(chosen.output(0), op.reduce_sum(chosen.output(0), op.constant([-1]), True))
    zeros = op.broadcast(op.constant(np.float32(0)), op.shape_of(scores))
    weights = op.scatter_elements_update(zeros, chosen.output(1), parts, op.constant(1))
    sizes = op.shape_of(x)
    batch = op.slice(sizes, *(op.constant(np.array([one])) for one in (0, 1, 1)))
    tiled = op.reshape(
        op.tile(flat, op.constant(np.array([EXPERTS, 1]))), op.constant(np.array([EXPERTS, -1, HIDDEN])), False
    )
    whole = op.concat([op.constant(np.array([EXPERTS])), batch, op.constant(np.array([-1, HIDDEN]))], 0)
    apart = op.reshape(experts(tiled), whole, False)
    by_expert = op.reshape(
        op.transpose(weights, op.constant(np.array([1, 0]))),
        op.concat([op.constant(np.array([EXPERTS])), batch, op.constant(np.array([-1]))], 0),
        False,
    )
    weighted = op.multiply(apart, op.unsqueeze(by_expert, op.constant(np.int64(-1))))
    return ov.Model([op.result(op.reduce_sum(weighted, op.constant(np.array([0])), False))], [x], "experts")
