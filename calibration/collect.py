"""One pass of data through the model, in bounded memory: statistics of every layer input, and Gram matrices of some.

A pass for Gram matrices is for what layers multiply with a table that rows are picked from as well. In `two_streams` a
weight belongs to the first stage that reads it, and for a table that is where its rows are picked. So the float model
runs once by itself, and what counts is looked at wherever it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from math import prod

import openvino as ov

from ov_weight_compression.calibration.activation_graph import ActivationGraph, Tap, TensorKey, read_graph
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.grams import GramSums, Kernels, rows_by_expert
from ov_weight_compression.calibration.runner import Pool, Store, Stream, feed, split
from ov_weight_compression.calibration.statistics import Accumulator, LayerStatistics, Statistics, fingerprint
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.printing import progress_bar
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.patterns import Sources, Weight

DEFAULT_MEMORY = 2 << 30
"""`calibration_memory` where a caller says nothing: 2 GiB."""
_BYTES = 16
"""Of one input channel: its sum in f64, its statistics in f32, rounded up."""


def collect(
    model: ov.Model,
    weights: Sequence[Weight],
    samples: Samples,
    *,
    calibration_memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
    sources: Sources | None = None,
) -> Statistics:
    """Statistics of the inputs of the layers that use `weights`, over all `samples`.

    `sources` says where the weights' values come from, the model's constants by default. Every layer runs once per
    window. The model itself is not changed.

    Raises OptionError where the statistics themselves would take more than half of `calibration_memory`.
    """
    graph = read_graph(model, weights, values=sources)
    total = sum(_BYTES * tap.width * prod(size for _, size in tap.batch) for tap in graph.taps)
    if total > calibration_memory // 2:
        raise OptionError(
            f"calibration_memory={calibration_memory}: the statistics of {len(graph.taps)} layer inputs alone take "
            f"{total} bytes, and at most half of it is for them: give calibration_memory={2 * total} or more"
        )
    sums = {tap: Accumulator(tap.width) for tap in graph.taps}
    _run(graph, samples, sums, lambda tap, rows: sums[tap].add(rows), calibration_memory, quiet, "Calibrating")
    layers: dict[str, LayerStatistics] = {}
    for tap, one in sums.items():
        result = one.result()
        for name in tap.weights:
            layers[name] = layers[name] + result if name in layers else result
    left_out = [name for tap, one in sums.items() if one.left_out for name in tap.weights]
    return Statistics(layers, fingerprint(model), samples.description, left_out)


def _run(
    graph: ActivationGraph,
    samples: Samples,
    taps: Iterable[Tap],
    add: Callable[[Tap, Float32], None],
    memory: int,
    quiet: bool,
    title: str,
) -> None:
    """One pass, in which what each tap looks at is added, `[experts, sequences, tokens, in]`."""
    by_key: dict[TensorKey, list[Tap]] = {}
    for tap in taps:
        by_key.setdefault(tap.key, []).append(tap)

    def receive(window: int, key: TensorKey, array: Array) -> None:
        for tap in by_key[key]:
            add(tap, rows_by_expert(array, tap.reduction, tap.batch))

    with closing(Pool(memory // 4)) as pool, progress_bar(quiet=quiet) as bar:
        store, limit = Store(pool), memory // 6
        windows = feed(graph, store, samples)
        for key in [key for key in by_key if key in store.entries]:
            for window in range(windows):
                receive(window, key, store.get(key, window))
        tick = bar.start(title, windows * len(split(graph, 0, len(graph.order), limit)))
        Stream(graph, store, windows, limit, tick).advance(0, len(graph.order), dict.fromkeys(by_key, receive))


def grams_of_inputs(
    model: ov.Model,
    weights: Sequence[Weight],
    samples: Samples,
    *,
    calibration_memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
    sources: Sources | None = None,
) -> dict[str, Float32]:
    """`Σ x xᵀ` [in, in] of the input of each weight's layers, by the weight's name; without those that meet none.

    Args:
        model: not changed.
        weights: whose layers' inputs are looked at; where a weight has several, they are added.
        samples: what runs through the model.
        calibration_memory: bytes that running may hold.
        quiet: show no progress.
        sources: where the weights' values come from, the model's constants by default.
    """
    graph = read_graph(model, weights, values=sources)
    kernels: Kernels = {}
    taps = [tap for tap in graph.taps if not tap.batch]
    sums = {name: GramSums(tap.width, kernels) for tap in taps for name in tap.weights}

    def add(tap: Tap, rows: Float32) -> None:
        for name in tap.weights:
            sums[name].add(rows)

    _run(graph, samples, taps, add, calibration_memory, quiet, "Looking at what tables meet")
    return {name: one.result().gram for name, one in sums.items()}
