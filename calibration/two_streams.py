"""Two streams through a model, the float one and the one whose weights are already compressed, side by side.

    with open_streams(model, weights, samples) as streams:
        for stage in streams:                            # in graph order
            for layer_input in stage.inputs:             # q, k, v share one; gate, up share one
                seen = layer_input.measure(drift=True)
                for name in layer_input.weights:
                    stage.replace(name, compress(name, seen))

A stage is everything that can be decided at one level of an `ActivationGraph`: in a transformer block the stages are
q/k/v, o, gate/up, down, and each sees the replacements of those before it. In a model of another shape it is at worst
one layer. Both streams run the stage's layers on every window, once: the float stream with the weights as they were, in
a thread of its own on half of the processors, while the caller is at work on what it has measured of the stage (numpy
on the other half), for nothing that it does there matters to it; the compressed stream with the replacements, when the
loop asks for the next stage. Between two stages only the tensors at the border exist, in memory or on disk.

Weights that meet no activation (embeddings, convolutions) are in `stage.others`, before anything reads them. A weight
that several layers share belongs to the first stage that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import ActivationGraph, Tap, TensorKey, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.grams import BATCH_ROWS, GramSums, Kernels, Seen, blas_threads, rows_by_expert
from ov_weight_compression.calibration.runner import Pool, Store, Stream, feed
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.printing import progress_bar
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.worker_pool import default_threads
from ov_weight_compression.patterns import Sources, Weight

_TOGETHER = 1 << 26
"""Levels of a single stream are run at once for fewer compilations, and activations that are never stored."""


_Outputs = tuple[TensorKey, int]
"""The outputs of a layer in the float model, which may stand beside its input in place of what the input is there, and
how many channels they have."""


@dataclass(eq=False)
class LayerInput:
    """A tensor that some layers of a stage read. Its activations wait in the streams' stores until it is measured."""

    weights: tuple[str, ...]
    """Names of the weights that are multiplied with it."""
    tap: Tap
    exact: Stream
    compressed: Stream
    kernels: Kernels
    measured: Callable[[], object]
    """Called when it has been."""
    sums: GramSums | None = None
    """Where they have been taken while the model ran."""
    outputs: _Outputs | None = None
    left_out: bool = False
    """After `measure`: whether rows were left out because the model gave values there that are not finite."""

    @property
    def same(self) -> bool:
        """Both streams hold the same tensor: nothing that it depends on has been replaced."""
        return self.tap.key not in self.compressed.store.entries or self.compressed is self.exact

    def measure(self, *, drift: bool = False) -> Seen:
        """Ĥ over all windows and, if asked for, D or Σ y x̂ᵀ. Each takes in² floats at most until the caller drops it;
        once only."""
        sums, tap, exact, hat = self.sums, self.tap, self.exact, self.exact if self.same else self.compressed
        if sums is None:
            sums = GramSums(tap.width, self.kernels, None if self.outputs is None else self.outputs[1])
            for window in range(exact.windows):
                beside = None
                if drift and not self.same and self.outputs is None:
                    beside = _rows(tap, exact.store.get(tap.key, window))
                elif drift and not self.same and self.outputs is not None:
                    key, channels = self.outputs
                    beside = np.asarray(exact.store.get(key, window), np.float32).reshape(1, -1, channels)
                sums.add(_rows(tap, hat.store.get(tap.key, window)), beside)
        self.sums, seen = None, sums.result()
        self.left_out = sums.left_out
        self.measured()
        return seen


def _rows(tap: Tap, array: Array) -> Float32:
    """What a tap looks at, [experts, rows, in]."""
    x = rows_by_expert(array, tap.reduction, tap.batch)
    return x.reshape(len(x), -1, tap.width)


