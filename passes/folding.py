"""Put factors into the graph where they are not part of a weight: gains, biases, and Multiplies where nothing absorbs.

    Constant(γ) ─ [Convert] ─▸ Multiply      becomes   Constant(γ / t) ─ [Convert] ─▸ Multiply
    x ─▸ layers                              becomes   x ─ Multiply(1 / t) ─▸ layers

New constants have the type and the name of those they replace; one that others read too stays for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.ir_utils.constants import float_values
from ov_weight_compression.ir_utils.types import Array, Float32, element_type
from ov_weight_compression.patterns.equalization import ScalingGroup
from ov_weight_compression.patterns.scale_folding import NormAbsorber, Operand

__all__ = ["fold_into_graph", "rounded_to"]

_DECOMPRESSION_MARK = "decompression_0"
_WIDE = {"f32": np.float32, "f64": np.float64}


def rounded_to(values: Array, kind: str) -> Float32:
    """Values as a constant of a floating-point type holds them."""
    if kind in _WIDE:
        return values.astype(np.float32)
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    tensor = ov.op.Constant(element_type(kind), ov.Shape(list(values.shape)), values.astype(np.float32).reshape(-1))
    return float_values(tensor)


def fold_into_graph(group: ScalingGroup, factors: Float32, classes: Float32) -> tuple[str, ...]:
    """Divide the group's input by its factors, except for what rows of a producer take.

    Args:
        group: the group; its layers' weights are somebody else's business.
        factors: [in], t of every channel; [experts, in] where nothing absorbs and experts read each their own.
        classes: t of every class.

    Returns:
        The names of the Multiplies that were inserted.
    """
    absorber = group.absorber
    if absorber is None:
        return _insert(group, factors)
    if isinstance(absorber, NormAbsorber):
        operands = [absorber.gain, *([absorber.bias] if absorber.bias else [])]
    else:
        operands = list(absorber.biases)
    for operand in operands:
        _divide(operand, classes)
    return ()


def _divide(operand: Operand, classes: Float32) -> None:
    """Give the operation that reads a constant another one, with every value divided by its class's factor."""
    constant = operand.constant
    place = np.asarray(operand.classes)
    factors = np.where(place >= 0, classes[place], np.float32(1)).astype(np.float32)
    node, port = operand.reader
    source = node.input_value(port)
    shape = tuple(int(size) for size in source.get_partial_shape().to_shape())
    values = (float_values(constant).reshape(-1) / factors).reshape(shape)
    new = _constant(values, constant.get_output_element_type(0))
    new.set_friendly_name(constant.get_friendly_name())
    if source.get_element_type() != constant.get_output_element_type(0):
        new = ops.convert(new, source.get_element_type())
        new.set_friendly_name(source.get_node().get_friendly_name())
        new.get_rt_info()[_DECOMPRESSION_MARK] = ""
    node.input(port).replace_source_output(new.output(0))


def _insert(group: ScalingGroup, factors: Float32) -> tuple[str, ...]:
    """A Multiply by 1 / t in front of the group's layers, one for each tensor that they read."""
    inserted: dict[ov.Output, Any] = {}
    for layer, port in group.layers:
        source = layer.input_value(port)
        if source not in inserted:
            rank = int(source.get_partial_shape().rank.get_length())
            lead = [1] * (rank - 1) if factors.ndim == 1 else [*[1] * (rank - 3), len(factors), 1]
            inverse = _constant((1 / factors).reshape([*lead, factors.shape[-1]]), source.get_element_type())
            scaled = ops.multiply(source, inverse)
            scaled.set_friendly_name(f"{layer.get_friendly_name()}/smoothing")
            inverse.set_friendly_name(f"{layer.get_friendly_name()}/smoothing/factors")
            inserted[source] = scaled
        layer.input(port).replace_source_output(inserted[source].output(0))
    return tuple(node.get_friendly_name() for node in inserted.values())


def _constant(values: Array, kind: ov.Type) -> Any:
    if kind == ov.Type.bf16:
        return ov.op.Constant(kind, ov.Shape(list(values.shape)), values.astype(np.float32).reshape(-1))
    return ops.constant(np.ascontiguousarray(values, dtype=kind.to_dtype()))
