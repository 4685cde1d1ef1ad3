"""NNCF's `AdvancedCompressionParameters`, by duck typing: what has a counterpart here becomes an option."""

from __future__ import annotations

from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["options_of"]

_COUNTERPARTS = {
    "statistics_path": "statistics_path",
    "group_size_fallback_mode": "group_size_fallback",
    "codebook": "codebook",
}


def options_of(parameters: Any) -> dict[str, Any]:
    """The options that differ from their defaults, by our names.

    Raises:
        OptionError: a parameter without a counterpart was changed from its default.
    """
    try:
        given, defaults = vars(parameters), vars(type(parameters)())
    except TypeError:
        raise OptionError(
            f"advanced_parameters: expected NNCF's AdvancedCompressionParameters, got {parameters!r}"
        ) from None
    options = {}
    for name, value in given.items():
        if value is defaults.get(name) or (name != "codebook" and value == defaults.get(name)):
            continue
        if name not in _COUNTERPARTS:
            raise OptionError(f"advanced_parameters: {name}={value!r} has no counterpart here; leave it at its default")
        options[_COUNTERPARTS[name]] = value
    return options
