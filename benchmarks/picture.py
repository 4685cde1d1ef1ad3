"""Pictures of bytes against divergence, this package beside NNCF, from what was measured.

    python -m benchmarks.picture          benchmarks/results/formats.md  → docs/images/divergence.svg, README's
                                          benchmarks/results/budget.json → docs/images/budget.svg

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
CURVES = ROOT / "docs" / "images" / "budget.svg"
TITLES = {"smollm": "SmolLM2-135M", "pylm": "a small model of Python code"}
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


def draw(rows: list[dict[str, str]], picture: Path) -> None:
    """A line for each format with its bytes; on it what it costs without data and with, in both tools."""
    pyplot = _pyplot()
    rows = sorted((row for row in rows if row["default"] != "–"), key=lambda row: -float(row["MB"]))
    figure, axes = pyplot.subplots(figsize=(8.6, 0.42 * len(rows) + 1.3), layout="constrained")
    places = range(len(rows), 0, -1)
    for heading, label, colour, marker in SERIES:
        found = [(float(row[heading]), place) for row, place in zip(rows, places, strict=True) if row[heading] != "–"]
        own = heading[:4] != "NNCF"
        look = {"color": colour, "label": label, "markersize": 7 if own else 10, "zorder": 4 if own else 3}
        axes.plot(*zip(*found, strict=True), marker, markeredgecolor="white", **look)
    names = [
        f"{row['mode'].strip('`')}, {'group ' * row['group'].isdigit()}{row['group']}: {row['MB']} MB" for row in rows
    ]
    axes.set_yticks(list(places), names)
    axes.set(xscale="log", xlabel="mean KL divergence from the original, nats (less is better)")
    axes.set_title("SmolLM2-135M, 269 MB in f16: bytes, and what they cost", loc="left", size=11)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=len(SERIES))
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


def draw_curves(curves: list[dict[str, Any]], picture: Path) -> None:
    """NNCF's ratio and this package's targets of as many bytes, for each model that both have a curve of."""
    pyplot = _pyplot()
    cases = [case for case in TITLES if {one["tool"] for one in curves if one["case"] == case} == {"nncf", "own"}]
    figure, panels = pyplot.subplots(
        1, len(cases), figsize=(4.3 * len(cases), 3.4), layout="constrained", squeeze=False
    )
    for axes, case in zip(panels[0], cases, strict=True):
        for one in (one for one in curves if one["case"] == case):
            colour, marker, label = (
                ("#d94801", "s", "NNCF, ratio")
                if one["tool"] == "nncf"
                else (dict(_COLOURS).get(one["name"], "#08519c"), "o", f"this package, {one['name']}")
            )
            x, y, spread = zip(*((p["bytes"] / 1e6, p["kl"], p["error"]) for p in one["points"]), strict=True)
            axes.errorbar(x, y, spread, color=colour, marker=marker, markersize=4, capsize=2, label=label)
        axes.set(yscale="log", xlabel="MB in the .bin", title=TITLES[case])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("mean KL divergence, nats (log)")
    handles = max((axes.get_legend_handles_labels() for axes in panels[0]), key=lambda pair: len(pair[0]))
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


_COLOURS = (("default", "#9ecae1"), ("fast", "#4292c6"), ("best", "#08519c"))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "divergence", "font.family": "sans-serif"})
    from matplotlib import pyplot

    return pyplot


def main() -> int:
    """Draw."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(table((RESULTS / "formats.md").read_text(encoding="utf-8")), PICTURE)
    draw_curves(json.loads((RESULTS / "budget.json").read_text(encoding="utf-8"))["curves"], CURVES)
    print(PICTURE, CURVES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
