"""Run data through the model and turn what it shows into weights: for the options that need data.

samples ─▸ statistics ─▸ sensitivity metrics (plan)
                     └─▸ importance of channels (scale search, while saving)
samples ─▸ streams ───▸ GPTQ stage by stage, codes to disk until they are saved
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ov_weight_compression.ir_utils.constants import ConstantReader
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.spool import Spool
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.method import Method, method_of
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.stored import StoredWeight, keep
from ov_weight_compression.patterns import Weight
from ov_weight_compression.quantization.encode import decode_rows
from ov_weight_compression.quantization.scales import tensor_scale_of
from ov_weight_compression.quantization.sensitivity import InputMeans

if TYPE_CHECKING:
    from ov_weight_compression.calibration import LayerInput, Samples, Stage, Statistics
    from ov_weight_compression.passes.layer_codes import InputKnowledge

__all__ = ["Calibration"]


class Calibration:
    """Everything that is learnt from data for one model. Nothing runs before it is asked for."""

    def __init__(
        self,
        model: Any,
        weights: Sequence[Weight],
        options: Options,
        reader: Callable[[Weight], ConstantReader],
    ) -> None:
        self._model, self._weights, self._options, self._reader = model, weights, options, reader

    @cached_property
    def method(self) -> Method:
        """What the options ask for, on this model."""
        options = self._options
        if options.accuracy is None and options.dataset is None and not options.scale_estimation and not options.gptq:
            return Method()
        from ov_weight_compression.calibration.language import read_language_model

        return method_of(
            options.accuracy,
            options.dataset,
            options.scale_estimation,
            options.gptq,
            read_language_model(self._model) is not None,
        )

    @cached_property
    def statistics(self) -> Statistics:
        """Sums over the inputs of every layer; read from `statistics_path` if they are there, else written to it."""
        from ov_weight_compression.calibration import (
            DEFAULT_MEMORY,
            collect,
            load_statistics,
            save_statistics,
            statistics_file,
        )

        path = self._options.statistics_path
        if path is not None and statistics_file(path).exists():
            return load_statistics(path, self._model)
        found = collect(
            self._model,
            self._weights,
            self._samples,
            calibration_memory=self._options.calibration_memory or DEFAULT_MEMORY,
            quiet=self._options.quiet,
        )
        if path is not None:
            save_statistics(found, path)
        return found

    def importance(self, weight: Weight) -> Array | None:
        """E[x²] of a layer's input channels, `[in]` or `[experts, in]`; None where the data never met the weight.

        None with GPTQ as well: what it did not reach meets no activation.
        """
        if not self.method.weighted or self.method.gptq or weight.name not in self.statistics:
            return None
        seen = self.statistics[weight.name]
        return seen.importance if np.any(seen.n) else None

    def means(self, weights: Sequence[Weight]) -> list[InputMeans | None]:
        """What the sensitivity metrics want to know of each weight's input."""
        found = [self.statistics.get(weight.name) for weight in weights]
        return [
            None
            if seen is None
            else InputMeans(seen.mean_square, seen.mean_variance, seen.max_variance, seen.mean_max_abs)
            for seen in found
        ]

    def encode(self, choices: Sequence[Choice]) -> dict[str, StoredWeight]:
        """GPTQ for every weight that has codes of 4 bits or fewer and meets activations, by name."""
        wanted = {c.weight.name: c for c in choices if c.spec.format.default_search}
        if not self.method.gptq or not wanted:
            return {}
        from ov_weight_compression.calibration import DEFAULT_MEMORY, open_streams

        spool, done = Spool(), dict[str, StoredWeight]()
        with open_streams(
            self._model,
            [choice.weight for choice in choices],
            self._samples,
            compressed=self.method.two_streams,
            calibration_memory=self._options.calibration_memory or DEFAULT_MEMORY,
            quiet=self._options.quiet,
        ) as streams:
            for stage in streams:
                for layer_input in stage.inputs:
                    self._encode_inputs(layer_input, wanted, spool, done, stage)
        return done

    def _encode_inputs(
        self,
        layer_input: LayerInput,
        wanted: Mapping[str, Choice],
        spool: Spool,
        done: dict[str, StoredWeight],
        stage: Stage,
    ) -> None:
        """Encode every wanted weight that reads one input; the layers after it see the result."""
        from ov_weight_compression.passes.layer_codes import encode_layer, knowledge_of

        names = [name for name in layer_input.weights if name in wanted]
        if not names:
            return
        both = self.method.two_streams
        seen = layer_input.measure(gram=not both, gram_hat=True, cross=both)
        known: dict[int, list[InputKnowledge]] = {}
        for name in names:
            choice = wanted[name]
            reader, spec = self._reader(choice.weight), choice.spec
            if id(reader.columns) not in known:
                known[id(reader.columns)] = knowledge_of(seen, both, reader.columns)
            scale = tensor_scale_of(choice.absmax, spec.format)
            encoded = encode_layer(reader.read_all(), spec, known[id(reader.columns)], self.method.effort, scale)
            done[name] = keep(encoded, spool)
            if both:
                stage.replace(name, reader.layout.from_matrix(reader.unscaled(decode_rows(encoded, spec))))

    def recipe(self) -> dict[str, str]:
        """What was run, in words, for the report and the model's rt_info; nothing where nothing was."""
        return {"data": self._samples.description} if "_samples" in self.__dict__ else {}

    @cached_property
    def _samples(self) -> Samples:
        from ov_weight_compression.calibration import CONTEXT_LENGTH, make_samples

        options = self._options
        if self.method.dataset is None:
            raise OptionError("dataset: needed for what was asked for")
        return make_samples(
            self._model,
            self.method.dataset,
            subset_size=options.subset_size,
            context_length=options.context_length or CONTEXT_LENGTH,
            quiet=options.quiet,
        )
