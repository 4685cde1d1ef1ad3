"""Fit a request to the weight: what its shape, the device and its values allow of the format that it should get."""

from __future__ import annotations

from dataclasses import replace

from ov_weight_compression.ir_utils.device_facts import CHECKED, working_groups
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import F16_MAX
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.passes.device_rules import executed_variant, misreading, refusal
from ov_weight_compression.passes.modes import BackupMode, Device, GroupSizeFallback, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import DecidedBy, FormatRequest, PlannedWeight, joined_reasons, skipped
from ov_weight_compression.patterns import Kind, Skip, Weight
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Format
from ov_weight_compression.quantization.spec import Spec

__all__ = ["fit"]

_LARGEST = 2.0**100  # where scales in f32 and f8e8m0 end, so that no product overflows


def fit(weight: Weight, request: FormatRequest, values: ValueRange, options: Options) -> PlannedWeight | Skip:
    """The planned weight that comes of a request, or why there is none.

    Raises:
        OptionError: the group does not divide the weight's channels and `group_size_fallback` is `error`; CPUs misread
            codes in groups of the size that was asked for.
    """
    fitted = _fit(weight, request, options)
    if isinstance(fitted, Skip):
        return fitted
    problem = refusal(options.device, weight, fitted.spec.format, fitted.spec.group_size)
    if problem is not None:  # CPUs would refuse to compile the model
        fitted = _expanded(fitted, problem)
    ranged = _with_range(fitted, values)
    if isinstance(ranged, Skip) or options.scale_search == "off" or not ranged.is_low_bit:
        return ranged
    given = options.scale_search
    candidates = ranged.spec.format.default_search if isinstance(given, str) else given
    return replace(ranged, spec=replace(ranged.spec, search=candidates))


def _fit(weight: Weight, request: FormatRequest, options: Options) -> PlannedWeight | Skip:
    """Fit a request to the device and the weight's shape: what the format takes, and what the group size divides."""
    request = _for_device(weight, request, options)
    if request.mode is None:
        return skipped(weight, request.reason)
    format = options.row(request.mode)
    if format.storage == weight.element_type:
        return skipped(weight, f"stored as {format.storage} already")
    if weight.kind is Kind.CONVOLUTION and not format.everywhere:
        return _fall_back(weight, request, options, f"{format.name} is not for convolutions")
    group = request.group
    if group == PER_CHANNEL or (group == weight.columns and not format.fixed_group):
        return _per_channel(weight, format, request, options)
    if not _groupable(weight):
        if options.group_size_fallback is GroupSizeFallback.ERROR:
            raise OptionError(_group_error(weight, group, "groups cannot run along its reduction axes"))
        return _fall_back(weight, request, options, "groups cannot run along its reduction axes")
    if weight.columns % group == 0:
        problem = misreading(options.device, weight, format, group)
        return (
            _planned(weight, format, group, request)
            if problem is None
            else _other_group(weight, request, options, format, problem)
        )
    return _adjust(weight, request, options, format, f"{weight.columns} channels cannot be cut into groups of {group}")


def _per_channel(weight: Weight, format: Format, request: FormatRequest, options: Options) -> PlannedWeight:
    """One scale a channel; where CPUs misread such rows, in a chain that they do not take for codes."""
    problem = misreading(options.device, weight, format, PER_CHANNEL)
    if problem is None:
        return _planned(weight, format, PER_CHANNEL, request)
    return _expanded(_planned(weight, format, PER_CHANNEL, request), problem)


def _expanded(planned: PlannedWeight, problem: str) -> PlannedWeight:
    """The weight in a chain that CPUs expand."""
    reason = joined_reasons(planned.reason, f"{problem}, so it is stored in a way that they expand")
    return replace(planned, reason=reason, kept_from_codes=True)


def _for_device(weight: Weight, request: FormatRequest, options: Options) -> FormatRequest:
    """The request, or what the device, or any that runs experts, executes in its place."""
    if request.by_rule or request.mode is None:
        return request
    variant = executed_variant(options.device, weight, options.row(request.mode), request.group)
    if variant is None:
        return request
    return replace(request.because(variant.reason, DecidedBy.DEVICE), mode=variant.mode, group=variant.group)


def _other_group(
    weight: Weight, request: FormatRequest, options: Options, format: Format, problem: str
) -> PlannedWeight | Skip:
    """What a weight gets whose group size CPUs misread: named for this very weight it is refused, with those that
    work."""
    if request.by_rule or options.group_size_fallback is GroupSizeFallback.ERROR:
        raise OptionError(_misread_error(weight, format, request))
    fitted = _adjust(weight, request, options, format, problem)
    named = options.group_size is not None
    return replace(fitted, regrouped=named) if isinstance(fitted, PlannedWeight) else fitted


