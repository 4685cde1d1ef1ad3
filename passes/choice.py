"""What a decision about a weight is made of: the wish, the choice that it becomes, and all of them together."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

from ov_weight_compression.ir_utils.device_facts import CPU_EXECUTED
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.passes.modes import Mode
from ov_weight_compression.patterns import Kind, Skip, Weight
from ov_weight_compression.quantization.spec import Spec

__all__ = ["Choice", "Plan", "Wish", "skipped"]

_F16_MAX = 65504.0
_F16_NORMAL = 2.0**-14
_F16_COARSE = 2.0**-21
"""Below it an f16 scale is a subnormal with a relative error of up to 2⁻⁴, half a step of 4 bits; with every further
bit of the codes it has to be twice as exact."""


@dataclass(frozen=True)
class Choice:
    """A weight and how it will be stored."""

    weight: Weight
    spec: Spec
    absmax: float
    reason: str
    """Why it is not simply the mode that was asked for; empty where it is."""
    in_ratio: bool = False
    """Whether `ratio` decided over this weight."""
    kept_from_codes: bool = False
    """CPUs would misread its codes: it is stored in a chain that they expand."""
    regrouped: bool = False
    """CPUs would misread it in groups of the size that the caller named: it has another."""
    tells: bool = False
    """By this weight OpenVINO recognises that the model is compressed (see `telltale`)."""
    scales_in_f32: bool = False
    """Its f16 scales are stored as f32: the same numbers, and the same codes."""
    exact: bool = False
    """Its codes were not made here, for scales as the chain rounds them to f16, so the chain must not round them."""

    @property
    def stored_scale_type(self) -> str:
        """OpenVINO's name of the type that its scales are stored in."""
        return "f32" if self.scales_in_f32 else self.spec.scale_type

    @property
    def expanded(self) -> bool:
        """Whether the CPU plugin folds this weight's chain because of a layer that reads it."""
        kinds = {consumer.kind for consumer in self.weight.consumers}
        if Kind.GATHER not in kinds:
            return Kind.CONVOLUTION in kinds
        in_groups_of_its_own_shape = self.spec.group_size != -1 and len(self.weight.shape) > 2
        return self.spec.format.storage not in CPU_EXECUTED["Gather"] or in_groups_of_its_own_shape

    @property
    def has_unit_factor(self) -> bool:
        """Whether what keeps CPUs from the codes is a constant one; with a tensor's scale it is that."""
        return self.kept_from_codes and not self.spec.format.tensor_scale

    @property
    def few_bits(self) -> bool:
        """Whether it is stored in 4 bits or fewer (or as a table's indices): what is worth calibrating for."""
        return self.spec.format.default_search > 0

    @property
    def beyond_f16(self) -> bool:
        """Whether f16 cannot hold values of this size, a level or a power of two above included, or their scales."""
        coarse = min(_F16_NORMAL, _F16_COARSE * 2.0 ** max(0, self.spec.format.bits - 4))
        if self.exact and self.spec.format.tensor_scale:
            return True
        too_small = self.absmax / self.spec.format.top < coarse
        return self.absmax > 0 and (too_small or 2 * self.absmax > _F16_MAX)


@dataclass(frozen=True)
class Plan:
    """What will be done: nothing is decided after this."""

    choices: tuple[Choice, ...]
    skips: tuple[Skip, ...]
    spoiled: tuple[Skip, ...] = ()
    """Those of the skips whose values are not all finite: most likely a broken file, so the caller is warned."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the caller is warned of, a line each."""
        regrouped = [choice for choice in self.choices if choice.regrouped]
        texts = []
        if self.spoiled:
            first = self.spoiled[0]
            texts.append(f"{shown(first.name)} was left as it is: it holds {first.reason}{_others(self.spoiled)}")
        if regrouped:
            first_choice = regrouped[0]
            name, reason = shown(first_choice.weight.name), first_choice.reason
            texts.append(f"{name} does not have the group_size that was asked for: {reason}{_others(regrouped)}")
        return tuple(texts)


@dataclass(frozen=True)
class Wish:
    """A mode and group before they are fitted to the weight; `mode` None is the reason for a skip."""

    mode: Mode | None
    group: int
    reason: str = ""
    in_ratio: bool = False
    by_rule: bool = False
    """A rule names it for this very weight, so the device does not change it."""


def _others(found: Sized) -> str:
    more = len(found) - 1
    return f", and {more} more {'weight' if more == 1 else 'weights'} likewise" if more else ""


def skipped(weight: Weight, reason: str) -> Skip:
    """A weight that is left alone after all."""
    consumer = weight.consumers[0].name
    return Skip(weight.name, consumer, weight.shape, weight.element_type, reason, weight.bytes)
