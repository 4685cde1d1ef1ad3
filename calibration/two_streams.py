"""Two streams through a model, the float one and the one whose weights are already compressed, side by side.

    with open_streams(model, weights, samples) as streams:
        for stage in streams:                            # in graph order
            for layer_input in stage.inputs:             # q, k, v share one; gate, up share one
                seen = layer_input.measure(cross=True)
                for name in layer_input.weights:
                    stage.replace(name, compress(name, seen))

A stage is everything that can be decided at one level of an `ActivationGraph`: in a transformer block the stages are
q/k/v, o, gate/up, down, and each sees the replacements of those before it. In a model of another shape it is at worst
one layer. When the loop asks for the next stage, both streams run the stage's layers on every window, once: the float
stream with the weights as they were, the compressed stream with the replacements. Between two stages only the tensors
at the border exist, in memory or on disk.

Weights that meet no activation (embeddings, convolutions) are in `stage.others`, before anything reads them. A weight
that several layers share belongs to the first stage that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import ActivationGraph, Tap, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.runner import Pool, Store, Stream, feed
from ov_weight_compression.calibration.sums import add_cross, add_gram, mirror, rows_by_expert, unfit
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.progress import progress_bar
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.patterns import Sources, Weight

__all__ = ["LayerInput", "Seen", "Stage", "Streams", "open_streams"]

_BATCH_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Seen:
    """Gram matrices of one layer input: f32 [in, in], or [experts, in, in] where each expert has rows of its own."""

    n: int
    """Rows (tokens) seen, per expert where there are experts."""
    gram: Float32
    """Ĥ = Σ x̂ x̂ᵀ, of the input as it is behind the compressed weights."""
    cross: Float32 | None = None
    """C = Σ x x̂ᵀ, rows as `x` of the float model, columns as `x̂`; None where not asked for or they are the same."""


class LayerInput:
    """A tensor that some layers of a stage read. Its activations wait in the streams' stores until it is measured."""

    def __init__(self, tap: Tap, exact: Stream, compressed: Stream) -> None:
        self._tap = tap
        self._exact = exact
        self._compressed = compressed
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

    def measure(self, *, cross: bool = False) -> Seen:
        """Ĥ over all windows and, if asked for, C. Each takes in² floats until the caller drops it."""
        pair = cross and not self.same
        count, gram, total = 0, None, None
        for hat, x in self._batches(pair):
            if gram is None:
                gram = np.zeros((len(hat), self.width, self.width), np.float32)
                total = np.zeros_like(gram) if pair else None
            for expert in range(len(hat)):
                add_gram(gram[expert], hat[expert])
                if total is not None:
                    add_cross(total[expert], x[expert], hat[expert])
            count += hat.shape[1]
        gram = np.zeros((1, self.width, self.width), np.float32) if gram is None else gram
        for one in gram:
            mirror(one)
        plain = len(gram) == 1
        return Seen(count, gram[0] if plain else gram, total[0] if total is not None and plain else total)

    def _batches(self, pair: bool) -> Iterator[tuple[Float32, Float32]]:
        """`x̂` and, with `pair`, `x` of several windows at a time, each [experts, rows, in]: products of many rows are
        faster than those of few."""
        waiting: list[tuple[Float32, Float32]] = []
        for window in range(self._exact.windows):
            hat = self._rows(self._exact if self.same else self._compressed, window)
            waiting.append((hat, self._rows(self._exact, window) if pair else hat))
            last = window + 1 == self._exact.windows
            if last or sum(one.shape[1] for one, _ in waiting) >= _BATCH_ROWS:
                yield self._fit(_joined([one for one, _ in waiting]), _joined([one for _, one in waiting]))
                waiting.clear()

    def _fit(self, hat: Float32, x: Float32) -> tuple[Float32, Float32]:
        """Without the rows in which either holds a value that does not count (see `unfit`)."""
        found = [bad for bad in (unfit(hat), None if x is hat else unfit(x)) if bad is not None]
        if not found:
            return hat, x
        self.left_out = True
        kept = ~np.any([bad.any(axis=0) for bad in found], axis=0)
        return hat[:, kept], x[:, kept]

    def _rows(self, stream: Stream, window: int) -> Float32:
        x = rows_by_expert(stream.store.get(self._tap.key, window), self._tap.reduction, self._tap.batch)
        return x.reshape(len(x), -1, self.width)


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

    def __init__(self, graph: ActivationGraph, exact: Stream, compressed: Stream | None, quiet: bool) -> None:
        self._graph = graph
        self._exact = exact
        self._compressed = compressed
        self._quiet = quiet
        self._stages = _plan(graph)

    def __len__(self) -> int:
        return len(self._stages)

    def __iter__(self) -> Iterator[Stage]:
        begin = 0
        with progress_bar(quiet=self._quiet) as bar:
            advance = bar.start("Layer by layer", len(self._stages))
            for level, (taps, others) in enumerate(self._stages):
                end = self._graph.level_ends[level] if level < len(self._graph.level_ends) else len(self._graph.order)
                self._run(begin, end, taps)
                begin = end
                inputs = [LayerInput(tap, self._exact, self._compressed or self._exact) for tap in taps]
                yield Stage(inputs, others, self._compressed)
                advance(1)

    def _run(self, begin: int, end: int, taps: Sequence[Tap]) -> None:
        """Take both streams to `end`, keeping what the next stage looks at."""
        watched = dict.fromkeys([tap.key for tap in taps])
        routes = [key for key in self._graph.routes if begin <= self._graph.place[key[0]] < end]
        self._exact.advance(begin, end, {**watched, **dict.fromkeys(routes)})
        if self._compressed is not None and self._compressed.changed:
            self._compressed.advance(begin, end, watched, forced=routes)
            self._compressed.forget(end, watched)
        self._exact.forget(end, watched)


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
) -> Iterator[Streams]:
    """Run `samples` through `model` stage by stage; see the module for how it is used.

    `weights` are those that the caller may replace; the model itself is not changed. With `compressed=False` there is
    the float stream only, at half the time: replacements change nothing and every `LayerInput` is `same`. `sources` say
    where the weights' values come from, the model's constants by default.
    """
    graph = read_graph(model, weights, values=sources)
    with Pool(calibration_memory // 4) as pool:
        store = Store(pool)
        windows = feed(graph, store, samples)
        limit = calibration_memory // 6
        exact = Stream(graph, store, windows, limit)
        second = Stream(graph, Store(pool, parent=store), windows, limit) if compressed else None
        yield Streams(graph, exact, second, quiet)


def _joined(parts: list[Float32]) -> Float32:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


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
