"""AWQ as it is applied to a model: which factors each group of layers gets, and who takes them.

    groups of layers with one input (patterns.equalization)
      ─▸ E[x²] of that input, where there are data
      ─▸ factors t, chosen on a sample of rows (quantization.layerwise.awq)
      ─▸ rounded so that what absorbs them is exact, limited to what f16 holds
      ─▸ Fold: columns · t here; gain / t, rows / t or an inserted Multiply there

With data a fold is kept only if the measured cost falls. Weights are scaled while they are read; gains, biases and
inserted Multiplies are small and are edited when the model is rewritten (see `smoothing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.constants import float_values
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.folding import rounded_to
from ov_weight_compression.passes.smoothing import Fold, Scaling, Smoothing
from ov_weight_compression.passes.tuning import Tuning
from ov_weight_compression.patterns import Sources, Weight
from ov_weight_compression.patterns.equalization import ScalingGroup, scaling_groups
from ov_weight_compression.patterns.scale_folding import ProducerAbsorber
from ov_weight_compression.quantization.layerwise.awq import ALPHAS, Factors, Sample, choose_factors, lift_factors

__all__ = ["Energy", "ForEach", "choose_folds"]

_SAMPLE_ROWS = 384
_F16_MAX = 65504.0
_F16_NORMAL = 2.0**-14
_LARGEST_COST = 0.995
"""A fold that saves less is not worth touching the graph for."""
_LARGEST_COST_INSERTED = 0.9
"""The same where the factors cost a Multiply at run time."""

_SPREAD_INSERTED = 0.25
"""Where nothing measures the cost: how far the factors' logarithms must be apart, the root of their variance."""

Energy = Callable[[Weight], "Array | None"]
"""E[x²] of the input channels of a weight's layers, f32 [in]; None where there are no data."""
ForEach = Callable[[Callable[[ScalingGroup], "Fold | Scaling"], Sequence[ScalingGroup]], "list[Fold | Scaling]"]
"""Applies a function to many groups, in threads or not."""


def choose_folds(
    model: ov.Model,
    choices: Sequence[Choice],
    sources: Sources,
    energy: Energy,
    for_each: ForEach,
    *,
    insert: bool,
    tuning: Tuning,
) -> tuple[Smoothing, list[Choice]]:
    """The folds that pay, and the choices with the largest magnitudes that the weights then have.

    Args:
        model: the model, not changed.
        choices: all weights that will be compressed. Weights of 4 bits and fewer decide, the others follow.
        sources: the weights as they are.
        energy, for_each: see there.
        insert: whether a Multiply may be inserted behind an activation function, where nothing absorbs.
        tuning: the exponents to try, and for which channels.
    """
    by_name = {choice.weight.name: choice for choice in choices}

    def decide(group: ScalingGroup) -> Fold | Scaling:
        found = _fold(group, by_name, sources, energy, insert, tuning)
        return found if isinstance(found, Fold) else Scaling(_names(group), "", "", None, found)

    groups = scaling_groups(model, [choice.weight for choice in choices])
    decided = for_each(decide, [group for group in groups if _has_few_bits(group, by_name)])
    folds = [entry for entry in decided if isinstance(entry, Fold)]
    return _within_f16(Smoothing(folds, [entry for entry in decided if isinstance(entry, Scaling)]), choices, sources)


def _has_few_bits(group: ScalingGroup, choices: Mapping[str, Choice]) -> bool:
    return any(choices[weight.name].spec.format.bits <= 4 for weight in group.weights)


def _names(group: ScalingGroup) -> tuple[str, ...]:
    return tuple(weight.name for weight in group.weights)


def _fold(
    group: ScalingGroup,
    choices: Mapping[str, Choice],
    sources: Sources,
    energy: Energy,
    insert: bool,
    tuning: Tuning,
) -> Fold | str:
    """The group's fold, or why there is none."""
    if group.absorber is None and not (insert and group.behind_activation):
        return group.reason
    factors = (_of_experts if group.experts > 1 else _of_layers)(group, choices, sources, energy, tuning)
    if group.absorber is None and factors.cost is None and _spread(factors.columns) < _SPREAD_INSERTED:
        return "columns too much alike for a Multiply to pay"
    columns = _absorbable(group, factors.columns)
    limit = _LARGEST_COST_INSERTED if group.absorber is None else _LARGEST_COST
    if np.all(columns == 1) or (factors.cost is not None and factors.cost > limit):
        return "no factors lower the cost" if group.absorber else "no factors lower the cost enough for a Multiply"
    return Fold(group, columns, factors.cost)


