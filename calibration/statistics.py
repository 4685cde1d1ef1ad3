"""What is remembered of a layer's input `x` after calibration: sums over all its rows, never the rows themselves.

    n, Σx²           per input channel: scale search, AWQ
    four numbers     what the sensitivity metrics of mixed precision need (quantization.allocation)

Layers that read the same tensor share one `LayerStatistics`. For a weight with experts, where each expert has rows of
its own, the sums have the expert as their leading axis.

**The arithmetic**, in numpy. An activation is seen as `x [experts, sequences, tokens, in]`, `experts` being 1 for a
plain layer. The Gram matrices are matrix products, computed by BLAS in f32 (`x.T @ x` is a SYRK there: half the work of
a GEMM) and summed in f32; for many rows and a CPU that computes in bf16 `products` has something faster. Sums per
channel are kept in f64. The same inside the model's graph, as nodes beside the activation, was measured to be slower:
1.5 times for a Gram matrix in f32 (an ordinary GEMM there), 2 to 3 times for the sums.

A number counts that is finite and small enough for its square to be summed in f32. A sample that holds anything else is
refused when it is read, with its number and its input. A sample may also be fine and overflow inside the model; the
layers behind that point then do not see it, and the report names them.

**Gram matrices** of one layer input are summed up window by window. Rows wait until there are enough of them: products
of many rows are faster than those of few.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.products import BATCH_ROWS, Kernels, Products
from ov_weight_compression.ir_utils.errors import OptionError
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


LARGEST = 2.0**50
"""1.1e15: the squares of a hundred million such values still have a sum in f32."""
_ROOT = 1.8e19
"""The square of a larger value is infinity in f32."""


def unfit(x: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which rows of `x [..., in]` hold a value that does not count, `[...]`; None where none does."""
    if x.size == 0 or _fits(x, LARGEST):
        return None
    found: NDArray[np.bool_] = ~np.all(np.abs(x) <= LARGEST, axis=-1)  # NaN is not
    return found


