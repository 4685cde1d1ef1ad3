"""How far to scale the input channels of some layers before they are rounded (AWQ, Lin et al., 2306.00978).

Layers with the same input `x` are rounded as `W · diag(t)` and see `x / t`: what a channel with a large factor loses
shrinks with it, and what others lose grows as the groups' scales grow. The factors are

    t_j = s_x,j^α / s_w,j^(1−α)        s_x = sqrt(E[x²]),  s_w = mean |W| over the rows

and α is chosen by what rounding then costs at the output, `Σ_j E[x_j²] Σ_r (W_rj − Ŵ_rj)²`, measured on the real
format. As groups of columns are rounded independently, each *bundle* of them chooses for itself: one group, or several
where channels in different groups share a factor (the heads of grouped-query attention). "No scaling" is always among
the candidates, so no bundle gets a larger measured cost. Within a bundle the factors have a geometric mean of 1.

Without data nothing can be measured, and what a norm's gain tells of E[x²] misleads: choosing by it made models worse.
But where activations have outliers, training has made the weights they meet small, and rounding takes most of what is
left of them. So columns far smaller than is usual in their bundle are lifted to the usual size, others are left alone:

    t_j = s̃_w / s_w,j  where  s_w,j < 0.7 s̃_w,  else 1        s̃_w = median of s_w over the bundle

Behind an activation function all columns get the usual size, t_j = s̃_w / s_w,j. What a column contributes to the
output is then lost in the same proportion whatever the activation is, where else the largest column of a group decides
what all others lose: a third less error on layers with unequal columns, and up to a tenth less divergence on small
models.

A sample of the rows decides: the choice has a handful of outcomes and needs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import Spec

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
_SEARCH = 5
"""Scale candidates while measuring: enough to rank factors."""
_FAR_BELOW = 0.7
_LIMIT = 2.0**8
_SMALLEST = 1e-6
"""Of the mean: what counts as the size of a channel that is silent or empty."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of one layer's weight, and how that weight is stored."""

    values: Float32
    """[rows, in]."""
    spec: Spec
    share: float = 1.0
    """Rows of the weight for each row of the sample."""


@dataclass(frozen=True, eq=False)
class Factors:
    """What to multiply the columns with, and what that is worth."""

    columns: Float32
    """[in], t; positive, 1 where no scaling was better."""
    cost: float | None = None
    """The measured cost with them, as a share of the cost without, at most 1; None where nothing was measured."""


def choose_factors(
    samples: Sequence[Sample],
    energy: Float32,
    classes: Sequence[int],
    alphas: Sequence[float] = ALPHAS,
    *,
    share: float | None = None,
) -> Factors:
    """The factors of some layers' common input channels.

    Args:
        samples: one for each layer.
        energy: [in] E[x_j²] of the input.
        classes: [in] channels of the same class share their factor.
        alphas: the candidates for α.
        share: of the channels; only bundles with one of those that have the largest energy are scaled. All where None.
    """
    energy = _lifted(energy)
    owner = np.asarray(classes)
    bundles = _bundles(owner, [sample.spec.group_of(len(energy)) for sample in samples])
    size_x, size_w = np.sqrt(energy), _lifted(_mean_magnitude(samples))
    candidates = [np.ones_like(energy)]
    candidates += [_shared(size_x**alpha / size_w ** (1 - alpha), owner, bundles) for alpha in alphas]
    costs = np.array([_costs(samples, energy, factors, bundles) for factors in candidates])
    if share is not None:
        largest = np.argsort(-energy, kind="stable")[: max(1, int(share * len(energy)))]
        costs[1:, np.setdiff1d(np.arange(costs.shape[1]), bundles[largest])] = np.inf
    best = costs.argmin(axis=0)
    chosen = np.stack(candidates)[best[bundles], np.arange(len(energy))]
    without = float(costs[0].sum())
    return Factors(chosen, float(costs.min(axis=0).sum()) / without if without > 0 else 1.0)


