"""README's picture: bytes against divergence, this package's formats beside NNCF's, from what was measured.

    python -m benchmarks.picture          benchmarks/results/{formats.md, budget.json} → docs/images/divergence.svg

Needs the extra `plot`. Nothing is measured here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.places import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "divergence.svg"
SERIES = (
    ("default", "this package, no data", "#9ecae1", "o"),
    ("`fast`", "this package, fast", "#4292c6", "o"),
    ("`best`", "this package, best", "#08519c", "o"),
    ("NNCF, no data", "NNCF, no data", "#fdbe85", "s"),
    ("NNCF, its best", "NNCF, its best with data", "#d94801", "s"),
)


def table(text: str) -> list[dict[str, str]]:
    """The rows of the first table of a Markdown text, by their headings."""
    lines = [[cell.strip() for cell in line.split("|")] for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE)]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def draw(rows: list[dict[str, str]], curves: list[dict[str, Any]], picture: Path) -> None:
    """One point for each format and way of calibrating; a line for each curve."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "divergence"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.4, 4.6), layout="constrained")
    four_bits = [row for row in rows if "4" in row["mode"]]
    for heading, label, colour, marker in SERIES:
        found = [row for row in four_bits if row[heading] != "–"]
        sizes, divergences = ([float(row[name]) for row in found] for name in ("MB", heading))
        axes.plot(sizes, divergences, marker, color=colour, label=label, markersize=7, markeredgecolor="white")
        if heading in ("`best`", "NNCF, its best"):
            for row, size, divergence in zip(found, sizes, divergences, strict=True):
                name = f"{row['mode'].strip('`')}:{row['group']}"
                axes.annotate(name, (size, divergence), xytext=(6, -3), textcoords="offset points", size=8)
    for curve in curves:
        points = sorted((point["bytes"] / 1e6, point["kl"]) for point in curve["points"])
        colour = "#d94801" if curve["tool"] == "nncf" else "#08519c"
        axes.plot(*zip(*points, strict=True), "-", color=colour, alpha=0.6, label=curve["name"])
    axes.set(yscale="log", xlabel="MB of weights (269 MB in f16)", ylabel="KL divergence from the original, nats")
    axes.set_title("SmolLM2-135M: what 4 bits cost, less is better", loc="left", size=11)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


def main() -> int:
    """Draw."""
    rows = table((RESULTS / "formats.md").read_text(encoding="utf-8"))
    kept = RESULTS / "budget.json"
    curves = json.loads(kept.read_text(encoding="utf-8"))["curves"] if kept.exists() else []
    draw(rows, [one for one in curves if one["case"] == "smollm" and len(one["points"]) > 2], PICTURE)
    print(PICTURE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
