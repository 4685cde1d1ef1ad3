"""Running a model piece by piece, window by window, in bounded memory.

The front is a place in `ActivationGraph.order`; the store holds what is made before it and read after it, for every
window: in memory while it lasts, then on disk. To advance, the next operations are cut out, compiled, run on every
window, and forgotten. A piece ends where its weights would exceed the limit, so that no more than one piece's weights
are compiled at a time.

    whole     … ─ A ─┬─ MatMul ─ B ─ MatMul ─ C …          piece     Parameter(A) ─┬─ MatMul ─ B ─ Result
                     └───────── Add ──────────                       Result(A + …) ┘

In a copy of the graph, one for each stream, which shares all constants with it, every edge that enters the piece is led
to a Parameter (or to a Constant, for a shape that is the same in every window); what lies between there and the Results
is the piece, and only that is compiled. Tensors of a half precision cross a border as f32, because that is what they
are in a model that is executed in f32.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import ActivationGraph, TensorKey
from ov_weight_compression.calibration.inference import Requests
from ov_weight_compression.calibration.products import computes_bf16
from ov_weight_compression.calibration.window_store import Store

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
"""How a model is compiled whose activations are measured: nothing rounded below f32."""

_HALF = ("f16", "bf16")


@dataclass(frozen=True, eq=False)
class ModelPiece:
    """The operations `[begin, end)` of a graph's order, and how they are to be run."""

    graph: ActivationGraph
    nodes: Sequence[ov.Node]
    """The graph's operations in a copy of which every operation is cut out once (see `cut_out`)."""
    begin: int
    end: int
    outputs: tuple[TensorKey, ...]
    """Tensors made in the piece that are wanted."""
    forced: tuple[TensorKey, ...] = ()
    """Tensors made in the piece that are taken from the store all the same."""
    replaced: Mapping[str, ov.Node] = field(default_factory=dict)
    """What stands in for a weight's constant, by the weight's name."""
    bf16: bool = False
    """Whether it may be computed in bf16 where the CPU is made for that."""
    threads: int = 0
    """That it is computed with; 0 for all that there are."""
    side_by_side: int = 1
    """Windows that are computed at once (see `calibration.inference`)."""
    shifted: tuple[TensorKey, ...] = ()
    """Tensors made in the piece to which something is added that comes from outside, by Parameters after the others."""


def cut_out(piece: ModelPiece, store: Store) -> tuple[ov.Model, list[TensorKey], Callable[[], None]]:
    """A piece as a model of its own, and the tensors that its Parameters stand for. Its Results are the outputs.

    Its operations are the copy's own: what enters them stays cut off. The third value is a function that gives them
    their own constants back, so that what stood in for those is not kept by the copy.
    """
    graph, nodes = piece.graph, piece.nodes
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
    undo = [put_in_place(nodes[graph.weight_nodes[name]], constant) for name, constant in piece.replaced.items()]

    def restore() -> None:
        for one in undo:
            one()

    if piece.shifted:  # the shapes are known only now that the Parameters have theirs
        ov.Model(
            [_exit(nodes[index].output(port)) for index, port in piece.shifted], parameters
        ).validate_nodes_and_infer_types()
    sums = {key: _shifted(nodes[key[0]].output(key[1]), within) for key in piece.shifted}
    parameters += [parameter for _, parameter in sums.values()]
    results = [_exit(sums[key][0] if key in sums else nodes[key[0]].output(key[1])) for key in piece.outputs]
    return ov.Model(results, parameters), keys, restore


def _shifted(tensor: ov.Output, within: Container[str]) -> tuple[ov.Output, ov.Node]:
    """A tensor plus a Parameter, which the piece's operations read in its place, and the Parameter."""
    readers = [port for port in tensor.get_target_inputs() if port.get_node().get_name() in within]
    shape = tensor.get_partial_shape()
    parameter = ops.parameter(shape if shape.is_static else ov.PartialShape([-1] * len(shape)), ov.Type.f32)
    added = ops.convert_like(parameter, tensor)
    if shape.is_dynamic:
        # A convolution takes an Add for its own, and then refuses what is not of its output's shape, as zeros may be.
        added = ops.broadcast(added, ops.shape_of(tensor), broadcast_spec="BIDIRECTIONAL")
    total = ops.add(tensor, added).output(0)
    for port in readers:
        port.replace_source_output(total)
    return total, parameter


