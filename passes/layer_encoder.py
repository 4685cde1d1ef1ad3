"""Weights encoded while the data run through the model, layer by layer: codes and adapters, kept on disk until saved.

For each input that layers share, H is measured once; each of its weights then gets codes (by GPTQ or by the weighted
search), and adapters for what the codes have lost. Where two streams run, the layers after see both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.constants import ConstantReader
from ov_weight_compression.ir_utils.errors import CompressionError, WorkError
from ov_weight_compression.ir_utils.spool import Spool
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.layer_codes import encode_layer, knowledge_of
from ov_weight_compression.passes.lora import StoredAdapters, fit_adapters, obstacle
from ov_weight_compression.passes.method import Method
from ov_weight_compression.passes.stored import StoredWeight, keep
from ov_weight_compression.patterns import Weight
from ov_weight_compression.quantization.encode import decode_rows
from ov_weight_compression.quantization.scales import tensor_scale_of

if TYPE_CHECKING:
    from ov_weight_compression.calibration import LayerInput, Stage
    from ov_weight_compression.passes.layer_codes import InputKnowledge

__all__ = ["LayerEncoder"]


class LayerEncoder:
    """What has been encoded of the wanted weights so far.

    Args:
        wanted: the weights to encode, by name.
        reader: reads a weight as it is to be quantised.
        method: what to do with the data.
        rank: of the adapters, where the method wants any.
    """

    def __init__(
        self, wanted: Mapping[str, Choice], reader: Callable[[Weight], ConstantReader], method: Method, rank: int
    ) -> None:
        self._wanted, self._reader, self._method, self._rank = wanted, reader, method, rank
        self._spool = Spool()
        self.weights: dict[str, StoredWeight] = {}
        self.adapters: dict[str, StoredAdapters | None] = {}
        """By the weight's name; None where there is nothing to correct."""

    def take(self, layer_input: LayerInput, stage: Stage) -> None:
        """Encode every wanted weight that reads one input; the layers after it see the result.

        Raises:
            WorkError: it failed; names the weight.
        """
        names = [name for name in layer_input.weights if name in self._wanted]
        if not names:
            return
        both = self._method.two_streams
        seen = layer_input.measure(cross=both)
        known: dict[int, list[InputKnowledge]] = {}
        for name in names:
            reader = self._reader(self._wanted[name].weight)
            if id(reader.columns) not in known:
                known[id(reader.columns)] = knowledge_of(seen, reader.columns)
            try:
                values = self._encode(self._wanted[name], reader.read_all(), known[id(reader.columns)])
            except (ValueError, np.linalg.LinAlgError) as error:
                if isinstance(error, CompressionError):
                    raise
                raise WorkError(f"{name}: {error}") from error
            if both:
                adapters = self.adapters.get(name)
                values = values if adapters is None else values + adapters.values()
                stage.replace(name, reader.layout.from_matrix(reader.unscaled(values)))

    def _encode(self, choice: Choice, matrix: Float32, known: list[InputKnowledge]) -> Float32:
        """Encode a weight `[rows, in]`; its values as stored, without adapters."""
        name, spec = choice.weight.name, choice.spec
        scale = tensor_scale_of(choice.absmax, spec.format)
        encoded = encode_layer(matrix, spec, known, self._method.effort, scale)
        self.weights[name] = keep(encoded, self._spool)
        values = decode_rows(encoded, spec)
        if self._method.lora and not obstacle(choice.weight):
            self.adapters[name] = fit_adapters(matrix, values, known[0], self._rank, self._spool)
        return values
