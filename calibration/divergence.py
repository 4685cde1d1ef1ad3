"""How far a model's outputs move when some of its weights change: what probes measure, and what a target names.

    a language model      mean over positions of KL(p ‖ q), in nats: p of the model as it is, q of the changed one
    any other             squared relative L2 of each output, Σ (a − b)² / Σ a², their mean

Both are quadratic in small errors, so those of independent changes add up. Outputs that are a cache are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import TensorKey, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.model_inputs import read_language_model
from ov_weight_compression.calibration.runner import Pool, Store, Stream, feed, split
from ov_weight_compression.ir_utils.printing import progress_bar
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.worker_pool import default_threads, in_threads
from ov_weight_compression.patterns import Sources, Weight

Float64: TypeAlias = NDArray[np.float64]
_BLOCK_ELEMENTS = 1 << 21
_ERRORS = 2
"""Standard errors that a difference has to exceed: one in forty is larger by chance."""


@dataclass(frozen=True, eq=False)
class MeasuredDivergence:
    """How far the outputs moved, and how much of that the windows happen to say."""

    value: float
    """In the unit of `ScoredOutputs`."""
    total: float
    """What adds up over changes: mean KL, or squared relative L2."""
    deviations: Float64
    """[windows]: what each of them moves `total` by; their sum is 0."""

    def difference_error(self, other: MeasuredDivergence) -> float:
        """The standard error of the difference of two totals, which were measured on the same windows; 0 where one
        window says nothing of it."""
        count = len(self.deviations)
        if count < 2:
            return 0.0
        squares = np.square(self.deviations - other.deviations).sum()
        return sqrt(float(squares) * count / (count - 1))

    def surely_less(self, other: MeasuredDivergence) -> bool:
        """Whether it is less than another of the same windows, by more than other windows might have said."""
        return other.total - self.total > _ERRORS * self.difference_error(other)


@dataclass(frozen=True)
class ScoredOutputs:
    """Which outputs of a model count, and how."""

    numbers: tuple[int, ...]
    """Of the model's results."""
    predictions: bool
    """They are logits over a vocabulary."""

    @property
    def unit(self) -> str:
        """What the divergence is told in."""
        return "nats" if self.predictions else "relative L2"

    def divergence(self, total: float) -> float:
        """What is told of a sum: of mean KL that itself, of squared relative L2 the root."""
        return total if self.predictions else sqrt(max(total, 0.0))


def scored_outputs(model: ov.Model) -> ScoredOutputs:
    """A language model's logits, else all outputs of real numbers but caches."""
    language = read_language_model(model)
    results = [result.input_value(0) for result in model.get_results()]
    if language is not None:
        logits = [number for number, value in enumerate(results) if _is_logits(value, language.vocabulary)]
        if logits:
            return ScoredOutputs(tuple(logits), True)
    real = [number for number, value in enumerate(results) if value.get_element_type().is_real()]
    own = [
        number for number in real if not any(str(name).startswith("present") for name in results[number].get_names())
    ]
    return ScoredOutputs(tuple(own or real), False)


def _is_logits(value: ov.Output, vocabulary: int) -> bool:
    shape = value.get_partial_shape()
    open_ended = shape.rank.is_dynamic or len(shape) != 3 or shape[2].is_dynamic
    return not open_ended and 2 * shape[2].get_length() > vocabulary and value.get_element_type().is_real()


class DivergenceSum:
    """Running sums over windows of how far the scored outputs have moved."""

    def __init__(self, outputs: ScoredOutputs) -> None:
        self._outputs = outputs
        self.sums: Float64 = np.zeros((len(outputs.numbers), 2))
        """[outputs, 2]: what has moved, and what there is for it to be divided by."""

    def add(self, which: int, base: Array, changed: Array) -> None:
        """Add one window of the scored output of that position; values that are not finite do not count."""
        self.sums[which] += self._sums_of(base, changed)

    def _sums_of(self, base: Array, changed: Array) -> tuple[float, float]:
        if self._outputs.predictions:
            found = kl_divergence(base.reshape(-1, base.shape[-1]), changed.reshape(-1, base.shape[-1]))
            found = found[np.isfinite(found)]
            return float(found.sum(dtype=np.float64)), found.size
        a, b = base.reshape(-1).astype(np.float64), changed.reshape(-1).astype(np.float64)
        good = np.isfinite(a) & np.isfinite(b)
        a, b = a[good], b[good]
        return float(np.square(a - b).sum()), float(np.square(a).sum())

    @property
    def total(self) -> float:
        """The mean over the outputs; what adds up over changes. Not negative, as KL that is nearly 0 may come out."""
        counted = self.sums[self.sums[:, 1] > 0]
        return max(0.0, float((counted[:, 0] / counted[:, 1]).mean())) if len(counted) else 0.0


