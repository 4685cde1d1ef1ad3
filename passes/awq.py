"""AWQ (Lin et al., 2306.00978): how far to scale the input channels of layers before rounding, and who takes that.

    groups of layers with one input (patterns.equalization)
      ─▸ E[x²] of that input, where there are data
      ─▸ factors t, chosen on a sample of rows
      ─▸ rounded so that what takes them is exact, limited to what f16 holds
      ─▸ Fold: columns · t here; gain / t, rows / t or an inserted Multiply there

With data a fold is kept only if the measured cost falls. Weights are scaled while they are read; gains, biases and
inserted Multiplies are small and are edited when the model is rewritten (see `scale_folding`).

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
import openvino as ov

from ov_weight_compression.ir_utils.types import F16_MAX, Array, Float32, float_values
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.ir_utils.worker_pool import in_threads
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Algorithm, Plan, PlannedWeight, Tuning
from ov_weight_compression.passes.scale_folding import Fold, Folding, Scaling, rounded_to
from ov_weight_compression.patterns import Refusal, Sources
from ov_weight_compression.patterns.equalization import EqualizationGroup, equalization_groups
from ov_weight_compression.patterns.fold_targets import RowsTarget
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Spec

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


_SAMPLE_ROWS = 384
_F16_NORMAL = 2.0**-14
_LARGEST_COST = 0.995
"""A fold that saves less is not worth touching the graph for."""
_LARGEST_COST_INSERTED = 0.9
"""The same where the factors cost a Multiply at run time."""

_SPREAD_INSERTED = 0.25
"""Where nothing measures the cost: how far the factors' logarithms must be apart, the root of their variance."""


def fold_scales(plan: Plan, data: Measurements, threads: int) -> Plan:
    """The plan with the folds that pay, and with the largest magnitudes that the weights then have.

    Weights of 4 bits and fewer decide, the others follow. Nothing is edited.
    """
    method, by_name = plan.method, {one.weight.name: one for one in plan.weights}
    measured = method.weighted and method.tuning.awq_from_data
    if measured:
        data.statistics(method.tuning.awq_subset)  # once, before threads ask for it

    def decide(group: EqualizationGroup) -> Fold | Scaling:
        seen = [data.energy(weight, method.tuning.awq_subset) if measured else None for weight in group.weights]
        found = _fold(group, [by_name[weight.name] for weight in group.weights], plan, seen)
        return found if isinstance(found, Fold) else Scaling(group.names, "", "", None, found.reason)

    groups = equalization_groups(data.model, [one.weight for one in plan.weights])
    wanted = [group for group in groups if any(Algorithm.AWQ in by_name[one.name].algorithms for one in group.weights)]
    decided = in_threads(decide, wanted, threads)
    folds = tuple(entry for entry in decided if isinstance(entry, Fold))
    left = tuple(entry for entry in decided if isinstance(entry, Scaling))
    return _within_f16(plan, Folding.of(folds, left))


