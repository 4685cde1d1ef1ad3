"""Scale search: the plain scale of a group is not the best one.

Absmax scales spend levels on the one largest weight. For each group a few candidates around the plain scale are tried,
multiples of it, each rounded to its stored type; the codes nearest for each give a weighted squared error, and the
candidate with the least is kept:

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
candidate, which both do, is done with data only (see ``refit``): it takes several times as long as the search.
"""

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.formats import Format, Spec
from ov_weight_compression.quantization.reference import (
    decode_codes,
    level_grid,
    nearest_codes,
    scale_values,
    store_scales,
)

__all__ = [
    "MARGIN",
    "STARTS",
    "best_scales",
    "candidate_factors",
    "group_weights",
    "reach",
    "refit",
    "summand_limit",
]

# What a candidate's error is multiplied by before it is compared with the plain scale's.
MARGIN = np.float32(1 + 2.0**-9)

_SUM_LIMIT = 1 << 24

_REFITS = 2
STARTS = (1.0, 0.9, 1.1, 0.8)
"""Of the scale that was found."""
_ONE = np.ones(1, np.float32)


def candidate_factors(spec: Spec) -> Float32:
    """[candidates] f32: what the plain scale is multiplied by; the first is 1, the others are the format's chosen ones
    where it has so many, else evenly spaced."""
    if spec.scale_type == "f8e8m0":
        return np.array([1.0, 0.5, 2.0][: spec.search], dtype=np.float32)
    if len(spec.format.search_factors) == spec.search - 1:
        return np.array([1.0, *spec.format.search_factors], dtype=np.float32)
    low, high = spec.format.search_range
    return np.array([1.0, *np.linspace(low, high, spec.search - 1)], dtype=np.float32)


def reach(format: Format) -> float:
    """The largest error of one weight, in levels, that is told apart; beyond it all errors count alike."""
    if format.levels is None:
        return 2.0
    values = level_grid(format).values
    return max(float(np.diff(values).max()), format.top / 4)


def summand_limit(group: int) -> int:
    """What each summand may be at most, so that f32 holds the sum of ``group`` of them exactly."""
    return _SUM_LIMIT // group


def group_weights(groups: Float32, importance: Float32 | None, graph: bool, format: Format) -> Float32:
    """[n, g] f32: ``w`` of each element, scaled so that the largest of a group times ``reach`` squared is the limit.

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
    return np.asarray(weights * (np.float32(summand_limit(size) / reach(format) ** 2) / largest))


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
    limit = np.float32(summand_limit(groups.shape[1]))
    errors = np.empty_like(candidates)
    values = scale_values(store_scales(candidates, spec, tensor_scale), spec, tensor_scale)
    for k in range(candidates.shape[1]):
        apart = _distance(groups * (np.float32(1) / values[:, k, None]), zero_point, spec.format)
        summands = np.rint(np.minimum(apart * apart * weights, limit)).sum(axis=1)
        relative = values[:, k] / values[:, 0]  # the square of the value itself might leave f32
        errors[:, k] = summands * relative * relative
    errors[:, 1:] *= MARGIN
    chosen = errors.argmin(axis=1)
    return np.asarray(candidates[np.arange(len(chosen)), chosen])


def _distance(ratio: Float32, zero_point: Float32 | None, format: Format) -> Array:
    """How far each ``w / s`` lies from its level, in levels."""
    if format.levels is not None:
        grid = level_grid(format)
        return np.asarray(ratio - grid.values[np.searchsorted(grid.thresholds, ratio, side="left")])
    if zero_point is None:
        return np.asarray(ratio - np.clip(np.rint(ratio), format.low, format.high))
    low = -zero_point[:, None]
    return np.asarray(ratio - np.clip(np.rint(ratio), low, low + np.float32(format.high)))


def refit(
    groups: Float32,
    codes: Array,
    scale: Array,
    zero_point: Array | None,
    weights: Float32,
    spec: Spec,
    tensor_scale: np.float32 | None,
    starts: tuple[float, ...] = STARTS,
) -> None:
    """Improve `codes` and `scale` in place; no group's weighted error rises.

    Args:
        groups: [n, g] f32.
        codes: [n, g] bit patterns.
        scale: [n] as stored.
        zero_point: [n] uint8, not changed, or None.
        weights: [n, g] f32, what an error in each element weighs, in any scale.
        spec: what they are.
        tensor_scale: of the whole weight, for formats that have one.
        starts: scales to start from, in units of `scale`, its own first.
    """
    zero = None if zero_point is None else zero_point[:, None]
    first = scale_values(scale, spec, tensor_scale)
    least = _error(groups, decode_codes(codes, first[:, None], zero, spec.format), weights)
    signed = spec.format.levels is None and not spec.format.asymmetric
    for start in starts if spec.format.levels is None else starts[:1]:
        stored = store_scales(first * np.float32(start), spec, tensor_scale)
        for left in range(_REFITS, -1, -1):
            current = scale_values(stored, spec, tensor_scale)
            found = nearest_codes(groups, current[:, None], zero, spec.format)
            levels = decode_codes(found, _ONE, zero, spec.format)
            error = _error(groups, levels * current[:, None], weights)
            better = error < least
            codes[better], scale[better] = found[better], stored[better]
            least = np.minimum(least, error)
            if left:
                weighted = weights * levels
                bend, pull = (weighted * levels).sum(axis=1), (weighted * groups).sum(axis=1)
                usable = (bend > 0) & (pull != 0 if signed else pull > 0)
                stored = store_scales(np.divide(pull, bend, out=current.copy(), where=usable), spec, tensor_scale)


def _error(groups: Float32, values: Float32, weights: Float32) -> Float32:
    """[n]: the weighted squared error of each group."""
    difference = groups - values
    difference *= difference
    difference *= weights
    return np.asarray(difference.sum(axis=1))
