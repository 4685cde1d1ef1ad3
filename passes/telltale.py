"""The weight by which `ov.save_model` recognises a compressed model.

It stores the f32 constants of a float model as f16 and leaves those of a compressed one alone. A model is compressed to
it (OpenVINO 2026.4) where the main graph has, of plain constants,

    codes (i4 u4 i8 u8 nf4 f8e4m3 f8e5m2) ─ Convert ─ [Subtract ◂─ [Convert ◂─] zero point] ─ Multiply ◂─ scale

with nothing between the scale and the Multiply. So one weight that is stored like that has its constants plain in the
clone that is written, while the others stay postponed: the smallest one. Where there is none, because the plugin folds
all chains, which are in f32 then, the smallest one that could be stores its scales as f32. Where no weight could be,
the first adapters of LoRA correction are what tells. What remains are models of nothing but codebooks, weights in
bodies and formats of which OpenVINO does not know that they are compressed: there `ov.save_model` makes f16 of the f32
constants, lazily computed or not, and this package's `save_model` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ov_weight_compression.ir_utils.device_facts import EXPANDED_STORAGE
from ov_weight_compression.passes.plan import Plan, PlannedWeight

__all__ = ["with_telltale"]

_TELLING_STORAGE = frozenset({"i4", "u4", "i8", "u8", "nf4", "f8e4m3", "f8e5m2"})


def with_telltale(plan: Plan) -> Plan:
    """The plan with one weight that tells, where there can be one."""
    place = _smallest(plan.weights)
    weights = list(plan.weights)
    if place is None:
        place = _smallest([_with_f32_scales(planned) for planned in weights])
        if place is None:
            return plan
        first = weights[place]
        # Those that may have the same values as well, so that equal weights are still stored once.
        weights = [_with_f32_scales(planned) if _may_equal(planned, first) else planned for planned in weights]
    weights[place] = replace(weights[place], tells=True)
    return replace(plan, weights=tuple(weights))


def _smallest(weights: Sequence[PlannedWeight]) -> int | None:
    """The place of the smallest weight that would tell."""
    places = [place for place, planned in enumerate(weights) if _would_tell(planned)]
    return min(places, key=lambda place: weights[place].weight.elements, default=None)


def _with_f32_scales(planned: PlannedWeight) -> PlannedWeight:
    return replace(planned, scales_in_f32=planned.spec.scale_type == "f16")


def _may_equal(one: PlannedWeight, other: PlannedWeight) -> bool:
    return (one.weight.shape, one.absmax, one.spec) == (other.weight.shape, other.absmax, other.spec)


def _would_tell(planned: PlannedWeight) -> bool:
    format = planned.spec.format
    if planned.weight.body or format.codebook_type is not None:
        return False
    if format.tensor_scale:
        return planned.spec.scale_type == "f8e4m3" and not planned.kept_from_codes  # the scales are codes of eight bits
    if format.storage not in _TELLING_STORAGE:
        return False
    in_f32 = planned.expanded or planned.kept_from_codes or planned.beyond_f16 or format.storage in EXPANDED_STORAGE
    return planned.stored_scale_type == ("f32" if in_f32 else "f16")
