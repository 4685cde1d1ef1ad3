"""Recognising that an activation comes out of a norm, and which gain and bias it got there.

LayerNorm is `MVN(x) · γ + β`, RMSNorm is `x / sqrt(mean(x²) + ε) · γ` in one of many spellings, γ left out where it was
one. What lies between the norm and the layer may move positions about but not channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import openvino as ov

from ov_weight_compression.ir_utils.types import sizes_of
from ov_weight_compression.patterns.graphs import constant_of, constant_port, dimensions

_DEPTH = 24
_MOVING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Tile", "Broadcast", "Transpose", "Gather", "Slice"})


@dataclass(frozen=True)
class NormGain:
    """Channel j is `gain_j · n_j + bias_j` with n of unit size, the gain being the product of `gains` (none: all ones).

    Each constant holds one value per channel.
    """

    gains: tuple[ov.Node, ...]
    biases: tuple[ov.Node, ...]


def norm_gain(value: ov.Output, columns: int) -> NormGain | None:
    """The gain and bias of the norm that a value with `columns` channels in its last dimension comes from, or None."""
    gains: list[ov.Node] = []
    biases: list[ov.Node] = []
    for _ in range(_DEPTH):
        node = value.get_node()
        kind = node.get_type_name()
        sizes = dimensions(value)
        if sizes is None or not sizes or sizes[-1] != columns:
            return None
        if kind in ("Multiply", "Divide", "Add"):
            port = constant_port(node)
            if port is None:
                return NormGain(tuple(gains), tuple(biases)) if _is_root_mean_square(node, columns) else None
            constant = constant_of(node.input_value(port))
            if constant is None or not _take(kind, port, constant, columns, gains, biases):
                return None
            value = node.input_value(1 - port)
        elif kind == "MVN":
            return NormGain(tuple(gains), tuple(biases)) if _is_layer_norm(node, len(sizes)) else None
        elif keeps_channels(node, kind, len(sizes)):
            value = node.input_value(0)
        else:
            return None
    return None


def _take(kind: str, port: int, constant: ov.Node, columns: int, gains: list[ov.Node], biases: list[ov.Node]) -> bool:
    """Note a constant operand: a scalar changes nothing, a vector is gain or bias. Whether it can be either."""
    size = prod(sizes_of(constant.shape))
    if kind == "Divide":
        return port == 1 and size == 1
    if kind == "Multiply" and size == 1:
        return not biases
    if size != columns:
        return False
    if kind == "Add":
        biases.append(constant)
        return not gains and len(biases) == 1
    gains.append(constant)
    return True


def keeps_channels(node: ov.Node, kind: str, rank: int) -> bool:
    """Whether an operation may move positions but leaves the last dimension alone."""
    if kind == "Convert":
        return True
    if kind not in _MOVING:
        return False
    before = dimensions(node.input_value(0))
    if before is None or not before or before[-1] != (dimensions(node.output(0)) or [None])[-1]:
        return False
    if kind not in ("Transpose", "Gather", "Slice"):
        return True
    if kind == "Transpose":
        order = constant_of(node.input_value(1))
        return order is not None and prod(sizes_of(order.shape)) == rank and int(order.data[-1]) == rank - 1
    if kind == "Gather":
        axis = constant_of(node.input_value(2))
        return axis is not None and int(axis.data.reshape(-1)[0]) % len(before) != len(before) - 1
    axes = constant_of(node.input_value(4)) if node.get_input_size() == 5 else None  # Slice
    return axes is not None and all(int(axis) % rank != rank - 1 for axis in axes.data.reshape(-1))


def _is_layer_norm(node: ov.Node, rank: int) -> bool:
    """Whether an MVN divides by the deviation over the last dimension and no other."""
    axes = constant_of(node.input_value(1)) if node.get_input_size() == 2 else None
    if axes is None or not node.get_attributes().get("normalize_variance"):
        return False
    return [int(axis) % rank for axis in axes.data.reshape(-1)] == [rank - 1]


def _is_root_mean_square(node: ov.Node, columns: int) -> bool:
    """Whether a product or quotient is x over (or times) one number per position that a mean of x² went into."""
    for port in (1, 0) if node.get_type_name() == "Multiply" else (1,):
        sizes = dimensions(node.input_value(port))
        if sizes and sizes[-1] == 1 and columns != 1:
            return _reduces(node.input_value(port), _bare(node.input_value(1 - port)))
    return False


def _reduces(value: ov.Output, source: ov.Node) -> bool:
    """Whether a value is made by arithmetic with scalars from a reduction of the squares of `source`."""
    for _ in range(10):
        node = value.get_node()
        kind = node.get_type_name()
        if kind in ("ReduceMean", "ReduceSum", "ReduceL2"):
            squared = node.input_value(0).get_node()
            if kind != "ReduceL2" and squared.get_type_name() not in ("Power", "Multiply"):
                return False
            inside = squared if kind == "ReduceL2" else squared.input_value(0).get_node()
            return _bare(inside.output(0)) is source
        if kind in ("Convert", "Sqrt"):
            value = node.input_value(0)
        elif kind in ("Add", "Multiply", "Divide", "Maximum", "Power"):
            port = constant_port(node)
            if port is None:
                return False
            value = node.input_value(1 - port)
        else:
            return False
    return False


def _bare(value: ov.Output) -> ov.Node:
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node