def run_piece(
    piece: ModelPiece,
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

    def receive_and_tick(window: int, outputs: Mapping[TensorKey, NDArray[Any]]) -> None:
        for key, array in outputs.items():
            receive(window, key, array)
        tick(1)

    CompiledPiece(piece, store).run(store, windows, receive_and_tick)


def compiled_exactly(model: ov.Model, *, bf16: bool = False, threads: int = 0, side_by_side: int = 1) -> Requests:
    """What runs a model on the CPU with nothing rounded below f32, or below bf16 if that is said and the CPU is made
    for it; `threads` and `side_by_side` as in `Requests`. Raises WorkError where it cannot be compiled."""
    precision = {"INFERENCE_PRECISION_HINT": "bf16"} if bf16 and computes_bf16() else {}
    return Requests(model, {**EXACT, "EXECUTION_MODE_HINT": "ACCURACY", **precision}, threads, side_by_side)


class CompiledPiece:
    """A piece that can be run on any window of its stream, or of one that has left it; `store` tells the shapes."""

    def __init__(self, piece: ModelPiece, store: Store) -> None:
        model, self._keys, restore = cut_out(piece, store)
        self._outputs, self._shifted = piece.outputs, piece.shifted
        self._requests = compiled_exactly(
            model, bf16=piece.bf16, threads=piece.threads, side_by_side=piece.side_by_side
        )
        restore()
        piece.graph.give_back(piece.begin, piece.end)
        self._shapes = [parameter.get_partial_shape() for parameter in model.get_parameters()[len(self._keys) :]]

    def run(
        self,
        store: Store,
        windows: int,
        receive: Callable[[int, Mapping[TensorKey, NDArray[Any]]], None],
        shifts: Mapping[TensorKey, Sequence[NDArray[Any]]] | None = None,
    ) -> None:
        """Run the first `windows` and call `receive(window, outputs)` for each in turn. The outputs are in the
        runtime's own memory: to be used or copied before it returns.

        `shifts` are what is added to the tensors that the piece shifts, window by window; nothing where none is given.
        Raises WorkError where the model cannot run on the data.
        """

        def received(window: int, request: ov.InferRequest) -> None:
            receive(window, {key: request.get_output_tensor(port).data for port, key in enumerate(self._outputs)})

        try:
            for window in range(windows):
                arrays = [_contiguous(store.get(key, window)) for key in self._keys]
                for key, shape in zip(self._shifted, self._shapes, strict=True):
                    arrays.append(shifts[key][window] if shifts and key in shifts else _nothing(shape))
                self._requests.start(arrays, partial(received, window), f"window {window} of the data")
            self._requests.finish()
        finally:
            self._requests.stop()


def _nothing(shape: ov.PartialShape) -> NDArray[Any]:
    """Zeros to be added: of a tensor's shape where that is fixed, else one that is broadcast."""
    return np.zeros([dim.get_length() if dim.is_static else 1 for dim in shape], np.float32)


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


def put_in_place(constant: ov.Node, other: ov.Node) -> Callable[[], None]:
    """Let the readers of `constant` read `other`; its type may be another only where a Convert follows anyway. Returns
    what gives them back what they read before."""
    own = constant.get_output_element_type(0).to_string()
    readers = list(constant.output(0).get_target_inputs())
    for port in readers:
        fits = other.get_output_element_type(0).to_string() == own or port.get_node().get_type_name() == "Convert"
        port.replace_source_output((other if fits else ops.convert(other, own)).output(0))

    def restore() -> None:
        for port in readers:
            port.replace_source_output(constant.output(0))

    return restore


def _exit(tensor: ov.Output) -> ov.Node:
    half = tensor.get_element_type().to_string() in _HALF
    return ops.result(ops.convert(tensor, "f32") if half else tensor)


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


Receive = Callable[[int, TensorKey, NDArray[Any]], None]


class Stream:
    """A prefix of the model that has run, with some of its weights replaced."""

    def __init__(
        self,
        graph: ActivationGraph,
        store: Store,
        windows: int,
        weight_limit: int,
        tick: Callable[[int], None] = lambda steps: None,
        *,
        bf16: bool = False,
        threads: int = 0,
        side_by_side: int = 1,
    ) -> None:
        """With `bf16` layers may be computed in it; what comes before the first one may not, for positions are larger
        there than it can tell apart. `threads` and `side_by_side` as in `ModelPiece`."""
        self._graph = graph
        self._bf16 = bf16
        self._threads, self._side_by_side = threads, side_by_side
        self._nodes: Sequence[ov.Node] = ()
        self._tick = tick
        self._limit = weight_limit
        self.store = store
        self.windows = windows
        self._replaced: dict[str, ov.Node] = {}
        self.changed = False
        """Whether any weight has ever been replaced."""

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """From here on the constant of weight `name` is `values`, in the constant's own shape, f32 or f16."""
        constant = self._graph.nodes[self._graph.weight_nodes[name]]
        if tuple(values.shape) != tuple(constant.get_output_shape(0)):
            raise ValueError(f"weight '{name}': {values.shape} in place of {constant.get_output_shape(0)}")
        self._replaced[name] = ops.constant(np.ascontiguousarray(values))
        self.changed = True

    def advance(
        self,
        begin: int,
        end: int,
        watched: Mapping[TensorKey, Receive | None],
        forced: Sequence[TensorKey] = (),
    ) -> None:
        """Run the operations `[begin, end)` of the order on every window.

        What later operations read is kept in the store. The `watched` tensors are handed to their function, or are
        kept as well where it is None. The `forced` ones are not computed but taken from the store.
        """
        self._nodes = self._nodes or self._graph.model.clone().get_ordered_ops()
        middle = min(max(self._graph.level_ends[0], begin), end) if self._bf16 and self._graph.level_ends else begin
        for first, last in (
            *split(self._graph, begin, middle, self._limit),
            *split(self._graph, middle, end, self._limit),
        ):
            made = {
                (index, port)
                for index in self._graph.order[first:last]
                for port in range(self._graph.nodes[index].get_output_size())
            }
            kept = set(self._graph.outputs_of(first, last)) - set(forced)
            kept |= {key for key, receive in watched.items() if receive is None} & made

            def take(window: int, key: TensorKey, array: NDArray[Any], kept: set[TensorKey] = kept) -> None:
                if key in kept:
                    self.store.put(key, window, array)
                receive = watched.get(key)
                if receive is not None:
                    receive(window, key, array)

            piece = ModelPiece(
                self._graph,
                self._nodes,
                first,
                last,
                outputs=tuple(sorted(kept | (made & set(watched)))),
                forced=tuple(key for key in forced if key in made),
                replaced=self._in_use(first, last),
                bf16=self._bf16 and first >= middle,
                threads=self._threads,
                side_by_side=self._side_by_side,
            )
            run_piece(piece, self.store, self.windows, take, self._tick)
            self._graph.give_back(first, last)
            self.forget(last, watched, since=begin)

    def forget(self, front: int, kept: Container[TensorKey], since: int | None = None) -> None:
        """Drop tensors from before the front that nothing at or after it reads, and replaced weights likewise.

        Only tensors made at place `since` or later, where it is given: another stream may still stand there.
        """
        for key in self.store:
            place = self._graph.place.get(key[0], -1)
            done = place < front and self._graph.last_use.get(key, -1) < front and key not in kept
            if done and (since is None or place >= since):
                self.store.drop(key)
        ahead = {name for place, names in self._graph.layers.items() if place >= front for name in names}
        self._replaced = {name: node for name, node in self._replaced.items() if name in ahead}

    def _in_use(self, begin: int, end: int) -> dict[str, ov.Node]:
        """What stands for weights that operations in `[begin, end)` read, where it is not the model's constant."""
        names = {name for place in range(begin, end) for name in self._graph.layers.get(place, ())}
        given = {name for place in range(begin, end) for name in self._graph.given_at.get(place, ())}
        made = {name: self._graph.given[name]() for name in sorted(given - self._replaced.keys())}
        return {**made, **{name: node for name, node in self._replaced.items() if name in names}}


def feed(graph: ActivationGraph, store: Store, inputs: Iterable[Mapping[str, NDArray[Any]]]) -> int:
    """Put the model inputs of every window into the store; returns the number of windows."""
    count = 0
    for window in inputs:
        for name, array in window.items():
            if name in graph.parameters:
                store.put(graph.parameters[name], count, array)
        count += 1
    return count


def split(graph: ActivationGraph, begin: int, end: int, limit: int) -> list[tuple[int, int]]:
    """Cut `[begin, end)` so that the constants of no piece exceed `limit` bytes (one operation's always fit)."""
    pieces: list[tuple[int, int]] = []
    first = begin
    held: dict[int, int] = {}
    for place in range(begin, end):
        wanted = dict(graph.loads.get(place, ()))
        if held and wanted and sum({**held, **wanted}.values()) > limit:
            pieces.append((first, place))
            first, held = place, {}
        held.update(wanted)
    if first < end:
        pieces.append((first, end))
    return pieces
