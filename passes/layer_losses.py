"""What each weight would cost in each of its formats, measured: the losses that a budget is shared out by.

    loss of weight l in format f  =  Σ over its uses   loss when probed · e(f) / e(probe)

A probe (see `calibration.probes`) rounds a weight in one usual format and sees how far the outputs move. From format to
format the loss goes with the squared error of the layer's output, e: the errors of the weight's columns, each weighed
with what it costs there, E[x²]. Where GPTQ makes the codes, the probe's weights are GPTQ's, and a column weighs what an
error in it costs once later columns have made up for it: GPTQ leaves a twentieth to a quarter of the error, differently
for each weight but nearly alike in all formats.

Where every layer then aims at what the exact model's layer gives, from the inputs that the compressed ones before it
leave, much of what an error does may be made up for behind it. Where that is most of it (SmolLM2, whose few massive
activations errors are seen at) what stays goes with the number of weights, whatever layer they are in: the weights
share the probes' sum by their elements, all but embeddings and last layers, behind which nothing is coded or comes, and
from format to format it goes with a power of the error. Where it is little (three small models without such
activations) probes tell each weight's loss nearly exactly. Nothing but trying tells which of the two a model is, so
there are both losses then.

Where there are no data, and none can be made up, a prior stands in: every weight counts with its share of the elements
and its relative error, weighed with what the graph says of its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.worker_pool import in_threads
from ov_weight_compression.passes.channel_importance import GraphEnergy, graph_energies
from ov_weight_compression.passes.encoding import encoding_of
from ov_weight_compression.passes.measurements import DataPart, Measurements
from ov_weight_compression.passes.plan import Plan
from ov_weight_compression.passes.probing import Quantiser, probe_spec, quantiser_of, rounded
from ov_weight_compression.patterns import Weight
from ov_weight_compression.quantization.formats import Spec

if TYPE_CHECKING:
    from ov_weight_compression.calibration import Influence
    from ov_weight_compression.calibration.divergence import MeasuredDivergence

_ROWS = 256
"""Of a weight that its formats are compared on."""
_TINY = 1e-30
_EVENED_POWER = 0.42
"""Of the error, which tells the loss where later layers make up for it. On SmolLM2-135M int4_asym in groups of 32 has
.48 of the squared error of int4_sym in groups of 64, and nf4 .62; of the divergence they leave .73 and .82."""


@dataclass(frozen=True)
class LayerLosses:
    """Losses by the weight's name, one for each of its candidates; they add up over the weights."""

    losses: Mapping[str, tuple[float, ...]]
    """As the probes tell them."""
    unit: str
    """ "nats", "relative L2", or "none" for a prior, which says nothing of outputs."""
    evened: Mapping[str, tuple[float, ...]] | None = None
    """As they are where later layers make up for most of it; None where none does."""

    def divergence(self, total: float) -> float:
        """What a sum of losses means: mean KL as it is, of squared relative L2 the root."""
        return sqrt(max(total, 0.0)) if self.unit == "relative L2" else total


def layer_losses(candidates: Mapping[str, Sequence[Spec]], data: Measurements) -> LayerLosses:
    """What the named weights would lose in each of their candidate formats, by the algorithms of `data.method`.

    The data run once; with `statistics_path` what they showed is kept, and read the next time.
    """
    from ov_weight_compression.calibration import Influence

    graph, quantiser = graph_energies(data.weights, data.sources), quantiser_of(data.method)
    shown, unit = data.influences()
    weights = [weight for weight in data.weights if weight.name in candidates]
    usual = _usual(weights, shown)
    every = sum(weight.elements for weight in weights)
    evened = _evened(weights, shown) if data.method.two_streams else {}

    def losses(weight: Weight) -> tuple[tuple[float, ...], tuple[float, ...]]:
        specs = candidates[weight.name]
        uses = shown.get(weight.name)
        probed = probe_spec(weight)
        rows, shares = _sample(weight, data)
        total = np.zeros(len(specs))
        if not shown:
            errors = _errors(rows, shares, specs, graph[weight.name].value(), graph[weight.name], quantiser)
            share = weight.elements / every / max(float(np.square(rows).sum()), _TINY)
            return (prior := tuple(float(one) for one in errors * share)), prior
        if uses is None:
            uses = (Influence(usual.get(weight.shape, usual[None] * weight.elements), None),)
        for use in uses:
            errors = _errors(rows, shares, [probed, *specs], use.energy, graph[weight.name], quantiser)
            total += use.loss * errors[1:] / errors[0] if errors[0] > 0 else 0
        even = total
        if weight in evened:
            even = evened[weight] * (total / max(sum(use.loss for use in uses), _TINY)) ** _EVENED_POWER
        return tuple(total.tolist()), tuple(even.tolist())

    found = {
        weight.name: one for weight, one in zip(weights, in_threads(losses, weights, data.options.threads), strict=True)
    }
    even = {name: pair[1] for name, pair in found.items()} if evened else None
    return LayerLosses({name: pair[0] for name, pair in found.items()}, unit, even)