def lift_factors(samples: Sequence[Sample], classes: Sequence[int], *, equal: bool = False) -> Factors:
    """The factors where there are no data; arguments as in `choose_factors`. `equal` brings all columns to one size."""
    size, owner = _lifted(_mean_magnitude(samples)), np.asarray(classes)
    bundles = _bundles(owner, [sample.spec.group_of(len(size)) for sample in samples])
    usual = np.array([np.median(size[bundles == number]) for number in range(bundles.max() + 1)])[bundles]
    factors = np.where(equal | (size < _FAR_BELOW * usual), usual / size, 1)
    means = np.bincount(owner, np.log(factors)) / np.maximum(np.bincount(owner), 1)
    return Factors(np.clip(np.exp(means[owner]), 1 / _LIMIT, _LIMIT).astype(np.float32))


def _lifted(values: Float32) -> Float32:
    """Nothing far below the mean, so that no factor is extreme or undefined."""
    mean = float(np.mean(values, dtype=np.float64))
    return np.maximum(values, np.float32(_SMALLEST * mean if mean > 0 else 1)).astype(np.float32)


def _mean_magnitude(samples: Sequence[Sample]) -> Float32:
    """[in]: mean |W| over the rows of all layers, each counted in full."""
    total = sum(sample.share * np.abs(sample.values).sum(axis=0, dtype=np.float64) for sample in samples)
    rows = sum(sample.share * len(sample.values) for sample in samples)
    return np.asarray(total / max(rows, 1), dtype=np.float32)


def _bundles(owner: npt.NDArray[np.intp], groups: Sequence[int]) -> npt.NDArray[np.intp]:
    """[in]: the number of each channel's bundle, the least sets that no group and no class reaches out of."""
    bundle = np.zeros(len(owner), dtype=np.intp)
    sizes = {group for group in groups if group < len(owner)}
    if len(sizes) < len(set(groups)) or not sizes:
        return bundle  # a scale per channel: everything belongs together
    block = int(np.lcm.reduce(list(sizes)))
    bundle = np.arange(len(owner)) // block
    for _ in range(len(owner)):
        least = np.full(owner.max() + 1, len(owner), dtype=np.intp)
        np.minimum.at(least, owner, bundle)
        lowest = np.full(bundle.max() + 1, len(owner), dtype=np.intp)
        np.minimum.at(lowest, bundle, least[owner])
        merged = lowest[bundle]
        if np.array_equal(merged, bundle):
            break
        bundle = merged
    return np.unique(bundle, return_inverse=True)[1].reshape(-1)


def _shared(factors: Float32, owner: npt.NDArray[np.intp], bundles: npt.NDArray[np.intp]) -> Float32:
    """One factor a class, with a geometric mean of 1 in each bundle, within the limits."""
    logs = np.log(factors.astype(np.float64))
    for key in (owner, bundles):
        means = np.bincount(key, logs) / np.maximum(np.bincount(key), 1)
        logs = means[key] if key is owner else logs - means[key]
    return np.clip(np.exp(logs), 1 / _LIMIT, _LIMIT).astype(np.float32)


def _costs(
    samples: Sequence[Sample],
    energy: Float32,
    factors: Float32,
    bundles: npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """[bundles]: what rounding costs at the outputs of all layers with these factors."""
    total = np.zeros(len(energy), dtype=np.float64)
    for sample in samples:
        scaled = sample.values * factors
        spec = replace(sample.spec, search=min(sample.spec.search, _SEARCH))
        encoded = encode_rows(scaled, spec, importance=energy / factors**2, weighting="trial")
        squares = np.square((scaled - decode_rows(encoded, spec)) / factors)
        total += sample.share * squares.sum(axis=0, dtype=np.float64)
    return np.asarray(np.bincount(bundles, total * energy), dtype=np.float64)
