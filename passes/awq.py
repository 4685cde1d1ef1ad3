"""AWQ as it is applied to a model: which factors each group of layers gets, and who takes them.

    groups of layers with one input (patterns.absorb)
      ─▸ E[x²] from data, or what the graph tells of it
      ─▸ factors t, chosen on a sample of rows (quantization.calibrated.awq)
      ─▸ rounded so that what absorbs them is exact, limited to what f16 holds
      ─▸ Fold: columns · t here; gain / t, rows / t or an inserted Multiply there

A fold is kept only if the measured cost falls. Weights are scaled while they are read (`ScaledReader`); gains, biases
and inserted Multiplies are small and are edited when the model is rewritten (`passes.folding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.constants import ConstantReader, FileMappings, float_values
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.scaled_reader import ScaledReader
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.folding import fold_into_graph, rounded_to
from ov_weight_compression.patterns import Weight
from ov_weight_compression.patterns.absorb import ScalingGroup, scaling_groups
from ov_weight_compression.patterns.absorb_producer import ProducerAbsorber
from ov_weight_compression.quantization.calibrated.awq import Sample, choose_factors
from ov_weight_compression.quantization.encode import Weighting

__all__ = ["Fold", "Smoothing", "choose_folds"]

_SAMPLE_ROWS = 384
_F16_MAX = 65504.0
_F16_NORMAL = 2.0**-14
_LEAST_GAIN = 0.995
"""Of the cost: a fold that saves less is not worth touching the graph for."""
_LEAST_GAIN_INSERTED = 0.9
"""The same where the factors cost a Multiply at run time."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One group's factors."""

    group: ScalingGroup
    columns: Float32
    """[in], t: the layers' columns are multiplied by it, what makes their input is divided by it."""
    cost: float
    """Cost of rounding with the factors, as a share of the cost without."""

    @property
    def classes(self) -> Float32:
        """t of each class."""
        factors = np.ones(max(self.group.classes) + 1, dtype=np.float32)
        factors[list(self.group.classes)] = self.columns
        return factors


class Smoothing:
    """All folds of a model, by the weights that they scale."""

    def __init__(self, folds: Sequence[Fold] = ()) -> None:
        self.folds = tuple(folds)
        self.columns: dict[str, Float32] = {}
        """t of every weight whose columns are multiplied by it, `[in]`."""
        self.rows: dict[str, Float32] = {}
        """1 / t of every weight whose rows absorb factors, `[rows]`."""
        for fold in folds:
            self.columns.update({weight.name: fold.columns for weight in fold.group.weights})
            if isinstance(fold.group.absorber, ProducerAbsorber):
                weight = fold.group.absorber.weight
                rows = self.rows.setdefault(weight.name, np.ones(weight.rows, dtype=np.float32))
                rows[list(fold.group.absorber.rows)] /= fold.classes

    def touches(self, weight: Weight) -> bool:
        """Whether a weight's values change."""
        return weight.name in self.columns or weight.name in self.rows

    def reader(self, weight: Weight, mappings: FileMappings | None = None) -> ConstantReader:
        """What reads a weight's values as they are to be quantised."""
        layout = Layout.of(weight.shape, weight.reduction_axes)
        if not self.touches(weight):
            return ConstantReader(weight.constant, layout, mappings)
        columns, rows = self.columns.get(weight.name), self.rows.get(weight.name)
        return ScaledReader(weight.constant, layout, mappings, columns=columns, rows=rows)

    def apply(self) -> None:
        """Edit the graph: gains, biases, and Multiplies where nothing absorbs. Weights are somebody else's business."""
        for fold in self.folds:
            fold_into_graph(fold.group, fold.columns, fold.classes)

    def without(self, weight: Weight) -> Smoothing:
        """The folds that leave a weight alone."""

        def free(fold: Fold) -> bool:
            absorber = fold.group.absorber
            producer = absorber.weight.name if isinstance(absorber, ProducerAbsorber) else None
            return weight.name not in {producer, *(one.name for one in fold.group.weights)}

        return Smoothing([fold for fold in self.folds if free(fold)])


