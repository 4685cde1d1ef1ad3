"""One pass of data through the model, giving the statistics of every layer input in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import Tap, TensorKey, read_graph
from ov_weight_compression.calibration.datasets import Samples
from ov_weight_compression.calibration.runner import Pool, Store, Stream, feed, split
from ov_weight_compression.calibration.statistics import LayerStatistics, Statistics, fingerprint
from ov_weight_compression.calibration.sums import Accumulator, Need, rows_by_expert
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.progress import progress_bar
from ov_weight_compression.patterns import Weight

__all__ = ["DEFAULT_MEMORY", "collect"]

DEFAULT_MEMORY = 2 << 30
"""`calibration_memory` where a caller says nothing: 2 GiB."""


def collect(
    model: ov.Model,
    weights: Sequence[Weight],
    samples: Samples,
    *,
    need: Need | Mapping[str, Need] | None = None,
    calibration_memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
) -> Statistics:
    """Statistics of the inputs of the layers that use `weights`, over all `samples`.

    `need` says what to collect beside the sums per channel: one `Need` for all, or one per weight name (a weight that
    is missing then is not looked at). Every layer runs once per window. The model itself is not changed.

    Raises OptionError where the statistics themselves would take more than half of `calibration_memory`.
    """
    needs = _needs(weights, need)
    graph = read_graph(model, [weight for weight in weights if weight.name in needs])
    collectors = [_Collector(tap, _strongest(needs[name] for name in tap.weights)) for tap in graph.taps]
    _check_memory(collectors, calibration_memory)
    with Pool(calibration_memory // 4) as pool:
        store = Store(pool)
        windows = feed(graph, store, samples)
        limit = calibration_memory // 6
        readers = _readers(collectors)
        for key, receive in readers.items():
            if key in store:
                for window in range(windows):
                    receive(window, key, store.get(key, window))
        steps = windows * len(split(graph, 0, len(graph.order), limit))
        with progress_bar(quiet=quiet) as bar:
            tick = bar.start("Calibrating", steps)
            Stream(graph, store, windows, limit, tick).advance(0, len(graph.order), dict(readers))
    left_out = [name for one in collectors if one.sums.left_out for name in one.tap.weights]
    return Statistics(_by_weight(collectors), fingerprint(model), samples.description, left_out)


class _Collector:
    """The accumulator of one tap."""

    def __init__(self, tap: Tap, need: Need) -> None:
        self.tap = tap
        self.need = need
        self.sums = Accumulator(tap.width, need)

    def receive(self, array: NDArray[Any]) -> None:
        self.sums.add(rows_by_expert(array, self.tap.batch, transposed=self.tap.transposed))


def _needs(weights: Sequence[Weight], need: Need | Mapping[str, Need] | None) -> dict[str, Need]:
    if isinstance(need, Mapping):
        return {weight.name: need[weight.name] for weight in weights if weight.name in need}
    return {weight.name: need or Need() for weight in weights}


def _strongest(needs: Iterable[Need]) -> Need:
    """One Need that holds all of them: blocks of the least common multiple."""
    found = list(needs)
    blocks = [need.block for need in found if need.block]
    return Need(int(np.lcm.reduce(blocks)) if blocks else 0, any(need.gram for need in found))


def _check_memory(collectors: Sequence[_Collector], limit: int) -> None:
    total = sum(one.need.bytes(one.tap.width, int(np.prod(one.tap.batch))) for one in collectors)
    if total > limit // 2:
        raise OptionError(
            f"calibration_memory={limit}: the statistics of {len(collectors)} layer inputs alone take {total} bytes, "
            f"and at most half of it is for them: give calibration_memory={2 * total} or more"
        )


def _readers(collectors: Sequence[_Collector]) -> dict[TensorKey, Callable[[int, TensorKey, NDArray[Any]], None]]:
    """One function for every tensor, which hands it to all collectors that read it."""
    by_key: dict[TensorKey, list[_Collector]] = {}
    for one in collectors:
        by_key.setdefault(one.tap.key, []).append(one)

    def reader(interested: list[_Collector]) -> Callable[[int, TensorKey, NDArray[Any]], None]:
        def receive(window: int, key: TensorKey, array: NDArray[Any]) -> None:
            for one in interested:
                one.receive(array)

        return receive

    return {key: reader(interested) for key, interested in by_key.items()}


def _by_weight(collectors: Sequence[_Collector]) -> dict[str, LayerStatistics]:
    layers: dict[str, LayerStatistics] = {}
    for one in collectors:
        result = one.sums.result()
        for name in one.tap.weights:
            layers[name] = layers[name] + result if name in layers else result
    return layers
