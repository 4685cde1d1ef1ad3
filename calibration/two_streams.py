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
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import ActivationGraph, LayerUse, Tap, TensorKey, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.products import BATCH_ROWS, Kernels, blas_threads
from ov_weight_compression.calibration.runner import Stream, feed
from ov_weight_compression.calibration.statistics import GramSums, Seen, rows_by_expert
from ov_weight_compression.calibration.window_store import Pool, Store
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


class LayerInput:
    """A tensor that some layers of a stage read. Its activations wait in the streams' stores until it is measured."""

    def __init__(
        self,
        tap: Tap,
        exact: Stream,
        compressed: Stream,
        kernels: Kernels,
        measured: Callable[[], object],
        sums: GramSums | None = None,
        outputs: _Outputs | None = None,
    ) -> None:
        """`measured` is called when it has been. `sums`: where they have been taken while the model ran."""
        self._tap = tap
        self._exact = exact
        self._compressed = compressed
        self._kernels = kernels
        self._measured = measured
        self._sums = sums
        self._outputs = outputs
        self.left_out = False
        """After `measure`: whether rows were left out because the model gave values there that are not finite."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that are multiplied with it."""
        return self._tap.weights

    @property
    def width(self) -> int:
        """Number of input channels."""
        return self._tap.width

    @property
    def same(self) -> bool:
        """Both streams hold the same tensor: nothing that it depends on has been replaced."""
        return self._tap.key not in self._compressed.store or self._compressed is self._exact

    def measure(self, *, drift: bool = False) -> Seen:
        """Ĥ over all windows and, if asked for, D or Σ y x̂ᵀ. Each takes in² floats at most until the caller drops it;
        once only."""
        sums = self._sums
        if sums is None:
            beside = self._beside if drift and not self.same else None
            sums = GramSums(self.width, self._kernels, None if self._outputs is None else self._outputs[1])
            for window in range(self._exact.windows):
                hat = self._rows(self._exact if self.same else self._compressed, window)
                sums.add(hat, None if beside is None else beside(window))
        self._sums, seen = None, sums.result()
        self.left_out = sums.left_out
        self._measured()
        return seen

    def _beside(self, window: int) -> Float32:
        """The float model's input, or its outputs."""
        if self._outputs is None:
            return self._rows(self._exact, window)
        key, channels = self._outputs
        return np.asarray(self._exact.store.get(key, window), np.float32).reshape(1, -1, channels)

    def _rows(self, stream: Stream, window: int) -> Float32:
        return _rows(self._tap, stream.store.get(self._tap.key, window))


def _rows(tap: Tap, array: Array) -> Float32:
    x = rows_by_expert(array, tap.reduction, tap.batch)
    return x.reshape(len(x), -1, tap.width)


class Stage:
    """What can be decided at one place of the graph, given everything before it."""

    def __init__(self, inputs: Sequence[LayerInput], others: Sequence[str], compressed: Stream | None) -> None:
        self.inputs = tuple(inputs)
        self.others = tuple(others)
        """Weights that meet no activation, first read here."""
        self._compressed = compressed

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


