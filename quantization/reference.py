"""The arithmetic that every algorithm shares, in readable numpy: codes for given scales, values of given codes, plain
scales, scales as stored, and the search for better ones. The kernels are held to it bit for bit.

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

**The search** (``best_scales``): the plain scale of a group is not the best one, for it spends levels on the largest
weight. A few candidates around it are tried, multiples of it, each rounded to its stored type; the codes nearest for
each give a weighted squared error, and the candidate with the least is kept:

    e(s) = sum_j w_j (W_j - s q_j(s))^2

What ``w`` is decides whether the search helps or harms a model:

- ``data``: E[x_j^2] of the layer's inputs, from calibration;
- ``graph``: without data, the squared gains of the norm in front (or what else the graph tells of E[x_j^2]), times
  ``|W| + rms(W)`` over the group: large weights are where large activations meet, so they get more, but not all.

Everything is arranged so that an exact machine and a fast one agree to the bit, whatever the order of additions: a
group's weights are scaled to the group's largest, errors are in units of a level, each summand is rounded to an
integer so small that f32 holds every partial sum. That grid is finer than the differences that matter; and the plain
scale keeps its place unless a candidate beats it by one part in 512, so a search never returns anything worse.

Source: llama.cpp's make_qx_quants and AutoRound's search for the idea and ranges; the refit of the scale after each
candidate, which both do, is done with data only (see ``refit``): it takes twice as long as the search.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

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


@lru_cache(maxsize=64)
def level_grid(format: Format) -> LevelGrid:
    """The levels of a format that has them, ready for ``nearest_codes``."""
    assert format.levels is not None
    by_code = np.array(format.levels, dtype=np.float32)
    usable = np.flatnonzero(np.isfinite(by_code))
    values, first = np.unique(by_code[usable] + 0.0, return_index=True)  # -0.0 falls together with 0.0, the lower code
    codes = usable[first].astype(format.code_dtype)
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


def encode_groups(
    groups: Float32,
    spec: Spec,
    tensor_scale: np.float32 | None = None,
    importance: Float32 | None = None,
    graph: bool = False,
    starts: tuple[float, ...] = (),
) -> tuple[Array, Array, npt.NDArray[np.uint8] | None]:
    """Scales, plain or searched, and the codes nearest for them.

    Args:
        groups: [n, g] f32, a group a row.
        spec: format, the scales' type, number of candidates.
        tensor_scale: of the whole weight, for formats that have one.
        importance: [n, g] f32 within [2^-40, 1] for a search, or None for all alike.
        graph: the search multiplies importance by ``|W| + rms(W)``.
        starts: of a refit of what the search finds; none for no refit.

    Returns:
        codes [n, g], stored scales [n], zero points [n] uint8 or None.
    """
    scale, zero_point = plain_scales(groups, spec.format)
    if spec.search > 1:
        weights = group_weights(groups, importance, graph, spec.format)
        scale = best_scales(groups, scale, zero_point, weights, spec, tensor_scale)
        if starts:
            scale = refit(groups, scale, zero_point, weights, spec, tensor_scale, starts)
    stored = store_scales(scale, spec, tensor_scale)
    values = scale_values(stored, spec, tensor_scale)[:, None]
    codes = nearest_codes(groups, values, None if zero_point is None else zero_point[:, None], spec.format)
    return codes, stored, None if zero_point is None else zero_point.astype(np.uint8)


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


# What a candidate's error is multiplied by before it is compared with the plain scale's.
MARGIN = np.float32(1 + 2.0**-9)

SUM_LIMIT = 1 << 24
"""Up to here f32 holds every integer: a summand may be at most so much divided by the size of a group."""

REFITS = 2
"""How often a scale is fitted to its codes from each start."""
STARTS = (1.0, 0.9, 1.1, 0.8)
"""Of a refit, in units of the scale that was found."""
LARGEST_CHANGE = np.float32(0.5)
"""Of a scale, in units of it, by one fit."""


def candidate_factors(spec: Spec) -> Float32:
    """[candidates] f32: what the plain scale is multiplied by; the first is 1, the others are the format's chosen ones
    where it has so many, else evenly spaced."""
    if spec.scale_type == "f8e8m0":
        return np.array([1.0, 0.5, 2.0][: spec.search], dtype=np.float32)
    if len(spec.format.search_factors) == spec.search - 1:
        return np.array([1.0, *spec.format.search_factors], dtype=np.float32)
    low, high = spec.format.search_range
    return np.array([1.0, *np.linspace(low, high, spec.search - 1)], dtype=np.float32)


def refit_units(format: Format) -> tuple[np.float32, np.float32, np.float32]:
    """What a refit counts in: the largest error of one weight that is told apart, in levels (from a small scale the
    largest weights of a group lie far beyond its last level); and the factors of ``group_weights`` and of levels with
    which no summand is beyond its share of ``SUM_LIMIT``."""
    far = 2 * format.reach
    levels = (format.low, format.high) if format.levels is None else level_grid(format).values
    return np.float32(far), np.float32(0.25), np.float32(far / max(abs(float(level)) for level in levels))


def group_weights(groups: Float32, importance: Float32 | None, graph: bool, format: Format) -> Float32:
    """[n, g] f32: ``w`` of each element, scaled so that the largest of a group times ``reach`` squared is a summand's
    limit.

    Args:
        groups: [n, g] f32.
        importance: f32 [n, g] within [2^-40, 1], or None for all alike.
        graph: multiply by ``|W| + rms(W)``.
        format: for its ``reach``.
    """
    size = groups.shape[1]
    weights = np.ones_like(groups) if importance is None else importance
    if graph:
        absmax = np.maximum(np.abs(groups).max(axis=1, keepdims=True), np.float32(2.0**-100))
        # A tenth of a percent of absmax is fine enough, and short numbers multiply exactly.
        magnitude = np.rint(np.abs(groups) * (np.float32(1024) / absmax))
        unit = np.float32(2.0 ** -max(0, int(np.ceil(np.log2(size))) - 4))
        squares = np.rint(magnitude * magnitude * unit).sum(axis=1, keepdims=True)
        weights = weights * (magnitude + np.sqrt(squares / (np.float32(size) * unit)))
    largest = np.maximum(weights.max(axis=1, keepdims=True), np.float32(2.0**-60))
    return np.asarray(weights * (np.float32(SUM_LIMIT // size / format.reach**2) / largest))


def best_scales(
    groups: Float32,
    scale: Float32,
    zero_point: Float32 | None,
    weights: Float32,
    spec: Spec,
    tensor_scale: np.float32 | None = None,
) -> Float32:
    """The candidate of each group with the least weighted error, unrounded.

    Args:
        groups: [n, g] f32.
        scale: [n] plain scales, unrounded.
        zero_point: [n] or None.
        weights: [n, g] as ``group_weights`` made them.
        spec: format, stored type of the scale, number of candidates.
        tensor_scale: of the whole weight.

    Returns:
        [n] f32, to be rounded by ``store_scales`` once more.
    """
    candidates = scale[:, None] * candidate_factors(spec)
    limit = np.float32(SUM_LIMIT // groups.shape[1])
    errors = np.empty_like(candidates)
    values = scale_values(store_scales(candidates, spec, tensor_scale), spec, tensor_scale)
    for k in range(candidates.shape[1]):
        ratio = groups * (np.float32(1) / values[:, k, None])
        apart = ratio - _levels(ratio, zero_point, spec.format)
        summands = np.rint(np.minimum(apart * apart * weights, limit)).sum(axis=1)
        relative = values[:, k] / values[:, 0]  # the square of the value itself might leave f32
        errors[:, k] = summands * relative * relative
    errors[:, 1:] *= MARGIN
    chosen = errors.argmin(axis=1)
    return np.asarray(candidates[np.arange(len(chosen)), chosen])


def _levels(ratio: Float32, zero_point: Float32 | None, format: Format) -> Array:
    """The level nearest to each ``w / s`` [n, g]."""
    if format.levels is not None:
        grid = level_grid(format)
        return np.asarray(grid.values[np.searchsorted(grid.thresholds, ratio, side="left")])
    if zero_point is None:
        return np.clip(np.rint(ratio), format.low, format.high)
    low = -zero_point[:, None]
    return np.clip(np.rint(ratio), low, low + np.float32(format.high))


def refit(
    groups: Float32,
    scale: Float32,
    zero_point: Float32 | None,
    weights: Float32,
    spec: Spec,
    tensor_scale: np.float32 | None,
    starts: tuple[float, ...],
) -> Float32:
    """Scales that fit the codes nearest for them; no group's weighted error rises.

    From each start the codes nearest for a scale, and the scale that fits these codes best, take turns:

        s' = s (1 + sum_j w_j q_j (W_j / s - q_j) / sum_j w_j q_j^2)

    Args:
        groups: [n, g] f32.
        scale: [n], to be improved, unrounded.
        zero_point: [n] or None.
        weights: [n, g] as ``group_weights`` made them.
        spec: format, stored type of the scale.
        tensor_scale: of the whole weight.
        starts: scales to start from, in units of `scale`, its own first.

    Returns:
        [n] f32, to be rounded by ``store_scales`` once more.
    """
    format = spec.format
    far, finer, unit = refit_units(format)
    weights = weights * finer
    first = scale_values(store_scales(scale, spec, tensor_scale), spec, tensor_scale)
    kept: list[tuple[Float32, Float32]] = []
    for start in starts:
        current = first * np.float32(start)
        for left in range(REFITS, -1, -1):
            value = scale_values(store_scales(current, spec, tensor_scale), spec, tensor_scale)
            ratio = groups * (np.float32(1) / value)[:, None]
            levels = _levels(ratio, zero_point, format)
            apart = np.clip(ratio - levels, -far, far)
            weighted = apart * weights
            relative = value / first
            error = np.rint(apart * weighted).sum(axis=1) * relative * relative
            if left == REFITS:
                best, least = value, error
            else:
                best = np.where(error < least, value, best)
                least = np.minimum(least, error)
            if left:
                levels *= unit
                pull = np.rint(levels * weighted).sum(axis=1)
                bend = np.rint(levels * (levels * weights)).sum(axis=1)
                change = pull * unit / np.maximum(bend, np.float32(1))
                current = value * (np.float32(1) + np.clip(change, -LARGEST_CHANGE, LARGEST_CHANGE))
        kept.append((best, least))
    bests, errors = (np.stack(each, axis=1) for each in zip(*kept, strict=True))
    return np.asarray(bests[np.arange(len(first)), errors.argmin(axis=1)])
