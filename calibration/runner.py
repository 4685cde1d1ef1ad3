"""Running a model piece by piece, window by window, in bounded memory.

The front is a place in `ActivationGraph.order`; the store holds what is made before it and read after it, for every
window. To advance, the next operations are cut out, compiled, run on every window, and forgotten. A piece ends where
its weights would exceed the limit, so that no more than one piece's weights are compiled at a time.

    whole     … ─ A ─┬─ MatMul ─ B ─ MatMul ─ C …          piece     Parameter(A) ─┬─ MatMul ─ B ─ Result
                     └───────── Add ──────────                       Result(A + …) ┘

In a copy of the graph, one for each stream, which shares all constants with it, every edge that enters the piece is led
to a Parameter (or to a Constant, for a shape that is the same in every window); what lies between there and the Results
is the piece, and only that is compiled. Tensors of a half precision cross a border as f32, because that is what they
are in a model that is executed in f32.

**Requests** run a compiled model on one input after another, while their caller is at work on what the ones before
gave.

    start(a) ─┐     start(b) ─┐     what a gave is received before c is started
     stream 0 └─ a ────────────────┐  ─ c ─ …
     stream 1                 └─ b ──────────┐

Beside another model that runs, or beside numpy, two inputs side by side, each on half of the processors, are done
sooner: the halves of one wait for each other at every operation, and both for whatever the caller does between two
inputs. Alone they are not: activations take twice the memory, and large weights are prepared by one thread.

**Tensors of every window** between the piece that makes them and the last one that reads them are in memory while it
lasts, then on disk: in a temporary directory (`TMPDIR` decides where) that is removed when the pool is closed, whatever
happens. Memory that a tensor no longer needs goes to the next one of its size, as blocks of a model have tensors of the
same few sizes: having new pages mapped takes several times as long as copying a tensor into them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import ActivationGraph, TensorKey
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason
from ov_weight_compression.ir_utils.publish import TemporaryFolder
from ov_weight_compression.ir_utils.worker_pool import default_threads

_TINY = 128
"""Bytes of a tensor that never goes to disk."""
_SMALL = 16
"""Integer vectors of at most so many elements are compared between windows: shapes that are always the same."""


@dataclass(eq=False)
class Pool:
    """What several stores share: a memory limit in bytes, and the directory for what does not fit. Several threads may
    use it at once, but no two of them one tensor."""

    limit: int
    used: int = 0
    _idle: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)
    _idle_bytes: int = 0
    _directory: TemporaryFolder | None = None
    _files: int = 0
    _lock: Lock = field(default_factory=Lock)

    def take(self, size: int) -> NDArray[np.uint8] | None:
        """Memory for so many bytes; None where that would be too much."""
        with self._lock:
            if self._idle.get(size):
                found = self._idle[size].pop()
                self._idle_bytes -= size
            elif self.used + size > self.limit and size > _TINY:
                return None
            else:
                for other in [one for one, arrays in self._idle.items() for _ in arrays]:
                    if self.used + self._idle_bytes + size > self.limit:
                        self._idle[other].pop()
                        self._idle_bytes -= other
                found = np.empty(size, np.uint8)
            self.used += size
            return found

    def give(self, memory: NDArray[np.uint8]) -> None:
        """Memory that nothing reads any more."""
        with self._lock:
            self.used -= memory.size
            if self._idle_bytes + memory.size <= self.limit // 2:
                self._idle.setdefault(memory.size, []).append(memory)
                self._idle_bytes += memory.size

    def new_file(self) -> Path:
        """A path in the temporary directory that nothing uses yet."""
        with self._lock:
            if self._directory is None:
                self._directory = TemporaryFolder()
            self._files += 1
            return self._directory.path / f"{self._files}.bin"

    def close(self) -> None:
        """Remove the directory."""
        if self._directory is not None:
            self._directory.discard()
            self._directory = None


@dataclass
class Kept:
    """One tensor: an array for each window, or where in the file it lies."""

    shape: tuple[int, ...] | None
    """That of all windows so far; None where they differ."""
    value: NDArray[Any] | None
    """The value of all windows so far, of a short vector of integers; None where they differ."""
    arrays: dict[int, NDArray[Any]] = field(default_factory=dict)
    memory: list[NDArray[np.uint8]] = field(default_factory=list)
    """What the arrays lie in."""
    places: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict)
    path: Path | None = None
    size: int = 0


@dataclass(eq=False)
class Store:
    """The tensors of one stream. A stream that has left another one reads from it what it has not made itself."""

    pool: Pool
    parent: Store | None = None
    entries: dict[TensorKey, Kept] = field(default_factory=dict)
    """The tensors that this store holds itself; another thread may put one there meanwhile."""

    def put(self, key: TensorKey, window: int, array: NDArray[Any]) -> None:
        """Keep a copy of a window's tensor. The windows of a tensor are put once each, in any order."""
        entry = self.entries.get(key)
        if entry is None:
            small = array.size <= _SMALL and array.ndim <= 1 and array.dtype.kind in "iu"
            entry = self.entries[key] = Kept(array.shape, np.array(array) if small else None)
        if array.shape != entry.shape:
            entry.shape = entry.value = None
        if entry.value is not None and not np.array_equal(array, entry.value):
            entry.value = None
        memory = self.pool.take(array.nbytes)
        if memory is not None:
            entry.memory.append(memory)
            entry.arrays[window] = memory.view(array.dtype).reshape(array.shape)
            np.copyto(entry.arrays[window], array)
            return
        if entry.path is None:
            entry.path = self.pool.new_file()
        with entry.path.open("ab") as file:
            file.write(np.ascontiguousarray(array).data)
        entry.places[window] = (entry.size, array.shape, array.dtype)
        entry.size += array.nbytes

    def get(self, key: TensorKey, window: int) -> NDArray[Any]:
        """A window's tensor; not to be written to, nor read once the tensor has been dropped."""
        entry = self.find(key)
        if window in entry.arrays:
            return entry.arrays[window]
        offset, shape, dtype = entry.places[window]
        assert entry.path is not None
        count = int(np.prod(shape, dtype=np.int64))
        return np.fromfile(entry.path, dtype, count, offset=offset).reshape(shape)

    def drop(self, key: TensorKey) -> None:
        """Forget a tensor of this store; nothing happens where it has none."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            for memory in entry.memory:
                self.pool.give(memory)
            if entry.path is not None:
                entry.path.unlink(missing_ok=True)

    def find(self, key: TensorKey) -> Kept:
        """The tensor, of this store or of the one whose stream it has left."""
        if key in self.entries or self.parent is None:
            return self.entries[key]
        return self.parent.find(key)


EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
"""How a model is compiled whose activations are measured: nothing rounded below f32."""


_core = cache(ov.Core)


@cache
def computes_bf16() -> bool:
    """Whether this CPU multiplies in bf16 by itself."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Requests:
    """Requests of one model, compiled for the CPU. Not for several threads at once."""

    def __init__(self, model: ov.Model, *, bf16: bool = False, threads: int = 0, side_by_side: int = 1) -> None:
        """Compile a model with nothing rounded below f32, or below bf16 if that is said and the CPU is made for it: to
        compute in so many `threads` in all, 0 for all that there are, so many inputs `side_by_side` at most.

        Raises WorkError where it cannot be compiled.
        """
        streams = min(side_by_side, threads or default_threads())
        how: dict[str, Any] = {**EXACT, "EXECUTION_MODE_HINT": "ACCURACY", "PERFORMANCE_HINT": "LATENCY"}
        if bf16 and computes_bf16():
            how["INFERENCE_PRECISION_HINT"] = "bf16"
        # A thread that is tied to a processor waits for it while numpy has it and another one is idle.
        how |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams, "ENABLE_CPU_PINNING": False}
        try:
            compiled = _core().compile_model(model, "CPU", how)
        except RuntimeError as error:
            reason = openvino_reason(error)
            raise WorkError(f"calibration: the model cannot be compiled for the data: {reason}") from error
        self._idle = [compiled.create_infer_request() for _ in range(streams)]
        self._running: deque[tuple[Any, Sequence[NDArray[Any]], str, ov.InferRequest]] = deque()

    def start(self, job: Any, arrays: Sequence[NDArray[Any]], name: str = "the data") -> None:
        """Run the model on these inputs, contiguous and not to be changed until the `job` has been received;
        `received(1)` makes room for it.

        Raises WorkError where the model cannot run on them, by their `name`.
        """
        request = self._idle.pop()
        self._running.append((job, arrays, name, request))
        try:
            request.start_async(dict(enumerate(arrays)), share_inputs=True)
        except RuntimeError as error:
            raise _failure(name, error) from error

    def received(self, room: int | None = None) -> Iterator[tuple[Any, list[NDArray[Any]]]]:
        """The jobs that ran and their outputs, in the order in which they were started, until there is `room` for so
        many; by default until none runs. The outputs are the runtime's memory, to be used or copied before the next are
        asked for.

        Raises WorkError where the model cannot run on an input, by that one's name.
        """
        while self._running and (room is None or len(self._idle) < room):
            running = self._running.popleft()  # with its inputs
            job, _, name, request = running
            try:
                request.wait()
            except RuntimeError as error:
                self._idle.append(request)
                raise _failure(name, error) from error
            try:
                yield job, [tensor.data for tensor in request.output_tensors]
            finally:
                self._idle.append(request)

    def stop(self) -> None:
        """Wait for what is still running, which nobody receives, so that its inputs can go."""
        while self._running:
            *_, request = self._running.popleft()
            with suppress(RuntimeError):
                request.wait()
            self._idle.append(request)