Energy = Callable[[Weight], "tuple[Array | None, Weighting]"]
"""Of a weight: E[x²] of its input channels, f32 [in], or None, and where that comes from."""


def choose_folds(
    model: ov.Model,
    choices: Sequence[Choice],
    reader: Callable[[Weight], ConstantReader],
    energy: Energy,
    for_each: Callable[[Callable[[ScalingGroup], Fold | None], Sequence[ScalingGroup]], list[Fold | None]],
) -> tuple[Smoothing, list[Choice]]:
    """The folds that pay, and the choices with the largest magnitudes that the weights then have.

    Args:
        model: the model, not changed.
        choices: all weights that will be compressed. Weights of 4 bits and fewer decide, the others follow.
        reader: reads a weight as it is.
        energy: see there.
        for_each: applies a function to many groups, in threads or not.
    """
    by_name = {choice.weight.name: choice for choice in choices}
    found = scaling_groups(model, [choice.weight for choice in choices])
    groups = [group for group in found if _wanted(group, by_name)]
    folds = for_each(lambda group: _fold(group, by_name, reader, energy), groups)
    smoothing = Smoothing([fold for fold in folds if fold is not None])
    return _within_f16(smoothing, choices)


def _wanted(group: ScalingGroup, choices: Mapping[str, Choice]) -> bool:
    """Whether a group has a weight of few bits, and a place for its factors that costs nothing or what NNCF's does."""
    few = any(choices[weight.name].spec.format.bits <= 4 for weight in group.weights)
    return few and (group.absorber is not None or group.behind_activation)


def _fold(
    group: ScalingGroup, choices: Mapping[str, Choice], reader: Callable[[Weight], ConstantReader], energy: Energy
) -> Fold | None:
    found = [energy(weight) for weight in group.weights]
    known, weighting = next((pair for pair in found if pair[0] is not None), (None, "graph"))
    rows = max(1, _SAMPLE_ROWS // len(group.weights))
    samples = [_sample(reader(weight), choices[weight.name], rows) for weight in group.weights]
    seen = np.ones(group.columns, dtype=np.float32) if known is None else known
    factors = choose_factors(samples, seen, group.classes, weighting=weighting)
    columns = _absorbable(group, factors.columns)
    limit = _LEAST_GAIN if group.absorber is not None else _LEAST_GAIN_INSERTED
    return None if factors.cost > limit or np.all(columns == 1) else Fold(group, columns, factors.cost)


def _sample(reader: ConstantReader, choice: Choice, count: int) -> Sample:
    """Some rows of a weight, spread evenly over it."""
    rows = reader.layout.rows
    step = max(1, rows // count)
    slabs = [Slab(row, row + 1, (slice(row, row + 1),)) for row in range(step // 2, rows, step)]
    values = np.concatenate([reader.read(slab).astype(np.float32) for slab in slabs])
    return Sample(values, choice.spec, rows / len(values))


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


def _within_f16(smoothing: Smoothing, choices: Sequence[Choice]) -> tuple[Smoothing, list[Choice]]:
    """Without the folds after which f16 could not hold a weight's scales."""
    settled = []
    for choice in choices:
        scaled = choice
        if smoothing.touches(choice.weight):
            scaled = _scaled(choice, smoothing)
        if scaled.spec.scale_type == "f16" and scaled.beyond_f16 and not choice.beyond_f16:
            return _within_f16(smoothing.without(choice.weight), choices)
        settled.append(scaled)
    return smoothing, settled


def _scaled(choice: Choice, smoothing: Smoothing) -> Choice:
    """The choice with the largest magnitude of the scaled weight; a bound of it where that is enough."""
    name = choice.weight.name
    factors = [part for part in (smoothing.columns.get(name), smoothing.rows.get(name)) if part is not None]
    bounds = [choice.absmax * float(np.prod([limit(part) for part in factors])) for limit in (np.min, np.max)]
    ends = [replace(choice, absmax=bound) for bound in bounds]
    if choice.spec.format.tensor_scale or any(end.beyond_f16 for end in ends):
        return replace(choice, absmax=smoothing.reader(choice.weight).scan().absmax)
    return ends[1]
