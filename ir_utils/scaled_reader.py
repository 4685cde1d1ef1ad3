"""A weight as it is after factors have been folded into it: read, multiplied, handed on.

    values[r, j] · rows[r] · columns[j]         or, of experts side by side, columns[expert of r, j]

in f32, so a weight that is stored in f16 is not rounded to f16 once more before it is quantised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ov_weight_compression.ir_utils.constants import ConstantReader, FileMappings, ValueRange
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.types import Array, Float32

__all__ = ["ScaledReader"]

_PIECE_ELEMENTS = 1 << 18


class ScaledReader(ConstantReader):
    """A `ConstantReader` whose values are multiplied by a factor for each row and each column; None for none."""

    def __init__(
        self,
        constant: Any,
        layout: Layout,
        mappings: FileMappings | None = None,
        *,
        columns: Float32 | None = None,
        rows: Float32 | None = None,
    ) -> None:
        super().__init__(constant, layout, mappings)
        self.columns, self.rows = columns, rows

    @property
    def as_it_is(self) -> bool:
        """As in `ConstantReader`; not where there are factors."""
        return super().as_it_is and self.columns is None and self.rows is None

    def read(self, slab: Slab) -> Array:
        """The rows of a slab as float32 `[n, columns]`."""
        values = super().read(slab).astype(np.float32)
        if self.columns is not None:
            values *= self._columns_of(slab.start, slab.stop)
        if self.rows is not None:
            values *= self.rows[slab.start : slab.stop, None]
        return values

    def read_all(self) -> Float32:
        """The whole matrix as float32."""
        values = super().read_all().copy()
        if self.columns is not None:
            values *= self._columns_of(0, len(values))
        if self.rows is not None:
            values *= self.rows[:, None]
        return values

    def unscaled(self, matrix: Array) -> Float32:
        """What a matrix `[rows, columns]` of scaled values stands for in terms of the original weight."""
        values = np.array(matrix, dtype=np.float32)
        if self.columns is not None:
            values /= self._columns_of(0, len(values))
        if self.rows is not None:
            values /= self.rows[:, None]
        return values

    def _columns_of(self, start: int, stop: int) -> Float32:
        """The factors of some rows' columns, `[in]` or `[rows, in]`."""
        assert self.columns is not None
        if self.columns.ndim == 1:
            return self.columns
        return np.asarray(self.columns[np.arange(start, stop) // (self.layout.rows // len(self.columns))])

    def scan(self) -> ValueRange:
        """Largest finite magnitude and count of NaN and infinite values, of the scaled values."""
        absmax, bad = 0.0, 0
        for slab in self.layout.slabs(max(1, _PIECE_ELEMENTS // max(1, self.layout.columns))):
            magnitudes = np.abs(self.read(slab))
            self.release(slab)
            finite = np.isfinite(magnitudes)
            bad += int(magnitudes.size - np.count_nonzero(finite))
            absmax = max(absmax, float(np.where(finite, magnitudes, 0).max(initial=0.0)))
        return ValueRange(absmax, bad)
