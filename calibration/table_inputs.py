"""Gram matrices of what layers multiply with a table that rows are picked from as well.

In `two_streams` a weight belongs to the first stage that reads it, and for a table that is where its rows are picked.
So the float model runs once by itself, and what counts is looked at wherever it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import TensorKey, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.gram_sums import GramSums
from ov_weight_compression.calibration.products import Kernels
from ov_weight_compression.calibration.runner import Stream, feed, split
from ov_weight_compression.calibration.sums import rows_by_expert
from ov_weight_compression.calibration.window_store import Pool, Store
from ov_weight_compression.ir_utils.progress import progress_bar
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.patterns import Sources, Weight


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
    limit, kernels = calibration_memory // 6, Kernels()
    sums = {name: GramSums(tap.width, kernels) for tap in graph.taps if not tap.batch for name in tap.weights}

    def receive(window: int, key: TensorKey, array: NDArray[Any]) -> None:
        for tap in graph.taps:
            if tap.key == key and not tap.batch:
                rows = rows_by_expert(array, tap.reduction, tap.batch)
                for name in tap.weights:
                    sums[name].add(rows.reshape(1, -1, tap.width))

    with Pool(calibration_memory // 4) as pool, progress_bar(quiet=quiet) as bar:
        store = Store(pool)
        windows = feed(graph, store, samples)
        pieces = split(graph, 0, len(graph.order), limit)
        tick = bar.start("Looking at what tables meet", windows * len(pieces))
        stream = Stream(graph, store, windows, limit, tick)
        for begin, end in pieces:
            keys = [tap.key for tap in graph.taps if begin <= graph.place.get(tap.key[0], -1) < end]
            stream.advance(begin, end, dict.fromkeys(keys, receive))
            stream.forget(end, ())
    return {name: one.result().gram for name, one in sums.items()}
