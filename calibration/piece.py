"""Cutting a piece out of a model and running it window by window.

    whole     … ─ A ─┬─ MatMul ─ B ─ MatMul ─ C …          piece     Parameter(A) ─┬─ MatMul ─ B ─ Result
                     └───────── Add ──────────                       Result(A + …) ┘

In a copy of the graph, which shares all constants with it, every edge that enters the piece is led to a Parameter (or
to a Constant, for a shape that is the same in every window); what lies between there and the Results is the
piece, and only that is compiled. Tensors of a half precision cross a border as f32, because that is what they are in a
model that is executed in f32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ov_weight_compression.calibration.graph import Graph, TensorKey
from ov_weight_compression.calibration.store import Store
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason

__all__ = ["EXACT", "Piece", "cut_out", "run_piece"]

EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "PERFORMANCE_HINT": "LATENCY",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
"""How a model is compiled whose activations are measured: nothing rounded below f32."""

_HALF = ("f16", "bf16")


@dataclass(frozen=True, eq=False)
class Piece:
    """The operations `[begin, end)` of a graph's order, and how they are to be run."""

    graph: Graph
    begin: int
    end: int
    outputs: tuple[TensorKey, ...]
    """Tensors made in the piece that are wanted."""
    forced: tuple[TensorKey, ...] = ()
    """Tensors made in the piece that are taken from the store all the same."""
    replaced: Mapping[str, ov.Node] = field(default_factory=dict)
    """What stands in for a weight's constant, by the weight's name."""


def cut_out(piece: Piece, store: Store) -> tuple[ov.Model, list[TensorKey]]:
    """A piece as a model of its own, and the tensors that its Parameters stand for. Its Results are the outputs."""
    graph = piece.graph
    nodes = graph.model.clone().get_ordered_ops()
    within = {nodes[index].get_name() for index in graph.order[piece.begin : piece.end]}
    parameters: list[ov.Node] = []
    keys: list[TensorKey] = []
    for key in (*graph.inputs_of(piece.begin, piece.end), *piece.forced):
        tensor = nodes[key[0]].output(key[1])
        is_input = nodes[key[0]].get_type_name() == "Parameter"
        entry, parameter = _entrance(tensor, None if is_input else store.value(key), store.shape(key))
        if parameter is not None:
            parameters.append(parameter)
            keys.append(key)
        for port in list(tensor.get_target_inputs()):
            if port.get_node().get_name() in within:
                port.replace_source_output(entry)
    for name, constant in piece.replaced.items():
        _stand_in(nodes[graph.weight_nodes[name]], constant)
    results = [_exit(nodes[index].output(port)) for index, port in piece.outputs]
    return ov.Model(results, parameters), keys


def run_piece(
    piece: Piece,
    store: Store,
    windows: int,
    receive: Callable[[int, TensorKey, NDArray[Any]], None],
    tick: Callable[[int], None],
) -> None:
    """Compile a piece, run it on every window and hand each output to `receive(window, key, array)`.

    After each window `tick(1)` is called, for a progress bar.
    The array is the runtime's own memory: it has to be used or copied before `receive` returns.
    Raises WorkError where the model cannot run on the data.
    """
    model, keys = cut_out(piece, store)
    try:
        request = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    except RuntimeError as error:
        raise WorkError(f"calibration: the model cannot be compiled for the data: {openvino_reason(error)}") from error
    for window in range(windows):
        feeds = {port: _contiguous(store.get(key, window)) for port, key in enumerate(keys)}
        try:
            request.infer(feeds, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            reason = openvino_reason(error)
            raise WorkError(f"calibration: the model fails on window {window} of the data: {reason}") from error
        for port, key in enumerate(piece.outputs):
            receive(window, key, request.get_output_tensor(port).data)
        tick(1)


def _entrance(
    tensor: ov.Output, value: NDArray[Any] | None, shape: tuple[int, ...] | None
) -> tuple[ov.Output, ov.Node | None]:
    """What a tensor from outside comes in by: a Constant or a Parameter, brought to the tensor's own type."""
    own = tensor.get_element_type().to_string()
    if value is not None:
        node, parameter = ops.constant(value), None
    else:
        node = parameter = ops.parameter(
            # A dimension that is 0 in every window is left open: the CPU plugin divides by it when it compiles.
            ov.PartialShape([size or -1 for size in shape]) if shape is not None else tensor.get_partial_shape(),
            ov.Type.f32 if own in _HALF else tensor.get_element_type(),
        )
    return (ops.convert(node, own) if own in _HALF else node).output(0), parameter


def _stand_in(constant: ov.Node, other: ov.Node) -> None:
    """Let the readers of `constant` read `other`; its type may be another only where a Convert follows anyway."""
    own = constant.get_output_element_type(0).to_string()
    readers = list(constant.output(0).get_target_inputs())
    for port in readers:
        fits = other.get_output_element_type(0).to_string() == own or port.get_node().get_type_name() == "Convert"
        port.replace_source_output((other if fits else ops.convert(other, own)).output(0))


def _exit(tensor: ov.Output) -> ov.Node:
    half = tensor.get_element_type().to_string() in _HALF
    return ops.result(ops.convert(tensor, "f32") if half else tensor)


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
