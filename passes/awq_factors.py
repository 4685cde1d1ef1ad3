"""AWQ as it is applied to a model: which factors each group of layers gets, and who takes them.

    groups of layers with one input (patterns.equalization)
      ─▸ E[x²] of that input, where there are data
      ─▸ factors t, chosen on a sample of rows (quantization.layerwise.awq)
      ─▸ rounded so that what takes them is exact, limited to what f16 holds
      ─▸ Fold: columns · t here; gain / t, rows / t or an inserted Multiply there

With data a fold is kept only if the measured cost falls. Weights are scaled while they are read; gains, biases and
inserted Multiplies are small and are edited when the model is rewritten (see `scale_folding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
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
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Spec
from ov_weight_compression.quantization.layerwise.awq import ALPHAS, Factors, Sample, choose_factors, lift_factors

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
    return _within_f16(plan, Folding(folds, left))


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
    factors = (_of_experts if group.experts > 1 else _of_layers)(group, planned, plan, seen)
    if group.target is None and factors.cost is None and _spread(factors.columns) < _SPREAD_INSERTED:
        return Refusal("columns too much alike for a Multiply to pay")
    columns = _exactly_foldable(group, factors.columns)
    limit = _LARGEST_COST_INSERTED if group.target is None else _LARGEST_COST
    if np.all(columns == 1) or (factors.cost is not None and factors.cost > limit):
        return Refusal("no factors lower the cost" + ("" if group.target else " enough for a Multiply"))
    return Fold(group, columns, factors.cost)


def _of_layers(
    group: EqualizationGroup, planned: Sequence[PlannedWeight], plan: Plan, seen: Sequence[Array | None]
) -> Factors:
    """The factors of layers with one input, [in]."""
    rows = max(1, _SAMPLE_ROWS // len(planned))
    samples = [_sample(plan.sources[one.weight], one.spec, rows) for one in planned]
    return _choose(group, samples, next((one for one in seen if one is not None), None), plan.method.tuning)


def _of_experts(
    group: EqualizationGroup, planned: Sequence[PlannedWeight], plan: Plan, seen: Sequence[Array | None]
) -> Factors:
    """The factors of experts side by side, [experts, in]: each expert's by itself, from the first of its rows."""
    source, energy, spec = plan.sources[planned[0].weight], seen[0], planned[0].spec
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


def _spread(columns: Float32) -> float:
    return float(np.std(np.log(columns)))


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
