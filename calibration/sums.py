"""From activations to sums: the arithmetic of statistics, in numpy, and what counts as a number there.

An activation is seen as `x [experts, sequences, tokens, in]`, `experts` being 1 for a plain layer. The Gram matrices
are matrix products, computed by BLAS in f32 (`x.T @ x` is a SYRK there: half the work of a GEMM) and summed in f32; for
many rows and a CPU that computes in bf16 `products` has something faster. Sums per channel are kept in f64. The same
inside the model's graph, as nodes beside the activation, was measured to be slower: 1.5 times for a Gram matrix in f32
(an ordinary GEMM there), 2 to 3 times for the sums.

A number counts that is finite and small enough for its square to be summed in f32. A sample that holds anything else is
refused when it is read, with its number and its input. A sample may also be fine and overflow inside the model; the
layers behind that point then do not see it, and the report names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ov_weight_compression.calibration.statistics import LayerStatistics
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Float32

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
