"""What a budget has chosen, and what there was to choose from: figures for the report, the page and the JSON, and words
for the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ov_weight_compression.ir_utils.printing import human_bytes, percent, plain, terminal_table, thousands


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
