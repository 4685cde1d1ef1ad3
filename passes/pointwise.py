"""Convolutions of one tap, which the CPU plugin turns into matrix products where their weight is stored as codes.

    Transpose(0, 3, 1, 2) ─ Convolution(codes [out, in, 1, 1]) ─ Transpose(0, 2, 3, 1)     ─▸     FullyConnected

OpenVINO 2026.4.1 does so for a model that is read from a file where a Transpose or a Reshape stands on either side, and
looks at little else: strides and padding are dropped, a Transpose of another order or a Reshape from other axes is
taken for the one above. The model is refused then, computes something else in another shape, or ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import openvino as ov

from ov_weight_compression.patterns import Consumer
from ov_weight_compression.patterns.graphs import dimensions

__all__ = ["pointwise_problem"]

_BEFORE, _BEHIND = [0, 3, 1, 2], [0, 2, 3, 1]
_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_ELEMENTWISE = frozenset({"Add", "Multiply", "Subtract", "Convert"})


def pointwise_problem(consumer: Consumer) -> str | None:
    """Why CPUs would misread codes in this layer; None where it is no convolution of one tap, or one that they take
    for what it is."""
    node = consumer.node
    taps = dimensions(node.input_value(1)) or []
    if node.get_type_name() != "Convolution" or len(taps) != 4 or taps[2:] != [1, 1]:
        return None
    attributes = node.get_attributes()
    if any(stride != 1 for stride in attributes["strides"]):
        return "CPUs drop the strides of a 1x1 convolution on codes"
    if any((*attributes["pads_begin"], *attributes["pads_end"])):
        return "CPUs drop the padding of a 1x1 convolution on codes"
    return _problem_before(node.input_value(0)) or _problem_behind(node)


def _problem_before(value: ov.Output) -> str | None:
    """What makes the activation, if the plugin takes it for a Transpose that it is not."""
    maker = value.get_node()
    kind = maker.get_type_name()
    if kind == "Transpose" and _order(maker) != _BEFORE:
        return "CPUs misread a 1x1 convolution on codes behind a Transpose of other axes"
    places = (dimensions(value) or [None] * 4)[2:]
    if kind in _RESHAPING and prod(size or 1 for size in places) == 1:
        return "CPUs misread a 1x1 convolution on codes behind a Reshape to a single position"
    return None


def _problem_behind(node: ov.Node) -> str | None:
    if any(_order(reader) != _BEHIND for reader in _transposes(node, 2)):
        return "CPUs misread a 1x1 convolution on codes in front of a Transpose of other axes"
    return None


def _transposes(node: ov.Node, depth: int) -> Iterator[ov.Node]:
    """The Transposes behind a layer, or behind at most `depth` operations that add a bias, scale or convert."""
    for target in node.output(0).get_target_inputs():
        reader = target.get_node()
        if reader.get_type_name() == "Transpose":
            yield reader
        elif depth and reader.get_type_name() in _ELEMENTWISE:
            yield from _transposes(reader, depth - 1)


def _order(transpose: ov.Node) -> list[int] | None:
    """The order of a Transpose; None where it is known only at run time."""
    order = transpose.input_value(1).get_node()
    return [int(axis) for axis in order.data.reshape(-1)] if order.get_type_name() == "Constant" else None
