"""``quantization.scales`` as a graph: plain scales of groups, and the values and patterns of scales as stored.

Everything here works on numbers that belong to a group, [n] or [n, candidates], a small part of the work; so the
rounding to a stored type may take the long way round, by exact powers of two instead of bit operations, which OpenVINO
lacks.
"""

import numpy as np
import openvino.opset13 as op

from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.kernels.ops import Node, constant, divide, power_of_two_below, rint
from ov_weight_compression.quantization.spec import Spec

__all__ = ["plain", "stored_pattern", "stored_value"]

_LIMIT, _TINY = 2.0**100, 2.0**-100


def plain(groups: Node, format: Format, block: int) -> tuple[Node, Node | None, Node]:
    """The plain scales (``scales.plain_scales``) of groups [block, g].

    Returns:
        unrounded scale [n]; zero point [n] for an asymmetric format, else None; largest magnitude [n].
    """
    # One divisor per group, all the same: a division by one number would become part of the reduction before it, and
    # there a multiplication.
    top = constant(np.full(block, format.top))
    if format.levels is not None:
        absmax = op.reduce_max(op.abs(groups), [1], keep_dims=False)
        return divide(absmax, top), None, absmax
    low = op.reduce_min(groups, [1], keep_dims=False)
    high = op.reduce_max(groups, [1], keep_dims=False)
    absmax = op.maximum(op.negative(low), high)
    if format.asymmetric:
        low, high = op.minimum(low, constant(0)), op.maximum(high, constant(0))
        scale = op.maximum(divide(op.subtract(high, low), top), constant(_TINY))
        return scale, op.clamp(rint(divide(op.negative(low), scale)), 0.0, float(format.high)), absmax
    flipped = op.greater(high, op.negative(low))
    scale = divide(op.select(flipped, op.negative(high), op.negative(low)), top)
    return scale, None, absmax


def stored_value(scale: Node, spec: Spec, tensor_scale: Node | None) -> Node:
    """The f32 value of each scale as stored, same shape (``scale_values(store_scales(...))``)."""
    if spec.scale_type == "f8e8m0":
        power, _ = _power_above(scale)
        return power
    if spec.scale_type == "f8e4m3":
        _, value = _e4m3(scale, tensor_scale)
        return op.multiply(value, tensor_scale)
    smallest, largest = (_TINY, _LIMIT) if spec.scale_type == "f32" else (2.0**-24, 65504.0)
    magnitude = op.clamp(op.abs(scale), smallest, largest)
    if spec.scale_type == "f16":
        # f16 keeps eleven bits of a number, and no bit below 2^-24.
        power, _ = power_of_two_below(magnitude, -14, (16, 8, 4, 2, 1))
        unit = op.multiply(power, constant(2.0**-10))
        magnitude = op.multiply(rint(divide(magnitude, unit)), unit)
    return op.select(op.less(scale, constant(0)), op.negative(magnitude), magnitude)


def stored_pattern(scale: Node, value: Node, spec: Spec, tensor_scale: Node | None) -> Node:
    """What is stored for each scale: f16 or f32 from its stored ``value``, or the u8 bits of an f8 type."""
    if spec.scale_type == "f8e8m0":
        _, exponent = _power_above(scale)
        return op.convert(op.add(exponent, constant(27)), "u8")
    if spec.scale_type == "f8e4m3":
        pattern, _ = _e4m3(scale, tensor_scale)
        return op.convert(pattern, "u8")
    return op.convert(value, spec.scale_type) if spec.scale_type == "f16" else value


def _power_above(scale: Node) -> tuple[Node, Node]:
    """The smallest power of two not below ``scale``, within 2^-100 .. 2^100, and its exponent plus 100."""
    magnitude = op.clamp(op.abs(scale), _TINY, _LIMIT)
    power, exponent = power_of_two_below(magnitude, -100, (64, 64, 64, 32, 16, 8, 4, 2, 1))
    exact = op.equal(power, magnitude)
    return (
        op.select(exact, power, op.multiply(power, constant(2))),
        op.select(exact, exponent, op.add(exponent, constant(1))),
    )


def _e4m3(scale: Node, tensor_scale: Node | None) -> tuple[Node, Node]:
    """Bits, as f32 numbers 1 .. 126, and value of ``scale / tensor_scale`` rounded to E4M3, within 2^-9 .. 448."""
    ratio = op.clamp(divide(op.abs(scale), tensor_scale), 2.0**-9, 448.0)
    power, exponent = power_of_two_below(ratio, -6, (8, 4, 2, 1))
    unit = op.multiply(power, constant(0.125))
    count = rint(divide(ratio, unit))  # 8 .. 16, the leading bit included; 1 .. 8 for subnormals
    return op.add(op.multiply(exponent, constant(8)), count), op.multiply(count, unit)
