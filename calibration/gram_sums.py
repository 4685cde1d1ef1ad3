"""Gram matrices of one layer input, summed up window by window.

Rows wait until there are enough of them: products of many rows are faster than those of few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ov_weight_compression.calibration.products import BATCH_ROWS, Kernels
from ov_weight_compression.calibration.sums import add_cross, add_gram, mirror, unfit
from ov_weight_compression.ir_utils.types import Float32


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


class GramSums:
    """Sums so far, of so many channels."""

    def __init__(self, width: int, kernels: Kernels) -> None:
        self._width, self._kernels = width, kernels
        self._count = 0
        self._gram: Float32 | None = None
        self._drift: Float32 | None = None
        self._buffers: list[Float32] = []
        self._waiting = 0
        self.left_out = False
        """Whether rows were left out because they hold values that do not count (see `unfit`)."""

    def add(self, hat: Float32, x: Float32 | None = None) -> None:
        """Add a window, [experts, rows, in] each; in every window `x` is given, or in none. Nothing keeps the arrays
        once this returns."""
        rows, begin = hat.shape[1], 0
        while begin < rows:
            whole = (rows - begin) // BATCH_ROWS * BATCH_ROWS
            if whole and not self._waiting:
                self._take(hat[:, begin : begin + whole], None if x is None else x[:, begin : begin + whole])
                begin += whole
                continue
            if not self._buffers:
                given = [hat] if x is None else [hat, x]
                self._buffers = [np.empty((len(hat), BATCH_ROWS, self._width), np.float32) for _ in given]
            count = min(BATCH_ROWS - self._waiting, rows - begin)
            for buffer, one in zip(self._buffers, (hat, x), strict=False):
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
        self._buffers = []

    def result(self) -> Seen:
        """What there is."""
        self.finish()
        gram = np.zeros((1, self._width, self._width), np.float32) if self._gram is None else self._gram
        for one in gram:
            mirror(one)
        plain, drift = len(gram) == 1, self._drift
        return Seen(self._count, gram[0] if plain else gram, drift[0] if drift is not None and plain else drift)

    def _take_waiting(self) -> None:
        hat, *others = (one[:, : self._waiting] for one in self._buffers)
        self._take(hat, others[0] if others else None)
        self._waiting = 0

    def _take(self, hat: Float32, x: Float32 | None) -> None:
        hat, x = self._fit(hat, x)
        if self._gram is None:
            self._gram = np.zeros((len(hat), self._width, self._width), np.float32)
            self._drift = None if x is None else np.zeros_like(self._gram)
        kernel = self._kernels.of(self._width)
        for expert, rows in enumerate(hat):
            left = rows if kernel is None else kernel.add_gram(self._gram[expert], rows)
            if len(left):
                add_gram(self._gram[expert], left)
            if x is not None and self._drift is not None:
                own, total = x[expert], self._drift[expert]
                if kernel is not None:
                    own, rows = kernel.add_drift(total, own, rows)
                if len(own):
                    add_cross(total, own - rows, rows)
        self._count += hat.shape[1]

    def _fit(self, hat: Float32, x: Float32 | None) -> tuple[Float32, Float32 | None]:
        """Without the rows in which either holds a value that does not count (see `unfit`)."""
        found = [bad for bad in (unfit(hat), None if x is None else unfit(x)) if bad is not None]
        if not found:
            return hat, x
        self.left_out = True
        kept = ~np.any([bad.any(axis=0) for bad in found], axis=0)
        return hat[:, kept], None if x is None else x[:, kept]
