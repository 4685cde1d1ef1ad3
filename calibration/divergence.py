"""How far a model's outputs move when some of its weights change: what probes measure, and what a target names.

    a language model      mean over positions of KL(p ‖ q), in nats: p of the model as it is, q of the changed one
    any other             squared relative L2 of each output, Σ (a − b)² / Σ a², their mean

Both are quadratic in small errors, so those of independent changes add up. Outputs that are a cache are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.activation_graph import TensorKey, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.language_model import read_language_model
from ov_weight_compression.calibration.runner import Pool, Store, Stream, feed, split
from ov_weight_compression.ir_utils.progress import progress_bar
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.worker_pool import default_threads, in_threads
from ov_weight_compression.patterns import Sources, Weight

__all__ = ["DivergenceSum", "ScoredOutputs", "divergence_of", "kl_divergence", "scored_outputs"]

_BLOCK_ELEMENTS = 1 << 21


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
        self._sums = np.zeros((len(outputs.numbers), 2))

    def add(self, which: int, base: Array, changed: Array) -> None:
        """Add one window of the scored output of that position; values that are not finite do not count."""
        if self._outputs.predictions:
            found = kl_divergence(base.reshape(-1, base.shape[-1]), changed.reshape(-1, base.shape[-1]))
            found = found[np.isfinite(found)]
            self._sums[which] += found.sum(dtype=np.float64), found.size
            return
        a, b = base.reshape(-1).astype(np.float64), changed.reshape(-1).astype(np.float64)
        good = np.isfinite(a) & np.isfinite(b)
        a, b = a[good], b[good]
        self._sums[which] += np.square(a - b).sum(), np.square(a).sum()

    @property
    def total(self) -> float:
        """The mean over the outputs; what adds up over changes."""
        counted = self._sums[self._sums[:, 1] > 0]
        return float((counted[:, 0] / counted[:, 1]).mean()) if len(counted) else 0.0


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
) -> float:
    """How far the outputs move on all samples when weights have other values, in the unit of `scored_outputs`.

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
    total = DivergenceSum(outputs)
    limit = calibration_memory // 6
    positions = {key: which for which, key in enumerate(graph.outputs)}

    def compare(window: int, key: TensorKey, array: Array) -> None:
        total.add(positions[key], store.get(key, window), array)

    with Pool(calibration_memory // 4) as pool, progress_bar(quiet=quiet) as bar:
        store = Store(pool)
        windows = feed(graph, store, samples)
        pieces = split(graph, 0, len(graph.order), limit)
        tick = bar.start("Measuring the divergence", 2 * windows * len(pieces))
        exact = Stream(graph, store, windows, limit, tick)
        other = Stream(graph, Store(pool, parent=store), windows, limit, tick)
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
    return outputs.divergence(total.total)