def _divergence(outputs: ScoredOutputs, windows: Sequence[DivergenceSum]) -> MeasuredDivergence:
    """Of the sums of single windows."""
    windows = [one for one in windows if one.sums[:, 1].any()]
    every = DivergenceSum(outputs)
    for one in windows:
        every.sums += one.sums
    counted = every.sums[:, 1] > 0
    whole = every.sums[counted, 1]
    ratios = every.sums[counted, 0] / whole
    deviations = [
        ((one.sums[counted, 0] - ratios * one.sums[counted, 1]) / whole).mean() if counted.any() else 0.0
        for one in windows
    ]
    return MeasuredDivergence(outputs.divergence(every.total), every.total, np.asarray(deviations, np.float64))


def kl_divergence(base: Float32, changed: Float32) -> Float32:
    """KL(p ‖ q) in nats for each row of two arrays of logits `[rows, vocabulary]`, as `[rows]`.

    In f32: off by a millionth where logits differ by a tenth.
    """
    step = max(1, _BLOCK_ELEMENTS // max(1, base.shape[1]))
    pieces = [slice(start, start + step) for start in range(0, len(base), step)]
    parts = in_threads(lambda piece: _kl(base[piece], changed[piece]), pieces, default_threads())
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _kl(base: Float32, changed: Float32) -> Float32:
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = base - base.max(axis=1, keepdims=True), changed - changed.max(axis=1, keepdims=True)
        p = np.exp(a)
        sums = p.sum(axis=1)
        a -= b
        moved = np.einsum("rv,rv->r", p, a) / sums
        return np.asarray(moved + np.log(np.exp(b).sum(axis=1)) - np.log(sums), dtype=np.float32)


def divergence_of(
    model: ov.Model,
    weights: Sequence[Weight],
    samples: Samples,
    values: Callable[[str], Array | None],
    *,
    calibration_memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
    sources: Sources | None = None,
) -> MeasuredDivergence:
    """How far the outputs move on all samples when weights have other values.

    Args:
        model: not changed; it runs piece by piece, on two streams.
        weights: those that may have other values.
        samples: the windows.
        values: of a weight by its name, f32 or f16 in the constant's own shape; None where it keeps its own.
        calibration_memory: bytes that running them may hold.
        quiet: show no progress.
        sources: where the weights' own values come from, the model's constants by default.
    """
    outputs = scored_outputs(model)
    graph = read_graph(model, weights, values=sources, outputs=outputs.numbers)
    sums: list[list[DivergenceSum]] = []
    limit = calibration_memory // 6
    positions = {key: which for which, key in enumerate(graph.outputs)}

    def apart(windows: Samples) -> Iterator[Mapping[str, Array]]:
        for window in windows:
            sums.append([DivergenceSum(outputs) for _ in range(_side_by_side(window))])
            yield window

    def compare(window: int, key: TensorKey, array: Array) -> None:
        base, parts = store.get(key, window), sums[window]
        whole = array.ndim < 2 or len(array) != len(parts)
        for number, part in enumerate(parts[:1] if whole else parts):
            pair = (base, array) if whole else (base[number], array[number])
            part.add(positions[key], *pair)

    with closing(Pool(calibration_memory // 4)) as pool, progress_bar(quiet=quiet) as bar:
        store = Store(pool)
        windows = feed(graph, store, apart(samples))
        pieces = split(graph, 0, len(graph.order), limit)
        tick = bar.start("Measuring the divergence", 2 * windows * len(pieces))
        exact = Stream(graph, store, windows, limit, tick)
        other = Stream(graph, Store(pool, store), windows, limit, tick)
        asked: set[str] = set()
        for begin, end in pieces:
            ready = {name for place in range(begin, end) for name in graph.layers.get(place, ())} - asked
            for name in sorted(ready):
                found = values(name)
                if found is not None:
                    other.replace(name, found)
            asked |= ready
            ended = [key for key in graph.outputs if begin <= graph.place.get(key[0], -1) < end]
            exact.advance(begin, end, dict.fromkeys(ended))
            other.advance(begin, end, dict.fromkeys(ended, compare))
            other.forget(end, ())
            exact.forget(end, ())
    return _divergence(outputs, [one for parts in sums for one in parts])


def _side_by_side(window: Mapping[str, Array]) -> int:
    """How many windows these inputs are, one beside the other along their first axes."""
    lengths = {len(array) if np.ndim(array) else 0 for array in window.values()}
    return max(1, lengths.pop()) if len(lengths) == 1 else 1
