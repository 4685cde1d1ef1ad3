"""A budget in words: bytes, and the formats to choose from.

target_size="3.5GB"        an int, or a number with kB, MB, GB, KiB, MiB or GiB behind it
formats=["int4_sym:64", ("nf4", 32), "int8_asym"]
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import OptionKind, group, parse_enum, shown, whole, whole_from_text
from ov_weight_compression.passes.option_values import Mode
from ov_weight_compression.quantization.formats import FORMATS

BUDGETS = ("target_bits", "target_size", "target_divergence")
"""The options that have formats chosen; at most one of them is given."""
OF_BUDGETS = ("formats", "max_slowdown", "format_times", "tie_inputs")
"""What goes with one of them alone."""
DECIDED = ("ratio", "group_size", "all_layers", "backup_mode", "sensitivity_metric")
"""What a budget decides itself, beside the mode."""

_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?\s*", re.ASCII | re.IGNORECASE)
_MOST_BYTES = 1 << 50
_MOST_FORMATS = 64
_TABLES = (Mode.CODEBOOK, Mode.ADAPTIVE_CODEBOOK)
_LEAST_SLOWDOWN, _MOST_SLOWDOWN = 1.0, 1000.0


@dataclass(frozen=True)
class FormatChoice:
    """A format that weights may get."""

    mode: Mode
    group: int
    """Weights that share a scale, -1 for one scale a channel."""

    def __str__(self) -> str:
        return self.mode.value if self.group == -1 else f"{self.mode.value}:{self.group}"


def check_budget(asked: Mapping[str, Any], with_mode: bool) -> None:
    """Refuse a second budget, and what a budget decides itself.

    Args:
        asked: the options that are given, parsed; a budget is among them.
        with_mode: whether a mode was named, be it the default.
    """
    named = [name for name in BUDGETS if name in asked]
    if len(named) > 1:
        raise OptionError(f"{named[1]}: {named[0]} is given too; say one of {', '.join(BUDGETS)}")
    for name in (*(["mode"] if with_mode else []), *(name for name in DECIDED if name in asked)):
        raise OptionError(
            f"{name}: means nothing with {named[0]}, which chooses each weight's format (among formats=, where they "
            "are given); leave it out, or use a rule"
        )
    if asked.get("lora_correction"):
        raise OptionError(f"lora_correction: adds bytes that {named[0]} does not count; leave it out")


def byte_count() -> OptionKind:
    """A number of bytes, or a text such as "3.5GB"."""

    def read(value: Any) -> int:
        if not isinstance(value, str):
            found = whole(value)
        else:
            said = _SIZE.fullmatch(value)
            if said is None:
                raise ValueError
            base = 1024 if said[3] else 1000
            found = math.floor(float(said[1]) * base ** (" kmgt".index(said[2].lower() or " ")))
        if not 0 < found <= _MOST_BYTES:
            raise ValueError
        return found

    return OptionKind("a number of bytes, or a size such as '3.5GB' or '900MiB'", read, "int | str")


def format_choices() -> OptionKind:
    """Formats as `MODE` or `MODE:GROUP`, or pairs of both."""

    def read(value: Any) -> tuple[FormatChoice, ...]:
        if isinstance(value, (str, bytes)) or not 0 < len(value) <= _MOST_FORMATS:
            raise ValueError
        return tuple(dict.fromkeys(_choice(f"formats[{number}]", one) for number, one in enumerate(value)))

    return OptionKind(
        "a list of formats such as 'int4_sym:64' or ('nf4', 32)",
        read,
        "Sequence[str | tuple[str, int]]",
        from_text=lambda text: [part.strip() for part in text.split(",")],
    )


def _choice(field: str, value: Any) -> FormatChoice:
    if isinstance(value, FormatChoice):
        return value
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise OptionError(f"{field}: expected a pair (mode, group size), got {shown(value)}")
        name, size = value
    elif isinstance(value, str):
        name, _, size = value.partition(":")
        size = whole_from_text(size) if size else None
    else:
        name, size = value, None
    mode = parse_enum(Mode, name, field)
    if mode in _TABLES:
        raise OptionError(f"{field}: {mode.value} has a table that is not known beforehand; no budget chooses it")
    own = FORMATS[mode.value]
    found = own.default_group if size is None else group().parse(f"{field} group size", size)
    if own.fixed_group and found != own.default_group:
        raise OptionError(f"{field}: {mode.value} is defined for groups of {own.default_group}, got {found}")
    return FormatChoice(mode, found)


def slowdown() -> OptionKind:
    """A factor of at least 1; None, or "none", for any."""

    def read(value: Any) -> float:
        if isinstance(value, str) and value.strip().lower() == "none":
            return math.inf
        found = float(value)
        if isinstance(value, (str, bool)) or not (_LEAST_SLOWDOWN <= found <= _MOST_SLOWDOWN or found == math.inf):
            raise ValueError
        return found

    def from_text(text: str) -> object:
        try:
            return float(text)
        except ValueError:
            return text

    takes = f"a number from {_LEAST_SLOWDOWN:g} to {_MOST_SLOWDOWN:g}, or None for no limit"
    return OptionKind(takes, read, "float | None", from_text=from_text, none=math.inf)