def _failure(name: str, error: RuntimeError) -> WorkError:
    return WorkError(f"calibration: the model fails on {name}: {openvino_reason(error)}")


_HALF = ("f16", "bf16")


class CompiledPiece:
    """The operations `[begin, end)` of a graph's order, to be run on any window of a stream or of one that left it."""

    def __init__(
        self,
        graph: ActivationGraph,
        nodes: Sequence[ov.Node],
        begin: int,
        end: int,
        store: Store,
        outputs: Sequence[TensorKey],
        *,
        forced: Sequence[TensorKey] = (),
        replaced: Mapping[str, ov.Node] | None = None,
        shifted: Sequence[TensorKey] = (),
        bf16: bool = False,
        threads: int = 0,
        side_by_side: int = 1,
    ) -> None:
        """Cut the piece out and compile it.

        Args:
            nodes: the graph's operations in a copy that nothing else is cut out of meanwhile; it is put together again.
            store: tells the shapes of what enters the piece.
            outputs: tensors made in the piece that are wanted.
            forced: tensors made in the piece that are taken from the store all the same.
            replaced: what stands in for a weight's constant, by the weight's name.
            shifted: tensors made in the piece to which something is added that comes from outside.
            bf16, threads, side_by_side: as in `Requests`.
        """
        within = {nodes[index].get_name() for index in graph.order[begin:end]}
        read = [key for index in graph.order[begin:end] for key in graph.sources[index] if not graph.constant[key[0]]]
        entering = [*dict.fromkeys(key for key in read if graph.place.get(key[0], -1) < begin), *forced]
        entrances = {key: _entrance(nodes[key[0]].output(key[1]), store.find(key)) for key in entering}
        self._keys = [key for key, (_, parameter) in entrances.items() if parameter is not None]
        parameters = [parameter for _, parameter in entrances.values() if parameter is not None]
        cut: list[tuple[Any, ov.Output]] = []
        """The edges that lead elsewhere meanwhile, and where they come from."""
        try:
            for key, (entry, _) in entrances.items():
                tensor = nodes[key[0]].output(key[1])
                for port in tensor.get_target_inputs():
                    if port.get_node().get_name() in within:
                        cut.append((port, tensor))
                        port.replace_source_output(entry)
            for name, other in (replaced or {}).items():
                tensor = nodes[graph.weight_nodes[name]].output(0)
                own = tensor.get_element_type()
                for port in tensor.get_target_inputs():
                    # The type may be another only where a Convert follows anyway.
                    fits = other.get_output_element_type(0) == own or port.get_node().get_type_name() == "Convert"
                    cut.append((port, tensor))
                    port.replace_source_output((other if fits else ops.convert(other, own.to_string())).output(0))
            ends = {key: nodes[key[0]].output(key[1]) for key in dict.fromkeys((*outputs, *shifted))}
            if shifted:  # the shapes are known only now that the Parameters have theirs
                ov.Model([ops.result(ends[key]) for key in shifted], parameters).validate_nodes_and_infer_types()
            self._shifted: dict[TensorKey, ov.PartialShape] = {}
            for key in shifted:
                readers = [port for port in ends[key].get_target_inputs() if port.get_node().get_name() in within]
                cut += [(port, ends[key]) for port in readers]
                ends[key], parameter = _shifted(ends[key], readers)
                self._shifted[key] = parameter.get_partial_shape()
                parameters.append(parameter)
            halves = {key: ends[key].get_element_type().to_string() in _HALF for key in outputs}
            results = [ops.result(ops.convert(ends[key], "f32") if halves[key] else ends[key]) for key in outputs]
            model = ov.Model(results, parameters)
            self._requests = Requests(model, bf16=bf16, threads=threads, side_by_side=side_by_side)
        finally:
            for port, tensor in reversed(cut):
                port.replace_source_output(tensor)
        graph.give_back(begin, end)
        self._outputs = outputs

    def run(
        self, store: Store, windows: int, shifts: Mapping[TensorKey, Sequence[NDArray[Any]]] | None = None
    ) -> Iterator[tuple[int, dict[TensorKey, NDArray[Any]]]]:
        """Run the first `windows`; each in turn with its outputs, which are the runtime's own memory: to be used or
        copied before the next is asked for.

        `shifts` are what is added to the tensors that the piece shifts, window by window; nothing where none is given.
        Raises WorkError where the model cannot run on the data.
        """
        try:
            for window in range(windows):
                arrays = [np.asarray(store.get(key, window), order="C") for key in self._keys]
                for key, shape in self._shifted.items():
                    zeros = [dim.get_length() if dim.is_static else 1 for dim in shape]  # what is open is broadcast
                    arrays.append(shifts[key][window] if shifts and key in shifts else np.zeros(zeros, np.float32))
                for done, found in self._requests.received(room=1):
                    yield done, dict(zip(self._outputs, found, strict=True))
                self._requests.start(window, arrays, f"window {window} of the data")
            for done, found in self._requests.received():
                yield done, dict(zip(self._outputs, found, strict=True))
        finally:
            self._requests.stop()


