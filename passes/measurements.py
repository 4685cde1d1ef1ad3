"""What data show of a model's layers: run when it is first asked for, once.

samples ─▸ statistics ─▸ means: sensitivity metrics
                      └─▸ energy of channels: AWQ, scale search, fitted codebooks
   parts  ─▸ probes: what an error in each layer does to the outputs; and a check of what was made of them

A budget needs parts of the data that do not meet: few windows that the probes run on, more whose layer inputs are
looked at, and others to check on. A language model without data writes them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import Method
from ov_weight_compression.passes.probing import WeightRounder, quantiser_of, run_on_executor
from ov_weight_compression.patterns import Sources, Weight
from ov_weight_compression.quantization.allocation import InputMeans

if TYPE_CHECKING:
    from ov_weight_compression.calibration import Influence, LayerStatistics, Samples, Statistics

_FEW_TOKENS = 16
"""That one text has at its beginning and another nowhere."""
_USUAL = 1e20
_BEYOND = InputMeans(1e200, 1e200, 1e200, 1e200)
"""Of an input that is too large to be measured: nothing is more sensitive."""


class DataPart(Enum):
    """Windows of the data for one purpose. The value says which of them, as letters: of six, say, number 0 and 6."""

    PROBE = "p"
    CHECK = "c"
    LOOK = "l"


_PARTED_TOKENS = "p-cc-cc-cc--"
_PARTED_LOOKED = "pllcllcllcll"
"""Where layers are coded one by one."""
_PARTED_WINDOWS = 48
_PARTED_LENGTH = 128
_HELD_BACK = 4
"""One of so many samples is not coded with where a choice is measured; at least one."""
_PARTED_INPUTS = "plclcl"
"""Of inputs that are no token ids; the first eight of each part are used."""


@dataclass(eq=False)
class Measurements:
    """The data of one run and what they show."""

    model: Any
    weights: Sequence[Weight]
    sources: Sources
    """What the data run through, with the weights as they are."""
    method: Method
    """Whose data."""
    options: Options
    """How much of the data, in how much memory, and where statistics are kept."""
    recipe: dict[str, str] = field(default_factory=dict)
    """For the recipe: the data that were run, in words, where any were."""
    left_out: list[str] = field(default_factory=list)
    """Weights whose inputs were not finite on some samples, which were left out of their statistics."""
    _samples: dict[int | None, Samples] = field(default_factory=dict)
    _statistics: dict[int | None, Statistics] = field(default_factory=dict)
    _influences: tuple[Mapping[str, tuple[Influence, ...]], str] | None = None
    _held: Samples | None = None

    @property
    def memory(self) -> int:
        """Bytes that running data may hold."""
        from ov_weight_compression.calibration import DEFAULT_MEMORY

        return self.options.calibration_memory or DEFAULT_MEMORY

    def samples(self, subset: int | None = None) -> Samples:
        """The samples, or the first few of them where `subset` is fewer than `subset_size` leaves."""
        from ov_weight_compression.calibration import CONTEXT_LENGTH, filled_copy, make_samples

        options, dataset, subset = self.options, self.method.dataset, self._fewer(subset)
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
            self.recipe.setdefault("data", self._samples[subset].description)
        return self._samples[subset]

    def statistics(self, subset: int | None = None) -> Statistics:
        """Sums over the inputs of every layer, of all samples or of a few; read from `statistics_path` if they are
        there, else written to it."""
        subset = self._fewer(subset)
        if subset not in self._statistics:
            self._statistics[subset] = self._measured(subset)
            self.left_out += self._statistics[subset].left_out
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
        if isinstance(self.method.dataset, str) and self.method.dataset == "random":
            energy = energy + np.median(energy, axis=-1, keepdims=True)
        return energy

    def means(self, weights: Sequence[Weight]) -> list[InputMeans | None]:
        """What the sensitivity metrics want to know of each weight's input."""
        statistics = self.statistics()
        return [
            _BEYOND if weight.name in statistics.left_out else _means_of(statistics.get(weight.name))
            for weight in weights
        ]

    def part(self, part: DataPart) -> Samples:
        """The windows of one part of the data; of the probes' where there are too few to be parted.

        Raises:
            OptionError: there are no data, and none can be made up.
        """
        if part is DataPart.CHECK and self._held is not None:
            return self._held
        from ov_weight_compression.calibration import make_samples

        cycle, count = _PARTED_INPUTS, _PARTED_WINDOWS
        if self._takes_tokens:
            cycle = _PARTED_TOKENS if self.method.steps is None else _PARTED_LOOKED
            count *= self._windows_in_one

        def chosen(number: int, letter: str = part.value) -> bool:
            return cycle[number % len(cycle)] == letter

        try:
            return make_samples(
                self.model,
                self._parted,
                subset_size=count,
                context_length=_PARTED_LENGTH,
                quiet=self.options.quiet,
                which=chosen,
            )
        except OptionError:
            if part is DataPart.PROBE:
                raise
            return self.part(DataPart.PROBE)

    def for_checks(self) -> Measurements:
        """What to prepare a plan with that is going to be measured, and to measure it with.

        Codes that are fitted to samples look better on those than they are. Where they are fitted to the caller's, some
        are held back, if there are any of those that no probe ran on: none of the codes have seen them, and they are
        all that is measured on. Samples that are written for the occasion are not those that are measured on anyway.
        """
        method = self.method
        if method.steps is None or isinstance(method.dataset, str):
            return self
        subset = self._fewer(method.tuning.gptq_subset)
        every, probed = self.samples(subset), list(self.part(DataPart.PROBE))
        new = [not any(_overlap(window, one) for one in probed) for window in every]
        count = len(new)
        if count < 2:
            return self
        free = [number for number in range(count) if new[number] or not any(new)]
        picked = np.linspace(0, len(free) - 1, min(len(free), max(1, count // _HELD_BACK))).round().astype(int)
        held = {free[place] for place in picked}
        found = Measurements(
            self.model, self.weights, self.sources, method, replace(self.options, statistics_path=None)
        )
        found._samples[subset] = _some(every, lambda number: number not in held)
        found._held = _some(every, lambda number: number in held)
        return found

    def influences(self) -> tuple[Mapping[str, tuple[Influence, ...]], str]:
        """What probes of every weight have shown, and the unit: of `LayerLosses`. Read from beside `statistics_path` if
        it is there, else written to it. Nothing, and "none", where there are no data and none can be made up."""
        if self._influences is None:
            self._influences = self._probed()
        return self._influences

    def _probed(self) -> tuple[Mapping[str, tuple[Influence, ...]], str]:
        from ov_weight_compression.calibration import (
            filled_copy,
            influences_of,
            load_influences,
            run_probes,
            save_influences,
            scored_outputs,
        )

        unit = scored_outputs(self.model).unit
        file = self._influence_file
        if file is not None and file.exists():
            return load_influences(file, self.model), unit
        if self._parted is None:
            return {}, "none"
        quantiser, samples = quantiser_of(self.method), self.part(DataPart.PROBE)
        more = self.part(DataPart.LOOK) if quantiser.by_gptq else None
        executor, weights = self.options.executor, self.weights
        if executor is None:
            rounder = WeightRounder(weights, self.sources, quantiser)
            shown = run_probes(
                self.model,
                weights,
                rounder,
                samples,
                more or (),
                grams=quantiser.by_gptq,
                sources=self.sources,
                calibration_memory=self.memory,
                quiet=self.options.quiet,
            )
        else:
            filled = filled_copy(self.model, weights, self.sources)
            roles = self.options.roles
            shown = run_on_executor(
                executor, filled, weights, quantiser, samples, more, roles=roles, calibration_memory=self.memory
            )
        found = influences_of(shown)
        if file is not None:
            save_influences(found, file, self.model, samples.description)
        return found, unit

    @property
    def _influence_file(self) -> Path | None:
        """Of what the method's own quantiser was probed with."""
        from ov_weight_compression.calibration import statistics_file

        if self.options.statistics_path is None:
            return None
        file = statistics_file(self.options.statistics_path)
        how = "gptq" if self.method.steps is not None else "weighted" if self.method.weighted else "plain"
        return file.with_name(f"{file.stem}.probes-{how}{file.suffix}")

    @cached_property
    def _takes_tokens(self) -> bool:
        from ov_weight_compression.calibration.model_inputs import read_language_model

        language = read_language_model(self.model)
        return language is not None and language.needs_only_ids

    @cached_property
    def _windows_in_one(self) -> int:
        """How many windows of the caller's text have as many tokens as one that is parted: more than one where the
        model, or the data, have short ones. What is measured on few tokens is hardly ever surely better."""
        from ov_weight_compression.calibration import make_samples

        first = make_samples(self.model, self._parted, subset_size=1, context_length=_PARTED_LENGTH, quiet=True)
        longest = max((np.shape(array)[-1] for one in first for array in one.values() if np.ndim(array)), default=1)
        return max(1, _PARTED_LENGTH // max(1, longest))

    @cached_property
    def _parted(self) -> Any:
        """The data of the parts: the caller's, else tokens that a language model writes; None where it cannot."""
        from ov_weight_compression.calibration import filled_copy, written_windows

        if self.method.dataset is not None and not isinstance(self.method.dataset, str):
            return self._dataset
        model = filled_copy(self.model, self.weights, self.sources)
        return written_windows(model, _PARTED_WINDOWS, _PARTED_LENGTH, quiet=self.options.quiet)

    @cached_property
    def _dataset(self) -> Any:
        """The data, to be read as often as there are uses for it."""
        from ov_weight_compression.calibration import readable

        return readable(self.method.dataset, "dataset")

    def _measured(self, subset: int | None) -> Statistics:
        from ov_weight_compression.calibration import collect, load_statistics, save_statistics, statistics_file

        path = self.options.statistics_path
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
            quiet=self.options.quiet,
            sources=self.sources,
        )
        if path is not None:
            save_statistics(found, path)
        return found

    def _fewer(self, subset: int | None) -> int | None:
        """A number of samples, or None where that is no fewer than `subset_size` leaves."""
        from ov_weight_compression.calibration import SUBSET_SIZE

        limit = self.options.subset_size
        if limit is None and not isinstance(self.method.dataset, str):
            limit = SUBSET_SIZE
        return subset if subset is not None and (limit is None or subset < limit) else None


def _some(samples: Samples, wanted: Callable[[int], bool]) -> Samples:
    """Those whose number, from 0, is wanted."""
    return replace(samples, source=lambda: (one for number, one in enumerate(samples) if wanted(number)))


def _overlap(window: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Whether one of the samples that lie side by side in one of them is in the other too, or a part of its text."""
    return _begins_in(window, other) or _begins_in(other, window)


def _begins_in(window: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    every = {name: np.ascontiguousarray(array).tobytes() for name, array in other.items()}
    rows = min((len(array) if np.ndim(array) else 1 for array in window.values()), default=0)
    return any(
        all(_beginning(np.atleast_1d(array)[row]).tobytes() in every.get(name, b"") for name, array in window.items())
        for row in range(rows)
    )


def _beginning(row: Array) -> Array:
    """Of tokens the first few, of anything else the whole."""
    return row[:_FEW_TOKENS] if row.ndim == 1 and np.issubdtype(row.dtype, np.integer) else row


def _means_of(seen: LayerStatistics | None) -> InputMeans | None:
    if seen is None:
        return None
    return InputMeans(seen.mean_square, seen.mean_variance, seen.max_variance, seen.mean_max_abs)
