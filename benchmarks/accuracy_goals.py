"""What the accuracy figures must reach beside NNCF's: a row for each goal, with what was reached."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import tables
from benchmarks.accuracy_cases import METRICS
from benchmarks.accuracy_table import Block, Figures, blocks, kl, ratio

SMALL = ("pylm", "stories260K", "chargpt")
INT4 = ("int4_sym", "int4_asym")


@dataclass(frozen=True)
class Goal:
    """A variant's divergence (or seconds) over a base of NNCF's is at most ``limit``. ``base`` is ``"its best"`` or the
    name of NNCF's variant."""

    models: tuple[str, ...]
    modes: tuple[str, ...]
    variant: str
    base: str
    limit: float
    what: str = "kl"


GOALS = (
    Goal(("smollm",), INT4, "auto", "plain", 0.98),
    Goal(SMALL, INT4, "auto", "plain", 0.95),
    Goal(("smollm",), INT4, "best", "its best", 0.5),
    Goal(("smollm",), ("int2_sym",), "best", "its best", 0.7),
    Goal(SMALL, (*INT4, "int2_sym"), "best", "its best", 0.8),
    Goal(SMALL, INT4, "best", "lora_correction", 1.0),
    Goal(("smollm",), INT4, "fast", "awq+scale_estimation", 1.02),
    Goal(("smollm",), ("int4_sym",), "fast, random tokens", "plain", 0.57),
    Goal(("smollm",), ("int4_sym",), "best, self-made text", "plain", 0.3),
    Goal((*SMALL, "smollm"), INT4, "scale_estimation", "scale_estimation", 1.0),
    *(Goal((*SMALL, "smollm"), ("int4_sym",), f"ratio0.8 {name}", f"ratio0.8 {name}", 1.0) for name in METRICS),
    Goal(("smollm",), ("int4_sym",), "gptq", "gptq", 0.2, "seconds"),
    Goal(("smollm",), ("int4_sym",), "best", "gptq+scale_estimation", 0.5, "seconds"),
)


def render(figures: Figures) -> str:
    """The table of goals that were measured."""
    rows = list(_rows(blocks(figures)))
    header = ("model, mode", "variant", "beside NNCF's", "of", "reached", "goal", "")
    return f"### Goals\n\n{tables.markdown(header, rows)}" if rows else ""


def _rows(known: Mapping[tuple[str, str], Block]) -> Iterator[list[str]]:
    for goal in GOALS:
        for model in goal.models:
            for mode in goal.modes:
                block = known.get((model, mode))
                reached = None if block is None else _reached(block, goal)
                if reached is not None:
                    verdict = "met" if reached <= goal.limit else "missed"
                    figures = [f"{reached:.3f}", f"{goal.limit:g}", verdict]
                    yield [f"{model}, {mode}", goal.variant, goal.base, goal.what, *figures]


def _reached(block: Block, goal: Goal) -> float | None:
    if goal.what == "kl":
        return ratio(kl(block.own, goal.variant), block.best if goal.base == "its best" else kl(block.nncf, goal.base))
    return ratio(_seconds(block.own, goal.variant), _seconds(block.nncf, goal.base))


def _seconds(figures: Figures, variant: str) -> float | None:
    entry: Mapping[str, Any] = figures.get(variant, {})
    return entry.get("seconds")
