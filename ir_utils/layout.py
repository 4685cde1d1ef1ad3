"""How a constant of any rank is seen as a matrix `[rows, columns]`, and back.

The columns are what a weight is reduced over (`in` of a MatMul; `in·kh·kw` of a convolution), so groups run along them
and every row is independent of the others. The rows are all other axes in order (`out`; `experts, out`; `vocabulary`).

    [out, in]            reduced over axis 1      → rows out,           columns in
    [in, out]            reduced over axis 0      → rows out,           columns in (transposed)
    [experts, out, in]   reduced over axis 2      → rows experts·out,   columns in
    [out, in, kh, kw]    reduced over 1, 2, 3     → rows out,           columns in·kh·kw

Codes are stored in the constant's own order; only the group axis is split: `[in, out]` becomes `[in/g, g, out]`, its
scales `[in/g, 1, out]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ov_weight_compression.ir_utils.types import Array

_SIDE_BY_SIDE = 8
"""Rows that are sampled together: reading one costs nearly as much as reading eight."""


@dataclass(frozen=True)
class Slab:
    """Some consecutive rows: `start` to `stop` in matrix order, and where they lie in the permuted constant."""

    start: int
    stop: int
    index: tuple[int | slice, ...]


@dataclass(frozen=True)
class Layout:
    """The correspondence between a constant of `shape` and its matrix; `reduced` are the columns' axes, rising."""

    shape: tuple[int, ...]
    reduced: tuple[int, ...]

    order: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The permutation of the constant's axes that brings the reduced ones last."""
    lead: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The sizes of the row axes."""
    rows: int = field(init=False, repr=False, compare=False)
    columns: int = field(init=False, repr=False, compare=False)
    contiguous: bool = field(init=False, repr=False, compare=False)
    """Whether the matrix is the constant itself, read in its own order."""
    groupable: bool = field(init=False, repr=False, compare=False)
    """Whether a Reshape alone can cut the constant into groups: its reduced axes lie side by side."""

    def __post_init__(self) -> None:
        outer = tuple(axis for axis in range(len(self.shape)) if axis not in self.reduced)
        lead = tuple(self.shape[axis] for axis in outer)
        order = (*outer, *self.reduced)
        follows = {
            "order": order,
            "lead": lead,
            "rows": math.prod(lead),
            "columns": math.prod(self.shape[axis] for axis in self.reduced),
            "contiguous": order == tuple(range(len(self.shape))),
            "groupable": len(self.reduced) > 0 and self.reduced[-1] - self.reduced[0] == len(self.reduced) - 1,
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)

    def slabs(self, max_rows: int, block: int = 0) -> Iterator[Slab]:
        """Cut the rows into pieces of at most `max_rows` that can each be read by one index.

        With `block` no piece goes across a multiple of so many rows (an expert's).
        """
        if self.contiguous or not self.lead:
            block = block or self.rows
            for first in range(0, self.rows, max(1, block)):
                for start in range(first, first + block, max_rows):
                    stop = min(start + max_rows, first + block)
                    yield Slab(start, stop, (slice(start, stop),))
            return
        *outer, last = self.lead
        for number, position in enumerate(np.ndindex(*outer)):
            for start in range(0, last, max_rows):
                stop = min(start + max_rows, last)
                base = number * last
                yield Slab(base + start, base + stop, (*position, slice(start, stop)))

    def spread(self, count: int) -> Iterator[Slab]:
        """About `count` rows, a few side by side and evenly spread over the matrix; all where there are no more."""
        if self.rows <= count:
            return self.slabs(max(1, count))
        wanted = max(1, count // _SIDE_BY_SIDE)
        step = max(1, self.rows // _SIDE_BY_SIDE // wanted)
        if not self.contiguous:
            return islice(self.slabs(_SIDE_BY_SIDE), step // 2, None, step)
        starts = range(0, self.rows, _SIDE_BY_SIDE)[step // 2 :: step]
        ends = [min(start + _SIDE_BY_SIDE, self.rows) for start in starts]
        return (Slab(start, stop, (slice(start, stop),)) for start, stop in zip(starts, ends, strict=True))

    def matrix_view(self, values: Array) -> Array:
        """`values` of the constant's shape, so that a slab's `index` picks `[n, columns]` (after a reshape)."""
        return values.reshape(self.rows, self.columns) if self.contiguous else values.transpose(self.order)

    def to_matrix(self, values: Array) -> Array:
        """The whole constant as a contiguous `[rows, columns]`; a copy where the axes are permuted."""
        return np.ascontiguousarray(values.reshape(self.shape).transpose(self.order)).reshape(self.rows, self.columns)

    def from_matrix(self, matrix: Array) -> Array:
        """`[rows, columns]` in the constant's own order and shape."""
        sizes = [self.shape[axis] for axis in self.order]
        return np.ascontiguousarray(matrix.reshape(sizes).transpose(np.argsort(self.order)))

    def in_groups(self, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of codes and of scales: the constant's, with the reduced axes cut into `in/g, g`, and the same
        with 1 along what shares a scale. The codes keep the constant's own for one scale a channel, and for one group
        `[1, in, out]`, for whose Reshape the CPU plugin of OpenVINO 2026.4 makes up a wrong shape where it expands the
        chain."""
        if group < 0 or (group == self.columns and not self.contiguous):
            return self.shape, tuple(1 if axis in self.reduced else size for axis, size in enumerate(self.shape))
        before, behind = self.shape[: self.reduced[0]], self.shape[self.reduced[-1] + 1 :]
        groups = self.columns // group
        return (*before, groups, group, *behind), (*before, groups, 1, *behind)

    def scales_in_place(self, scales: Array, shape: tuple[int, ...]) -> Array:
        """Scales `[rows, columns/g]` of the matrix, in the constant's order and in the shape that `in_groups` has for
        them."""
        if shape != tuple(1 if axis in self.reduced else size for axis, size in enumerate(self.shape)):
            before = len(self.lead) - (len(self.shape) - 1 - self.reduced[-1])
            scales = np.moveaxis(scales.reshape(*self.lead, -1), -1, before)
        return np.ascontiguousarray(scales).reshape(shape)

    @staticmethod
    def of(shape: Sequence[int], reduced: Sequence[int]) -> Layout:
        """A layout from any sequences; the reduced axes are sorted."""
        return Layout(tuple(int(size) for size in shape), tuple(sorted(int(axis) for axis in reduced)))
