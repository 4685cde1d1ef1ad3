"""Bringing the input of a layer into the order of its codes (act-order).

A quantiser that takes important channels first leaves codes whose input channels are in an order of their own. Columns
sorted by group, `codes[:, p]`, want the layer's input in the same order, `x[…, p]`. In the order of preference:

    folded        what computes x computes its channels in that order: the rows of the weights that made it, and the
                  biases behind them, through operations that take each channel by itself

                  up, gate ─ act(gate) · up ─▸ down[:, p]     →     up[p], gate[p] ─ act(gate) · up ─▸ down[:, p]

    a Gather      in front of the layer, which layers that read the same tensor in the same order share

                  x ─▸ layer(W[:, p])     →     x ─ Gather(·, p, −1) ─▸ layer(W[:, p])

    requantised   with its channels in order, where the layer does not read its input like that

What a norm has made cannot be folded, for the stream that the norm reads is read by all blocks; nor what attention has,
where channels may move within their head only, and these orders do not stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    QuantisedWeight,
    requantised,
    with_rows_in_order,
)
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.patterns import Kind, Weight
from ov_weight_compression.patterns.fold_targets import Reader, readers
from ov_weight_compression.patterns.graphs import constant_of, dimensions

Pairs = list[tuple[Weight, QuantisedWeight]]
Edit = Callable[[], None]

_EACH_BY_ITSELF = frozenset(
    {"Convert", "Swish", "Gelu", "Relu", "Sigmoid", "Tanh", "Mish", "HSwish", "Elu", "SoftPlus"}
)
_TWO_BY_TWO = frozenset({"Multiply", "Add", "Subtract", "Maximum", "Minimum", "Clamp"})
_DEPTH = 24


def bring_into_order(pairs: Sequence[tuple[Weight, QuantisedWeight]]) -> tuple[Pairs, list[Edit]]:
    """The weights as they are to be stored, each saying what becomes of its order, and the edits of the graph that
    bring their layers' inputs into that order. Nothing is edited yet."""
    settled = {weight.name: quantised for weight, quantised in pairs}
    groups: dict[Any, _Group] = {}
    for weight, quantised in pairs:
        if quantised.order is None:
            continue
        found = _activations(weight)
        if found is None:
            settled[weight.name] = requantised(quantised, "its input cannot be brought into the order of its codes")
            continue
        for node, port in found:
            value = node.input_value(port)
            key = value.get_node(), value.get_index(), quantised.order.tobytes()
            group = groups.setdefault(key, _Group(value, quantised.order, [], []))
            group.readers.append((node, port))
            group.names.append(weight.name)
    makers = _makers(pairs)
    edits = []
    for group in groups.values():
        folded = _fold(group, makers, settled)
        if folded is None:
            edits.append(_gather(group))
            note = "act-order, its input brought into order by a Gather"
        else:
            made, biases = folded
            settled.update(made)
            edits += [_reorder(bias, group.order) for bias in biases]
            note = f"act-order, folded into the rows of {' and '.join(sorted(one.name for one in made.values()))}"
        for name in dict.fromkeys(group.names):
            settled[name] = replace(settled[name], notes=(*settled[name].notes, note))
    return [(weight, settled[weight.name]) for weight, _ in pairs], edits


@dataclass(frozen=True, eq=False)
class _Group:
    """Layers that read one tensor in one order."""

    value: ov.Output
    order: Array
    readers: list[Reader]
    names: list[str]


def _activations(weight: Weight) -> list[Reader] | None:
    """What feeds each layer of a weight, where all of them sum over the last dimension of one tensor."""
    if weight.other_uses:
        return None
    found = []
    for consumer in weight.consumers:
        node, port = consumer.node, 1 - consumer.port
        if consumer.role.kind not in (Kind.MATMUL, Kind.EXPERTS) or node.get_type_name() != "MatMul":
            return None
        attributes = node.get_attributes()
        last = not attributes["transpose_a"] if port == 0 else bool(attributes["transpose_b"])
        if not last:
            return None
        found.append((node, port))
    return found