def _entrance(tensor: ov.Output, kept: Kept) -> tuple[ov.Output, ov.Node | None]:
    """What a tensor from outside comes in by, brought to the tensor's own type: a Parameter, or a Constant for a value
    that is the same in all windows and no input of the model."""
    own, shape = tensor.get_element_type().to_string(), kept.shape
    if kept.value is not None and tensor.get_node().get_type_name() != "Parameter":
        node, parameter = ops.constant(kept.value), None
    else:
        node = parameter = ops.parameter(
            # A dimension that is 0 in every window is left open: the CPU plugin divides by it when it compiles.
            ov.PartialShape([size or -1 for size in shape]) if shape is not None else tensor.get_partial_shape(),
            ov.Type.f32 if own in _HALF else tensor.get_element_type(),
        )
    return (ops.convert(node, own) if own in _HALF else node).output(0), parameter


def _shifted(tensor: ov.Output, readers: Sequence[Any]) -> tuple[ov.Output, ov.Node]:
    """A tensor plus a Parameter, which its readers get in its place, and the Parameter."""
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


Receive = Callable[[int, TensorKey, NDArray[Any]], None]


@dataclass(eq=False)
class Stream:
    """A prefix of the model that has run, with some of its weights replaced."""

    graph: ActivationGraph
    store: Store
    windows: int
    limit: int
    """Bytes of the weights of one piece."""
    tick: Callable[[int], None] = lambda steps: None
    """Called with 1 after each window of a piece, for a progress bar."""
    bf16: bool = False
    """Layers may be computed in it; what comes before the first one may not, for positions are larger there than it can
    tell apart."""
    threads: int = 0
    side_by_side: int = 1
    """As in `Requests`."""
    changed: bool = False
    """Whether any weight has ever been replaced."""
    _nodes: Sequence[ov.Node] = ()
    _replaced: dict[str, ov.Node] = field(default_factory=dict)

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """From here on the constant of weight `name` is `values`, in the constant's own shape, f32 or f16."""
        constant = self.graph.nodes[self.graph.weight_nodes[name]]
        if tuple(values.shape) != tuple(constant.get_output_shape(0)):
            raise ValueError(f"weight '{name}': {values.shape} in place of {constant.get_output_shape(0)}")
        self._replaced[name] = ops.constant(np.ascontiguousarray(values))
        self.changed = True

    def advance(
        self, begin: int, end: int, watched: Mapping[TensorKey, Receive | None], forced: Sequence[TensorKey] = ()
    ) -> None:
        """Run the operations `[begin, end)` of the order on every window.

        What later operations read is kept in the store. The `watched` tensors are handed to their function, or are
        kept as well where it is None. The `forced` ones are not computed but taken from the store.
        """
        self._nodes = self._nodes or self.graph.model.clone().get_ordered_ops()
        ends = self.graph.level_ends
        middle = min(max(ends[0], begin), end) if self.bf16 and ends else begin
        before = split(self.graph, begin, middle, self.limit)
        for first, last in (*before, *split(self.graph, middle, end, self.limit)):
            self._run(first, last, watched, forced, bf16=self.bf16 and first >= middle)
            self.graph.give_back(first, last)
            self.forget(last, watched, since=begin)

    def _run(
        self,
        begin: int,
        end: int,
        watched: Mapping[TensorKey, Receive | None],
        forced: Sequence[TensorKey],
        bf16: bool,
    ) -> None:
        """The operations of one piece; see `advance`. What it took is gone with this function: the next piece, compiled
        beside it, would double the memory."""
        graph = self.graph
        made = {
            (index, port) for index in graph.order[begin:end] for port in range(graph.nodes[index].get_output_size())
        }
        kept = set(graph.outputs_of(begin, end)) - set(forced)
        kept |= {key for key, receive in watched.items() if receive is None} & made
        # What stands for weights that are read here, where it is not the model's constant.
        read, given = (
            {name for place in range(begin, end) for name in at.get(place, ())} for at in (graph.layers, graph.given_at)
        )
        replaced = {name: graph.given[name]() for name in sorted(given - self._replaced.keys())}
        piece = CompiledPiece(
            graph,
            self._nodes,
            begin,
            end,
            self.store,
            sorted(kept | (made & watched.keys())),
            forced=[key for key in forced if key in made],
            replaced=replaced | {name: node for name, node in self._replaced.items() if name in read},
            bf16=bf16,
            threads=self.threads,
            side_by_side=self.side_by_side,
        )
        for window, outputs in piece.run(self.store, self.windows):
            for key, array in outputs.items():
                if key in kept:
                    self.store.put(key, window, array)
                if receive := watched.get(key):
                    receive(window, key, array)
            self.tick(1)

    def forget(self, front: int, kept: Container[TensorKey], since: int | None = None) -> None:
        """Drop tensors from before the front that nothing at or after it reads, and replaced weights likewise.

        Only tensors made at place `since` or later, where it is given: another stream may still stand there.
        """
        for key in list(self.store.entries):
            place = self.graph.place.get(key[0], -1)
            done = place < front and self.graph.last_use.get(key, -1) < front and key not in kept
            if done and (since is None or place >= since):
                self.store.drop(key)
        ahead = {name for place, names in self.graph.layers.items() if place >= front for name in names}
        self._replaced = {name: node for name, node in self._replaced.items() if name in ahead}


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
