"""A weight half-way between floats and stored codes: levels and scales that the algorithms of this package move about.

Everything here is *channel-major*, `[in, rows]`, the transpose of the canonical weight: the algorithms decide one input
channel after another for all rows at once, and so a channel is contiguous.

    value[j, r] = level[j, r] * scale[j // g, r]          level = q - z, or levels[q]

`Grid` knows which levels and which scales a `Spec` allows. Scales are always f32 values of *stored* scales, so what an
algorithm measures is what the device will compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.encode import stored_table
from ov_weight_compression.quantization.grid import decode_codes, level_grid, nearest_codes
from ov_weight_compression.quantization.scales import scale_values, store_scales
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = ["Draft", "Floats", "Grid", "draft_of"]

Floats = npt.NDArray[np.float32]
_ONE = np.ones(1, np.float32)


@dataclass(eq=False)
class Draft:
    """Levels [in, rows], scales [groups, rows] and, for asymmetric formats, zero points [groups, rows]; all f32."""

    levels: Floats
    scale: Floats
    zero: Floats | None

    @property
    def group(self) -> int:
        """Channels that share a scale."""
        return len(self.levels) // len(self.scale)

    def values(self) -> Floats:
        """[in, rows]: the weights that the draft stands for."""
        groups, rows = self.scale.shape
        return (self.levels.reshape(groups, -1, rows) * self.scale[:, None]).reshape(-1, rows)

    def take(self, rows: npt.NDArray[Any], other: Draft) -> None:
        """Replace the rows where `rows` [rows] is true by those of `other`."""
        np.copyto(self.levels, other.levels, where=rows)
        np.copyto(self.scale, other.scale, where=rows)
        if self.zero is not None and other.zero is not None:
            np.copyto(self.zero, other.zero, where=rows)


@dataclass(frozen=True)
class Grid:
    """The levels and the scales that a spec allows; `tensor_scale` as in `encode_rows`."""

    spec: Spec
    tensor_scale: np.float32 | None = None

    def nearest(self, ratio: Floats, zero: Floats | None) -> Floats:
        """The level nearest to `ratio` = weight / scale, any shape; `zero` broadcasts against it. May work in place."""
        format = self.spec.format
        if format.levels is not None:
            grid = level_grid(format)
            return np.asarray(grid.values[np.searchsorted(grid.thresholds, ratio, side="left")])
        np.rint(ratio, out=ratio)
        if zero is None:
            return np.asarray(np.clip(ratio, format.low, format.high, out=ratio))
        np.maximum(ratio, -zero, out=ratio)
        return np.asarray(np.minimum(ratio, np.float32(format.high) - zero, out=ratio))

    def stored(self, scale: Floats) -> Floats:
        """The values that scales have once stored; the sign of a symmetric integer format's scale is kept."""
        if self.spec.format.asymmetric or self.spec.format.levels is not None:
            scale = np.maximum(scale, 0)
        return scale_values(store_scales(scale, self.spec, self.tensor_scale), self.spec, self.tensor_scale)

    def around(self, scale: Floats) -> tuple[Floats, ...]:
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
            table=stored_table(format),
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
