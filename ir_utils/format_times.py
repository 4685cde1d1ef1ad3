"""How long devices take with weights in each format, beside int4_sym in groups of 128: fixed figures, so that what is
chosen by them is the same on every machine.

`python -m benchmarks.format_times` measures them (its table is in benchmarks/results/format_times.md), and makes a
table of one's own machine for the option `format_times`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ov_weight_compression.ir_utils.errors import OptionError


@dataclass(frozen=True)
class FormatTime:
    """Time of a layer beside int4_sym in groups of 128."""

    one_row: float
    """A token that is generated."""
    many_rows: float
    """A prompt."""


FormatTimes: TypeAlias = Mapping[str, Mapping[int, FormatTime]]
"""By format and group size (-1: a channel)."""


def _groups(*times: tuple[float, float]) -> dict[int, FormatTime]:
    return {group: FormatTime(*time) for group, time in zip((128, 64, 32, 16), times, strict=True)}


_CPU: FormatTimes = {
    "int8_sym": {-1: FormatTime(1.8, 1.0)},
    "int8_asym": {-1: FormatTime(1.8, 1.0)},
    "int4_sym": _groups((1.0, 1.0), (1.03, 1.0), (1.15, 1.0), (1.67, 1.44)),
    "int4_asym": _groups((1.05, 1.0), (1.12, 1.0), (1.28, 1.02), (2.18, 1.5)),
    "nf4": _groups((1.5, 1.42), (1.53, 1.43), (1.58, 1.44), (1.7, 1.45)),
    "fp4": _groups((1.5, 1.43), (1.57, 1.44), (1.62, 1.44), (1.6, 1.43)),
    "int2_sym": _groups((1.9, 1.45), (1.9, 1.45), (1.9, 1.45), (1.9, 1.45)),
    "int2_asym": _groups((1.9, 1.45), (1.9, 1.45), (1.95, 1.45), (2.26, 1.47)),
}
_SAME = FormatTime(1.0, 1.0)
MEASURED_TIMES = frozenset(_CPU)
"""The formats whose times were measured; the others count as fast as int4_sym."""


def time_of(format: str, group: int, times: FormatTimes | None = None) -> FormatTime:
    """What a layer takes in a format, of a group size the nearest that was measured (of a channel the largest); 1 where
    nothing was."""
    known = (_CPU if times is None else times).get(format)
    if not known:
        return _SAME
    if group < 0:
        return known[group if group in known else max(known)]
    return known[min(known, key=lambda measured: (abs(measured - group), measured))]


def read_format_times(path: Path) -> FormatTimes:
    """A table that `benchmarks.format_times` has written: `{"nf4": {"64": [one row, many rows], …}, …}`.

    Raises:
        OptionError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): {int(group): FormatTime(*map(float, pair)) for group, pair in groups.items()}
            for name, groups in found.items()
        }
    except OSError as error:
        raise OptionError(f"format_times: {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError):
        raise OptionError(f"format_times: {path} is no table of benchmarks.format_times") from None
