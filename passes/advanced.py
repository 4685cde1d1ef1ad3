"""NNCF's `AdvancedCompressionParameters`, by duck typing: what has a counterpart here becomes an option."""

from __future__ import annotations

from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["options_of"]

_COUNTERPARTS = {
    "statistics_path": "statistics_path",
    "group_size_fallback_mode": "group_size_fallback",
    "codebook": "codebook",
    "lora_correction_params.adapter_rank": "lora_rank",
    "adaptive_codebook_params.value_type": "codebook_type",
    "adaptive_codebook_params.num_elements": "codebook_size",
    "adaptive_codebook_params.across_blocks": "codebook_sharing",
}
_IN_OTHER_WORDS: dict[str, dict[Any, str]] = {
    "adaptive_codebook_params.value_type": {"float16": "f16", "float32": "f32", "int8": "i8", "f8e4m3": "f8e4m3"},
    "adaptive_codebook_params.across_blocks": {True: "across_blocks"},
}
_OF_PARTS = ("lora_correction_params", "adaptive_codebook_params")
"""Parameters that are objects with parameters of their own."""


def options_of(parameters: Any) -> dict[str, Any]:
    """The options that differ from their defaults, by our names.

    Raises:
        OptionError: a parameter without a counterpart was changed from its default.
    """
    options = {}
    for name, value in _changed(parameters).items():
        parts = {f"{name}.{part}": own for part, own in _changed(value).items()} if name in _OF_PARTS else {name: value}
        for full, own in parts.items():
            if full not in _COUNTERPARTS:
                said = f"advanced_parameters: {full}={own!r}"
                raise OptionError(f"{said} has no counterpart here; leave it at its default")
            words = _IN_OTHER_WORDS.get(full)
            options[_COUNTERPARTS[full]] = words.get(getattr(own, "value", own), own) if words else own
    return options


def _changed(parameters: Any) -> dict[str, Any]:
    """The fields of an object that differ from those of a new one of its type."""
    try:
        given, defaults = vars(parameters), vars(type(parameters)())
    except TypeError:
        raise OptionError(
            f"advanced_parameters: expected NNCF's AdvancedCompressionParameters, got {parameters!r}"
        ) from None
    return {
        name: value
        for name, value in given.items()
        if value is not defaults.get(name) and (name == "codebook" or value != defaults.get(name))
    }
