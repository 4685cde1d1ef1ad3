"""Weights encoded while the data run through the model, layer by layer: codes and adapters, kept on disk until saved.

For each input that layers share, H is measured once; each of its weights then gets codes (by GPTQ or by the weighted
search), and adapters for what the codes have lost. Where two streams run, the layers after see both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError
from ov_weight_compression.ir_utils.spool import Spool
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.ir_utils.weight_source import FoldedSource
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.layer_codes import encode_layer, hessian_info_of
from ov_weight_compression.passes.lora import StoredAdapters, fit_adapters, obstacle
from ov_weight_compression.passes.method import Method
from ov_weight_compression.passes.stored import StoredWeight, keep
from ov_weight_compression.passes.tuning import Tuning
from ov_weight_compression.patterns import Kind, Sources
from ov_weight_compression.quantization.encode import decode_rows
from ov_weight_compression.quantization.reference import tensor_scale_of

if TYPE_CHECKING:
    from ov_weight_compression.calibration import LayerInput, Stage
    from ov_weight_compression.passes.layer_codes import HessianInfo

__all__ = ["LayerEncoder"]

_TOGETHER = 1 << 24
"""Elements of weights that are encoded at once."""


class LayerEncoder:
    """What has been encoded of the wanted weights so far.

    Args:
        wanted: the weights to encode, by name.
        sources: the weights as they are to be quantised.
        method: what to do with the data.
        rank: of the adapters, where the method wants any.
        tuning: what GPTQ adds to the diagonal, and how often adapters are fitted.
    """

    def __init__(
        self,
        wanted: Mapping[str, Choice],
        sources: Sources,
        method: Method,
        rank: int,
        tuning: Tuning,
    ) -> None:
        self._wanted, self._sources, self._method, self._rank, self._tuning = wanted, sources, method, rank, tuning
        self._spool = Spool()
        self.weights: dict[str, StoredWeight] = {}
        self.left_out: list[str] = []
        """Weights whose inputs were not finite on some samples, which were left out for them."""
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
        self.left_out += names if layer_input.left_out else []
        known: dict[int, list[HessianInfo]] = {}
        for together in self._together(names):
            sources = [self._sources.by_name[name] for name in together]
            columns = self._columns(together[0])
            if id(columns) not in known:
                known[id(columns)] = hessian_info_of(seen, columns, self._tuning.gptq_damping)
            try:
                values = self._encode(together, [source.read_all() for source in sources], known[id(columns)])
            except (ValueError, np.linalg.LinAlgError) as error:
                if isinstance(error, CompressionError):
                    raise
                raise WorkError(f"{', '.join(together)}: {error}") from error
            if both:
                for name, source, found in zip(together, sources, values, strict=True):
                    adapters = self.adapters.get(name)
                    corrected = found if adapters is None else found + adapters.values()
                    own = source.unfolded(corrected) if isinstance(source, FoldedSource) else corrected
                    stage.replace(name, source.layout.from_matrix(own))

    def _columns(self, name: str) -> Float32 | None:
        """The factors that a weight's columns have been multiplied with; the same array where the same fold did it."""
        source = self._sources.by_name[name]
        return source.columns if isinstance(source, FoldedSource) else None

    def _together(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Weights whose rows can be encoded as those of one: stored alike, scaled alike, without experts."""
        batch: list[str] = []
        for name in names:
            if batch and not (self._alike(batch[0], name) and self._elements([*batch, name]) <= _TOGETHER):
                yield batch
                batch = []
            batch.append(name)
        if batch:
            yield batch

    def _alike(self, first: str, second: str) -> bool:
        one, other = self._wanted[first], self._wanted[second]
        if (
            one.spec != other.spec
            or one.spec.format.tensor_scale
            or Kind.EXPERTS in (one.weight.kind, other.weight.kind)
        ):
            return False
        return self._columns(first) is self._columns(second)

    def _elements(self, names: Sequence[str]) -> int:
        return sum(self._wanted[name].weight.elements for name in names)

    def _encode(self, names: Sequence[str], matrices: list[Float32], known: list[HessianInfo]) -> list[Float32]:
        """Encode weights `[rows, in]` that are stored alike; their values as stored, without adapters."""
        choice = self._wanted[names[0]]
        scale = tensor_scale_of(choice.absmax, choice.spec.format)
        rows = matrices[0] if len(matrices) == 1 else np.concatenate(matrices)
        encoded = encode_layer(rows, choice.spec, known, self._method.steps, scale)
        found = []
        begin = 0
        for name, matrix in zip(names, matrices, strict=True):
            own = encoded.rows(begin, begin + len(matrix))
            begin += len(matrix)
            self.weights[name] = keep(own, self._spool)
            found.append(decode_rows(own, choice.spec))
            if self._method.lora and not obstacle(self._wanted[name].weight):
                self.adapters[name] = fit_adapters(
                    matrix, found[-1], known[0], self._rank, self._spool, self._tuning.lora_rounds
                )
        return found
