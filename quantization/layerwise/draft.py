"""A weight half-way between floats and stored codes: levels and scales that the algorithms of this room move about.

Everything here is *channel-major*, `[in, rows]`, the transpose of the canonical weight: the algorithms decide one input
channel after another for all rows at once, and so a channel is contiguous.

    value[j, r] = level[j, r] * scale[j // g, r]          level = q - z, or levels[q]

`Grid` knows which levels and which scales a `Spec` allows. Scales are always f32 values of *stored* scales, so what an
algorithm measures is what the device will compute.

A draft starts from scales that are plain or searched (`starting_draft`). The searched ones come with the refit that
belongs to a search weighted with data: worth 3 % of the error of a layer at 2 bits and next to nothing at 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.encode import encode_rows
from ov_weight_compression.quantization.formats import Encoded, Spec
from ov_weight_compression.quantization.layerwise.hessian import Hessian
from ov_weight_compression.quantization.reference import (
    LevelGrid,
    decode_codes,
    level_grid,
    nearest_codes,
    scale_values,
    store_scales,
)

_ONE = np.ones(1, np.float32)
_CANDIDATES = 19


@dataclass(eq=False)
class Draft:
    """Levels [in, rows], scales [groups, rows] and, for asymmetric formats, zero points [groups, rows]; all f32."""

    levels: Float32
    scale: Float32
    zero: Float32 | None
    cost: npt.NDArray[np.float64] | None = None
    """`(w − q)ᵀ H (w − q)` of each row, [rows], where the step that made the draft knows it."""

    @property
    def group(self) -> int:
        """Channels that share a scale."""
        return len(self.levels) // len(self.scale)

    def values(self) -> Float32:
        """[in, rows]: the weights that the draft stands for."""
        groups, rows = self.scale.shape
        return (self.levels.reshape(groups, -1, rows) * self.scale[:, None]).reshape(-1, rows)

    def copy(self) -> Draft:
        """One with arrays of its own, to be changed: what it costs is left out."""
        return Draft(self.levels.copy(), self.scale.copy(), None if self.zero is None else self.zero.copy())

    def split(self, count: int) -> Iterator[Draft]:
        """So many drafts of which this one has the rows, as many each; parts of its arrays."""
        each = self.scale.shape[1] // count
        for begin in range(0, each * count, each):
            span = slice(begin, begin + each)
            zero = None if self.zero is None else self.zero[:, span]
            yield Draft(self.levels[:, span], self.scale[:, span], zero, None if self.cost is None else self.cost[span])

    def take(self, rows: Array, other: Draft) -> None:
        """Replace the rows where `rows` [rows] is true by those of `other`."""
        np.copyto(self.levels, other.levels, where=rows)
        np.copyto(self.scale, other.scale, where=rows)
        if self.zero is not None and other.zero is not None:
            np.copyto(self.zero, other.zero, where=rows)
        mine, its = self.cost, other.cost
        self.cost = None if mine is None or its is None else np.where(rows, its, mine)


def side_by_side(drafts: Sequence[Draft]) -> Draft:
    """One draft with the rows of all of them, which are of one shape."""
    zeros = [draft.zero for draft in drafts if draft.zero is not None]
    levels, scale = (
        np.concatenate(parts, axis=1) for parts in zip(*((d.levels, d.scale) for d in drafts), strict=True)
    )
    return Draft(levels, scale, np.concatenate(zeros, axis=1) if zeros else None)


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels and the scales that a spec allows; `tensor_scale` as in `encode_rows`."""

    spec: Spec
    tensor_scale: np.float32 | None = None

    @cached_property
    def _levels(self) -> LevelGrid | None:
        return None if self.spec.format.levels is None else level_grid(self.spec.format)

    @cached_property
    def _ends(self) -> tuple[np.float32, np.float32]:
        """The lowest and the highest integer level."""
        return np.float32(self.spec.format.low), np.float32(self.spec.format.high)

    @cached_property
    def _signed(self) -> bool:
        """Whether scales may be negative."""
        return self.spec.format.levels is None and not self.spec.format.asymmetric

    def nearest(self, ratio: Float32, zero: Float32 | None) -> Float32:
        """The level nearest to `ratio` = weight / scale, any shape; `zero` broadcasts against it. May work in place."""
        if self._levels is not None:
            return np.asarray(self._levels.values[np.searchsorted(self._levels.thresholds, ratio, side="left")])
        low, high = self._ends
        np.rint(ratio, out=ratio)
        np.maximum(ratio, low if zero is None else -zero, out=ratio)
        return np.asarray(np.minimum(ratio, high if zero is None else high - zero, out=ratio))

    def stored(self, scale: Float32) -> Float32:
        """The values that scales have once stored; the sign of a symmetric integer format's scale is kept."""
        if not self._signed:
            scale = np.maximum(scale, 0)
        return scale_values(store_scales(scale, self.spec, self.tensor_scale), self.spec, self.tensor_scale)

    def around(self, scale: Float32) -> tuple[Float32, ...]:
        """Stored scales to choose from when `scale` would be best: one, or for powers of two the next lower one too."""
        stored = self.stored(scale)
        return (stored, self.stored(scale * np.float32(0.5))) if self.spec.scale_type == "f8e8m0" else (stored,)

    def encode(self, draft: Draft) -> Encoded:
        """The draft as stored arrays, canonical (rows first) again."""
        format, rows = self.spec.format, draft.scale.shape[1]
        levels = draft.levels.reshape(len(draft.scale), -1, rows)
        zero = None if draft.zero is None else draft.zero.astype(np.uint8)
        codes = nearest_codes(levels, _ONE, None if zero is None else zero[:, None], format)
        stored = store_scales(draft.scale, self.spec, self.tensor_scale)
        return Encoded(
            codes=np.ascontiguousarray(codes.reshape(-1, rows).T),
            scale=np.ascontiguousarray(stored.T),
            zero_point=None if zero is None else np.ascontiguousarray(zero.T),
            tensor_scale=self.tensor_scale,
            codebook=format.table,
        )


