"""The operations that kernels are made of, as OpenVINO's nodes: exact, and left as they are by the CPU plugin."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op

Node = Any  # a node or output of openvino: its opset functions are untyped


def constant(value: Any) -> Node:
    """f32 constant."""
    return op.constant(np.asarray(value, dtype=np.float32))


def divide(a: Node, b: Node) -> Node:
    """A true division, correctly rounded: the mark stops the rewrite into a multiplication by 1 / b."""
    node = op.divide(a, b)
    node.get_rt_info()["nonconvertable_divide_0"] = True
    return node


def rint(x: Node) -> Node:
    """To the nearest integer, ties to even."""
    return op.round(x, "half_to_even")


def unsqueeze(x: Node, axis: int) -> Node:
    """A new axis of length one."""
    return op.unsqueeze(x, op.constant(np.int64(axis)))


def column(x: Node) -> Node:
    """[n] -> [n, 1]. Numbers that belong to a group are computed on [n], where vectors run across groups."""
    return unsqueeze(x, 1)


def flat(x: Node) -> Node:
    """[.., 1] -> [..]: back from ``total`` or ``largest`` to where vectors run across groups."""
    return op.squeeze(x, op.constant(np.int64(-1)))


def total(x: Node) -> Node:
    """[.., g] -> [.., 1]: only a reduction that keeps its axis becomes one loop with what it sums up."""
    return op.reduce_sum(x, [-1], keep_dims=True)


def largest(x: Node) -> Node:
    """[.., g] -> [.., 1], as ``total``. (A least one would be a loop of its own: take the largest negative.)"""
    return op.reduce_max(x, [-1], keep_dims=True)


def step(x: Node, threshold: float, height: float) -> Node:
    """``height`` where ``x > threshold``, else 0, as f32; ``height`` up to 2^16, of either sign.

    A clamp is cheaper than a comparison and a selection, and as exact: two f32 numbers, one of them above 2^-60 in
    magnitude, differ by nothing or by at least 2^-84.
    """
    threshold, height = float(threshold), float(height)
    if abs(threshold) < 2.0**-60:
        return op.select(op.greater(x, constant(threshold)), constant(height), constant(0))
    steep = op.multiply(op.subtract(x, constant(threshold)), constant(2.0**100))
    return op.clamp(steep, 0.0, height) if height > 0 else op.negative(op.clamp(steep, 0.0, -height))


def power_of_two_below(x: Node, lowest: int, steps: Sequence[int]) -> tuple[Node, Node]:
    """The largest power of two not above ``x``, from 2^lowest to 2^(lowest + sum(steps)), by bisection of the exponent.

    Args:
        x: f32, positive.
        lowest: exponent of the result for any smaller ``x``.
        steps: falling powers of two, 64 at most (they may repeat), down to 1; their sum is the range of exponents.

    Returns:
        the power as f32, and its exponent less ``lowest``, as f32. Comparisons and exact products only.
    """
    power = constant(2.0**lowest)
    exponent = constant(0.0)
    for size in steps:
        higher = op.multiply(power, constant(2.0**size))
        take = op.greater_equal(x, higher)
        power = op.select(take, higher, power)
        exponent = op.select(take, op.add(exponent, constant(float(size))), exponent)
    return power, exponent


def parameter(shape: Sequence[int], element_type: str, name: str) -> Node:
    """A named input."""
    node = op.parameter(list(shape), getattr(ov.Type, element_type))
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def transposed(x: Node) -> Node:
    """[a, b] -> [b, a]."""
    return op.transpose(x, op.constant(np.array([1, 0], dtype=np.int64)))


def with_shape(x: Node, shape: Sequence[int]) -> Node:
    """The same numbers in another shape."""
    return op.reshape(x, op.constant(np.array(shape, dtype=np.int64)), special_zero=False)
