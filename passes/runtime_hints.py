"""Runtime hints: what a device is to do with a model at inference, kept in the model itself.

OpenVINO reads them from the section `runtime_options` of the rt_info when it compiles the model, and whoever compiles
it may say otherwise. optimum-intel writes some when it exports. What a model has already stays there; a hint that is
asked for takes the place of one with the same name.

    DYNAMIC_QUANTIZATION_GROUP_SIZE      activations that share a scale: 0 (off), a whole number, or -1 (a whole token)
    KV_CACHE_PRECISION                   how keys and values are kept: u8, u4, f16, bf16, f32
    KEY_CACHE_PRECISION, VALUE_…         of one of the two
    KEY_CACHE_GROUP_SIZE, VALUE_…        values of one of the two that share a scale; 0 is the device's own
    ACTIVATIONS_SCALE_FACTOR             what activations are divided by so that f16 holds them; GPU alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import count, number, shown, whole_from_text

_SECTION = "runtime_options"
_WHOLE_TOKEN = 2**64 - 1
"""What OpenVINO makes of -1 as a size of type uint64."""
_CACHES = ("u8", "u4", "f16", "bf16", "f32", "dynamic")
"""Types of a cache that the CPU of OpenVINO 2026.4 takes: it refuses to compile a model that names another."""
_CACHES_ELSEWHERE = ("i8", "i4")
"""Types that only other devices know."""
_MOST_SCALE = 65504.0


def _size(name: str, value: Any) -> str:
    size = whole_from_text(value) if isinstance(value, str) else value
    if size in (-1, _WHOLE_TOKEN, str(_WHOLE_TOKEN)):
        return str(_WHOLE_TOKEN)
    return str(count(0).parse(name, size))


def _cache_size(name: str, value: Any) -> str:
    return str(count(0).parse(name, whole_from_text(value) if isinstance(value, str) else value))


def _cache_type(name: str, value: Any) -> str:
    told = value.get_type_name() if hasattr(value, "get_type_name") else value
    if isinstance(told, str) and told.lower() in (*_CACHES, *_CACHES_ELSEWHERE):
        return told.lower()
    raise OptionError(f"{name}: {shown(told)} is not one of {', '.join((*_CACHES, *_CACHES_ELSEWHERE))}")


def _factor(name: str, value: Any) -> str:
    kind = number(0, _MOST_SCALE)
    return str(kind.parse(name, kind.from_text(value) if isinstance(value, str) else value))


_HINTS: Mapping[str, Callable[[str, Any], str]] = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": _size,
    "KV_CACHE_PRECISION": _cache_type,
    "KEY_CACHE_PRECISION": _cache_type,
    "VALUE_CACHE_PRECISION": _cache_type,
    "KEY_CACHE_GROUP_SIZE": _cache_size,
    "VALUE_CACHE_GROUP_SIZE": _cache_size,
    "ACTIVATIONS_SCALE_FACTOR": _factor,
}


def parse_runtime_hints(value: Any) -> dict[str, str]:
    """Hints by name, as the texts that OpenVINO reads.

    Raises:
        OptionError: a name that is no hint's, or a value that OpenVINO would refuse when it compiles the model.
        Exception: of any kind where the value is no mapping (see `ir_utils.option_kinds`).
    """
    found = {}
    if not isinstance(value, Mapping):
        raise TypeError
    for key, given in islice(value.items(), len(_HINTS) + 1):
        name = str(getattr(key, "value", key) if not isinstance(key, str) else key).upper()
        if name not in _HINTS:
            near = get_close_matches(name[:60], _HINTS, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise OptionError(f"runtime_hints: {shown(key)} is not one of {', '.join(_HINTS)}{hint}")
        found[name] = _HINTS[name](f"runtime_hints: {name}", given)
    return found


def parse_hint_text(text: str) -> tuple[str, str]:
    """`NAME=VALUE` of the command line.

    Raises:
        OptionError: there is no `=`.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise OptionError(f"--runtime-hint: expected NAME=VALUE, got {shown(text)}")
    return name.strip(), value.strip()


def check_hints_for_cpu(hints: Mapping[str, str]) -> None:
    """Raise OptionError for what a CPU would refuse to compile."""
    for name, value in hints.items():
        if value in _CACHES_ELSEWHERE and _HINTS[name] is _cache_type:
            raise OptionError(
                f"runtime_hints: {name}: a CPU takes {', '.join(_CACHES)} and compiles no model that asks for "
                f"{value}; for another device add device='GPU'"
            )


def write_runtime_hints(model: Any, hints: Mapping[str, str]) -> None:
    """Write hints into a model, beside those that it has."""
    for name, value in hints.items():
        model.set_rt_info(value, [_SECTION, name])
