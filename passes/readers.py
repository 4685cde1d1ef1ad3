"""How the values of options are read: from what a caller may write to what the code works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.constants import tensor_values
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["choice", "count", "flag", "number", "path", "scale_search", "table", "table_type"]


def number(name: str, low: float, high: float) -> Callable[[object], float]:
    """A number between two limits."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise OptionError(f"{name}: must be a number from {low:g} to {high:g}, got {value!r}")
        return float(value)

    return read


def count(name: str, low: int, high: int | None = None) -> Callable[[object], int]:
    """A whole number that is not too small, nor too large where there is a limit."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"

    def read(value: object) -> int:
        whole = None if isinstance(value, bool) else getattr(value, "__index__", None)
        if whole is None or whole() < low or (high is not None and whole() > high):
            raise OptionError(f"{name}: must be a whole number {limits}, got {value!r}")
        return int(whole())

    return read


def flag(name: str) -> Callable[[object], bool]:
    """True or False."""

    def read(value: object) -> bool:
        if not isinstance(value, bool):
            raise OptionError(f"{name}: must be True or False, got {value!r}")
        return value

    return read


def path(name: str) -> Callable[[object], Path]:
    """A path as text or object."""

    def read(value: Any) -> Path:
        try:
            return Path(value)
        except TypeError:
            raise OptionError(f"{name}: must be a path, got {value!r}") from None

    return read


def choice(name: str, allowed: Sequence[str]) -> Callable[[object], str]:
    """One of some words."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in allowed:
            raise OptionError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
        return value.lower()

    return read


def table(name: str) -> Callable[[object], tuple[float, ...]]:
    """A list of numbers: a sequence, an array, or a tensor of OpenVINO of whatever type."""

    def read(value: Any) -> tuple[float, ...]:
        try:
            numbers = _numbers(value).astype(np.float32)
        except (TypeError, ValueError):
            raise OptionError(f"{name}: must be a list of numbers, got {_short(value)}") from None
        if numbers.ndim != 1:
            raise OptionError(f"{name}: must be one list of numbers, got the shape {list(numbers.shape)}")
        return tuple(numbers.tolist())

    return read


def table_type(value: Any) -> str | None:
    """The type that holds the numbers of an array or tensor as they are, by a table's name of it; None for a list.

    Doubles, and integers that have no 8 bits, take f32: nobody means the type that numpy gives by default.
    """
    value = _bare(value)
    kind = value.element_type.get_type_name() if isinstance(value, ov.Tensor) else str(getattr(value, "dtype", ""))
    kind = kind.rpartition(".")[2]
    if not kind:
        return None
    if kind in _TABLE_TYPES:
        return _TABLE_TYPES[kind]
    numbers = _numbers(value)
    if numbers.dtype.kind in "iu" and numbers.size:
        if numbers.min() >= -128 and numbers.max() <= 127:
            return "i8"
        return "u8" if numbers.min() >= 0 and numbers.max() <= 255 else "f32"
    return "f32"


_TABLE_TYPES = {
    **{"float16": "f16", "f16": "f16", "f8e5m2": "f16", "float8_e5m2": "f16"},
    **{"f8e4m3": "f8e4m3", "float8_e4m3fn": "f8e4m3", "int8": "i8", "i8": "i8", "uint8": "u8", "u8": "u8"},
}


def _bare(value: Any) -> Any:
    """What a tensor of NNCF's wraps."""
    inner = getattr(value, "data", None)
    return inner if isinstance(inner, (np.ndarray, ov.Tensor)) and not isinstance(value, ov.Tensor) else value


def _numbers(value: Any) -> Array:
    value = _bare(value)
    return tensor_values(value) if isinstance(value, ov.Tensor) else np.asarray(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def scale_search(value: object) -> str | int:
    """`auto`, `off` or a number of candidates."""
    if isinstance(value, str) and value.lower() in ("auto", "off"):
        return value.lower()
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    whole = None if isinstance(value, bool) else getattr(value, "__index__", None)
    if whole is None or not 0 <= whole() <= 256:
        raise OptionError(f"scale_search: must be 'auto', 'off' or a number of candidates up to 256, got {value!r}")
    return int(whole()) or "off"
