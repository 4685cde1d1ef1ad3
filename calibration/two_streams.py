"""Two streams through a model, the float one and the one whose weights are already compressed, side by side.

    with open_streams(model, weights, samples) as stages:
        for stage in stages:                             # in graph order
            for layer_input in stage.inputs:             # q, k, v share one; gate, up share one
                seen = layer_input.measure()
                for name in layer_input.weights:
                    stage.replace(name, compress(name, seen))

A stage is everything that can be decided at one level of an `ActivationGraph`: in a transformer block the stages are
q/k/v, o, gate/up, down, and each sees the replacements of those before it. In a model of another shape it is at worst
one layer. Both streams run the stage's layers on every window, once: the float stream with the weights as they were, in
a thread of its own on half of the processors, while the caller is at work on what it has measured of the stage (numpy
on the other half), for nothing that it does there matters to it; the compressed stream with the replacements, when the
loop asks for the next stage. Between two stages only the tensors at the border exist, in memory or on disk. Where the
caller wants the float stream alone, several levels run at once, and what will be measured is summed up meanwhile.

Weights that meet no activation (embeddings, convolutions) are in `stage.others`, before anything reads them. A weight
that several layers share belongs to the first stage that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
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
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.worker_pool import default_threads
from ov_weight_compression.patterns import Sources, Weight

_TOGETHER = 1 << 26
"""Levels of a single stream are run at once for fewer compilations, and activations that are never stored."""


@dataclass(frozen=True, eq=False)
class LayerInput:
    """A tensor that some layers of a stage read."""

    weights: tuple[str, ...]
    """Names of the weights that are multiplied with it."""
    measure: Callable[[], Seen]
    """Ĥ over all windows and, where the streams differ, D or Σ y x̂ᵀ. Each takes in² floats at most until the caller
    drops it; once only."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What can be decided at one place of the graph, given everything before it."""

    inputs: tuple[LayerInput, ...]
    others: tuple[str, ...]
    """Weights that meet no activation, first read here."""
    weights: tuple[str, ...]
    """All weights that belong to the stage."""
    _compressed: Stream | None

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """From here on the compressed stream has `values` (f32 or f16, the constant's own shape) as weight `name`."""
        if name not in self.weights:
            raise OptionError(f"weight '{name}' is not of this stage: those are {', '.join(self.weights)}")
        if self._compressed is not None:
            self._compressed.replace(name, values)


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
) -> Iterator[Iterator[Stage]]:
    """Run `samples` through `model` stage by stage; see the module for how it is used.

    `weights` are those that the caller may replace; the model itself is not changed. With `compressed=False` there is
    the float stream only, at half the time, and replacements change nothing. `sources` say where the weights' values
    come from, the model's constants by default. `measured` names the weights whose inputs will be measured, all by
    default. With `bf16` layers are computed in it where the CPU is made for that. `together`: bytes of weights and Gram
    matrices up to which levels of a single stream are run at once. `outputs`: weights for which Σ y x̂ᵀ will do in place
    of D, where they have fewer outputs than inputs.
    """
    graph = read_graph(model, weights, values=sources)
    measured = {weight.name for weight in weights} if measured is None else measured
    levels = _levels(graph)
    stages = max((number for number, level in enumerate(levels, 1) if level.weights), default=0)
    half, limit = max(default_threads() // 2, 1), calibration_memory // 6
    with (
        closing(Pool(calibration_memory // 4)) as pool,
        progress_bar(quiet=quiet) as bar,
        ThreadPoolExecutor(1) as ahead,
        blas_threads(half),
    ):
        store, tick = Store(pool), bar.start("Layer by layer", stages)
        windows = feed(graph, store, samples)
        if not compressed:
            exact = Stream(graph, store, windows, limit, bf16=bf16)
            yield _one_stream(exact, levels[:stages], measured, together, ahead, tick)
            return
        exact = Stream(graph, store, windows, limit, bf16=bf16, threads=half)
        second = Stream(graph, Store(pool, store), windows, limit, bf16=bf16, side_by_side=2)
        instead = _outputs_for_inputs(graph, levels[:stages], measured, outputs)
        # One level more, where nothing is decided, if the outputs of a layer are made there.
        more = any(graph.place[key[0]] >= levels[stages - 1].end for key in instead.values())
        yield _two_streams(exact, second, levels[: stages + more], stages, instead, ahead, tick)


@dataclass(frozen=True, eq=False)
class _Level:
    """The operations of one level of the graph, and what can be decided behind them."""

    begin: int
    end: int
    """Their places in the graph's order."""
    taps: tuple[Tap, ...]
    """What layers above them read; each weight in one of them."""
    others: tuple[str, ...]
    """Weights of those layers that have no tap."""
    weights: tuple[str, ...]
    """Of the taps, and the others."""
    routes: tuple[TensorKey, ...]
    """Choices of rows that are made here; see `ActivationGraph.routes`."""


def _levels(graph: ActivationGraph) -> list[_Level]:
    levels, seen, begin = [], set[str](), 0
    for level, end in enumerate(graph.level_ends):
        following = (*graph.level_ends, len(graph.order))[level + 1]
        taps: list[Tap] = []
        for tap in graph.taps:
            names = tuple(name for name in tap.weights if name not in seen)
            if tap.level == level and names:
                taps.append(replace(tap, weights=names))
                seen.update(names)
        read = {name for place in range(end, following) for name in graph.layers.get(place, ())}
        others = tuple(sorted(read - seen))
        weights = (*(name for tap in taps for name in tap.weights), *others)
        routes = tuple(key for key in graph.routes if begin <= graph.place[key[0]] < end)
        levels.append(_Level(begin, end, tuple(taps), others, weights, routes))
        seen |= read
        begin = end
    return levels


def _two_streams(
    exact: Stream,
    compressed: Stream,
    levels: Sequence[_Level],
    stages: int,
    outputs: Mapping[TensorKey, TensorKey],
    ahead: Executor,
    tick: Callable[[int], None],
) -> Iterator[Stage]:
    """The stages, which are the first of the levels.

    `outputs`: the outputs of a layer, by the tensor that it reads: those of the float model stand beside the compressed
    stream's input in place of what the input is there.
    """
    begun: list[Future[None]] = []
    kernels: Kernels = {}
    lead = 2 if outputs else 1  # a layer's outputs are made when the next level is

    def begin(number: int) -> None:
        """Let the float stream take a level and all before it, once, whoever asks first."""
        for level in levels[len(begun) : number + 1]:
            begun.append(ahead.submit(_run_exact, exact, level, outputs, compressed))

    for number, level in enumerate(levels[:stages]):
        last = number + any(tap.key in outputs for tap in level.taps)
        begin(last)
        begun[last].result()
        watched = dict.fromkeys(tap.key for tap in level.taps)
        if compressed.changed:
            compressed.advance(level.begin, level.end, watched, forced=level.routes)
            compressed.forget(level.end, watched)
        exact.forget(level.end, watched)
        begin_next = partial(begin, number + lead)
        if not level.taps:  # there is nothing to be measured first
            begin_next()
        inputs = []
        for tap in level.taps:
            # The same where nothing that it depends on has been replaced.
            hat = compressed.store if tap.key in compressed.store.entries else None
            measure = partial(_measured, tap, exact, hat, outputs.get(tap.key), kernels, begin_next)
            inputs.append(LayerInput(tap.weights, measure))
        yield Stage(tuple(inputs), level.others, level.weights, compressed)
        tick(1)


def _run_exact(exact: Stream, level: _Level, outputs: Mapping[TensorKey, TensorKey], compressed: Stream) -> None:
    """Take the float stream behind a level, keeping what is looked at there."""
    place = exact.graph.place
    made = {key: tap for tap, key in outputs.items() if level.begin <= place[key[0]] < level.end}
    exact.advance(level.begin, level.end, dict.fromkeys([*(tap.key for tap in level.taps), *level.routes, *made]))
    for tap in made.values():  # its outputs stand for it, and the compressed stream will have one of its own
        if compressed.changed and exact.graph.last_use[tap] < level.end:
            exact.store.drop(tap)


def _measured(
    tap: Tap, exact: Stream, hat: Store | None, outputs: TensorKey | None, kernels: Kernels, then: Callable[[], None]
) -> Seen:
    """What all windows show of a tap, whose tensors are in the stores of both streams, or in the float stream's alone
    where `hat` is None; `then` is called when they have been seen."""
    sums = GramSums(tap.width, kernels, outputs is not None)
    for window in range(exact.windows):
        beside: Array | None = None
        if hat is not None and outputs is not None:
            beside = np.asarray(exact.store.get(outputs, window), np.float32)
        elif hat is not None:
            beside = rows_by_expert(exact.store.get(tap.key, window), tap.reduction, tap.batch)
        x = (exact.store if hat is None else hat).get(tap.key, window)
        sums.add(rows_by_expert(x, tap.reduction, tap.batch), beside)
    seen = sums.result()
    then()
    return seen


def _outputs_for_inputs(
    graph: ActivationGraph, levels: Sequence[_Level], measured: Container[str], wanted: Container[str]
) -> dict[TensorKey, TensorKey]:
    """The outputs that may stand for a layer's input, by the tensor of that: where its one reader is one of the
    `wanted` and is `x Wᵀ`, with fewer outputs than inputs, so that the last dimension of each holds its channels."""
    found: dict[TensorKey, TensorKey] = {}
    for tap in [tap for level in levels for tap in level.taps]:
        readers = [use for use in graph.uses if use.tap is not None and use.tap.key == tap.key]
        names = [name for name in tap.weights if name in measured]
        own = [use for use in readers if use.weight.name in names]
        if not len(names) == len(own) == 1 == len({use.tap for use in readers}):
            continue
        use, role = own[0], own[0].consumer.role
        if (
            use.weight.name in wanted
            and graph.nodes[use.layer].get_type_name() == "MatMul"
            and (tap.reduction, tap.batch) == ((-1,), ())
            and role.activation is not None
            and role.activation.port == 0
            and len(use.weight.shape) == 2
            and use.weight.rows < use.weight.columns
        ):
            found[tap.key] = (use.layer, 0)
    return found


def _one_stream(
    exact: Stream,
    levels: Sequence[_Level],
    measured: Container[str],
    together: int,
    ahead: Executor,
    tick: Callable[[int], None],
) -> Iterator[Stage]:
    """The stages of the float stream alone: levels that are not large run at once, but for the first, and what is
    measured is summed up meanwhile."""
    runs: list[list[_Level]] = []
    for level in levels:
        if len(runs) > 1 and _size(exact.graph, [*runs[-1], level]) <= together:
            runs[-1].append(level)
        else:
            runs.append([level])
    kernels: Kernels = {}
    sums = (ahead.submit(_summed, exact, run, measured, kernels) for run in runs)  # each begins when it is asked for
    begun = next(sums, None)
    for run in runs:
        assert begun is not None
        seen = begun.result()
        exact.forget(run[-1].end, ())
        begun = next(sums, None)
        for level in run:
            # Gram matrices are large: what has been given is not kept here.
            inputs = tuple(LayerInput(tap.weights, partial(seen.pop, tap)) for tap in level.taps)
            yield Stage(inputs, level.others, level.weights, None)
            tick(1)


def _size(graph: ActivationGraph, run: Sequence[_Level]) -> int:
    """Bytes of the weights that the operations take, and of the sums of what is looked at behind them."""
    places, taps = range(run[0].begin, run[-1].end), [tap for level in run for tap in level.taps]
    weights = {key: size for place in places for key, size in graph.loads.get(place, ())}
    rows = [prod(size for _, size in tap.batch) * (tap.width + BATCH_ROWS) for tap in taps]
    return sum(weights.values()) + sum(4 * tap.width * each for tap, each in zip(taps, rows, strict=True))


def _summed(exact: Stream, run: Sequence[_Level], measured: Container[str], kernels: Kernels) -> dict[Tap, Seen]:
    """Take the stream behind some levels; what that shows of the taps that are measured."""
    taps = [tap for level in run for tap in level.taps if any(name in measured for name in tap.weights)]
    sums = {tap: GramSums(tap.width, kernels) for tap in taps}

    def receive(window: int, key: TensorKey, array: Array) -> None:
        for tap, one in sums.items():
            if tap.key == key:
                one.add(rows_by_expert(array, tap.reduction, tap.batch))

    for key in {tap.key for tap in sums} & exact.store.entries.keys():  # inputs of the model
        for window in range(exact.windows):
            receive(window, key, exact.store.get(key, window))
    exact.advance(run[0].begin, run[-1].end, dict.fromkeys((tap.key for tap in sums), receive))
    return {tap: one.result() for tap, one in sums.items()}
