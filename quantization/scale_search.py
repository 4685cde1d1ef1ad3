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
candidate, which both do, is done with data only (see ``refit``): it takes twice as long as the search.
"""

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.formats import Format, Spec
from ov_weight_compression.quantization.reference import level_grid, scale_values, store_scales

# What a candidate's error is multiplied by before it is compared with the plain scale's.
MARGIN = np.float32(1 + 2.0**-9)

_SUM_LIMIT = 1 << 24

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


def reach(format: Format) -> float:
    """The largest error of one weight, in levels, that is told apart; beyond it all errors count alike."""
    if format.levels is None:
        return 2.0
    values = level_grid(format).values
    return max(float(np.diff(values).max()), format.top / 4)


def summand_limit(group: int) -> int:
    """What each summand may be at most, so that f32 holds the sum of ``group`` of them exactly."""
    return _SUM_LIMIT // group


def refit_units(format: Format) -> tuple[np.float32, np.float32, np.float32]:
    """What a refit counts in: the largest error of one weight that is told apart, in levels (from a small scale the
    largest weights of a group lie far beyond its last level); and the factors of ``group_weights`` and of levels with
    which no summand is beyond ``summand_limit``."""
    far = 2 * reach(format)
    levels = (format.low, format.high) if format.levels is None else level_grid(format).values
    return np.float32(far), np.float32(0.25), np.float32(far / max(abs(float(level)) for level in levels))


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
