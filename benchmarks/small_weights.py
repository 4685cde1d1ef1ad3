"""Time by the number of small weights: ``python -m benchmarks.small_weights --counts 100,1000,10000``.

A chain of layers of 64 x 64 weights, compressed to int4_sym and saved by OpenVINO's writer, by the package's own, and
by that one with the scale search off. Processor time and time on the clock, import and model making not counted; the
last column should be the same in all rows of a writer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from benchmarks.machine import describe
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import apply_weight_compression

SIZE = 64
WRITERS: dict[str, tuple[Callable[[Any, str], Any], dict[str, Any]]] = {
    "ov.save_model": (ov.save_model, {}),
    "save_model": (save_model, {}),
    "save_model, search off": (save_model, {"scale_search": "off"}),
}


def chain(count: int) -> ov.Model:
    """A model of ``count`` layers, one behind the other."""
    random = np.random.default_rng(0)
    x = y = op.parameter([-1, SIZE], np.float32)
    for _ in range(count):
        weight = random.standard_normal((SIZE, SIZE)).astype(np.float32) / np.float32(8)
        y = op.matmul(y, op.constant(weight), False, True)
    return ov.Model([y], [x])


def build(count: int, folder: Path) -> Path:
    """The model as an IR, written where it is not there yet."""
    path = folder / "openvino_model.xml"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        ov.serialize(chain(count), str(path))
    return path


def measure(count: int, writer: str) -> tuple[float, float]:
    """Seconds of processor time and on the clock for a model of ``count`` weights."""
    save, options = WRITERS[writer]
    model = chain(count)
    with tempfile.TemporaryDirectory() as folder:
        used, begun = time.process_time(), time.perf_counter()
        save(
            apply_weight_compression(model, mode="int4_sym", group_size=32, all_layers=True, **options),
            f"{folder}/m.xml",
        )
        return time.process_time() - used, time.perf_counter() - begun


def main() -> None:
    """Print a row for each writer and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", default="100,1000,10000", help="numbers of weights")
    counts = [int(part) for part in parser.parse_args().counts.split(",")]
    print(describe(None))
    measure(20, "save_model")
    print(f"{'writer':24}{'weights':>8}{'processor s':>13}{'clock s':>9}{'ms a weight':>13}")
    for writer in WRITERS:
        for count in counts:
            used, clock = measure(count, writer)
            print(f"{writer:24}{count:8}{used:13.2f}{clock:9.2f}{1000 * used / count:13.2f}", flush=True)


if __name__ == "__main__":
    main()
