"""Codes for given scales, and values of given codes: the arithmetic that every algorithm shares.

``nearest_codes`` is the definition that the kernels are held to, bit for bit:

- integers: ``q = clip(rint(w / s) + z, low, high)``; one IEEE f32 division, rounding to nearest with ties to even,
  *then* the zero point, so that no fused multiply-add can change a code;
- levels: ``q`` is the code of the level nearest to ``w / s``: the number of thresholds (middles between neighbouring
  levels, rounded to f32) that ``w / s`` exceeds, looked up among the levels in rising order. Ties go to the lower
  level, or to the even code where the format rounds as IEEE floats do. A zero is always +0.

Scales here are the f32 values of the scales as stored (see ``scales``), never the numbers that they were rounded from.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.formats import Format

__all__ = ["LevelGrid", "code_dtype", "decode_codes", "level_grid", "nearest_codes"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LevelGrid:
    """A format's levels made ready: ``values`` [n] f32 rising, ``thresholds`` [n - 1] f32 between them, ``codes`` [n]
    of each, and ``by_code`` [2^bits or table size] f32, the level of each code."""

    values: Floats
    thresholds: Floats
    codes: npt.NDArray[Any]
    by_code: Floats


def code_dtype(format: Format) -> type[np.uint8] | type[np.uint16]:
    """numpy type of unpacked codes."""
    return np.uint16 if format.bits > 8 else np.uint8


@lru_cache(maxsize=64)
def level_grid(format: Format) -> LevelGrid:
    """The levels of a format that has them, ready for ``nearest_codes``."""
    assert format.levels is not None
    by_code = np.array(format.levels, dtype=np.float32)
    usable = np.flatnonzero(np.isfinite(by_code))
    values, first = np.unique(by_code[usable] + 0.0, return_index=True)  # -0.0 falls together with 0.0, the lower code
    codes = usable[first].astype(code_dtype(format))
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    if format.ties_to_even:
        middles = np.where(codes[1:] % 2 == 0, np.nextafter(middles, np.float32(-np.inf)), middles)
    return LevelGrid(values, middles, codes, by_code)


def nearest_codes(
    values: Floats, scale: Floats, zero_point: npt.NDArray[Any] | None, format: Format
) -> npt.NDArray[Any]:
    """Codes of ``values`` for scales that are already chosen.

    Args:
        values: f32, any shape.
        scale: f32 values of the stored scales, none of them zero; broadcast against ``values``.
        zero_point: the stored zero points, broadcast likewise, for asymmetric formats; else None.
        format: its levels decide.

    Returns:
        uint8 (uint16 for 16-bit indices) bit patterns of the shape of ``values``.
    """
    ratio = values / scale
    if format.levels is not None:
        grid = level_grid(format)
        found: npt.NDArray[Any] = grid.codes[np.searchsorted(grid.thresholds, ratio, side="left")]
        return found
    levels = np.rint(ratio)
    if zero_point is not None:
        levels += np.asarray(zero_point, dtype=np.float32)
    patterns = np.clip(levels, format.low, format.high).astype(np.int16) + np.int16(format.zero_value)
    return np.asarray(patterns & ((1 << format.bits) - 1), dtype=np.uint8)


def decode_codes(codes: npt.NDArray[Any], scale: Floats, zero_point: npt.NDArray[Any] | None, format: Format) -> Floats:
    """The f32 values that ``codes`` stand for: ``(q - z) * s`` or ``levels[q] * s``, one f32 multiplication.

    Arguments as in ``nearest_codes``; this is what OpenVINO computes from the stored chain with f32 inference.
    """
    if format.levels is not None:
        return np.asarray(level_grid(format).by_code[codes] * scale)
    levels = codes.astype(np.float32)
    if zero_point is not None:
        levels -= np.asarray(zero_point, dtype=np.float32)
    elif format.zero_point == "scalar":
        levels -= np.float32(format.zero_value)
    else:  # two's complement
        levels -= (levels > format.high).astype(np.float32) * np.float32(1 << format.bits)
    return np.asarray(levels * scale)
