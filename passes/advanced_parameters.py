"""NNCF's `AdvancedCompressionParameters`: classes with its names and fields, and what becomes of them here.

The classes have None where nothing is given, so a value that is given counts even if it is NNCF's default. NNCF's own
objects are read as well: there a field counts where it differs from the default, and what happens to groups that do not
divide always, for that is what NNCF does. A field without a counterpart is refused by name, unless it says NNCF's
default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ov_weight_compression.ir_utils.errors import CompressionError, OptionError
from ov_weight_compression.ir_utils.option_kinds import OptionKind, count, flag, number, shown
from ov_weight_compression.passes.plan import Tuning


@dataclass
class AdvancedAWQParameters:
    """`percent_to_apply` is the share of the channels, those with the largest activations, whose groups are scaled; the
    exponents tried go from `alpha_min` to `alpha_max` in `steps`."""

    subset_size: int | None = None
    percent_to_apply: float | None = None
    alpha_min: float | None = None
    alpha_max: float | None = None
    steps: int | None = None
    prefer_data_aware_scaling: bool | None = None


@dataclass
class AdvancedScaleEstimationParameters:
    """`scale_steps` is the number of candidates for a scale."""

    subset_size: int | None = None
    initial_steps: int | None = None
    scale_steps: int | None = None
    weight_penalty: float | None = None


@dataclass
class AdvancedGPTQParameters:
    """`damp_percent` is the share of the diagonal's typical value that is added to it."""

    damp_percent: float | None = None
    block_size: int | None = None
    subset_size: int | None = None


@dataclass
class AdvancedLoraCorrectionParameters:
    """`num_iterations`: how often rounding one adapter and fitting the other alternate. Adapters have 8 bits."""

    adapter_rank: int | None = None
    num_iterations: int | None = None
    apply_regularization: bool | None = None
    subset_size: int | None = None
    use_int8_adapters: bool | None = None


@dataclass
class AdvancedAdaptiveCodebookParameters:
    """The tables of ADAPTIVE_CODEBOOK: the type of their values, who shares one, how many values each has."""

    value_type: Any = None
    across_blocks: bool | None = None
    num_elements: int | None = None


@dataclass
class AdvancedCompressionParameters:
    """Everything by NNCF's names."""

    statistics_path: str | None = None
    lora_adapter_rank: int | None = None
    group_size_fallback_mode: Any = None
    min_adjusted_group_size: int | None = None
    awq_params: AdvancedAWQParameters | None = field(default_factory=AdvancedAWQParameters)
    scale_estimation_params: AdvancedScaleEstimationParameters | None = field(
        default_factory=AdvancedScaleEstimationParameters
    )
    gptq_params: AdvancedGPTQParameters | None = field(default_factory=AdvancedGPTQParameters)
    lora_correction_params: AdvancedLoraCorrectionParameters | None = field(
        default_factory=AdvancedLoraCorrectionParameters
    )
    backend_params: dict[str, Any] | None = None
    codebook: Any = None
    adaptive_codebook_params: AdvancedAdaptiveCodebookParameters | None = field(
        default_factory=AdvancedAdaptiveCodebookParameters
    )


_PARTS: Mapping[str, type] = {
    "awq_params": AdvancedAWQParameters,
    "scale_estimation_params": AdvancedScaleEstimationParameters,
    "gptq_params": AdvancedGPTQParameters,
    "lora_correction_params": AdvancedLoraCorrectionParameters,
    "adaptive_codebook_params": AdvancedAdaptiveCodebookParameters,
}
_ALWAYS = ("group_size_fallback_mode", "min_adjusted_group_size")
_NNCF_DEFAULTS: Mapping[str, Any] = {
    "lora_adapter_rank": 256,
    "backend_params": {},
    "scale_estimation_params.initial_steps": 5,
    "scale_estimation_params.weight_penalty": -1.0,
    "gptq_params.block_size": 128,
    "lora_correction_params.apply_regularization": True,
    "lora_correction_params.use_int8_adapters": True,
}
"""Of the fields without a counterpart: saying these is saying nothing."""
_OPTIONS: Mapping[str, str] = {
    "statistics_path": "statistics_path",
    "group_size_fallback_mode": "group_size_fallback",
    "min_adjusted_group_size": "min_adjusted_group_size",
    "codebook": "codebook",
    "scale_estimation_params.scale_steps": "scale_search",
    "lora_correction_params.adapter_rank": "lora_rank",
    "adaptive_codebook_params.value_type": "codebook_type",
    "adaptive_codebook_params.num_elements": "codebook_size",
    "adaptive_codebook_params.across_blocks": "codebook_sharing",
}
_VALUE_TYPES = {
    **{"float16": "f16", "float32": "f32", "int8": "i8", "uint8": "u8", "f8e4m3": "f8e4m3"},
    **{"f16": "f16", "f32": "f32", "i8": "i8", "u8": "u8"},
}
_TUNING: Mapping[str, tuple[str, OptionKind]] = {
    "awq_params.subset_size": ("awq_subset", count(1)),
    "awq_params.percent_to_apply": ("awq_share", number(0, 1)),
    "awq_params.prefer_data_aware_scaling": ("awq_from_data", flag()),
    "scale_estimation_params.subset_size": ("scale_estimation_subset", count(1)),
    "gptq_params.subset_size": ("gptq_subset", count(1)),
    "gptq_params.damp_percent": ("gptq_damping", number(0, 100)),
    "lora_correction_params.subset_size": ("lora_subset", count(1)),
    "lora_correction_params.num_iterations": ("lora_rounds", count(0, 1000)),
}
_ALPHAS = ("awq_params.alpha_min", "awq_params.alpha_max", "awq_params.steps")


