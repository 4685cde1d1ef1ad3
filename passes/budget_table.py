"""What a budget has chosen, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.wording import human_bytes, percent, plain, terminal_table, thousands

if TYPE_CHECKING:
    from ov_weight_compression.passes.budget_outcome import BudgetOutcome

__all__ = ["budget_lines", "print_budget"]

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
    table = terminal_table(
        "What other sizes would cost", {"bits": "number", ".bin": "number", "predicted": "number", "": "word"}
    )
    step = max(1, (len(outcome.curve) - 1) / (_SHOWN_POINTS - 1))
    places = sorted({round(number * step) for number in range(_SHOWN_POINTS) if number * step < len(outcome.curve)})
    rows = [(one.bytes, one.bits, one.divergence, "") for one in (outcome.curve[place] for place in places)]
    rows.append((outcome.bytes, outcome.bits, outcome.predicted, "chosen"))
    for size, bits, divergence, mark in sorted(rows):
        table.add_row(f"{bits:.2f}", human_bytes(size), plain(divergence, 3), mark)
    return table


def _shares_table(outcome: BudgetOutcome) -> Any:
    table = terminal_table("Where the predicted divergence comes from", {"weight": "text", "share": "number"})
    largest = sorted(outcome.shares.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN_SHARES]
    for name, share in largest:
        table.add_row(name, percent(share))
    others = len(outcome.shares) - len(largest)
    if others:
        table.add_row(f"{others} others", percent(max(0.0, 1 - sum(share for _, share in largest))))
    return table


def print_budget(outcome: BudgetOutcome, console: Any) -> None:
    """Print it to a rich console."""
    for line in budget_lines(outcome):
        console.print(line, highlight=False, soft_wrap=True)
    if outcome.curve and outcome.bits:
        console.print(_curve_table(outcome))
    if outcome.shares:
        console.print(_shares_table(outcome))
