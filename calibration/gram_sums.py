"""Gram matrices of one layer input, summed up window by window.

Rows wait until there are enough of them: products of many rows are faster than those of few.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ov_weight_compression.calibration.inference import STREAMS
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
        self._buffers: deque[list[Float32]] = deque()
        """Rows wait in the first; products may be at work on the others."""
        self._waiting = 0
        self._at_work = False
        self.left_out = False
        """Whether rows were left out because they hold values that do not count (see `unfit`)."""

    def add(self, hat: Float32, x: Float32 | None = None) -> None:
        """Add a window, [experts, rows, in] each; in every window `x` is given, or in none. Nothing keeps the arrays
        once this returns."""
        rows, begin = hat.shape[1], 0
        while begin < rows:
            count = min(BATCH_ROWS - self._waiting, rows - begin)
            for buffer, one in zip(self._buffers_of(hat, x), (hat, x), strict=False):
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
        self._buffers.clear()

    def result(self) -> Seen:
        """What there is."""
        self.finish()
        gram = np.zeros((1, self._width, self._width), np.float32) if self._gram is None else self._gram
        for one in gram:
            mirror(one)
        plain, drift = len(gram) == 1, self._drift
        return Seen(self._count, gram[0] if plain else gram, drift[0] if drift is not None and plain else drift)

    def _buffers_of(self, hat: Float32, x: Float32 | None) -> list[Float32]:
        if not self._buffers:
            alone = len(hat) > 1 or self._kernels.of(self._width) is None  # the rows of many experts are large
            shapes = [(len(hat), BATCH_ROWS, self._width)] * (1 if x is None else 2)
            for _ in range(1 if alone else STREAMS + 1):
                self._buffers.append([np.empty(shape, np.float32) for shape in shapes])
        return self._buffers[0]

    def _take_waiting(self) -> None:
        hat, *others = (one[:, : self._waiting] for one in self._buffers[0])
        self._take(hat, others[0] if others else None)
        self._waiting = 0
        self._buffers.rotate()
        if len(self._buffers) == 1:
            self._settle()

    def _take(self, hat: Float32, x: Float32 | None) -> None:
        hat, x = self._fit(hat, x)
        if self._gram is None:
            self._gram = np.zeros((len(hat), self._width, self._width), np.float32)
            self._drift = None if x is None else np.zeros_like(self._gram)
        kernel = self._kernels.of(self._width)
        for expert, rows in enumerate(hat):
            gram = self._gram[expert]
            drift, own = (None, None) if x is None or self._drift is None else (self._drift[expert], x[expert])
            if kernel is not None and len(rows) == BATCH_ROWS:
                kernel.add(gram, rows, drift, own)
                self._at_work = True
                continue
            self._settle()
            if len(rows):
                add_gram(gram, rows)
                if drift is not None and own is not None:
                    add_cross(drift, own - rows, rows)
        self._count += hat.shape[1]

    def _settle(self) -> None:
        """Wait for the products that are at work."""
        kernel = self._kernels.of(self._width) if self._at_work else None
        if kernel is not None:
            kernel.finish()
        self._at_work = False

    def _fit(self, hat: Float32, x: Float32 | None) -> tuple[Float32, Float32 | None]:
        """Without the rows in which either holds a value that does not count (see `unfit`)."""
        found = [bad for bad in (unfit(hat), None if x is None else unfit(x)) if bad is not None]
        if not found:
            return hat, x
        self.left_out = True
        kept = ~np.any([bad.any(axis=0) for bad in found], axis=0)
        return hat[:, kept], None if x is None else x[:, kept]
