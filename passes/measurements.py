"""What data show of a model's layers: run when it is first asked for, once.

samples ─▸ statistics ─▸ means: sensitivity metrics
                      └─▸ energy of channels: AWQ, scale search, fitted codebooks
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.passes.method import Method
from ov_weight_compression.passes.options import Options
from ov_weight_compression.patterns import Sources, Weight
from ov_weight_compression.quantization.sensitivity import InputMeans

if TYPE_CHECKING:
    from ov_weight_compression.calibration import LayerStatistics, Samples, Statistics

__all__ = ["Measurements"]

_USUAL = 1e20
_BEYOND = InputMeans(1e200, 1e200, 1e200, 1e200)
"""Of an input that is too large to be measured: nothing is more sensitive."""


class Measurements:
    """The data of one run and what they show.

    Args:
        model, weights, sources: what the data run through, with the weights as they are.
        method: whose data.
        options: how much of the data, in how much memory, and where statistics are kept.
    """

    def __init__(
        self, model: Any, weights: Sequence[Weight], sources: Sources, method: Method, options: Options
    ) -> None:
        self.model, self.weights, self.sources, self.method = model, weights, sources, method
        self._options = options
        self._samples: dict[int | None, Samples] = {}
        self._statistics: dict[int | None, Statistics] = {}

    @property
    def memory(self) -> int:
        """Bytes that running data may hold."""
        from ov_weight_compression.calibration import DEFAULT_MEMORY

        return self._options.calibration_memory or DEFAULT_MEMORY

    @property
    def quiet(self) -> bool:
        """Whether no progress is shown."""
        return self._options.quiet

    @property
    def description(self) -> str | None:
        """The data that were run, in words; None where none were."""
        return next(iter(self._samples.values())).description if self._samples else None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Weights whose inputs were not finite on some samples, which were left out of their statistics."""
        return tuple(name for found in self._statistics.values() for name in found.left_out)

    def samples(self, subset: int | None = None) -> Samples:
        """The samples, or the first few of them where `subset` is fewer than `subset_size` leaves."""
        from ov_weight_compression.calibration import CONTEXT_LENGTH, filled_copy, make_samples

        options, dataset, subset = self._options, self.method.dataset, self._fewer(subset)
        if dataset is None:
            raise OptionError("dataset: needed for what was asked for")
        if subset not in self._samples:
            writes = isinstance(dataset, str) and dataset == "self"
            self._samples[subset] = make_samples(
                filled_copy(self.model, self.weights, self.sources) if writes else self.model,
                self._dataset,
                subset_size=subset or options.subset_size,
                context_length=options.context_length or CONTEXT_LENGTH,
                quiet=options.quiet,
            )
        return self._samples[subset]

    def statistics(self, subset: int | None = None) -> Statistics:
        """Sums over the inputs of every layer, of all samples or of a few; read from `statistics_path` if they are
        there, else written to it."""
        subset = self._fewer(subset)
        if subset not in self._statistics:
            self._statistics[subset] = self._measured(subset)
        return self._statistics[subset]

    def energy(self, weight: Weight, subset: int | None) -> Array | None:
        """E[x²] of a layer's input channels, `[in]` or `[experts, in]`; None where the data never met the weight.

        Random tokens are not the text that the model was made for, so channels of which they say the least get the
        median on top: where activations have outliers that changes nothing, and where random tokens mislead it keeps
        the result as good as without data.
        """
        statistics = self.statistics(subset)
        if weight.name not in statistics:
            return None
        seen = statistics[weight.name]
        if not np.any(seen.n):
            return None
        energy = seen.importance
        largest = float(energy.max(initial=0.0))
        if not np.isfinite(largest):
            return None
        if largest > _USUAL:  # what it is multiplied with must not leave the range of f32; only ratios count
            energy = energy / np.float32(largest)
        if self.method.random_data:
            energy = energy + np.median(energy, axis=-1, keepdims=True)
        return energy

    def means(self, weights: Sequence[Weight]) -> list[InputMeans | None]:
        """What the sensitivity metrics want to know of each weight's input."""
        statistics = self.statistics()
        return [
            _BEYOND if weight.name in statistics.left_out else _means_of(statistics.get(weight.name))
            for weight in weights
        ]

    @cached_property
    def _dataset(self) -> Any:
        """The data, to be read as often as there are uses for it."""
        from ov_weight_compression.calibration import readable

        return readable(self.method.dataset, "dataset")

    def _measured(self, subset: int | None) -> Statistics:
        from ov_weight_compression.calibration import collect, load_statistics, save_statistics, statistics_file

        path = self._options.statistics_path
        if path is not None and subset is not None:
            file = statistics_file(path)
            path = file.with_name(f"{file.stem}.{subset}{file.suffix}")
        if path is not None and statistics_file(path).exists():
            return load_statistics(path, self.model)
        samples = self.samples(subset)
        found = collect(
            self.model,
            self.weights,
            samples,
            calibration_memory=self.memory,
            quiet=self.quiet,
            sources=self.sources,
        )
        if path is not None:
            save_statistics(found, path)
        return found

    def _fewer(self, subset: int | None) -> int | None:
        """A number of samples, or None where that is no fewer than `subset_size` leaves."""
        from ov_weight_compression.calibration import SUBSET_SIZE

        limit = self._options.subset_size
        if limit is None and not isinstance(self.method.dataset, str):
            limit = SUBSET_SIZE
        return subset if subset is not None and (limit is None or subset < limit) else None


def _means_of(seen: LayerStatistics | None) -> InputMeans | None:
    if seen is None:
        return None
    return InputMeans(seen.mean_square, seen.mean_variance, seen.max_variance, seen.mean_max_abs)
