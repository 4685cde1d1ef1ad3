"""Cutting a piece out of a model and running it window by window.

    whole     … ─ A ─┬─ MatMul ─ B ─ MatMul ─ C …          piece     Parameter(A) ─┬─ MatMul ─ B ─ Result
                     └───────── Add ──────────                       Result(A + …) ┘

The graph is rewired for a moment: every edge that enters the piece is led to a Parameter (or to a Constant, for a
tensor that is the same in every window), a model is made of what lies between and copied, and the edges are put back.
Only the piece is ever compiled. Tensors of a half precision cross a border as f32, because that is what they are in a
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
    replaced: Mapping[str, ov.Output] = field(default_factory=dict)
    """What stands in for a weight's constant, by the weight's name."""


def cut_out(piece: Piece, store: Store) -> tuple[ov.Model, list[TensorKey]]:
    """A piece as a model of its own, and the tensors that its Parameters stand for. Its Results are the outputs."""
    graph = piece.graph
    moved: list[tuple[ov.Input, ov.Output]] = []
    parameters: list[ov.Node] = []
    keys: list[TensorKey] = []
    try:
        within = {graph.nodes[index].get_name() for index in graph.order[piece.begin : piece.end]}
        for key in (*graph.inputs_of(piece.begin, piece.end), *piece.forced):
            entry, parameter = _entrance(graph, key, store)
            if parameter is not None:
                parameters.append(parameter)
                keys.append(key)
            _lead(graph.nodes[key[0]].output(key[1]), entry, moved, within)
        for name, output in piece.replaced.items():
            _lead(graph.weight_nodes[name].output(0), output, moved, None)
        results = [_exit(graph, key) for key in piece.outputs]
        model = ov.Model(results, parameters).clone()
    finally:
        for port, source in reversed(moved):
            port.replace_source_output(source)
    return model, keys


def run_piece(
    piece: Piece, store: Store, windows: int, receive: Callable[[int, TensorKey, NDArray[Any]], None]
) -> None:
    """Compile a piece, run it on every window and hand each output to `receive(window, key, array)`.

    The array is the runtime's own memory: it has to be used or copied before `receive` returns.
    Raises WorkError where the model cannot run on the data.
    """
    model, keys = cut_out(piece, store)
    request = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    for window in range(windows):
        feeds = {port: _contiguous(store.get(key, window)) for port, key in enumerate(keys)}
        try:
            request.infer(feeds, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise WorkError(f"calibration: the model fails on window {window} of the data: {reason}") from error
        for port, key in enumerate(piece.outputs):
            receive(window, key, request.get_output_tensor(port).data)


def _lead(
    source: ov.Output, target: ov.Output, moved: list[tuple[ov.Input, ov.Output]], within: set[str] | None
) -> None:
    """Let the readers of `source` (those `within` a piece, or all) read `target`, and note how to undo it."""
    for port in list(source.get_target_inputs()):
        if within is None or port.get_node().get_name() in within:
            port.replace_source_output(target)
            moved.append((port, source))


def _entrance(graph: Graph, key: TensorKey, store: Store) -> tuple[ov.Output, ov.Node | None]:
    """What stands in for a tensor from outside: a Constant or a Parameter, in the tensor's own type."""
    output = graph.nodes[key[0]].output(key[1])
    own = output.get_element_type().to_string()
    value = store.value(key)
    if value is not None:
        node = ops.constant(value)
        return (ops.convert(node, own) if own in _HALF else node).output(0), None
    shape = store.shape(key)
    parameter = ops.parameter(
        ov.PartialShape(list(shape)) if shape is not None else output.get_partial_shape(),
        ov.Type.f32 if own in _HALF else output.get_element_type(),
    )
    return (ops.convert(parameter, own) if own in _HALF else parameter).output(0), parameter


def _exit(graph: Graph, key: TensorKey) -> ov.Node:
    output = graph.nodes[key[0]].output(key[1])
    if output.get_element_type().to_string() in _HALF:
        output = ops.convert(output, "f32").output(0)
    return ops.result(output)


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
