"""How figures are written, in tables and on pages alike."""

from __future__ import annotations

import math

from ov_weight_compression.evaluation.figures import Estimate

__all__ = [
    "bytes_of",
    "count",
    "db",
    "format_name",
    "layer_name",
    "percent",
    "plain",
    "probability",
    "short_format",
    "short_name",
    "with_error",
]


def plain(value: float | None, digits: int = 4) -> str:
    """A number to some significant digits, without an exponent where it can be read without."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def with_error(estimate: Estimate, scale: float = 1.0, unit: str = "") -> str:
    """A figure and its error, written to the error's second digit."""
    value, error = estimate.value * scale, estimate.error * scale
    if not math.isfinite(value) or not math.isfinite(error) or error == 0:
        return plain(value) + unit
    power = math.floor(math.log10(abs(value))) if value else 0
    if power < -4:
        decimals = max(0, 1 + power - math.floor(math.log10(error)))
        figures = f"({value / 10**power:.{decimals}f} ± {error / 10**power:.{decimals}f})e−{-power}{unit}"
        return figures.replace("(-", "(−")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{unit}".replace("-", "−")


def percent(value: float | None, digits: int = 3) -> str:
    """A share of 0..1 as a percentage."""
    return "–" if value is None else f"{plain(100 * value, digits)} %"


def probability(value: float | None) -> str:
    """A probability as a percentage; below a hundredth of a percent only that it is."""
    return "< 0.01 %" if value is not None and value < 1e-4 else percent(value)


def db(value: float | None) -> str:
    """Decibels to one decimal; infinite where nothing was lost."""
    if value is None or math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value:.1f}".replace("-", "−")


def bytes_of(size: int) -> str:
    """Bytes in the largest unit of which there is at least one."""
    amount = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{size} B" if unit == "B" else f"{amount:.3g} {unit}" if amount < 100 else f"{amount:.0f} {unit}"


def count(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}".replace(",", " ")


def format_name(mode: str, group_size: int | None) -> str:
    """A format and its group."""
    if group_size is None:
        return f"{mode}, not compressed"
    return f"{mode}, per channel" if group_size < 0 else f"{mode}, group {group_size}"


def short_format(mode: str, group_size: int) -> str:
    """A format and its group, for narrow tables."""
    return mode if group_size < 0 else f"{mode} g{group_size}"


def short_name(name: str, most: int = 60) -> str:
    """A long name with its middle left out: the end of an exporter's names says most."""
    return name if len(name) <= most else f"{name[: most // 4]}…{name[-(most - most // 4 - 1) :]}"


def layer_name(layer: str, weight: str) -> str:
    """What a reader knows a layer by: its weight's name as the checkpoint had it, else the operation's."""
    name = weight.removesuffix("_compressed").removeprefix("self.")
    return name if "." in name else layer