def _adjust(
    weight: Weight, request: FormatRequest, options: Options, format: Format, problem: str
) -> PlannedWeight | Skip:
    fallback = options.group_size_fallback
    if fallback is GroupSizeFallback.ERROR:
        raise OptionError(_group_error(weight, request.group, f"it has {weight.columns} channels"))
    if fallback is GroupSizeFallback.IGNORE:
        return skipped(weight, problem)
    if Device.NPU in options.device and not format.fixed_group:
        return _per_channel(weight, format, request.because(problem, DecidedBy.FALLBACK), options)
    size = 1 << (request.group.bit_length() - 1)
    while size >= options.min_adjusted_group_size and not format.fixed_group:
        adjusted = request.because(problem, DecidedBy.FALLBACK)
        if weight.columns == size:
            return _per_channel(weight, format, adjusted, options)
        if weight.columns % size == 0:
            return _planned(weight, format, size, adjusted)
        size //= 2
    return _fall_back(weight, request, options, problem)


def _fall_back(weight: Weight, request: FormatRequest, options: Options, problem: str) -> PlannedWeight | Skip:
    """The backup mode, per channel 8 bits if that has groups which do not fit either, or a skip."""
    request = request.because(problem, DecidedBy.FALLBACK)
    if options.group_size_fallback is GroupSizeFallback.IGNORE:
        return skipped(weight, request.reason)
    if options.backup_mode is BackupMode.NONE:
        return skipped(weight, f"{request.reason}, and backup_mode is none")
    format = FORMATS[options.backup_mode.value]
    fits = format.default_group == PER_CHANNEL or (_groupable(weight) and weight.columns % format.default_group == 0)
    if not fits or (weight.kind is Kind.CONVOLUTION and not format.everywhere):
        format = FORMATS[Mode.INT8_ASYM.value]
    variant = executed_variant(options.device, weight, format, format.default_group)
    if variant is not None:
        format, request = FORMATS[variant.mode.value], request.because(variant.reason, DecidedBy.DEVICE)
    if format.default_group == PER_CHANNEL:
        return _per_channel(weight, format, request, options)
    return _planned(weight, format, format.default_group, request)


def _groupable(weight: Weight) -> bool:
    return weight.layout.groupable and weight.kind is not Kind.CONVOLUTION


def _planned(weight: Weight, format: Format, group: int, request: FormatRequest) -> PlannedWeight:
    return PlannedWeight(weight, Spec(format, group, format.scale), 0.0, request.reason, request.decided_by)


def _with_range(planned: PlannedWeight, values: ValueRange) -> PlannedWeight | Skip:
    """What follows from the values' magnitude: f32 scales where f16 cannot hold one, a skip where nothing holds it."""
    ranged = replace(planned, absmax=values.absmax)
    if values.absmax > _LARGEST * min(1.0, planned.spec.format.top):
        return skipped(planned.weight, f"values up to {values.absmax:.1e}, beyond what scales reach")
    if 2 * values.absmax > F16_MAX and _is_read_in_f16(planned.weight):
        return skipped(planned.weight, f"values up to {values.absmax:g}, which f16 does not hold once they are rounded")
    return _with_wide_scales(ranged) if planned.spec.scale_type == "f16" and ranged.beyond_f16 else ranged


def _is_read_in_f16(weight: Weight) -> bool:
    """Whether something computes with its values in f16; a Convert takes them as the chain has them."""
    readers = [target.get_node() for target in weight.constant.output(0).get_target_inputs()]
    return weight.element_type == "f16" and any(reader.get_type_name() != "Convert" for reader in readers)


def _with_wide_scales(planned: PlannedWeight) -> PlannedWeight:
    """f32 scales; with 8 bits per channel where a Gather reads groups, whose scales the CPU plugin wants in f16."""
    spec, reason = replace(planned.spec, scale_type="f32"), planned.reason
    if spec.group_size != PER_CHANNEL and any(consumer.kind is Kind.GATHER for consumer in planned.weight.consumers):
        spec = Spec(FORMATS[Mode.INT8_ASYM.value], PER_CHANNEL, "f32")
        reason = joined_reasons(reason, "f16 cannot hold its scales, and an embedding in groups cannot have others")
    return replace(planned, spec=spec, reason=reason)


def _group_error(weight: Weight, group: int, why: str) -> str:
    return (
        f"group_size: {group} does not fit {weight.name} (used by {weight.consumers[0].name}): {why}; "
        "choose a divisor, group_size_fallback='adjust' or 'ignore', or give this weight a rule"
    )


def _misread_error(weight: Weight, format: Format, request: FormatRequest) -> str:
    """A group size that was asked for by name is refused, with those that work."""
    said = f"{request.reason}: group_size" if request.by_rule else "group_size"
    sizes = ", ".join(map(str, working_groups(weight.columns) or working_groups()))
    return (
        f"{said}: {request.group} cannot be used for {weight.name} (used by {weight.consumers[0].name}): the CPU "
        f"plugin of OpenVINO {CHECKED[-1]} computes something else from {format.storage} in groups of {request.group}; "
        f"sizes that work for its {weight.columns} channels: {sizes}; device='GPU' or 'NPU' says that no CPU will run "
        "it"
    )
