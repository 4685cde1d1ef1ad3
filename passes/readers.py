"""How the values of options are read: from what a caller may write to what the code works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["choice", "count", "flag", "number", "path", "scale_search", "table"]


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
    """A list of numbers: a sequence, an array, or an OpenVINO tensor."""

    def read(value: Any) -> tuple[float, ...]:
        try:
            numbers = np.asarray(getattr(value, "data", value) if hasattr(value, "element_type") else value)
            return tuple(float(number) for number in numbers.astype(np.float32).reshape(-1))
        except (TypeError, ValueError):
            raise OptionError(f"{name}: must be a list of numbers, got {value!r}") from None

    return read


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
