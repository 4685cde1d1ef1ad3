"""The accuracy table as Markdown, from remembered figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import tables
from benchmarks.accuracy_cases import NNCF_VARIANTS, OWN_VARIANTS

BEST_OF = ("awq", "scale_estimation", "awq+scale_estimation", "gptq", "gptq+scale_estimation")
Figures = Mapping[str, Mapping[str, Any]]
HEADER = (
    "",
    "KL",
    "NNCF's KL",
    "this / NNCF",
    "/ NNCF plain",
    "/ NNCF's best",
    "MB",
    "NNCF's MB",
    "s",
    "NNCF's s",
)


@dataclass(frozen=True)
class Block:
    """The figures of one model in one mode and group, by variant."""

    title: str
    own: Figures
    nncf: Figures

    @property
    def plain(self) -> float | None:
        """NNCF without data."""
        return kl(self.nncf, "plain")

    @property
    def best(self) -> float | None:
        """The least divergence of NNCF's algorithms that add nothing to the graph."""
        known = [value for name in BEST_OF if (value := kl(self.nncf, name)) is not None]
        return min(known, default=None)


def kl(figures: Figures, variant: str) -> float | None:
    """A variant's divergence, None where it was not measured or failed."""
    value = figures.get(variant, {}).get("kl")
    return None if value is None else float(value)


def blocks(figures: Figures) -> dict[tuple[str, str], Block]:
    """The remembered figures by model and mode."""
    sorted_out: dict[tuple[str, str, str], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for key, value in figures.items():
        model, mode, group, tool, variant = key.split("/", 4)
        sorted_out.setdefault((model, mode, group), {"own": {}, "nncf": {}})[tool][variant] = value
    return {
        (model, mode): Block(f"{model}, {mode}, groups of {group[1:]}", both["own"], both["nncf"])
        for (model, mode, group), both in sorted_out.items()
    }


def render(figures: Figures) -> str:
    """A table for each model and mode."""
    names = list(dict.fromkeys(variant.name for variant in (*OWN_VARIANTS, *NNCF_VARIANTS)))
    text = ""
    for block in blocks(figures).values():
        rows = [_line(block, name) for name in names if name in block.own or name in block.nncf]
        text += f"### {block.title}\n\n{tables.markdown(HEADER, rows)}\n"
    return text


def ratio(value: float | None, base: float | None) -> float | None:
    """value / base where both are there."""
    return None if value is None or not base else value / base


def _line(block: Block, name: str) -> list[str]:
    ours, theirs = kl(block.own, name), kl(block.nncf, name)
    ratios = (ratio(ours, theirs), ratio(ours, block.plain), ratio(ours, block.best))
    sizes = [tables.megabytes(each.get(name, {}).get("bytes")) for each in (block.own, block.nncf)]
    times = [tables.seconds(each.get(name, {}).get("seconds")) for each in (block.own, block.nncf)]
    return [name, _kl(block.own, name), _kl(block.nncf, name), *(_ratio(each) for each in ratios), *sizes, *times]


def _kl(figures: Figures, name: str) -> str:
    value = kl(figures, name)
    if value is None:
        return "failed" if "failed" in figures.get(name, {}) else "–"
    return f"{value:.3g}" if value >= 1 else f"{value:.5f}" if value < 0.1 else f"{value:.4f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