def check_sample(number: int, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Refuse an input of a sample that is no data.

    Masks may hold -infinity and the like: that is how they take something out of a sum.

    Args:
        number: of the sample, from 1.
        name: of the model's input.
        array: of any type.
        dtype: that it will be given to the model as.

    Raises:
        OptionError: it holds NaN, infinity, or a value that is too large.
    """
    if array.dtype.kind != "f" or dtype.kind != "f" or array.size == 0 or _fits(array, _ROOT):
        return
    flat = array.reshape(-1)
    wrong = np.isnan(flat) if "mask" in name else ~(np.abs(flat) <= _ROOT)
    if not wrong.any():
        return
    first = float(flat[int(np.argmax(wrong))])
    told = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}.get(str(first), f"{first:g}")
    more = "" if np.isfinite(first) else f" ({int(wrong.sum())} of {array.size} values are not finite or too large)"
    limit = ", whose square overflows" if np.isfinite(first) else ""
    raise OptionError(
        f"dataset: sample {number}, input '{name}': it holds {told}{more}{limit}; mend the sample or leave it out"
    )


def _fits(x: NDArray[Any], limit: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(x.max() <= limit and x.min() >= -limit)


_MIRRORED = 128
_PANEL = 1024
"""Rows of a Gram matrix that are computed at a time: bounds the temporary product to `_PANEL · in` floats."""


def rows_by_expert(x: NDArray[Any], reduction: Sequence[int] = (-1,), batch: Sequence[tuple[int, int]] = ()) -> Float32:
    """An activation as `[experts, sequences, tokens, in]`, f32.

    Args:
        x: of any rank. Its last dimension that is neither below counts tokens, those before it sequences.
        reduction: its dimensions that hold the input channels, counted from the end.
        batch: its dimensions that number experts, and how many of them there are in each. Where it has them, each
            expert has rows of its own; where it is broadcast to them, all experts share its rows and `experts` is 1.
    """
    x = np.asarray(x, np.float32)
    inner = [x.ndim + dim for dim in reduction]
    own = [x.ndim + dim for dim, _ in batch]
    if any(place < 0 or x.shape[place] != size for place, (_, size) in zip(own, batch, strict=True)):
        own = []
    rows = [place for place in range(x.ndim) if place not in own and place not in inner]
    sizes = [x.shape[place] for place in rows] or [1]
    experts, width = (prod(x.shape[place] for place in places) for places in (own, inner))
    return x.transpose(*own, *rows, *inner).reshape(experts, prod(sizes[:-1]), sizes[-1], width)


def add_gram(total: Float32, x: Float32) -> None:
    """`total += xᵀ x` for `x [n, in]`; only the upper panels are written (see `mirror`)."""
    width = x.shape[1]
    for begin in range(0, width, _PANEL):
        end = min(begin + _PANEL, width)
        part = x[:, begin:end]
        total[begin:end, begin:end] += part.T @ part
        if end < width:
            total[begin:end, end:] += part.T @ x[:, end:]


def mirror(total: Float32) -> None:
    """Fill in the lower half of a Gram matrix, of which `add_gram` leaves out parts."""
    width = total.shape[0]
    for begin in range(0, width, _MIRRORED):
        end = min(begin + _MIRRORED, width)
        total[end:, begin:end] = total[begin:end, end:].T
        block = total[begin:end, begin:end]
        np.copyto(block, block.T.copy(), where=np.tri(end - begin, k=-1, dtype=bool))


def add_cross(total: Float32, x: Float32, y: Float32) -> None:
    """`total += xᵀ y` for `x, y [n, in]`."""
    for begin in range(0, x.shape[1], _PANEL):
        total[begin : begin + _PANEL] += x[:, begin : begin + _PANEL].T @ y


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


@dataclass(frozen=True, eq=False)
class Seen:
    """Gram matrices of one layer input: f32 [in, in], or [experts, in, in] where each expert has rows of its own."""

    n: int
    """Rows (tokens) seen, per expert where there are experts."""
    gram: Float32
    """Ĥ = Σ x̂ x̂ᵀ, of the input as it is behind the compressed weights."""
    drift: Float32 | None = None
    """D = Σ (x − x̂) x̂ᵀ with `x` of the float model (C − Ĥ of `quantization.layerwise.hessian`); None where not asked
    for or they are the same."""
    outputs: Float32 | None = None
    """Σ y x̂ᵀ, f32 [out, in], in its place where the layer has fewer outputs than inputs: `y = W x` in the float model,
    so it is W (D + Ĥ)."""


class GramSums:
    """Sums so far, of so many channels."""

    def __init__(self, width: int, kernels: Kernels, outputs: int | None = None) -> None:
        """`outputs`: how many channels they have, where they come beside the inputs and not `x`."""
        self._width, self._outputs, self._kernels = width, outputs, kernels
        self._kernel: Products | None = None
        self._count = 0
        self._gram: Float32 | None = None
        self._cross: Float32 | None = None
        self._buffers: list[Float32] = []
        """[experts, BATCH_ROWS, …]: where rows wait."""
        self._waiting = 0
        self._at_work = False
        self.left_out = False
        """Whether rows were left out because they hold values that do not count (see `unfit`)."""

    def add(self, hat: Float32, beside: Float32 | None = None) -> None:
        """Add a window, [experts, rows, in]; in every window `x` or the outputs come `beside` it, or in none. Nothing
        keeps the arrays once this returns."""
        rows, begin = hat.shape[1], 0
        while begin < rows:
            if not self._buffers:
                self._prepare(len(hat), beside)
            count = min(BATCH_ROWS - self._waiting, rows - begin)
            for buffer, one in zip(self._buffers, (hat, beside), strict=False):
                if one is not None:
                    buffer[:, self._waiting : self._waiting + count] = one[:, begin : begin + count]
            self._waiting += count
            begin += count
            if self._waiting == BATCH_ROWS:
                self._take_waiting()

    def finish(self) -> None:
        """There are no more windows: what is still to be multiplied is."""
        if self._waiting:
            self._take_waiting()
        self._settle()
        self._buffers = []

    def result(self) -> Seen:
        """What there is."""
        self.finish()
        gram = np.zeros((1, self._width, self._width), np.float32) if self._gram is None else self._gram
        for one in gram:
            mirror(one)
        cross = self._cross
        if len(gram) == 1:
            gram, cross = gram[0], None if cross is None else cross[0]
        return Seen(self._count, gram, cross) if self._outputs is None else Seen(self._count, gram, outputs=cross)

    def _prepare(self, experts: int, beside: Float32 | None) -> None:
        second = None if beside is None else beside.shape[2]
        if self._gram is None:
            self._kernel = self._kernels.of(self._width, second, drift=second is not None and self._outputs is None)
            self._gram = np.zeros((experts, self._width, self._width), np.float32)
            self._cross = None if second is None else np.zeros((experts, second, self._width), np.float32)
        if experts == 1 and self._kernel is not None:
            self._buffers = [one[None] for one in self._kernel.buffers()]
        else:
            widths = [self._width] if second is None else [self._width, second]
            self._buffers = [np.empty((experts, BATCH_ROWS, width), np.float32) for width in widths]

    def _take_waiting(self) -> None:
        hat, *others = (one[:, : self._waiting] for one in self._buffers)
        self._take(*self._fit(hat, others[0] if others else None))
        self._waiting = 0

    def _take(self, hat: Float32, beside: Float32 | None) -> None:
        assert self._gram is not None
        pairs = [hat] if beside is None else [hat, beside]
        for expert, gram in enumerate(self._gram):
            rows, cross = [one[expert] for one in pairs], None if self._cross is None else self._cross[expert]
            if self._kernel is not None and len(rows[0]) == BATCH_ROWS:
                self._kernel.add(rows, gram, cross, spare=len(hat) == 1)
                self._at_work = True
                continue
            self._settle()
            if len(rows[0]):
                add_gram(gram, rows[0])
                if cross is not None:
                    add_cross(cross, rows[1] - rows[0] if self._outputs is None else rows[1], rows[0])
        if len(hat) > 1:
            self._settle()  # the rows of many experts are large: the same memory takes the next ones
        elif self._at_work:
            self._buffers = []
        self._count += hat.shape[1]

    def _settle(self) -> None:
        """Wait for the products that are at work."""
        if self._kernel is not None and self._at_work:
            self._kernel.finish()
        self._at_work = False

    def _fit(self, hat: Float32, beside: Float32 | None) -> tuple[Float32, Float32 | None]:
        """Without the rows in which either holds a value that does not count (see `unfit`)."""
        found = [bad for bad in (unfit(hat), None if beside is None else unfit(beside)) if bad is not None]
        if not found:
            return hat, beside
        self.left_out = True
        kept = ~np.any([bad.any(axis=0) for bad in found], axis=0)
        return hat[:, kept], None if beside is None else beside[:, kept]