def read_advanced(parameters: Any, running: Collection[str]) -> tuple[dict[str, Any], Tuning]:
    """What an object of NNCF's, or of the classes here, says: options by their names here, and the algorithms' own.

    What it says of an algorithm whose part is not in `running` has no effect, for the algorithm has none.

    Raises:
        OptionError: no such object; a value that cannot be; a field that has no counterpart here.
    """
    try:
        return _read(parameters, running)
    except CompressionError:
        raise
    except Exception:  # whatever the methods of an object raise that is something else
        raise OptionError(
            f"advanced_parameters: must be NNCF's AdvancedCompressionParameters, got {shown(parameters)}"
        ) from None


def _read(parameters: Any, running: Collection[str]) -> tuple[dict[str, Any], Tuning]:
    given = _given(parameters)
    idle = {name for name in given if "." in name and name.partition(".")[0] not in running}
    options = {_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS and name not in idle}
    tuning = {_TUNING[name][0]: _TUNING[name][1].parse(name, value) for name, value in given.items() if name in _TUNING}
    alphas = _alphas(given)
    if alphas is not None:
        tuning["awq_alphas"] = alphas
    for name, value in given.items():
        if name in _OPTIONS or name in _TUNING or name in _ALPHAS:
            continue
        if name in _NNCF_DEFAULTS and value == _NNCF_DEFAULTS[name]:
            continue
        if name == "lora_correction_params.apply_regularization":
            continue  # adapters are fitted without either way: False asks for what is done
        raise OptionError(f"advanced_parameters: {name}={shown(value)} has no counterpart here; leave it out")
    if "codebook_type" in options:
        options["codebook_type"] = _value_type(options["codebook_type"])
    if "codebook_sharing" in options:
        shared = flag().parse("adaptive_codebook_params.across_blocks", options["codebook_sharing"])
        options["codebook_sharing"] = "across_blocks" if shared else "none"
    return options, Tuning(**tuning)


def _given(parameters: Any) -> dict[str, Any]:
    """Every field that says something, those of parts as `part.field`."""
    found: dict[str, Any] = {}
    for name, value in _changed(parameters, AdvancedCompressionParameters, "advanced_parameters").items():
        if name in _PARTS:
            found.update({f"{name}.{part}": own for part, own in _changed(value, _PARTS[name], name).items()})
        else:
            found[name] = value
    return found


def _changed(parameters: Any, kind: type, where: str) -> dict[str, Any]:
    """The fields of an object that are not None, and not the default of its own class where that is another's."""
    try:
        given, defaults = vars(parameters), vars(type(parameters)())
    except TypeError:
        raise OptionError(f"{where}: expected NNCF's {kind.__name__}, got {shown(parameters)}") from None
    if kind is AdvancedCompressionParameters and not {part.name for part in fields(kind)} & set(given):
        raise OptionError(f"{where}: expected NNCF's {kind.__name__}, got {shown(parameters)}")
    return {
        name: value
        for name, value in given.items()
        if value is not None
        and (name in ("codebook", *_ALWAYS, *_PARTS) or value != defaults.get(name) or name not in defaults)
    }


def _alphas(given: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The exponents that AWQ tries, where any of the three fields that make them is given."""
    if not any(name in given for name in _ALPHAS):
        return None
    low, high = (number(0, 1).parse(name, given.get(name, end)) for name, end in zip(_ALPHAS, (0.0, 1.0), strict=False))
    steps = count(1, 1000).parse("awq_params.steps", given.get("awq_params.steps", 100))
    if low > high:
        raise OptionError(f"awq_params.alpha_min: must not be above alpha_max={high:g}, got {low:g}")
    return tuple(low + step * (high - low) / steps for step in range(steps))


def _value_type(value: Any) -> str:
    name = str(getattr(value, "value", value)).lower()
    if name not in _VALUE_TYPES:
        allowed = "float16, float32, int8 and f8e4m3"
        raise OptionError(f"adaptive_codebook_params.value_type: allowed are {allowed}, got {shown(value)}")
    return _VALUE_TYPES[name]