def _makers(pairs: Sequence[tuple[Weight, QuantisedWeight]]) -> dict[ov.Node, Weight]:
    """The MatMuls of weights whose rows are the channels of what they compute, and which nothing else reads."""
    return {
        weight.consumers[0].node: weight
        for weight, quantised in pairs
        if len(weight.shape) == 2 and len(weight.consumers) == 1 and not weight.other_uses
        if weight.kind is Kind.MATMUL and weight.consumers[0].port == 1 and quantised.any_rows is not None
    }


def _fold(
    group: _Group, makers: Mapping[ov.Node, Weight], settled: Mapping[str, QuantisedWeight]
) -> tuple[dict[str, QuantisedWeight], list[Reader]] | None:
    """The weights that make a group's tensor, with their rows in its order, and the biases on the way; None where
    something else would see the change."""
    way = _Way(makers, group.order.size)
    if not way.follow(group.value, _DEPTH) or not way.is_closed(group.readers):
        return None
    made = {}
    for weight in way.weights:
        changed = with_rows_in_order(settled[weight.name], group.order)
        if changed is None:
            return None
        made[weight.name] = changed
    return made, way.biases


class _Way:
    """What lies between a tensor and the weights that made it, channel by channel."""

    def __init__(self, makers: Mapping[ov.Node, Weight], channels: int) -> None:
        self._makers, self._channels = makers, channels
        self._nodes: set[ov.Node] = set()
        self._values: list[ov.Output] = []
        self.weights: list[Weight] = []
        self.biases: list[Reader] = []

    def follow(self, value: ov.Output, depth: int) -> bool:
        """Whether a tensor comes from such weights alone."""
        node = value.get_node()
        sizes = dimensions(value)
        if not depth or node.get_output_size() != 1 or sizes is None or sizes[-1:] != [self._channels]:
            return False
        if node in self._nodes:
            return True
        self._nodes.add(node)
        self._values.append(value)
        if node in self._makers:
            self.weights.append(self._makers[node])
            return True
        kind = node.get_type_name()
        if kind in _EACH_BY_ITSELF:
            return self.follow(node.input_value(0), depth - 1)
        return kind in _TWO_BY_TWO and all(
            self._operand(node, port, depth - 1) for port in range(node.get_input_size())
        )

    def _operand(self, node: ov.Node, port: int, depth: int) -> bool:
        value = node.input_value(port)
        constant = constant_of(value)
        if constant is None:
            return self.follow(value, depth)
        if prod(constant.shape) == 1:
            return True
        self.biases.append((node, port))
        return prod(constant.shape) == self._channels and dimensions(value)[-1:] == [self._channels]  # type: ignore[index]

    def is_closed(self, layers: Sequence[Reader]) -> bool:
        """Whether nothing but the way itself and these layers reads anything on it."""
        return bool(self.weights) and all(
            reader in layers or reader[0] in self._nodes for value in self._values for reader in readers(value)
        )


def _gather(group: _Group) -> Edit:
    def edit() -> None:
        node, port = group.readers[0]
        indices = ops.constant(np.asarray(group.order, dtype=np.int32))
        gather = ops.gather(node.input_value(port), indices, ops.constant(np.int32(-1)))
        indices.set_friendly_name(f"{group.names[0]}/channel_order")
        gather.set_friendly_name(f"{group.names[0]}/input_in_channel_order")
        for each, at in group.readers:
            each.input(at).replace_source_output(gather.output(0))

    return edit


def _reorder(bias: Reader, order: Array) -> Edit:
    """Put the channels of a constant operand in order."""

    def edit() -> None:
        node, port = bias
        value = node.input_value(port)
        source = constant_of(value)
        assert source is not None
        gathered = ops.gather(value, ops.constant(np.asarray(order, dtype=np.int32)), ops.constant(np.int32(-1)))
        gathered.set_friendly_name(f"{source.get_friendly_name()}/in_channel_order")
        node.input(port).replace_source_output(gathered.output(0))

    return edit