class Streams:
    """Iterates over the stages of a model. Use `open_streams`."""

    def __init__(
        self,
        graph: ActivationGraph,
        exact: Stream,
        compressed: Stream | None,
        quiet: bool,
        measured: Container[str] | None,
        ahead: Executor,
        together: int,
        outputs: Container[str] = (),
    ) -> None:
        self._graph = graph
        self._ahead = ahead
        self._together = together
        self._exact = exact
        self._compressed = compressed
        self._quiet = quiet
        self._measured = measured
        self._stages = _plan(graph)
        self._kernels, self._kernels_ahead = Kernels(), Kernels()
        self._outputs = {} if compressed is None else self._find_outputs(outputs)
        self._behind = self._stages_behind()

    def __len__(self) -> int:
        return len(self._stages) - self._behind

    def __iter__(self) -> Iterator[Stage]:
        with progress_bar(quiet=self._quiet) as bar:
            advance = bar.start("Layer by layer", len(self))
            runs = list(self._runs())
            begun: dict[int, Future[dict[int, GramSums]] | None] = {}
            lead = 2 if self._outputs else 1  # a layer's outputs are made when the next level is

            def begin(number: int) -> None:
                """It and all before it, once, whoever asks first."""
                for one in range(len(begun), min(number + 1, len(runs))):
                    begun[one] = self._start(runs[one])

            def run(number: int) -> dict[int, GramSums]:
                begin(number)
                started = begun[number]
                return {} if started is None else started.result()

            for number, levels in enumerate(runs[: len(runs) - self._behind]):
                sums = run(number)
                begun[number] = None  # Gram matrices are large: what has been given is not kept here
                if any(tap.key in self._outputs for tap in self._taps(levels)):
                    run(number + 1)
                self._follow(levels)
                begin_next = partial(begin, number + lead)
                if self._compressed is None or not self._taps(levels):  # there is nothing to be measured first
                    begin_next()
                for level in levels:
                    taps, others = self._stages[level]
                    inputs = [self._input(tap, begin_next, sums.get(id(tap))) for tap in taps]
                    yield Stage(inputs, others, self._compressed)
                    advance(1)

    def _input(self, tap: Tap, measured: Callable[[], object], sums: GramSums | None) -> LayerInput:
        second, outputs = self._compressed or self._exact, self._outputs.get(tap.key)
        return LayerInput(tap, self._exact, second, self._kernels, measured, sums, outputs)

    def _start(self, levels: Sequence[int]) -> Future[dict[int, GramSums]]:
        return self._ahead.submit(self._run_exact if self._compressed else self._run_one, levels)

    def _end(self, level: int) -> int:
        ends = self._graph.level_ends
        return ends[level] if level < len(ends) else len(self._graph.order)

    def _runs(self) -> Iterator[list[int]]:
        """The levels that are run at once: one where its weights may be replaced, else as many as are not large."""
        together: list[int] = []
        for level in range(len(self._stages)):
            alone = self._compressed is not None or together == [0]
            if together and (alone or self._size([*together, level]) > self._together):
                yield together
                together = []
            together.append(level)
        if together:
            yield together

    def _size(self, levels: Sequence[int]) -> int:
        """Bytes of the weights that the levels take, and of the sums of what is looked at behind them."""
        places = range(*self._span(levels))
        weights = {key: size for place in places for key, size in self._graph.loads.get(place, ())}
        taps = self._taps(levels)
        rows = [prod(size for _, size in tap.batch) * (tap.width + BATCH_ROWS) for tap in taps]
        return sum(weights.values()) + sum(4 * tap.width * each for tap, each in zip(taps, rows, strict=True))

    def _span(self, levels: Sequence[int]) -> tuple[int, int]:
        return self._end(levels[0] - 1) if levels[0] else 0, self._end(levels[-1])

    def _taps(self, levels: Sequence[int]) -> list[Tap]:
        return [tap for level in levels for tap in self._stages[level][0]]

    def _routes(self, levels: Sequence[int]) -> list[TensorKey]:
        begin, end = self._span(levels)
        return [key for key in self._graph.routes if begin <= self._graph.place[key[0]] < end]

    def _follow(self, levels: Sequence[int]) -> None:
        """The float stream is behind these levels: take the compressed one there too, and forget what nothing reads."""
        (begin, end), taps = self._span(levels), self._taps(levels)
        watched = dict.fromkeys([tap.key for tap in taps])
        if self._compressed is None:
            self._exact.forget(end, watched.keys() - {tap.key for tap in taps if self._is_made(tap, levels)})
            return
        if self._compressed.changed:
            self._compressed.advance(begin, end, watched, forced=self._routes(levels))
            self._compressed.forget(end, watched)
        self._exact.forget(end, watched)

    def _run_exact(self, levels: Sequence[int]) -> dict[int, GramSums]:
        """Take the float stream behind these levels, keeping what is looked at there."""
        begin, end = self._span(levels)
        kept = [*(tap.key for tap in self._taps(levels)), *self._routes(levels)]
        made = {key: tap for tap, (key, _) in self._outputs.items() if begin <= self._graph.place[key[0]] < end}
        self._exact.advance(begin, end, dict.fromkeys([*kept, *made]))
        for tap in made.values():  # its outputs stand for it, and the compressed stream will have one of its own
            if self._compressed is not None and self._compressed.changed and self._graph.last_use[tap] < end:
                self._exact.store.drop(tap)
        return {}

    def _find_outputs(self, allowed: Container[str]) -> dict[TensorKey, _Outputs]:
        """By the tap's tensor."""
        found: dict[TensorKey, _Outputs] = {}
        graph = self._graph
        for taps, _ in self._stages:
            for tap in taps:
                readers = [use for use in graph.uses if use.tap is not None and use.tap[0] == tap.key]
                measured = [name for name in tap.weights if self._measured is None or name in self._measured]
                if len(measured) == 1 and measured[0] in allowed and len({use.tap for use in readers}) == 1:
                    own = [use for use in readers if use.weight.name == measured[0]]
                    if len(own) == 1 and _is_plain(own[0], graph):
                        found[tap.key] = ((own[0].layer, 0), own[0].weight.rows)
        return found

    def _stages_behind(self) -> int:
        """How many stages there are behind those that the caller sees, with nothing to decide there, for outputs."""
        end = self._end(len(self._stages) - 1)
        if all(self._graph.place[key[0]] < end for key, _ in self._outputs.values()):
            return 0
        self._stages.append(([], []))
        return 1

    def _is_made(self, tap: Tap, levels: Sequence[int]) -> bool:
        begin, end = self._span(levels)
        return begin <= self._graph.place.get(tap.key[0], -1) < end

    def _run_one(self, levels: Sequence[int]) -> dict[int, GramSums]:
        """The same where there is no other stream: what is kept are the sums of what is measured, by the tap."""
        made = [tap for tap in self._taps(levels) if self._is_made(tap, levels)]
        sums = {id(tap): GramSums(tap.width, self._kernels_ahead) for tap in made if self._is_measured(tap)}

        def receive(window: int, key: TensorKey, array: Array) -> None:
            for tap in made:
                if tap.key == key and id(tap) in sums:
                    sums[id(tap)].add(_rows(tap, array))

        self._exact.advance(*self._span(levels), {tap.key: receive for tap in made if id(tap) in sums})
        for one in sums.values():
            one.finish()
        return sums

    def _is_measured(self, tap: Tap) -> bool:
        return self._measured is None or any(name in self._measured for name in tap.weights)


