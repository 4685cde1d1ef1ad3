"""Plain scales, and scales as stored.

The plain scale puts the largest magnitude of a group on the format's top level (symmetric integers and levels:
``absmax / top``) or the group's range, extended to hold 0, on all its levels (asymmetric: ``(max - min) / high``, zero
point ``rint(-min / scale)`` within the code's range).

A scale is then rounded to the type it is stored in, and from there on only its stored value counts:

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

from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.formats.levels import E4M3
from ov_weight_compression.quantization.spec import Spec

__all__ = ["fits_f16", "plain_scales", "scale_values", "store_scales", "tensor_scale_of", "unusable"]

Floats = npt.NDArray[np.float32]

_LIMIT = np.float32(2.0**100)
_TINY = np.float32(2.0**-100)
_E4M3 = np.array(E4M3[:0x7F], dtype=np.float32)
_E4M3_MIDDLES = (_E4M3[1:] + _E4M3[:-1]) / 2


def plain_scales(groups: Floats, format: Format) -> tuple[Floats, Floats | None]:
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


def store_scales(scale: Floats, spec: Spec, tensor_scale: np.float32 | None = None) -> npt.NDArray[Any]:
    """Scales rounded to the type that ``spec`` stores them in (the table above); any shape, zeros and infinity allowed.

    Returns:
        float16 or float32, or uint8 bit patterns of f8e8m0 and f8e4m3.
    """
    if spec.scale_type == "f8e8m0":
        fraction, exponent = np.frexp(np.clip(np.abs(scale), _TINY, _LIMIT))
        return np.asarray(exponent - (fraction == 0.5) + 127, dtype=np.uint8)
    if spec.scale_type == "f8e4m3":
        assert tensor_scale is not None
        ratio = np.abs(scale) / tensor_scale
        lower = np.searchsorted(_E4M3_MIDDLES, ratio, side="left")
        tie_up = (lower % 2 == 1) & (ratio == _E4M3_MIDDLES[np.minimum(lower, _E4M3_MIDDLES.size - 1)])
        return np.asarray(np.maximum(lower + tie_up, 1), dtype=np.uint8)
    smallest, largest = (_TINY, _LIMIT) if spec.scale_type == "f32" else (np.float32(2.0**-24), np.float32(65504))
    magnitude = np.clip(np.abs(scale), smallest, largest)
    signed = np.where(scale < 0, -magnitude, magnitude)
    return np.asarray(signed, dtype=np.float32 if spec.scale_type == "f32" else np.float16)


def scale_values(stored: npt.NDArray[Any], spec: Spec, tensor_scale: np.float32 | None = None) -> Floats:
    """The f32 numbers that stored scales stand for, the tensor's scalar included."""
    if spec.scale_type == "f8e8m0":
        return np.asarray(np.ldexp(np.float32(1), stored.astype(np.int32) - 127), dtype=np.float32)
    if spec.scale_type == "f8e4m3":
        assert tensor_scale is not None
        return np.asarray(np.array(E4M3, dtype=np.float32)[stored] * tensor_scale)
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


def fits_f16(scale: Floats) -> npt.NDArray[np.bool_]:
    """Which unrounded scales f16 can hold: not above 65504, and off by at most 2^-4 where subnormal; zero fits."""
    magnitude = np.abs(scale.astype(np.float32))
    rounded = np.minimum(magnitude, np.float32(65504)).astype(np.float16).astype(np.float32)
    return np.abs(rounded - magnitude) <= magnitude * np.float32(2.0**-4)


def unusable(stored: npt.NDArray[Any], scale_type: str) -> bool:
    """Whether any of the scales, as they are stored, is NaN or infinite."""
    if scale_type == "f8e8m0":
        return bool((stored == 0xFF).any())
    if scale_type == "f8e4m3":
        return bool((stored & 0x7F == 0x7F).any())
    return not np.isfinite(stored).all()
