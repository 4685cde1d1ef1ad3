"""What options mean nothing together, and what contradicts itself; and how a value is told in a message or a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.device_rules import refused_by_name
from ov_weight_compression.passes.modes import Device, GroupSizeFallback, Mode
from ov_weight_compression.passes.option_rows import Option
from ov_weight_compression.passes.runtime_hints import check_hints_for_cpu
from ov_weight_compression.patterns import IgnoredScope
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, with_codebook

if TYPE_CHECKING:
    from ov_weight_compression.passes.options import Options

__all__ = ["check_together", "told"]


def told(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, IgnoredScope):
        parts = [(part.name, getattr(value, part.name)) for part in fields(value)]
        return "; ".join(f"{name}={own}" for name, own in parts if own)
    if isinstance(value, Mapping) and all(isinstance(key, tuple) for key in value):  # roles
        return "; ".join(f"{operation}:{port}" for operation, port in value)
    if isinstance(value, Mapping) and all(isinstance(own, str) for own in value.values()):  # runtime hints
        return "; ".join(f"{name}={own}" for name, own in value.items())
    if isinstance(value, tuple):
        return "; ".join(getattr(part, "__name__", None) or str(getattr(part, "value", part)) for part in value)
    return str(value) if isinstance(value, (str, bool, int, float)) else type(value).__name__


def check_together(options: Options, asked: Mapping[str, Any], rows: Mapping[str, Option]) -> None:
    """Refuse what contradicts itself or means nothing; `asked` are the options that are not left at their defaults."""
    mode = options.mode.value
    for name, value in asked.items():
        option = rows[name]
        if option.below_8_bits and options.mode.is_int8 and value is not False:
            raise OptionError(f"{name}: means nothing with {mode}, which gives every weight 8 bits; leave it out")
        if option.need is not None and not option.need.met(options):
            raise OptionError(f"{name}: {option.need.words.format(mode=mode, value=told(value))}")
    if options.sensitivity_metric.needs_data and options.dataset is None:
        raise OptionError(
            f"sensitivity_metric: {options.sensitivity_metric.value} needs a dataset; give one, or use "
            "weight_quantization_error"
        )
    if options.scale_search == "off" and (options.scale_estimation or options.accuracy is not None):
        raise OptionError("scale_search: must not be 'off' with scale_estimation or accuracy, which are made of it")
    if options.runtime_hints and (not options.device or Device.CPU in options.device):
        check_hints_for_cpu(options.runtime_hints)
    used, fitted = Mode.CODEBOOK in options.modes, Mode.ADAPTIVE_CODEBOOK in options.modes
    if used and options.codebook is None:
        raise OptionError("codebook: the mode codebook needs a table of 2 to 65536 values; cb4 has one of its own")
    if options.codebook is not None and not used and not fitted:
        raise OptionError(f"codebook: means nothing with {mode}; use mode='codebook', or leave it out")
    if fitted and options.codebook_type == "u8":
        raise OptionError("codebook_type: adaptive_codebook fits values of both signs, which u8 cannot hold; use i8")
    if options.codebook is not None:
        try:
            with_codebook(FORMATS[Mode.CODEBOOK.value], options.codebook, options.codebook_type)
        except ValueError as error:
            raise OptionError(str(error)) from None
    _check_formats(options, asked)
    if (problem := refused_by_name(options.device, options.mode, options.group_size, options.rules)) is not None:
        raise OptionError(problem)


def _check_formats(options: Options, asked: Mapping[str, Any]) -> None:
    """Refuse what the formats do not allow: groups of another size than theirs, and what is for weights of 4 bits or
    fewer where no weight will have so few."""
    mode, own = options.mode.value, FORMATS[options.mode.value]
    if own.fixed_group and options.effective_group != own.default_group:
        raise OptionError(f"group_size: {mode} is defined for groups of {own.default_group}, got {options.group_size}")
    if own.fixed_group and "group_size_fallback" in asked and options.group_size_fallback is GroupSizeFallback.ADJUST:
        raise OptionError(
            f"group_size_fallback: {mode} has groups of {own.default_group} and no others, so they cannot be adjusted; "
            "use 'ignore' or 'error', or leave it out"
        )
    for place, rule in enumerate(options.rules):
        row = None if rule.mode is None else FORMATS[rule.mode.value]
        if row is not None and row.fixed_group and rule.group_size not in (None, row.default_group):
            raise OptionError(
                f"rules[{place}]: {row.name} is defined for groups of {row.default_group}, got {rule.group_size}"
            )
    if options.mode.is_int8:
        if options.ratio != 1:
            raise OptionError(f"ratio: {mode} gives every weight 8 bits, so only 1 is allowed, got {options.ratio:g}")
        if options.effective_group != PER_CHANNEL:
            raise OptionError(f"group_size: {mode} is per channel, so only -1 is allowed, got {options.group_size}")
        return
    if any(options.row(mode).default_search for mode in options.modes):
        return
    called = f"{mode} with {len(options.codebook)} values" if options.codebook else mode
    fitted = Mode.ADAPTIVE_CODEBOOK in options.modes
    for name in ("gptq", "algorithm", "awq", "lora_correction", "scale_estimation", "accuracy"):
        if asked.get(name) not in (None, False) and not (fitted and name in ("scale_estimation", "accuracy")):
            raise OptionError(
                f"{name}: changes only weights of 4 bits or fewer, of which {called} makes none; leave it out, or use "
                "a mode or a rule of 4 bits"
            )
