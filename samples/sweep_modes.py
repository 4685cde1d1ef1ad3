"""Compress a small language model in many ways, and draw its size against what it cost.

    python samples/sweep_modes.py [PICTURE.png]

Prints a line for each mode and group size. With the name of a picture, draws them as well (needs the extra `plot`).
The original is run on the text once; its predictions are kept in a file for all comparisons.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import openvino as ov

from ov_weight_compression.evaluation import ComparisonProtocol, compare
from ov_weight_compression.passes import apply_weight_compression

HERE = Path(__file__).parent
MODEL = HERE / "pylm" / "openvino_model.xml"
TEXT = HERE / "python_tokens.npy"  # 16 windows of 256 tokens of Python's own source, not used in training
MODES = {
    "int8_asym": [-1],
    "int4_asym": [32, 64, 128],
    "int4_sym": [32, 64, 128],
    "nf4": [32, 64, 128],
    "mxfp4": [32],
    "nvfp4": [16],
    "int2_asym": [32, 64],
}


class Point(NamedTuple):
    """One way to compress the model."""

    mode: str
    group_size: int
    megabytes: float
    divergence: float
    error: float


def sweep(kept: Path) -> list[Point]:
    """Every mode with every group size; `kept` is where the original's predictions are kept."""
    base = ov.Core().read_model(MODEL)
    points = []
    for mode, group_sizes in MODES.items():
        for group_size in group_sizes:
            model = apply_weight_compression(base.clone(), mode=mode, group_size=group_size)
            protocol = ComparisonProtocol(base_logits=kept) if kept.exists() else ComparisonProtocol(save_base=kept)
            found = compare(base, model, TEXT, layers=False, protocol=protocol)
            assert found.language is not None
            kl = found.language.kl.mean
            points.append(Point(mode, group_size, found.compressed.bytes / 1e6, kl.value, kl.error))
            print(f"{mode:10} group {group_size:4}  {points[-1].megabytes:6.2f} MB  KL {kl.value:.5f} ± {kl.error:.5f}")
    return points


def draw(points: list[Point], picture: Path) -> None:
    """Size against divergence, and once more what has 4 bits; a line joins the group sizes of one mode."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (whole, close) = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for colour, mode in enumerate(MODES):
        own = [point for point in points if point.mode == mode]
        sizes, divergences = [point.megabytes for point in own], [point.divergence for point in own]
        for axes in (whole, close) if "4" in mode else (whole,):
            axes.errorbar(sizes, divergences, [point.error for point in own], fmt=f"C{colour}o-", capsize=3, label=mode)
        for point in own if "4" in mode else []:
            place = (point.megabytes, point.divergence)
            close.annotate(str(point.group_size), place, xytext=(6, 4), textcoords="offset points", size=8)
    whole.set(yscale="log", title="What compressing pylm costs", ylabel="mean KL divergence from the original, nats")
    close.set(title="4 bits: the numbers are group sizes")
    for axes in (whole, close):
        axes.set_xlabel("weights, MB")
        axes.grid(alpha=0.3)
        axes.margins(0.08)
        axes.legend()
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        results = sweep(Path(temporary) / "original.logits")
    if len(sys.argv) > 1:
        draw(results, Path(sys.argv[1]))
