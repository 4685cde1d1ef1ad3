"""Run data through the model and turn what it shows into weights: for the options that need data.

samples ─▸ statistics ─▸ sensitivity metrics (plan)
                     └─▸ importance of channels (scale search, while saving)
samples ─▸ streams ───▸ GPTQ or LoRA correction stage by stage, codes to disk until they are saved
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.method import Method, method_of
from ov_weight_compression.passes.options import Options
from ov_weight_compression.patterns import Sources, Weight
from ov_weight_compression.quantization.sensitivity import InputMeans

if TYPE_CHECKING:
    from ov_weight_compression.calibration import LayerStatistics, Samples, Statistics
    from ov_weight_compression.passes.layer_encoder import LayerEncoder

__all__ = ["Calibration"]

_USUAL = 1e20
_BEYOND = InputMeans(1e200, 1e200, 1e200, 1e200)
"""Of an input that is too large to be measured: nothing is more sensitive."""


def _means_of(seen: LayerStatistics | None) -> InputMeans | None:
    if seen is None:
        return None
    return InputMeans(seen.mean_square, seen.mean_variance, seen.max_variance, seen.mean_max_abs)


class Calibration:
    """Everything that is learnt from data for one model. Nothing runs before it is asked for."""

    def __init__(
        self,
        model: Any,
        weights: Sequence[Weight],
        options: Options,
        sources: Sources,
    ) -> None:
        self._model, self._weights, self._options, self._sources = model, weights, options, sources
        self._made: dict[int | None, Samples] = {}
        self._measured: dict[int | None, Statistics] = {}

    @cached_property
    def _dataset(self) -> Any:
        """The data, to be read as often as there are uses for it."""
        from ov_weight_compression.calibration import readable

        return readable(self.method.dataset)

    @cached_property
    def method(self) -> Method:
        """What the options ask for, on this model."""
        options = self._options
        named = options.scale_estimation or options.gptq or options.lora_correction
        if options.accuracy is None and options.dataset is None and not named:
            return Method()
        from ov_weight_compression.calibration.language_model import read_language_model

        language = read_language_model(self._model)
        return method_of(
            options.accuracy,
            options.dataset,
            options.scale_estimation,
            options.gptq,
            language is not None and language.needs_only_ids,
            options.lora_correction,
        )

    @property
    def statistics(self) -> Statistics:
        """Sums over the inputs of every layer; read from `statistics_path` if they are there, else written to it."""
        return self._statistics_of(None)

    def _statistics_of(self, subset: int | None) -> Statistics:
        """The statistics of all samples, or of the first few where an algorithm wants fewer."""
        subset = self._fewer(subset)
        if subset not in self._measured:
            self._measured[subset] = self._measure(subset)
        return self._measured[subset]

    def _measure(self, subset: int | None) -> Statistics:
        from ov_weight_compression.calibration import (
            DEFAULT_MEMORY,
            collect,
            load_statistics,
            save_statistics,
            statistics_file,
        )

        path = self._options.statistics_path
        if path is not None and subset is not None:
            file = statistics_file(path)
            path = file.with_name(f"{file.stem}.{subset}{file.suffix}")
        if path is not None and statistics_file(path).exists():
            return load_statistics(path, self._model)
        found = collect(
            self._model,
            self._weights,
            self._samples_of(subset),
            calibration_memory=self._options.calibration_memory or DEFAULT_MEMORY,
            quiet=self._options.quiet,
            sources=self._sources,
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

    @property
    def folds(self) -> bool:
        """Whether AWQ's factors are wanted; `awq` decides where it is given."""
        return self.method.folded if self._options.awq is None else self._options.awq

    def importance(self, weight: Weight) -> Array | None:
        """E[x²] of a layer's input channels, `[in]` or `[experts, in]`; None where the data never met the weight.

        None with GPTQ as well: what it did not reach meets no activation. Random tokens are not the text that the model
        was made for, so channels of which they say the least get the median on top: where activations have outliers
        that changes nothing, and where random tokens mislead it keeps the result as good as without data.
        """
        if not self.method.weighted or self.method.gptq:
            return None
        return self._energy(weight, self._options.tuning.scale_estimation_subset)

    def scaling_energy(self, weight: Weight) -> Array | None:
        """The same for AWQ's factors, which may be chosen on fewer samples, or on none although there are some."""
        tuning = self._options.tuning
        if not self.method.weighted or self.method.gptq or not tuning.awq_from_data:
            return None
        return self._energy(weight, tuning.awq_subset)

    def _energy(self, weight: Weight, subset: int | None) -> Array | None:
        statistics = self._statistics_of(subset)
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
        if isinstance(self.method.dataset, str) and self.method.dataset == "random":
            energy = energy + np.median(energy, axis=-1, keepdims=True)
        return energy

    def means(self, weights: Sequence[Weight]) -> list[InputMeans | None]:
        """What the sensitivity metrics want to know of each weight's input."""
        statistics = self.statistics
        return [
            _BEYOND if weight.name in statistics.left_out else _means_of(statistics.get(weight.name))
            for weight in weights
        ]

    def encode(self, choices: Sequence[Choice], sources: Sources) -> LayerEncoder | None:
        """Codes, and adapters where they are asked for, of every weight of 4 bits or fewer that meets activations;
        `sources` are the weights as they are to be quantised.

        None where the method makes codes without looking at one layer after the other.
        """
        wanted = {choice.weight.name: choice for choice in choices if choice.few_bits}
        if not self.method.layer_by_layer or not wanted:
            return None
        from ov_weight_compression.calibration import DEFAULT_MEMORY, open_streams
        from ov_weight_compression.passes.layer_encoder import LayerEncoder

        tuning = self._options.tuning
        encoder = LayerEncoder(wanted, sources, self.method, self._options.lora_rank, tuning)
        subset = self._fewer(tuning.gptq_subset if self.method.gptq else tuning.lora_subset)
        with open_streams(
            self._model,
            [choice.weight for choice in choices],
            self._samples_of(subset),
            compressed=self.method.two_streams,
            calibration_memory=self._options.calibration_memory or DEFAULT_MEMORY,
            quiet=self._options.quiet,
            sources=self._sources,
        ) as streams:
            for stage in streams:
                for layer_input in stage.inputs:
                    encoder.take(layer_input, stage)
        return encoder

    def learn(self, choices: Sequence[Choice]) -> tuple[str, ...]:
        """Run what has not run yet of what will be wanted of the data; what is to be said about it."""
        if choices and not self.method.layer_by_layer:  # what has gone layer by layer asks for nothing more
            self.importance(choices[0].weight)
        return tuple(dict.fromkeys(name for found in self._measured.values() for name in found.left_out))

    def recipe(self) -> dict[str, str]:
        """What was run, in words, for the report and the model's rt_info; nothing where nothing was."""
        return {"data": next(iter(self._made.values())).description} if self._made else {}

    def _samples_of(self, subset: int | None) -> Samples:
        """The samples, or the first few of them."""
        from ov_weight_compression.calibration import CONTEXT_LENGTH, filled_copy, make_samples

        options = self._options
        if self.method.dataset is None:
            raise OptionError("dataset: needed for what was asked for")
        if subset not in self._made:
            writes = isinstance(self.method.dataset, str) and self.method.dataset == "self"
            self._made[subset] = make_samples(
                filled_copy(self._model, self._weights, self._sources) if writes else self._model,
                self._dataset,
                subset_size=subset or options.subset_size,
                context_length=options.context_length or CONTEXT_LENGTH,
                quiet=options.quiet,
            )
        return self._made[subset]
