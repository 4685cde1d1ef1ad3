"""What rounding a weight adds to the output of a layer that reads it: a layer is linear in its weight.

    y = f(x, W)        d = f(x, Ŵ) − f(x, W) = f(x, Ŵ − W)

Of a plain MatMul, and of a table whose rows are picked, that is computed from a few rows of the weight at a time; of
everything else by the operation itself, compiled for the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ov_weight_compression.calibration.activation_graph import ActivationGraph, LayerUse
from ov_weight_compression.calibration.runner import compiled_exactly, put_in_place
from ov_weight_compression.calibration.window_store import Store
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.patterns import Kind


@dataclass(frozen=True, eq=False)
class Rounding:
    """How one weight is rounded, now that its input is known."""

    energy: Float32 | None
    """[in], or [experts, in]: what an error in each of the weight's columns weighs; None for all alike."""
    values: Callable[[Float32, int], Float32]
    """`(rows [n, in], number of their expert) → rows as rounded`."""


_PIECE_ELEMENTS = 1 << 22
_Piece = tuple[int, Float32]
"""The first of some rows, and what rounding adds to them."""


def shift_of(
    graph: ActivationGraph,
    nodes: Sequence[ov.Node],
    use: LayerUse,
    source: WeightSource,
    rounding: Rounding,
    store: Store,
    windows: int,
    blank: Callable[[tuple[int, ...]], Float32],
) -> list[Array]:
    """What rounding adds to the layer's output, for each of the first `windows` windows.

    Args:
        graph: that the layer is in.
        nodes: the operations of a copy of the graph's model that nothing else is cut out of.
        use: the layer.
        source: the weight's values.
        rounding: how the weight is rounded.
        store: where the layer's inputs are.
        windows: how many.
        blank: makes the arrays of zeros that are filled: those of a head are large.
    """
    experts = 1 if rounding.energy is None or rounding.energy.ndim == 1 else len(rounding.energy)
    block = source.layout.rows // experts if experts > 1 else 0
    pieces = (
        (slab.start, rounding.values(np.asarray(rows, np.float32), slab.start // block if block else 0) - rows)
        for slab, rows in source.pieces(_PIECE_ELEMENTS, block)
    )
    role = use.consumer.role
    if role is not None and not role.batch:
        meets = role.activation
        if meets is not None and len(meets.reduction) == len(meets.output) == 1 and len(use.weight.channel_axes) == 1:
            key = graph.sources[use.layer][meets.port]
            return _products(
                pieces,
                source,
                [store.get(key, window) for window in range(windows)],
                meets.reduction[0],
                meets.output[0],
                blank,
            )
        if meets is None and role.kind is Kind.GATHER and _picks_rows(graph, use):
            key = graph.sources[use.layer][1]
            return _picked(pieces, source, [store.get(key, window) for window in range(windows)], blank)
    whole = np.empty((source.layout.rows, source.layout.columns), np.float32)
    for start, difference in pieces:
        whole[start : start + len(difference)] = difference
    return _computed(graph, nodes, use, source.layout.from_matrix(whole), store, windows)


def _picks_rows(graph: ActivationGraph, use: LayerUse) -> bool:
    """Whether a Gather picks along the first axis of a table of two."""
    axis = graph.nodes[use.layer].input_value(2).get_node()
    plain = graph.nodes[use.layer].get_attributes().get("batch_dims", 0) == 0
    return bool(
        plain
        and len(use.weight.shape) == 2
        and use.weight.reduction_axes == (1,)
        and axis.get_type_name() == "Constant"
        and int(axis.data.reshape(-1)[0]) == 0
        and not graph.constant[graph.sources[use.layer][1][0]]
    )


def _products(
    pieces: Iterable[_Piece],
    source: WeightSource,
    inputs: list[Array],
    reduction: int,
    output: int,
    blank: Callable[[tuple[int, ...]], Float32],
) -> list[Array]:
    moved = [np.moveaxis(np.asarray(x, np.float32), reduction, -1) for x in inputs]
    found = [blank((*x.shape[:-1], source.layout.rows)) for x in moved]
    for start, difference in pieces:
        for x, shift in zip(moved, found, strict=True):
            shift[..., start : start + len(difference)] = x @ difference.T
    return [np.ascontiguousarray(np.moveaxis(shift, -1, output)) for shift in found]


def _picked(
    pieces: Iterable[_Piece],
    source: WeightSource,
    indices: list[Array],
    blank: Callable[[tuple[int, ...]], Float32],
) -> list[Array]:
    rows = source.layout.rows
    wanted = [np.where(one < 0, one + rows, one).astype(np.int64) for one in indices]
    found = [blank((*one.shape, source.layout.columns)) for one in wanted]
    for start, difference in pieces:
        for one, shift in zip(wanted, found, strict=True):
            here = (one >= start) & (one < start + len(difference))
            shift[here] = difference[one[here] - start]
    return found


def _computed(
    graph: ActivationGraph, nodes: Sequence[ov.Node], use: LayerUse, difference: Array, store: Store, windows: int
) -> list[Array]:
    """By the operation, with the difference in place of the weight."""
    layer = nodes[use.layer]
    keys = [(port, key) for port, key in enumerate(graph.sources[use.layer]) if not graph.constant[key[0]]]
    parameters = []
    for port, key in keys:
        shape = store.shape(key)
        own = graph.nodes[key[0]].output(key[1])
        half = own.get_element_type().to_string() in ("f16", "bf16")
        parameter = ops.parameter(
            own.get_partial_shape() if shape is None else ov.PartialShape([size or -1 for size in shape]),
            ov.Type.f32 if half else own.get_element_type(),
        )
        parameters.append(parameter)
        entry = ops.convert(parameter, own.get_element_type().to_string()) if half else parameter
        layer.input(port).replace_source_output(entry.output(0))
    restore = put_in_place(nodes[graph.weight_nodes[use.weight.name]], ops.constant(difference))
    requests = compiled_exactly(ov.Model([ops.result(ops.convert(layer, "f32"))], parameters))
    restore()
    found: list[Array] = []

    def receive(request: ov.InferRequest) -> None:
        found.append(np.array(request.get_output_tensor(0).data))

    for window in range(windows):
        requests.start([np.ascontiguousarray(store.get(key, window)) for _, key in keys], receive)
    requests.finish()
    return found
