"""LoRA correction as it is applied to a model: which layers get adapters, how they are fitted and kept, what is said.

    y = x Wᵀ            becomes            y = x Qᵀ + (x Aᵀ) Bᵀ,        A [rank, in], B [rows, rank], both in 8 bits

A layer has them beside it if it multiplies its input with a weight of 4 bits or fewer that it has to itself. For
everything else the report says why not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.layout import Layout
from ov_weight_compression.ir_utils.lazy_weight import Part
from ov_weight_compression.ir_utils.spool import Spool
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.passes.encoding import StoredWeight, keep
from ov_weight_compression.passes.plan import Algorithm, Plan, stored_parts
from ov_weight_compression.patterns import Consumer, Kind, Weight
from ov_weight_compression.quantization.encode import decode_rows
from ov_weight_compression.quantization.layerwise.lora import ADAPTER_SPEC, ROUNDS, lora_adapters
from ov_weight_compression.quantization.reference import unusable

if TYPE_CHECKING:
    from ov_weight_compression.passes.layer_by_layer import HessianInfo

__all__ = ["Correction", "StoredAdapters", "adapter_parts", "corrections", "fit_adapters", "layer_obstacle", "obstacle"]

_USUAL = 64
"""The exponent of 2 up to which a Gram matrix is used as it is."""


@dataclass(frozen=True)
class StoredAdapters:
    """Both matrices of one layer in a spool."""

    down: StoredWeight
    """A [rank, in]."""
    up: StoredWeight
    """B [rows, rank]."""
    left: float
    """The layer's output error on the data, as a share of that without adapters."""

    def values(self) -> Float32:
        """B A, [rows, in], as the device computes it."""
        down, up = (decode_rows(side.everything(), ADAPTER_SPEC) for side in (self.down, self.up))
        return up @ down


@dataclass(frozen=True)
class Correction:
    """One line of the report: a weight of few bits, and the adapters beside its layer or why there are none."""

    name: str
    """The weight's."""
    layer: str
    rank: int
    """0 where there are none."""
    bytes: int
    left: float | None = None
    """The layer's output error on the data, as a share of that without adapters; None before anything was computed."""
    reason: str = ""


def obstacle(weight: Weight) -> str:
    """Why no adapters can stand beside a weight's layer; empty where they can."""
    layer = weight.consumers[0]
    if weight.body:
        return f"inside '{weight.body}', where its input is not seen"
    if len(weight.consumers) > 1:
        return "several layers read the weight"
    if reason := layer_obstacle(layer):
        return reason
    if sum(weight.shape[axis] > 1 for axis in (*weight.channel_axes, *weight.batch_axes)) > 1:
        return "its output channels lie on several axes"
    if weight.input_axes != weight.reduction_axes:
        return "its input channels are stored in another order"
    return ""


def layer_obstacle(layer: Consumer) -> str:
    """Why no adapters can stand beside a layer, whatever its weight; empty where they can."""
    if layer.kind is Kind.EXPERTS:
        return "experts side by side"
    if layer.activation is None:
        return f"a {layer.node.get_type_name()} reads the weight"
    if any(dims not in ((-1,), (-2,)) for dims in (layer.activation.reduction, layer.activation.output)):
        return "its channels are not one of the last two dimensions"
    return ""


def adapter_parts(weight: Weight, rank: int) -> tuple[dict[str, Part], dict[str, Part]]:
    """What A and B are stored as, by the part's name."""
    rank = min(rank, weight.rows, weight.columns)
    shapes = ((rank, weight.columns), (weight.rows, rank))
    down, up = (stored_parts(Layout.of(shape, (1,)), ADAPTER_SPEC) for shape in shapes)
    return down, up


def fit_adapters(
    weight: Float32, values: Float32, known: HessianInfo, rank: int, spool: Spool, rounds: int | None = None
) -> StoredAdapters | None:
    """Adapters for a weight `[rows, in]` that is stored as `values`; None where they would correct nothing."""
    if known.energy is None:
        return None
    gram = known.gram
    size = float(np.diagonal(gram).max())
    if not 2.0**-_USUAL < size < 2.0**_USUAL:  # its products with weights may leave the range of f32
        gram = np.ldexp(gram, -int(np.log2(size)))
    with np.errstate(over="ignore", invalid="ignore"):
        found = lora_adapters(known.target(weight) - values, gram, rank, rounds=ROUNDS if rounds is None else rounds)
    if found is None or any(unusable(side.scale, ADAPTER_SPEC.scale_type) for side in (found.down, found.up)):
        return None
    return StoredAdapters(keep(found.down, spool), keep(found.up, spool), found.left)


def corrections(plan: Plan) -> tuple[Correction, ...]:
    """The report's lines: what will be there or, where the data have been seen, what is."""
    rank = plan.method.lora_rank
    return tuple(_line(one.weight, rank, plan.adapters) for one in plan.weights if Algorithm.LORA in one.algorithms)


def _line(weight: Weight, rank: int, found: Mapping[str, StoredAdapters | None] | None) -> Correction:
    layer, reason, left = weight.consumers[0].name, obstacle(weight), None
    if not reason and found is not None:
        adapters = found.get(weight.name)
        if adapters is None:
            reason = "nothing to correct" if weight.name in found else "the data never reached it"
        else:
            left = adapters.left
    if reason:
        return Correction(weight.name, layer, 0, 0, None, reason)
    parts = adapter_parts(weight, rank)
    size = sum(part.nbytes for side in parts for part in side.values())
    return Correction(weight.name, layer, min(rank, weight.rows, weight.columns), size, left)