def measured_divergence(plan: Plan, data: Measurements) -> MeasuredDivergence:
    """How far the outputs move with the plan's weights, on windows that no probe ran on: in `LayerLosses.unit`.

    Args:
        plan: with everything that its algorithms know, as it would be written.
        data: of the run.

    Raises:
        OptionError: there are no data, and none can be made up.
    """
    from ov_weight_compression.calibration.divergence import divergence_of

    planned = {one.weight.name: one for one in plan.weights}

    def values(name: str) -> Array | None:
        one = planned.get(name)
        if one is None:
            return None
        matrix = encoding_of(one, plan).values()
        adapters = None if plan.adapters is None else plan.adapters.get(name)
        if adapters is not None:
            matrix = matrix + adapters.values()
        return np.asarray(plan.sources.unfolded(one.weight, matrix), np.float32)

    return divergence_of(
        data.model,
        data.weights,
        data.part(DataPart.CHECK),
        values,
        calibration_memory=data.memory,
        quiet=data.options.quiet,
        sources=data.sources,
    )


def _sample(weight: Weight, data: Measurements) -> tuple[Float32, Array]:
    """Some rows of a weight `[n, columns]`, and how far down the weight each lies, 0 to 1."""
    source = data.sources[weight]
    slabs = list(source.layout.spread(_ROWS))
    rows = np.concatenate([np.asarray(source.read(slab), np.float32) for slab in slabs])
    return rows, np.concatenate([np.arange(slab.start, slab.stop) for slab in slabs]) / source.layout.rows


def _errors(
    rows: Float32,
    shares: Array,
    specs: Sequence[Spec],
    energy: Float32 | None,
    graph: GraphEnergy,
    quantiser: Quantiser,
) -> Float32:
    """`Σ energy (W − Ŵ)²` of some rows in each format; `shares` as `_sample` gives them."""
    found = []
    for spec in specs:
        if energy is None or energy.ndim == 1:
            squares = np.square(rows - rounded(rows, spec, energy, graph, quantiser)).sum(axis=0, dtype=np.float64)
            found.append(float(squares.sum() if energy is None else squares @ energy))
            continue
        total, expert = 0.0, (shares * len(energy)).astype(int)
        for number in np.unique(expert):
            own = rows[expert == number]
            squares = np.square(own - rounded(own, spec, energy[number], graph, quantiser)).sum(
                axis=0, dtype=np.float64
            )
            total += float(squares @ energy[number])
        found.append(total)
    return np.asarray(found)


def _evened(weights: Sequence[Weight], shown: Mapping[str, tuple[Influence, ...]]) -> dict[Weight, float]:
    """What each weight loses when it is probed, if those that have layers behind them share that by their elements."""
    inner = [weight for weight in weights if weight.name in shown and not weight.backup_reason]
    total = sum(use.loss for weight in inner for use in shown[weight.name])
    every = sum(weight.elements for weight in inner)
    return {weight: total * weight.elements / every for weight in inner}


def _usual(
    weights: Sequence[Weight], shown: Mapping[str, tuple[Influence, ...]]
) -> dict[tuple[int, ...] | None, float]:
    """What a weight that nothing was seen of loses when it is probed: as those of its shape, by the shape; for other
    shapes an element's, by None."""
    known = {weight: sum(use.loss for use in shown[weight.name]) for weight in weights if weight.name in shown}
    found: dict[tuple[int, ...] | None, float] = {
        shape: float(np.median([loss for weight, loss in known.items() if weight.shape == shape]))
        for shape in {weight.shape for weight in known}
    }
    found[None] = float(np.median([loss / weight.elements for weight, loss in known.items()])) if known else 0.0
    return found
