"""What is remembered of a layer's input `x` after calibration: sums over all its rows, never the rows themselves.

    n, Σx²           per input channel: scale search, AWQ
    four numbers     what the sensitivity metrics of mixed precision need (quantization.sensitivity)

Layers that read the same tensor share one `LayerStatistics`. For a weight with experts, where each expert has rows of
its own, the sums have the expert as their leading axis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.types import Float32


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Sums over the `n` rows of one layer input."""

    n: int
    """Rows (tokens) seen, per expert where there are experts. 0 where a routed expert was never chosen."""
    sum_square: Float32
    """Σx², [in], or [experts, in] where each expert has rows of its own."""
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
    def importance(self) -> Float32:
        """E[x²] per channel, as `sum_square`: what an error in a column of the weight costs. Zeros where no row was
        seen."""
        return (self.sum_square / np.float32(max(self.n, 1))).astype(np.float32)

    def numbers(self) -> dict[str, int | float]:
        """Everything but the sums, by field name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "sum_square"}

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics of both sets of rows together: a weight that several layers share."""
        total = self.sequences + other.sequences
        mine, theirs = self.numbers(), other.numbers()
        means = {
            name: (mine[name] * self.sequences + theirs[name] * other.sequences) / max(total, 1)
            for name in ("mean_square", "mean_variance", "max_variance", "mean_max_abs")
        }
        return LayerStatistics(self.n + other.n, self.sum_square + other.sum_square, total, **means)


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

    def __repr__(self) -> str:
        return f"Statistics of {len(self)} layers, {self.data or 'data unknown'}"


_SAMPLE = 1 << 14
_SMALLEST = 1024


def fingerprint(model: ov.Model) -> str:
    """A model's fingerprint: tells whether what was kept on disk belongs to the model at hand.

    A hex digest of the constants of 1 KiB and more: type, shape, and four pieces of 16 KiB spread over each. Names and
    the order of operations do not count, so that a model and its saved and reloaded copy agree; neither does anything
    that a reshape of the inputs changes. A model that was trained further or compressed differs. Reading a few pages of
    each constant takes milliseconds on a mapped file of any size.
    """
    marks = []
    for node in model.get_ordered_ops():
        if not isinstance(node, ov.op.Constant) or node.get_byte_size() < _SMALLEST:
            continue
        kind = node.get_output_element_type(0)
        if kind == ov.Type.string:
            continue
        sha = hashlib.sha256(f"{kind.to_string()} {list(node.get_output_shape(0))}".encode())
        raw = node.get_tensor_view().data.reshape(-1).view(np.uint8)
        for start in np.linspace(0, max(len(raw) - _SAMPLE, 0), 4).astype(int):
            sha.update(raw[start : start + _SAMPLE].tobytes())
        marks.append(sha.digest())
    return hashlib.sha256(b"".join(sorted(marks))).hexdigest()
