"""What each weight costs in each of its candidates, in losses that add up over the weights.

Without data it is a prior: the relative error of the weight's values times its number of elements. It knows nothing of
what a layer does to the predictions, but is about right for most, and keeps embeddings and last layers in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.spec import Spec

__all__ = ["LayerLosses", "layer_losses"]

_SAMPLE_ELEMENTS = 1 << 14


@dataclass(frozen=True)
class LayerLosses:
    """Losses by the weight's name, one for each candidate in the order that they were asked for."""

    losses: Mapping[str, tuple[float, ...]]
    unit: str
    """`nats`, `relative L2`, or `none` where nothing was measured."""

    def divergence(self, total: float) -> float:
        """What a sum of losses is called in this unit: squares of relative L2 add up."""
        return float(np.sqrt(total)) if self.unit == "relative L2" else total


def layer_losses(weights: Mapping[str, Sequence[Spec]], data: Measurements) -> LayerLosses:
    """The losses of some weights' candidates, by the weights' names."""
    elements = {weight.name: weight.elements for weight in data.weights}
    columns = {weight.name: weight.columns for weight in data.weights}
    total = sum(elements[name] for name in weights)

    def losses(name: str) -> tuple[float, ...]:
        values = data.sources.by_name[name].sample(max(1, _SAMPLE_ELEMENTS // columns[name]))
        energy = float(np.square(values, dtype=np.float64).sum()) or 1.0
        found = []
        for spec in weights[name]:
            error = decode_rows(encode_rows(values, spec), spec) - values
            found.append(float(np.square(error, dtype=np.float64).sum()) / energy * elements[name] / total)
        return tuple(found)

    return LayerLosses({name: losses(name) for name in weights}, "none")
