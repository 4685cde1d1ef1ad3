"""README's picture: bytes against divergence, this package's formats beside NNCF's, from what was measured.

    python -m benchmarks.picture          benchmarks/results/formats.md → docs/images/divergence.svg

Needs the extra `plot`. Nothing is measured here.
"""

from __future__ import annotations

import re
from pathlib import Path

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


def draw(rows: list[dict[str, str]], picture: Path) -> None:
    """A line for each format with its bytes; on it what it costs without data and with, in both tools."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "divergence", "font.family": "sans-serif"})
    from matplotlib import pyplot

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
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None}, facecolor="white")


def main() -> int:
    """Draw."""
    draw(table((RESULTS / "formats.md").read_text(encoding="utf-8")), PICTURE)
    print(PICTURE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