def _fold(
    group: EqualizationGroup, planned: Sequence[PlannedWeight], plan: Plan, seen: Sequence[Array | None]
) -> Fold | Refusal:
    """The group's fold, or why there is none.

    Args:
        group, planned: the group, and what is planned for its weights.
        plan: where their values come from, and what AWQ may do.
        seen: E[x²] of the input channels of each of them, f32 [in]; None where there are no data.
    """
    if group.target is None and not (plan.method.inserts and group.behind_activation):
        return Refusal(group.reason)
    if group.experts > 1:
        factors = _of_experts(group, planned, plan, seen[0])
    else:
        rows = max(1, _SAMPLE_ROWS // len(planned))
        samples = [_sample(plan.sources[one.weight], one.spec, rows) for one in planned]
        factors = _choose(group, samples, next((one for one in seen if one is not None), None), plan.method.tuning)
    if group.target is None and factors.cost is None and np.std(np.log(factors.columns)) < _SPREAD_INSERTED:
        return Refusal("columns too much alike for a Multiply to pay")
    columns = _exactly_foldable(group, factors.columns)
    limit = _LARGEST_COST_INSERTED if group.target is None else _LARGEST_COST
    if np.all(columns == 1) or (factors.cost is not None and factors.cost > limit):
        return Refusal("no factors lower the cost" + ("" if group.target else " enough for a Multiply"))
    return Fold(group, columns, factors.cost)


def _of_experts(
    group: EqualizationGroup, planned: Sequence[PlannedWeight], plan: Plan, energy: Array | None
) -> Factors:
    """The factors of experts side by side, [experts, in]: each expert's by itself, from the first of its rows."""
    source, spec = plan.sources[planned[0].weight], planned[0].spec
    own = source.layout.rows // group.experts
    found = []
    for slab in source.layout.slabs(min(_SAMPLE_ROWS, own), own):
        if slab.start % own == 0:
            expert = slab.start // own
            sample = Sample(source.read(slab).astype(np.float32), spec, own / (slab.stop - slab.start))
            source.release(slab)
            known = energy if energy is None or energy.ndim == 1 else energy[expert]
            known = known if known is not None and np.any(known) else None
            found.append(_choose(group, [sample], known, plan.method.tuning))
    costs = [one.cost for one in found if one.cost is not None]
    return Factors(np.stack([one.columns for one in found]), float(np.mean(costs)) if costs else None)


def _choose(group: EqualizationGroup, samples: Sequence[Sample], seen: Array | None, tuning: Tuning) -> Factors:
    if seen is None:
        return lift_factors(samples, group.classes, equal=group.behind_activation)
    return choose_factors(samples, seen, group.classes, tuning.awq_alphas or ALPHAS, share=tuning.awq_share)


def factors_without_data(group: EqualizationGroup, sources: Sources, group_size: int) -> Float32 | None:
    """The factors [in] that AWQ without data gives layers whose weights will be stored in groups of so many (per
    channel where that does not divide them); None where that is 1 for all, and for experts side by side."""
    if group.experts > 1:
        return None
    spec = Spec(FORMATS["int4_sym"], group_size if group.columns % group_size == 0 else PER_CHANNEL)
    rows = max(1, _SAMPLE_ROWS // len(group.weights))
    samples = [_sample(sources[weight], spec, rows) for weight in group.weights]
    columns = _exactly_foldable(group, lift_factors(samples, group.classes, equal=group.behind_activation).columns)
    return None if np.all(columns == 1) else columns


def _sample(source: WeightSource, spec: Spec, count: int) -> Sample:
    """Some rows of a weight, spread evenly over it."""
    values = source.sample(count)
    return Sample(values, spec, source.layout.rows / len(values))


def _exactly_foldable(group: EqualizationGroup, columns: Float32) -> Float32:
    """The factors such that what takes them is exact in its type, and 1 where its type could not hold it.

    Rows of a producer are quantised anyway, so only its biases count.
    """
    target = group.target
    if target is None:
        inverse = (1 / columns).astype(np.float16).astype(np.float32)
        return np.asarray(1 / inverse, dtype=np.float32)
    if isinstance(target, RowsTarget):
        biases, factors = target.biases, columns.copy()
    else:
        biases = () if target.bias is None else (target.bias,)
        factors = _exact_gain(float_values(target.gain.constant).reshape(-1), columns, target.gain.constant)
    owner = np.asarray(group.classes)
    for bias in biases:
        place = np.asarray(bias.classes)
        values = np.abs(float_values(bias.constant).reshape(-1))[place >= 0]
        shares = np.ones(owner.max() + 1, dtype=np.float32)
        shares[owner] = factors
        too_large = values / shares[place[place >= 0]] > F16_MAX
        factors[np.isin(owner, place[place >= 0][too_large])] = 1
    return factors


def _exact_gain(gain: Float32, columns: Float32, constant: ov.Node) -> Float32:
    """Factors by which the gain can be divided without a rounding error in its own type."""
    rounded = np.abs(rounded_to(gain / columns, constant.get_output_element_type(0).get_type_name()))
    fits = (rounded >= _F16_NORMAL) & (rounded <= F16_MAX)
    return np.asarray(np.where(fits, np.abs(gain) / np.where(fits, rounded, 1), 1), dtype=np.float32)


def _within_f16(plan: Plan, folding: Folding) -> Plan:
    """Without the folds after which f16 could not hold a weight's scales."""
    settled, sources = [], plan.sources.folded(folding.columns, folding.rows)
    for planned in plan.weights:
        scaled = _scaled(planned, folding, sources) if folding.touches(planned.weight) else planned
        if scaled.spec.scale_type == "f16" and scaled.beyond_f16 and not planned.beyond_f16:
            reason = f"f16 could not hold the scales of {planned.weight.name}"
            return _within_f16(plan, folding.without(planned.weight, reason))
        settled.append(scaled)
    return replace(plan, weights=tuple(settled), sources=sources, folding=folding)


def _scaled(planned: PlannedWeight, folding: Folding, sources: Sources) -> PlannedWeight:
    """The weight with the largest magnitude of its scaled values; a bound of it where that is enough."""
    name = planned.weight.name
    factors = [part for part in (folding.columns.get(name), folding.rows.get(name)) if part is not None]
    bounds = [planned.absmax * float(np.prod([limit(part) for part in factors])) for limit in (np.min, np.max)]
    ends = [replace(planned, absmax=bound) for bound in bounds]
    if planned.spec.format.tensor_scale or any(end.beyond_f16 for end in ends):
        return replace(planned, absmax=sources[planned.weight].scan().absmax)
    return ends[1]