def draft_of(encoded: Encoded, spec: Spec) -> Draft:
    """The draft that `encoded` was made of, or could have been."""
    format, (rows, width) = spec.format, encoded.codes.shape
    scale = np.ascontiguousarray(scale_values(encoded.scale, spec, encoded.tensor_scale).T)
    zero = None
    if encoded.zero_point is not None:
        zero = np.ascontiguousarray(encoded.zero_point.T, dtype=np.float32)
    codes = encoded.codes.T.reshape(len(scale), -1, rows)
    levels = decode_codes(codes, _ONE, None if zero is None else zero[:, None], format)
    return Draft(levels.reshape(width, rows), scale, zero)


class Start(Enum):
    """Where the scales come from."""

    PLAIN = "plain"  # absmax, min-max
    ENERGY = "energy"  # searched; an error in channel j weighs E[x_j²]
    RESIDUAL = "residual"  # searched; it weighs what remains of that once later channels have made up for it


def starting_draft(rows: Float32, start: Start, hessian: Hessian, grid: Grid) -> Draft:
    """Scales, zero points and nearest levels for `rows` [rows, in]; the draft is channel-major."""
    if start is Start.PLAIN:
        return draft_of(encode_rows(rows, replace(grid.spec, search=0), tensor_scale=grid.tensor_scale), grid.spec)
    weights = hessian.diagonal if start is Start.ENERGY else hessian.residual
    spec = replace(grid.spec, search=grid.spec.search or grid.spec.format.default_search or _CANDIDATES)
    encoded = encode_rows(rows, spec, importance=weights, weighting="trial", tensor_scale=grid.tensor_scale)
    return draft_of(encoded, grid.spec)