@dataclass(frozen=True, eq=False)
class Stage:
    """What can be decided at one place of the graph, given everything before it."""

    inputs: tuple[LayerInput, ...]
    others: tuple[str, ...]
    """Weights that meet no activation, first read here."""
    _compressed: Stream | None

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of all weights that belong to the stage."""
        return (*(name for one in self.inputs for name in one.weights), *self.others)

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """From here on the compressed stream has `values` (f32 or f16, the constant's own shape) as weight `name`."""
        if name not in self.weights:
            raise OptionError(f"weight '{name}' is not of this stage: those are {', '.join(self.weights)}")
        if self._compressed is not None:
            self._compressed.replace(name, values)


@dataclass(frozen=True, eq=False)
class _Run:
    """Operations that are run at once: of one level of the graph or of several."""

    begin: int
    end: int
    """Their places in the graph's order."""
    stages: list[tuple[list[Tap], tuple[str, ...]]]
    """For each level the taps that layers above it read, and the weights there that have no tap; each weight once."""
    routes: list[TensorKey]
    """Choices of rows that are made here; see `ActivationGraph.routes`."""

    @property
    def taps(self) -> list[Tap]:
        return [tap for taps, _ in self.stages for tap in taps]


@dataclass(eq=False)
class Streams:
    """Iterates over the stages of a model. Use `open_streams`."""

    graph: ActivationGraph
    exact: Stream
    compressed: Stream | None
    quiet: bool
    measured: Container[str] | None
    ahead: Executor
    together: int
    outputs: Container[str]

    def __post_init__(self) -> None:
        levels = _plan(self.graph)
        self._stages = max((number for number, level in enumerate(levels, 1) if any(level.stages[0])), default=0)
        seen, behind = levels[: self._stages], levels[self._stages : self._stages + 1]
        self._kernels, self._kernels_ahead = Kernels(), Kernels()
        self._outputs = {} if self.compressed is None else self._find_outputs(seen)
        """By the tap's tensor."""
        # One level more, where nothing is decided, if the outputs of a layer are made there.
        here = all(self.graph.place[key[0]] < seen[-1].end for key, _ in self._outputs.values())
        self._runs = list(self._joined(seen)) if self.compressed is None else seen
        self._behind = [] if here else behind

    def __len__(self) -> int:
        return self._stages

    def __iter__(self) -> Iterator[Stage]:
        runs = [*self._runs, *self._behind]
        begun: list[Future[dict[Tap, GramSums]]] = []
        lead = 2 if self._outputs else 1  # a layer's outputs are made when the next level is

        def begin(number: int) -> None:
            """It and all before it, once, whoever asks first."""
            for one in runs[len(begun) : number + 1]:
                begun.append(self.ahead.submit(self._run_exact if self.compressed else self._run_one, one))

        with progress_bar(quiet=self.quiet) as bar:
            advance = bar.start("Layer by layer", self._stages)
            for number, run in enumerate(self._runs):
                begin(number)
                sums = begun[number].result()
                if any(tap.key in self._outputs for tap in run.taps):
                    begin(number + 1)
                    begun[number + 1].result()
                self._follow(run)
                begin_next = partial(begin, number + lead)
                if self.compressed is None or not run.taps:  # there is nothing to be measured first
                    begin_next()
                for taps, others in run.stages:
                    inputs = tuple(
                        LayerInput(
                            tap.weights,
                            tap,
                            self.exact,
                            self.compressed or self.exact,
                            self._kernels,
                            begin_next,
                            sums.pop(tap, None),  # Gram matrices are large: what has been given is not kept here
                            self._outputs.get(tap.key),
                        )
                        for tap in taps
                    )
                    yield Stage(inputs, others, self.compressed)
                    advance(1)

    def _joined(self, levels: Sequence[_Run]) -> Iterator[_Run]:
        """The levels that are run at once: as many as are not large. The first one is run by itself."""
        run: _Run | None = None
        for level in levels:
            if run is None:
                run = level
                continue
            both = _Run(run.begin, level.end, [*run.stages, *level.stages], [*run.routes, *level.routes])
            if run is levels[0] or self._size(both) > self.together:
                yield run
                both = level
            run = both
        if run is not None:
            yield run

    def _size(self, run: _Run) -> int:
        """Bytes of the weights that the operations take, and of the sums of what is looked at behind them."""
        weights = {key: size for place in range(run.begin, run.end) for key, size in self.graph.loads.get(place, ())}
        rows = [prod(size for _, size in tap.batch) * (tap.width + BATCH_ROWS) for tap in run.taps]
        return sum(weights.values()) + sum(4 * tap.width * each for tap, each in zip(run.taps, rows, strict=True))

    def _follow(self, run: _Run) -> None:
        """The float stream is behind these operations: take the compressed one there too, and forget what nothing
        reads."""
        watched = dict.fromkeys([tap.key for tap in run.taps])
        if self.compressed is None:
            self.exact.forget(run.end, watched.keys() - {tap.key for tap in self._made(run)})
            return
        if self.compressed.changed:
            self.compressed.advance(run.begin, run.end, watched, forced=run.routes)
            self.compressed.forget(run.end, watched)
        self.exact.forget(run.end, watched)

    def _run_exact(self, run: _Run) -> dict[Tap, GramSums]:
        """Take the float stream behind these operations, keeping what is looked at there."""
        place = self.graph.place
        made = {key: tap for tap, (key, _) in self._outputs.items() if run.begin <= place[key[0]] < run.end}
        self.exact.advance(run.begin, run.end, dict.fromkeys([*(tap.key for tap in run.taps), *run.routes, *made]))
        for tap in made.values():  # its outputs stand for it, and the compressed stream will have one of its own
            if self.compressed is not None and self.compressed.changed and self.graph.last_use[tap] < run.end:
                self.exact.store.drop(tap)
        return {}

    def _run_one(self, run: _Run) -> dict[Tap, GramSums]:
        """The same where there is no other stream: what is kept are the sums of what is measured, by the tap."""
        sums = {
            tap: GramSums(tap.width, self._kernels_ahead)
            for tap in self._made(run)
            if self.measured is None or any(name in self.measured for name in tap.weights)
        }

        def receive(window: int, key: TensorKey, array: Array) -> None:
            for tap, one in sums.items():
                if tap.key == key:
                    one.add(_rows(tap, array))

        self.exact.advance(run.begin, run.end, {tap.key: receive for tap in sums})
        for one in sums.values():
            one.finish()
        return sums

    def _made(self, run: _Run) -> list[Tap]:
        """The taps whose tensors these operations make."""
        return [tap for tap in run.taps if run.begin <= self.graph.place.get(tap.key[0], -1) < run.end]

    def _find_outputs(self, levels: Sequence[_Run]) -> dict[TensorKey, _Outputs]:
        """By the tap's tensor: where its one reader is `x Wᵀ`, with fewer outputs than inputs, so that the last
        dimension of each holds its channels."""
        found: dict[TensorKey, _Outputs] = {}
        for tap in [tap for level in levels for tap in level.taps]:
            readers = [use for use in self.graph.uses if use.tap is not None and use.tap[0] == tap.key]
            measured = [name for name in tap.weights if self.measured is None or name in self.measured]
            own = [use for use in readers if use.weight.name in measured]
            if not len(measured) == len(own) == 1 == len({use.tap for use in readers}):
                continue
            use, role = own[0], own[0].consumer.role
            if (
                use.weight.name in self.outputs
                and self.graph.nodes[use.layer].get_type_name() == "MatMul"
                and (tap.reduction, tap.batch) == ((-1,), ())
                and role.activation is not None
                and role.activation.port == 0
                and len(use.weight.shape) == 2
                and use.weight.rows < use.weight.columns
            ):
                found[tap.key] = ((use.layer, 0), use.weight.rows)
        return found


@contextmanager
def open_streams(
    model: ov.Model,
    weights: Sequence[Weight],
    samples: Samples,
    *,
    compressed: bool = True,
    calibration_memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
    sources: Sources | None = None,
    measured: Container[str] | None = None,
    bf16: bool = False,
    together: int = _TOGETHER,
    outputs: Container[str] = (),
) -> Iterator[Streams]:
    """Run `samples` through `model` stage by stage; see the module for how it is used.

    `weights` are those that the caller may replace; the model itself is not changed. With `compressed=False` there is
    the float stream only, at half the time: replacements change nothing and every `LayerInput` is `same`. `sources` say
    where the weights' values come from, the model's constants by default. `measured` names the weights whose inputs
    will be measured, all by default. With `bf16` layers are computed in it where the CPU is made for that.
    `together`: bytes of weights and Gram matrices up to which levels of a single stream are run at once. `outputs`:
    weights for which Σ y x̂ᵀ will do in place of D, where they have fewer outputs than inputs.
    """
    graph = read_graph(model, weights, values=sources)
    half = max(default_threads() // 2, 1)
    with Pool(calibration_memory // 4) as pool, ThreadPoolExecutor(1) as ahead, blas_threads(half):
        store = Store(pool)
        windows = feed(graph, store, samples)
        limit = calibration_memory // 6
        exact = Stream(graph, store, windows, limit, bf16=bf16, threads=half if compressed else 0)
        second = Stream(graph, Store(pool, store), windows, limit, bf16=bf16, side_by_side=2) if compressed else None
        yield Streams(graph, exact, second, quiet, measured, ahead, together, outputs)


def _plan(graph: ActivationGraph) -> list[_Run]:
    """The levels of the graph."""
    levels, seen, begin = [], set[str](), 0
    for level, end in enumerate(graph.level_ends):
        following = (*graph.level_ends, len(graph.order))[level + 1]
        taps = []
        for tap in graph.taps:
            names = tuple(name for name in tap.weights if name not in seen)
            if tap.level == level and names:
                taps.append(replace(tap, weights=names))
                seen.update(names)
        read = {name for place in range(end, following) for name in graph.layers.get(place, ())}
        routes = [key for key in graph.routes if begin <= graph.place[key[0]] < end]
        levels.append(_Run(begin, end, [(taps, tuple(sorted(read - seen)))], routes))
        seen |= read
        begin = end
    return levels
