"""Fit a wish to the weight: what its shape, the device and its values allow of the format that it should get."""

from __future__ import annotations

from dataclasses import replace

from ov_weight_compression.ir_utils.device_facts import CHECKED, working_groups
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.passes.choice import Choice, Wish, skipped
from ov_weight_compression.passes.device_rules import executed_variant, misreading, refusal
from ov_weight_compression.passes.modes import BackupMode, GroupSizeFallback, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.patterns import Kind, Skip, Weight
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Format
from ov_weight_compression.quantization.spec import Spec

__all__ = ["fit"]

_LARGEST = 2.0**100  # where scales in f32 and f8e8m0 end, so that no product overflows
_F16_MAX = 65504.0


def fit(weight: Weight, wish: Wish, values: ValueRange, options: Options) -> Choice | Skip:
    """The choice that comes of a wish, or why there is none.

    Raises:
        OptionError: the group does not divide the weight's channels and `group_size_fallback` is `error`; CPUs misread
            codes in groups of the size that was asked for.
    """
    fitted = _fit(weight, wish, options)
    ranged = _with_range(_taken(fitted, options), values) if isinstance(fitted, Choice) else fitted
    return _with_search(ranged, options) if isinstance(ranged, Choice) else ranged


def _fit(weight: Weight, wish: Wish, options: Options) -> Choice | Skip:
    """Fit a wish to the device and the weight's shape: what the format takes, and what the group size divides."""
    wish = _for_device(weight, wish, options)
    if wish.mode is None:
        return skipped(weight, wish.reason)
    row = options.row(wish.mode)
    if row.storage == weight.element_type:
        return skipped(weight, f"stored as {row.storage} already")
    if weight.kind is Kind.CONVOLUTION and not row.everywhere:
        return _fall_back(weight, wish, options, f"{row.name} is not for convolutions")
    group = wish.group
    if group == -1 or (group == weight.columns and not row.fixed_group):
        return _per_channel(weight, row, wish, options)
    if not _groupable(weight):
        if options.group_size_fallback is GroupSizeFallback.ERROR:
            raise OptionError(_group_error(weight, group, "groups cannot run along its reduction axes"))
        return _fall_back(weight, wish, options, "groups cannot run along its reduction axes")
    if weight.columns % group == 0:
        problem = misreading(options.device, weight, row, group)
        return (
            _choice(weight, row, group, wish) if problem is None else _other_group(weight, wish, options, row, problem)
        )
    return _adjust(weight, wish, options, row, f"{weight.columns} channels cannot be cut into groups of {group}")


def _per_channel(weight: Weight, row: Format, wish: Wish, options: Options) -> Choice:
    """One scale a channel; where CPUs misread such rows, in a chain that they do not take for codes."""
    problem = misreading(options.device, weight, row, PER_CHANNEL)
    if problem is None:
        return _choice(weight, row, PER_CHANNEL, wish)
    reason = _join(wish.reason, f"{problem}, so it is stored in a way that they expand")
    return replace(_choice(weight, row, PER_CHANNEL, replace(wish, reason=reason)), kept_from_codes=True)


def _taken(choice: Choice, options: Options) -> Choice:
    """The choice in a chain that CPUs expand, where they do not take it for codes and refuse to compile the model."""
    problem = refusal(options.device, choice.weight, choice.spec.format, choice.spec.group_size)
    if problem is None:
        return choice
    reason = _join(choice.reason, f"{problem}, so it is stored in a way that they expand")
    return replace(choice, reason=reason, kept_from_codes=True)


def _for_device(weight: Weight, wish: Wish, options: Options) -> Wish:
    """The wish, or what the device executes in its place."""
    if options.device is None or wish.by_rule or wish.mode is None:
        return wish
    variant = executed_variant(options.device, weight, options.row(wish.mode), wish.group)
    if variant is None:
        return wish
    return replace(wish, mode=variant.mode, group=variant.group, reason=_join(wish.reason, variant.reason))


def _other_group(weight: Weight, wish: Wish, options: Options, row: Format, problem: str) -> Choice | Skip:
    """What a weight gets whose group size CPUs misread: named for this very weight it is refused, with those that
    work."""
    if wish.by_rule or options.group_size_fallback is GroupSizeFallback.ERROR:
        raise OptionError(_misread_error(weight, row, wish))
    fitted = _adjust(weight, wish, options, row, problem)
    named = options.group_size is not None
    return replace(fitted, regrouped=named) if isinstance(fitted, Choice) else fitted


