"""What is remembered of a layer's input `x` after calibration: sums over all its rows, never the rows themselves.

    n, Σx²           per input channel: scale search, AWQ
    four numbers     what the sensitivity metrics of mixed precision need (quantization.allocation)

Layers that read the same tensor share one `LayerStatistics`. For a weight with experts, where each expert has rows of
its own, the sums have the expert as their leading axis.

**The arithmetic**, in numpy. An activation is seen as `x [experts, sequences, tokens, in]`, `experts` being 1 for a
plain layer. Sums per channel are kept in f64. The same inside the model's graph, as nodes beside the activation, was
measured to be 2 to 3 times slower.

A number counts that is finite and small enough for its square to be summed in f32. A sample that holds anything else is
refused when it is read, with its number and its input. A sample may also be fine and overflow inside the model; the
layers behind that point then do not see it, and the report names them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.grams import unfit
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


class Accumulator:
    """Sums over the windows of one layer input of so many channels."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._square: NDArray[np.float64] | None = None
        self._rows = 0
        self._sequences = 0
        self._means = np.zeros(4)
        self.left_out = 0
        """Sequences in which the model gave values that do not count."""

    def add(self, x: Float32) -> None:
        """Add a window, `[experts, sequences, tokens, in]`. One without tokens changes nothing; nor does a sequence
        with values that do not count (see `unfit`)."""
        experts, sequences, tokens, width = x.shape
        if self._square is None:
            self._square = np.zeros((experts, width))
        bad = unfit(x)
        if bad is not None:
            x = x[:, ~bad.any(axis=(0, 2))]
            self.left_out += sequences - x.shape[1]
            sequences = x.shape[1]
        if x.size == 0:
            return
        self._rows += sequences * tokens
        self._sequences += experts * sequences
        square = np.einsum("estc,estc->esc", x, x).astype(np.float64)
        variance = np.maximum(square / tokens - (x.sum(2).astype(np.float64) / tokens) ** 2, 0)
        largest = np.maximum(x.max(2), -x.min(2))
        self._square += square.sum(1)
        self._means[0] += (square.mean(2) / tokens).sum()
        self._means[1] += variance.mean(2).sum()
        self._means[2] += variance.max(2).sum()
        self._means[3] += largest.mean(2, dtype=np.float64).sum()

    def result(self) -> LayerStatistics:
        """The statistics so far."""
        square = np.zeros((1, self._width)) if self._square is None else self._square
        sums = square.astype(np.float32)
        means = (float(one / max(self._sequences, 1)) for one in self._means)
        return LayerStatistics(self._rows, sums[0] if len(sums) == 1 else sums, self._sequences, *means)
