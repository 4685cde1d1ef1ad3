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
from ov_weight_compression.passes.choice import Choice, Plan

__all__ = ["with_telltale"]

_TELLING_STORAGE = frozenset({"i4", "u4", "i8", "u8", "nf4", "f8e4m3", "f8e5m2"})


def with_telltale(plan: Plan) -> Plan:
    """The plan with one choice that tells, where there can be one."""
    place = _smallest(plan.choices)
    choices = list(plan.choices)
    if place is None:
        place = _smallest([_with_f32_scales(choice) for choice in choices])
        if place is None:
            return plan
        first = choices[place]
        # Those that may have the same values as well, so that equal weights are still stored once.
        choices = [_with_f32_scales(choice) if _may_equal(choice, first) else choice for choice in choices]
    choices[place] = replace(choices[place], tells=True)
    return replace(plan, choices=tuple(choices))


def _smallest(choices: Sequence[Choice]) -> int | None:
    """The place of the smallest choice that would tell."""
    places = [place for place, choice in enumerate(choices) if _would_tell(choice)]
    return min(places, key=lambda place: choices[place].weight.elements, default=None)


def _with_f32_scales(choice: Choice) -> Choice:
    return replace(choice, scales_in_f32=choice.spec.scale_type == "f16")


def _may_equal(one: Choice, other: Choice) -> bool:
    return (one.weight.shape, one.absmax, one.spec) == (other.weight.shape, other.absmax, other.spec)


def _would_tell(choice: Choice) -> bool:
    row = choice.spec.format
    if choice.weight.body or row.codebook_type is not None:
        return False
    if row.tensor_scale:
        return choice.spec.scale_type == "f8e4m3" and not choice.kept_from_codes  # the scales are codes of eight bits
    if row.storage not in _TELLING_STORAGE:
        return False
    in_f32 = choice.expanded or choice.kept_from_codes or choice.beyond_f16 or row.storage in EXPANDED_STORAGE
    return choice.stored_scale_type == ("f32" if in_f32 else "f16")
