"""Scaling a norm's output by its gain: `Multiply(gain)`, `Add(bias)` and nothing between them and the layers.

    before   x ─ Multiply(γ) ─ Add(β) ─▸ layers(W)
    after    x ─ Multiply(γ / t) ─ Add(β / t) ─▸ layers(W · diag t)

What stands before the Multiply does not matter, so any per-channel gain will do, a norm's or another.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import openvino as ov

from ov_weight_compression.patterns.graphs import constant_of, dimensions
from ov_weight_compression.patterns.norms import keeps_channels
from ov_weight_compression.patterns.readers import Reader, is_float, readers

__all__ = ["NormAbsorber", "Operand", "absorb_into_norm", "constant_port"]

_DEPTH = 16


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant that a Multiply or an Add applies to the channels, and which factor each of its values needs."""

    constant: ov.Node
    reader: Reader
    """The Multiply or Add, and the constant's port there; Converts and Reshapes may lie between."""
    classes: tuple[int, ...]
    """The class of each value, in the constant's order; -1 for one that stays as it is."""


@dataclass(frozen=True, eq=False)
class NormAbsorber:
    """A gain, and the bias behind it if there is one, that can be divided by the factors of the channels."""

    gain: Operand
    bias: Operand | None
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The gain's name."""
        return str(self.gain.constant.get_friendly_name())


def absorb_into_norm(value: ov.Output, columns: int) -> NormAbsorber | None:
    """The gain and bias that make up a tensor with `columns` channels in its last dimension.

    Who reads the tensor itself is the caller's business; between it and the gain nothing else may.
    """
    bias: Operand | None = None
    identity = tuple(range(columns))
    for _ in range(_DEPTH):
        node, sizes = value.get_node(), dimensions(value)
        if sizes is None or not sizes or sizes[-1] != columns or columns == 1:
            return None
        kind = node.get_type_name()
        port = constant_port(node) if kind in ("Multiply", "Add") else None
        if port is not None:
            operand = _vector(node, port, columns)
            if operand is not None and (dimensions(node.input_value(1 - port)) or [None])[-1] != columns:
                return None
            if kind == "Multiply" and operand is not None:
                return NormAbsorber(operand, bias, identity)
            if kind == "Add" and operand is not None and bias is None:
                bias = operand
            elif kind != "Multiply" or not _is_scalar(node.input_value(port)):
                return None
            value = node.input_value(1 - port)
        elif is_float(value) and keeps_channels(node, kind, len(sizes)):
            value = node.input_value(0)
        else:
            return None
        if len(readers(value)) != 1:
            return None
    return None


def constant_port(node: ov.Node) -> int | None:
    """The port of a Multiply or Add that reads a constant."""
    return next((port for port in (1, 0) if constant_of(node.input_value(port)) is not None), None)


def _is_scalar(value: ov.Output) -> bool:
    sizes = dimensions(value)
    return sizes is not None and all(size == 1 for size in sizes)


def _vector(node: ov.Node, port: int, columns: int) -> Operand | None:
    """A constant with one value for each position of the last dimension."""
    value = node.input_value(port)
    sizes, constant = dimensions(value), constant_of(value)
    if constant is None or not sizes or sizes[-1] != columns or prod(size or 0 for size in sizes) != columns:
        return None
    if prod(constant.shape) != columns or not is_float(constant.output(0)):
        return None
    return Operand(constant, (node, port), tuple(range(columns)))