def _of_layers(
    group: ScalingGroup,
    choices: Mapping[str, Choice],
    sources: Sources,
    energy: Energy,
    tuning: Tuning,
) -> Factors:
    """The factors of layers with one input, [in]."""
    seen = next((found for found in map(energy, group.weights) if found is not None), None)
    rows = max(1, _SAMPLE_ROWS // len(group.weights))
    samples = [_sample(sources[weight], choices[weight.name], rows) for weight in group.weights]
    return _choose(group, samples, seen, tuning)


def _of_experts(
    group: ScalingGroup,
    choices: Mapping[str, Choice],
    sources: Sources,
    energy: Energy,
    tuning: Tuning,
) -> Factors:
    """The factors of experts side by side, [experts, in]: each expert's by itself, from the first of its rows."""
    weight = group.weights[0]
    source, seen, spec = sources[weight], energy(weight), choices[weight.name].spec
    own = source.layout.rows // group.experts
    found = []
    for slab in source.layout.slabs(min(_SAMPLE_ROWS, own), own):
        if slab.start % own == 0:
            expert = slab.start // own
            sample = Sample(source.read(slab).astype(np.float32), spec, own / (slab.stop - slab.start))
            source.release(slab)
            known = seen if seen is None or seen.ndim == 1 else seen[expert]
            found.append(_choose(group, [sample], known if known is not None and np.any(known) else None, tuning))
    costs = [one.cost for one in found if one.cost is not None]
    return Factors(np.stack([one.columns for one in found]), float(np.mean(costs)) if costs else None)


def _choose(group: ScalingGroup, samples: Sequence[Sample], seen: Array | None, tuning: Tuning) -> Factors:
    if seen is None:
        return lift_factors(samples, group.classes, equal=group.behind_activation)
    return choose_factors(samples, seen, group.classes, tuning.awq_alphas or ALPHAS, share=tuning.awq_share)


def _spread(columns: Float32) -> float:
    return float(np.std(np.log(columns)))


def _sample(source: WeightSource, choice: Choice, count: int) -> Sample:
    """Some rows of a weight, spread evenly over it."""
    values = source.sample(count)
    return Sample(values, choice.spec, source.layout.rows / len(values))


def _absorbable(group: ScalingGroup, columns: Float32) -> Float32:
    """The factors such that what absorbs them is exact in its type, and 1 where its type could not hold it.

    Rows of a producer are quantised anyway, so only its biases count.
    """
    absorber = group.absorber
    if absorber is None:
        inverse = (1 / columns).astype(np.float16).astype(np.float32)
        return np.asarray(1 / inverse, dtype=np.float32)
    if isinstance(absorber, ProducerAbsorber):
        biases, factors = absorber.biases, columns.copy()
    else:
        biases = () if absorber.bias is None else (absorber.bias,)
        factors = _exact_gain(float_values(absorber.gain.constant).reshape(-1), columns, absorber.gain.constant)
    owner = np.asarray(group.classes)
    for bias in biases:
        place = np.asarray(bias.classes)
        values = np.abs(float_values(bias.constant).reshape(-1))[place >= 0]
        shares = np.ones(owner.max() + 1, dtype=np.float32)
        shares[owner] = factors
        too_large = values / shares[place[place >= 0]] > _F16_MAX
        factors[np.isin(owner, place[place >= 0][too_large])] = 1
    return factors


def _exact_gain(gain: Float32, columns: Float32, constant: ov.Node) -> Float32:
    """Factors by which the gain can be divided without a rounding error in its own type."""
    rounded = np.abs(rounded_to(gain / columns, constant.get_output_element_type(0).get_type_name()))
    fits = (rounded >= _F16_NORMAL) & (rounded <= _F16_MAX)
    return np.asarray(np.where(fits, np.abs(gain) / np.where(fits, rounded, 1), 1), dtype=np.float32)


def _within_f16(smoothing: Smoothing, choices: Sequence[Choice], sources: Sources) -> tuple[Smoothing, list[Choice]]:
    """Without the folds after which f16 could not hold a weight's scales."""
    settled, folded = [], sources.folded(smoothing.columns, smoothing.rows)
    for choice in choices:
        scaled = choice
        if smoothing.touches(choice.weight):
            scaled = _scaled(choice, smoothing, folded)
        if scaled.spec.scale_type == "f16" and scaled.beyond_f16 and not choice.beyond_f16:
            reason = f"f16 could not hold the scales of {choice.weight.name}"
            return _within_f16(smoothing.without(choice.weight, reason), choices, sources)
        settled.append(scaled)
    return smoothing, settled


def _scaled(choice: Choice, smoothing: Smoothing, folded: Sources) -> Choice:
    """The choice with the largest magnitude of the scaled weight; a bound of it where that is enough."""
    name = choice.weight.name
    factors = [part for part in (smoothing.columns.get(name), smoothing.rows.get(name)) if part is not None]
    bounds = [choice.absmax * float(np.prod([limit(part) for part in factors])) for limit in (np.min, np.max)]
    ends = [replace(choice, absmax=bound) for bound in bounds]
    if choice.spec.format.tensor_scale or any(end.beyond_f16 for end in ends):
        return replace(choice, absmax=folded[choice.weight].scan().absmax)
    return ends[1]
