"""The arithmetic that every algorithm shares, in readable numpy: codes for given scales, values of given codes, plain
scales, scales as stored. The kernels are held to it bit for bit.

**Codes** (``nearest_codes``):

- integers: ``q = clip(rint(w / s) + z, low, high)``; one IEEE f32 division, rounding to nearest with ties to even,
  *then* the zero point, so that no fused multiply-add can change a code;
- levels: ``q`` is the code of the level nearest to ``w / s``: the number of thresholds (middles between neighbouring
  levels, rounded to f32) that ``w / s`` exceeds, looked up among the levels in rising order. Ties go to the lower
  level, or to the even code where the format rounds as IEEE floats do. A zero is always +0.

**The plain scale** (``plain_scales``) puts the largest magnitude of a group on the format's top level (symmetric
integers and levels: ``absmax / top``) or the group's range, extended to hold 0, on all its levels (asymmetric:
``(max - min) / high``, zero point ``rint(-min / scale)`` within the code's range).

**Scales as stored** (``store_scales``): from there on only the stored value counts, never what it was rounded from.

========  ======================================================================================================
type      rounding
========  ======================================================================================================
f16       to nearest even; magnitude kept within [2^-24, 65504], the smallest subnormal and the largest number
f32       none; magnitude kept within [2^-100, 2^100]
f8e8m0    up to a power of two; exponent kept within -100 .. 100
f8e4m3    of the ratio to the tensor's scalar, to nearest even, kept within [2^-9, 448]
========  ======================================================================================================

So no stored scale is zero, infinite or NaN, and a group of zeros gets zero codes without a special case. The inner
limits of f32 and f8e8m0 keep every quotient and product of the arithmetic away from f32's own subnormals and infinity;
weights above 2^100 saturate.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ov_weight_compression.ir_utils.types import F16_MAX, Array, Float32
from ov_weight_compression.quantization.formats import E4M3_VALUES, Format, Spec, e4m3_codes

_LIMIT = np.float32(2.0**100)
_TINY = np.float32(2.0**-100)


@dataclass(frozen=True, eq=False)
class LevelGrid:
    """A format's levels made ready: ``values`` [n] f32 rising, ``thresholds`` [n - 1] f32 between them, ``codes`` [n]
    of each, and ``by_code`` [2^bits or table size] f32, the level of each code."""

    values: Float32
    thresholds: Float32
    codes: Array
    by_code: Float32


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


def nearest_codes(values: Float32, scale: Float32, zero_point: Array | None, format: Format) -> Array:
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
        found: Array = grid.codes[np.searchsorted(grid.thresholds, ratio, side="left")]
        return found
    levels = np.rint(ratio)
    if zero_point is not None:
        levels += np.asarray(zero_point, dtype=np.float32)
    patterns = np.clip(levels, format.low, format.high).astype(np.int16) + np.int16(format.zero_value)
    return np.asarray(patterns & ((1 << format.bits) - 1), dtype=np.uint8)


def decode_codes(codes: Array, scale: Float32, zero_point: Array | None, format: Format) -> Float32:
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


def plain_scales(groups: Float32, format: Format) -> tuple[Float32, Float32 | None]:
    """The unrounded scale of each group and, for an asymmetric format, its zero point.

    Args:
        groups: [n, g] f32.
        format: decides the top level and the kind of range.

    Returns:
        scale [n] f32, negative where a symmetric integer format turns the group over; zero point [n] f32 or None.
    """
    low, high = groups.min(axis=1), groups.max(axis=1)
    if format.asymmetric:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scale = np.maximum((high - low) / np.float32(format.high), _TINY)
        return scale, np.clip(np.rint(-low / scale), 0, format.high)
    if format.levels is not None:
        return np.maximum(-low, high) / np.float32(format.top), None
    return np.where(-low >= high, -low, -high) / np.float32(format.top), None


def store_scales(scale: Float32, spec: Spec, tensor_scale: np.float32 | None = None) -> Array:
    """Scales rounded to the type that ``spec`` stores them in (the table above); any shape, zeros and infinity allowed.

    Returns:
        float16 or float32, or uint8 bit patterns of f8e8m0 and f8e4m3.
    """
    if spec.scale_type == "f8e8m0":
        fraction, exponent = np.frexp(np.clip(np.abs(scale), _TINY, _LIMIT))
        return np.asarray(exponent - (fraction == 0.5) + 127, dtype=np.uint8)
    if spec.scale_type == "f8e4m3":
        assert tensor_scale is not None
        return np.maximum(e4m3_codes(np.asarray(np.abs(scale) / tensor_scale, dtype=np.float32)), 1)
    smallest, largest = (_TINY, _LIMIT) if spec.scale_type == "f32" else (np.float32(2.0**-24), np.float32(F16_MAX))
    magnitude = np.clip(np.abs(scale), smallest, largest)
    signed = np.where(scale < 0, -magnitude, magnitude)
    return np.asarray(signed, dtype=np.float32 if spec.scale_type == "f32" else np.float16)


def scale_values(stored: Array, spec: Spec, tensor_scale: np.float32 | None = None) -> Float32:
    """The f32 numbers that stored scales stand for, the tensor's scalar included."""
    if spec.scale_type == "f8e8m0":
        return np.asarray(np.ldexp(np.float32(1), stored.astype(np.int32) - 127), dtype=np.float32)
    if spec.scale_type == "f8e4m3":
        assert tensor_scale is not None
        return np.asarray(E4M3_VALUES[stored] * tensor_scale)
    return stored.astype(np.float32)


def tensor_scale_of(absmax: float, format: Format) -> np.float32 | None:
    """The scalar of a weight whose largest magnitude is ``absmax``: that group's scale becomes E4M3's largest number,
    448.

    None where the format has no such scalar. Zero and huge weights are kept within [2^-90, 2^90].
    """
    if not format.tensor_scale:
        return None
    scalar = np.float32(absmax) / np.float32(format.top) / np.float32(448)
    return np.float32(np.clip(scalar, 2.0**-90, 2.0**90))


def unusable(stored: Array, scale_type: str) -> bool:
    """Whether any of the scales, as they are stored, is NaN or infinite."""
    if scale_type == "f8e8m0":
        return bool((stored == 0xFF).any())
    if scale_type == "f8e4m3":
        return bool((stored & 0x7F == 0x7F).any())
    return not np.isfinite(stored).all()
