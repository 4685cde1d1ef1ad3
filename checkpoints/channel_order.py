"""Layers whose codes have their input channels in an order of their own: act-order's.

Columns sorted by group, `codes[:, p]`, want the layer's input in the same order, `x[…, p]`. In the order of preference:

    a Gather in front of the layer, which layers that read the same tensor in the same order share
    the weight requantised with its channels in order, where the layer does not read its input like that

    x ─▸ layer(W[:, p])      →      x ─ Gather(·, p, −1) ─▸ layer(W[:, p])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from openvino import opset13 as ops

from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight, requantised
from ov_weight_compression.patterns import Kind, Weight

__all__ = ["bring_into_order"]

Pairs = list[tuple[Weight, QuantisedWeight]]
Edit = Callable[[], None]
Reader = tuple[Any, int]


def bring_into_order(pairs: Sequence[tuple[Weight, QuantisedWeight]]) -> tuple[Pairs, list[Edit]]:
    """The weights as they are to be stored, each saying what becomes of its order, and the edits of the graph that
    bring their layers' inputs into that order. Nothing is edited yet."""
    settled: Pairs = []
    gathers: dict[Any, list[Reader]] = {}
    orders: dict[Any, Any] = {}
    names: dict[Any, str] = {}
    for weight, quantised in pairs:
        if quantised.order is None:
            settled.append((weight, quantised))
            continue
        readers = _activations(weight)
        if readers is None:
            settled.append((weight, requantised(quantised, "its input cannot be brought into the order of its codes")))
            continue
        for node, port in readers:
            value = node.input_value(port)
            key = value.get_node().get_name(), value.get_index(), quantised.order.tobytes()
            gathers.setdefault(key, []).append((node, port))
            orders[key] = quantised.order
            names.setdefault(key, weight.name)
        note = "act-order, its input brought into order by a Gather"
        settled.append((weight, replace(quantised, notes=(*quantised.notes, note))))
    return settled, [_gather(readers, orders[key], names[key]) for key, readers in gathers.items()]


def _activations(weight: Weight) -> list[Reader] | None:
    """What feeds each layer of a weight, where all of them sum over the last dimension of one tensor."""
    if weight.other_uses:
        return None
    found = []
    for consumer in weight.consumers:
        node, port = consumer.node, 1 - consumer.port
        if consumer.kind not in (Kind.MATMUL, Kind.EXPERTS) or node.get_type_name() != "MatMul":
            return None
        attributes = node.get_attributes()
        last = not attributes["transpose_a"] if port == 0 else bool(attributes["transpose_b"])
        if not last:
            return None
        found.append((node, port))
    return found


def _gather(readers: Sequence[Reader], order: Any, name: str) -> Edit:
    def edit() -> None:
        node, port = readers[0]
        indices = ops.constant(np.asarray(order, dtype=np.int32))
        gather = ops.gather(node.input_value(port), indices, ops.constant(np.int32(-1)))
        indices.set_friendly_name(f"{name}/channel_order")
        gather.set_friendly_name(f"{name}/input_in_channel_order")
        for each, at in readers:
            each.input(at).replace_source_output(gather.output(0))

    return edit
