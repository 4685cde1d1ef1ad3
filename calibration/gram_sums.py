"""Gram matrices of one layer input, summed up window by window.

Rows wait until there are enough of them: products of many rows are faster than those of few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ov_weight_compression.calibration.products import BATCH_ROWS, Kernels, Products
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