def _is_plain(use: LayerUse, graph: ActivationGraph) -> bool:
    """Whether it is `x Wᵀ`, with fewer outputs than inputs: the last dimension of each holds its channels."""
    role, weight = use.consumer.role, use.weight
    return (
        graph.nodes[use.layer].get_type_name() == "MatMul"
        and use.tap is not None
        and use.tap[1] == (-1,)
        and not use.tap[3]
        and role is not None
        and role.activation is not None
        and role.activation.port == 0
        and len(weight.shape) == 2
        and weight.rows < weight.columns
    )


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
        own = Store(pool, parent=store)
        second = Stream(graph, own, windows, limit, bf16=bf16, side_by_side=2) if compressed else None
        yield Streams(graph, exact, second, quiet, measured, ahead, together, outputs)


def _plan(graph: ActivationGraph) -> list[tuple[list[Tap], list[str]]]:
    """For each level, the taps that layers above it read, and the weights there that have no tap; each weight once."""
    stages: list[tuple[list[Tap], list[str]]] = []
    seen: set[str] = set()
    for level in range(len(graph.level_ends)):
        end = graph.level_ends[level + 1] if level + 1 < len(graph.level_ends) else len(graph.order)
        taps = []
        first = {name for place in range(graph.level_ends[level], end) for name in graph.layers.get(place, ())}
        for tap in graph.taps:
            names = tuple(name for name in tap.weights if name not in seen)
            if tap.level == level and names:
                taps.append(replace(tap, weights=names))
                seen.update(names)
        others = sorted(first - seen)
        seen.update(others)
        stages.append((taps, others))
    while stages and not stages[-1][0] and not stages[-1][1]:
        stages.pop()
    return stages
