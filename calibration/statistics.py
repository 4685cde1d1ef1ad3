"""What is remembered of a layer's input `x` after calibration: sums over all its rows, never the rows themselves.

    n, Σ|x|, max|x|, Σx, Σx²      per input channel: scale search, AWQ
    H_g = Σ x_g x_gᵀ              per group of channels, [in/g, g, g]: the output error of a group's codes
    H   = Σ x xᵀ                  [in, in]: GPTQ
    four numbers                  what the sensitivity metrics of mixed precision need (quantization.sensitivity)

Layers that read the same tensor share one `LayerStatistics`. For a weight with experts, where each expert has rows of
its own, every array has the expert as its leading axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

__all__ = ["LayerStatistics", "Statistics"]

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Sums over the `n` rows of one layer input. `[in]` stands for `[experts, in]` where `experts` is set."""

    n: int
    """Rows (tokens) seen, per expert where there are experts. 0 where a routed expert was never chosen."""
    sum_abs: Array
    """Σ|x|, f32 [in]."""
    max_abs: Array
    """max|x|, f32 [in]."""
    sum: Array
    """Σx, f32 [in]."""
    sum_square: Array
    """Σx², f32 [in]."""
    gram_blocks: Array | None = None
    """Σ x_g x_gᵀ, f32 [in/g, g, g]; None where not asked for or where g does not divide in."""
    gram: Array | None = None
    """Σ x xᵀ, f32 [in, in]."""
    sequences: int = 0
    """Sequences seen: what the four means below are taken over."""
    mean_square: float = 0.0
    """Mean over sequences of the mean of x²."""
    mean_variance: float = 0.0
    """Mean over sequences of the mean over channels of the variance along the tokens."""
    max_variance: float = 0.0
    """Mean over sequences of the largest of those variances."""
    mean_max_abs: float = 0.0
    """Mean over sequences of the mean over channels of the largest magnitude along the tokens."""

    @property
    def experts(self) -> int | None:
        """Number of experts with rows of their own, None for a plain layer."""
        return int(self.sum.shape[0]) if self.sum.ndim == 2 else None

    @property
    def width(self) -> int:
        """Number of input channels."""
        return int(self.sum.shape[-1])

    @property
    def importance(self) -> Array:
        """E[x²] per channel, f32 [in]: what an error in a column of the weight costs. Zeros where no row was seen."""
        return (self.sum_square / np.float32(max(self.n, 1))).astype(np.float32)

    @property
    def mean_abs(self) -> Array:
        """E|x| per channel, f32 [in]."""
        return (self.sum_abs / np.float32(max(self.n, 1))).astype(np.float32)

    def expert(self, number: int) -> LayerStatistics:
        """The statistics of one expert, as those of a plain layer; itself for a plain layer."""
        if self.experts is None:
            return self
        parts = {name: array[number] for name, array in self.arrays().items()}
        return replace(self, **parts)

    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by field name."""
        found = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                found[item.name] = value
        return found

    def numbers(self) -> dict[str, int | float]:
        """Everything that is not an array, by field name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (int, float))}

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics of both sets of rows together: a weight that several layers share."""
        total = self.sequences + other.sequences
        merged: dict[str, Any] = {"n": self.n + other.n, "sequences": total}
        theirs, numbers = other.arrays(), other.numbers()
        for name, mine in self.arrays().items():
            if name in theirs:
                merged[name] = np.maximum(mine, theirs[name]) if name == "max_abs" else mine + theirs[name]
        for name in ("mean_square", "mean_variance", "max_variance", "mean_max_abs"):
            weighted = self.numbers()[name] * self.sequences + numbers[name] * other.sequences
            merged[name] = weighted / max(total, 1)
        return LayerStatistics(**merged)


class Statistics(Mapping[str, LayerStatistics]):
    """Statistics of a model's layer inputs, by the name of the weight.

    A weight is absent where no real activation meets it (an embedding, a convolution), or where it lies inside the
    body of an If, Loop or TensorIterator.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerStatistics],
        fingerprint: str = "",
        data: str = "",
        left_out: Iterable[str] = (),
    ) -> None:
        """`fingerprint` is that of the model they were collected from; `data` says in words what they were taken on;
        `left_out` names the weights whose inputs were not finite on some samples, which were left out for them."""
        self.left_out = tuple(left_out)
        self._layers = dict(layers)
        self.fingerprint = fingerprint
        self.data = data

    def __getitem__(self, name: str) -> LayerStatistics:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; see `statistics_file`."""
        from ov_weight_compression.calibration.statistics_file import save_statistics

        return save_statistics(self, path)

    @staticmethod
    def load(path: str | Path, model: ov.Model | None = None) -> Statistics:
        """Read what `save` wrote; with `model`, only if it was collected from that model."""
        from ov_weight_compression.calibration.statistics_file import load_statistics

        return load_statistics(path, model)

    def __repr__(self) -> str:
        return f"Statistics of {len(self)} layers, {self.data or 'data unknown'}"
