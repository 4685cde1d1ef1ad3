"""A budget in words: what it is said with (bytes, and the formats to choose from), and what is told of what it has
chosen.

target_size="3.5GB"        an int, or a number with kB, MB, GB, KiB, MiB or GiB behind it
formats=["int4_sym:64", ("nf4", 32), "int8_asym"]

What it has chosen, and what there was to choose from, are figures for the report, the page and the JSON, and words for
the terminal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import OptionKind, group, parse_enum, shown, whole, whole_from_text
from ov_weight_compression.ir_utils.printing import human_bytes, percent, plain, terminal_table, thousands
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


@dataclass(frozen=True)
class CurvePoint:
    """What the best formats within some bytes are predicted to cost."""

    bytes: int
    """Of the .bin."""
    bits: float
    """For each element of the compressed weights."""
    divergence: float


@dataclass(frozen=True)
class UniformChoice:
    """One format for all weights that can have it and are no embedding and no last layer, which have 8 bits."""

    format: str
    bytes: int
    """Of the .bin."""
    divergence: float


@dataclass(frozen=True)
class BudgetOutcome:
    """A choice of formats. Bytes are those of the .bin, everything in it counted."""

    option: str
    """The option that asked for it: `target_bits`, `target_size` or `target_divergence`."""
    target: float
    unit: str
    """Of divergences: `nats` (mean KL), `relative L2`, or `none` where nothing was measured: only ratios count then."""
    bytes: int
    allowed: int | None
    """None for a divergence, which allows whatever it takes."""
    bits: float
    predicted: float
    correction: float
    """Measured over predicted, of the rounds before; it is in all predictions here."""
    shares: Mapping[str, float]
    """Each weight's part of the predicted loss, by the weight's name."""
    curve: tuple[CurvePoint, ...]
    uniform: tuple[UniformChoice, ...]
    """For comparison, the smallest first."""
    token_time: float
    """Predicted time of a generated token in the weights' layers, beside int4_sym in groups of 128."""
    prompt_time: float
    measured: float | None = None
    """The divergence of this choice on data that nothing was predicted from."""
    remarks: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the target is reached, as far as that is known."""
        if self.allowed is not None:
            return self.bytes <= self.allowed
        return (self.predicted if self.measured is None else self.measured) <= self.target

    def fitting(self) -> list[UniformChoice]:
        """The uniform formats that take no more bytes, that of the least divergence first."""
        fitting = [one for one in self.uniform if one.bytes <= max(self.bytes, self.allowed or 0)]
        return sorted(fitting, key=lambda one: (one.divergence, one.bytes))

    def beside(self) -> UniformChoice | None:
        """The best of them."""
        return next(iter(self.fitting()), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {**asdict(self), "met": self.met}


_SHOWN_SHARES = 8
_SHOWN_POINTS = 9


def _asked(outcome: BudgetOutcome) -> str:
    if outcome.option == "target_bits":
        return f"{outcome.target:g} bits a weight"
    if outcome.option == "target_size":
        return f"{thousands(int(outcome.target))} bytes in the .bin"
    return f"a divergence of {plain(outcome.target)} {outcome.unit}"


def _divergence(value: float, outcome: BudgetOutcome) -> str:
    return plain(value) if outcome.unit == "none" else f"{plain(value)} {outcome.unit}"


def budget_lines(outcome: BudgetOutcome) -> list[str]:
    """The choice in a few sentences."""
    if not outcome.bits:
        return [f"Asked for {_asked(outcome)}: there is no weight to choose a format for."]
    told = f"predicted divergence {_divergence(outcome.predicted, outcome)}"
    if outcome.unit == "none":
        told = f"predicted loss {plain(outcome.predicted)} (nothing was measured: only ratios count)"
    if outcome.measured is not None:
        told += f", measured {_divergence(outcome.measured, outcome)}"
    if outcome.correction != 1:
        told += f" (predictions times {plain(outcome.correction, 3)}, as was measured before)"
    met = "" if outcome.met else " NOT MET:"
    lines = [
        f"Asked for {_asked(outcome)}:{met} {outcome.bits:.3f} bits, .bin of {thousands(outcome.bytes)} bytes; {told}.",
        f"A token is predicted to take {outcome.token_time:.2f} of the time of int4_sym, a prompt "
        f"{outcome.prompt_time:.2f}.",
    ]
    beside = outcome.beside()
    if beside is not None:
        ratio = outcome.predicted / beside.divergence if beside.divergence else 1.0
        lines.append(
            f"The best uniform format that fits, {beside.format} with 8-bit embeddings, takes "
            f"{thousands(beside.bytes)} bytes; this is predicted to leave {ratio:.2f} of its divergence."
        )
    return [*lines, *outcome.remarks]


def _curve_table(outcome: BudgetOutcome) -> Any:
    """Some points of the curve, evenly spaced, and the one that was chosen."""
    step = max(1, (len(outcome.curve) - 1) / (_SHOWN_POINTS - 1))
    places = sorted({round(number * step) for number in range(_SHOWN_POINTS) if number * step < len(outcome.curve)})
    rows = [(one.bytes, one.bits, one.divergence, "") for one in (outcome.curve[place] for place in places)]
    rows.append((outcome.bytes, outcome.bits, outcome.predicted, "chosen"))
    columns = {"bits": "number", ".bin": "number", "predicted": "number", "": "word"}
    told = [(f"{bits:.2f}", human_bytes(size), plain(loss, 3), mark) for size, bits, loss, mark in sorted(rows)]
    return terminal_table("What other sizes would cost", columns, told)


def _shares_table(outcome: BudgetOutcome) -> Any:
    largest = sorted(outcome.shares.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN_SHARES]
    rows = [(name, percent(share)) for name, share in largest]
    others = len(outcome.shares) - len(largest)
    if others:
        rows.append((f"{others} others", percent(max(0.0, 1 - sum(share for _, share in largest)))))
    return terminal_table("Where the predicted divergence comes from", {"weight": "text", "share": "number"}, rows)


def print_budget(outcome: BudgetOutcome, console: Any) -> None:
    """Print it to a rich console."""
    for line in budget_lines(outcome):
        console.print(line, highlight=False, soft_wrap=True)
    if outcome.curve and outcome.bits:
        console.print(_curve_table(outcome))
    if outcome.shares:
        console.print(_shares_table(outcome))