def _adjust(weight: Weight, wish: Wish, options: Options, row: Format, problem: str) -> Choice | Skip:
    fallback = options.group_size_fallback
    if fallback is GroupSizeFallback.ERROR:
        raise OptionError(_group_error(weight, wish.group, f"it has {weight.columns} channels"))
    if fallback is GroupSizeFallback.IGNORE:
        return skipped(weight, problem)
    size = 1 << (wish.group.bit_length() - 1)
    while size >= options.min_adjusted_group_size and not row.fixed_group:
        adjusted = replace(wish, reason=_join(wish.reason, problem))
        if weight.columns == size:
            return _per_channel(weight, row, adjusted, options)
        if weight.columns % size == 0:
            return _choice(weight, row, size, adjusted)
        size //= 2
    return _fall_back(weight, wish, options, problem)


def _fall_back(weight: Weight, wish: Wish, options: Options, problem: str) -> Choice | Skip:
    """The backup mode, per channel 8 bits if that has groups which do not fit either, or a skip."""
    reason = _join(wish.reason, problem)
    if options.group_size_fallback is GroupSizeFallback.IGNORE:
        return skipped(weight, reason)
    if options.backup_mode is BackupMode.NONE:
        return skipped(weight, f"{reason}, and backup_mode is none")
    row = FORMATS[options.backup_mode.value]
    fits = row.default_group == -1 or (_groupable(weight) and weight.columns % row.default_group == 0)
    if not fits or (weight.kind is Kind.CONVOLUTION and not row.everywhere):
        row = FORMATS[Mode.INT8_ASYM.value]
    variant = executed_variant(options.device, weight, row, row.default_group) if options.device else None
    if variant is not None:
        row, reason = FORMATS[variant.mode.value], _join(reason, variant.reason)
    wish = replace(wish, reason=reason)
    if row.default_group == PER_CHANNEL:
        return _per_channel(weight, row, wish, options)
    return _choice(weight, row, row.default_group, wish)


def _groupable(weight: Weight) -> bool:
    return weight.groupable and weight.kind is not Kind.CONVOLUTION


def _choice(weight: Weight, row: Format, group: int, wish: Wish) -> Choice:
    return Choice(weight, Spec(row, group, row.scale), 0.0, wish.reason, wish.in_ratio)


def _with_range(choice: Choice, values: ValueRange) -> Choice | Skip:
    """What follows from the values' magnitude: f32 scales where f16 cannot hold one, a skip where nothing holds it."""
    ranged = replace(choice, absmax=values.absmax)
    if values.absmax > _LARGEST * min(1.0, choice.spec.format.top):
        return skipped(choice.weight, f"values up to {values.absmax:.1e}, beyond what scales reach")
    if 2 * values.absmax > _F16_MAX and _is_read_in_f16(choice.weight):
        return skipped(choice.weight, f"values up to {values.absmax:g}, which f16 does not hold once they are rounded")
    return _with_wide_scales(ranged) if choice.spec.scale_type == "f16" and ranged.beyond_f16 else ranged


def _is_read_in_f16(weight: Weight) -> bool:
    """Whether something computes with its values in f16; a Convert takes them as the chain has them."""
    readers = [target.get_node() for target in weight.constant.output(0).get_target_inputs()]
    return weight.element_type == "f16" and any(reader.get_type_name() != "Convert" for reader in readers)


def _with_wide_scales(choice: Choice) -> Choice:
    """f32 scales; with 8 bits per channel where a Gather reads groups, whose scales the CPU plugin wants in f16."""
    spec, reason = replace(choice.spec, scale_type="f32"), choice.reason
    if spec.group_size != -1 and any(consumer.kind is Kind.GATHER for consumer in choice.weight.consumers):
        spec = Spec(FORMATS[Mode.INT8_ASYM.value], -1, "f32")
        reason = _join(reason, "f16 cannot hold its scales, and an embedding in groups cannot have others")
    return replace(choice, spec=spec, reason=reason)


def _with_search(choice: Choice, options: Options) -> Choice:
    """Scale search where it pays: formats of 4 bits and fewer."""
    row = choice.spec.format
    if options.scale_search == "off" or not row.default_search:
        return choice
    candidates = row.default_search if isinstance(options.scale_search, str) else options.scale_search
    return replace(choice, spec=replace(choice.spec, search=candidates))


def _group_error(weight: Weight, group: int, why: str) -> str:
    return (
        f"group_size: {group} does not fit {weight.name} (used by {weight.consumers[0].name}): {why}; "
        "choose a divisor, group_size_fallback='adjust' or 'ignore', or give this weight a rule"
    )


def _misread_error(weight: Weight, row: Format, wish: Wish) -> str:
    """A group size that was asked for by name is refused, with those that work."""
    said = f"{wish.reason}: group_size" if wish.by_rule else "group_size"
    sizes = ", ".join(map(str, working_groups(weight.columns) or working_groups()))
    return (
        f"{said}: {wish.group} cannot be used for {weight.name} (used by {weight.consumers[0].name}): the CPU plugin "
        f"of OpenVINO {CHECKED[-1]} computes something else from {row.storage} in groups of {wish.group}; sizes that "
        f"work for its {weight.columns} channels: {sizes}; device='GPU' or 'NPU' says that no CPU will run it"
    )


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second
