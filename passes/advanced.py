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
}
_OF_PARTS = ("lora_correction_params",)
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
            options[_COUNTERPARTS[full]] = own
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
