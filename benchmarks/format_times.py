"""How long a device takes with weights in each format: ``python -m benchmarks.format_times``.

A row of equal layers is compiled in each format and run on one row of input and on many, in turns with the same in
int4_sym in groups of 128, on one thread; the figures are ratios of the processor time of the quicker half of the runs,
which other processes disturb less than the time on the clock. The layers together are larger than any cache, as those
of a language model are.

    python -m benchmarks.format_times                      # ten minutes; writes benchmarks/results/format_times.md
    python -m benchmarks.format_times --json mine.json     # a table for the option format_times
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from benchmarks.machine import describe
from benchmarks.places import ROOT
from benchmarks.tables import markdown
from ov_weight_compression import apply_weight_compression
from ov_weight_compression.passes.budget import usual_formats

RESULT = ROOT / "benchmarks" / "results" / "format_times.md"
REFERENCE = "int4_sym:128"
MANY_ROWS = 256


def layers(count: int, size: int) -> ov.Model:
    """A row of square MatMuls of random weights, with a ReLU between."""
    rng = np.random.default_rng(0)
    x = op.parameter([-1, size], np.float32, name="x")
    value: Any = x
    for number in range(count):
        weight = op.constant((rng.standard_normal((size, size)) / size**0.5).astype(np.float16))
        weight.set_friendly_name(f"weight_{number}")
        value = op.relu(op.matmul(value, op.convert(weight, "f32"), False, True))
    return ov.Model([op.result(value)], [x], "layers")


class Contender:
    """Layers in one format, compiled."""

    def __init__(self, format: str, arguments: argparse.Namespace) -> None:
        model = layers(arguments.layers, arguments.size)
        mode, _, group = format.partition(":")
        apply_weight_compression(
            model,
            mode=mode,
            group_size=int(group or -1),
            all_layers=None if mode.startswith("int8") else True,
            scale_search="off",
        )
        config = {"INFERENCE_NUM_THREADS": "1", "PERFORMANCE_HINT": "LATENCY"}
        self._request = ov.Core().compile_model(model, arguments.device, config).create_infer_request()
        self._size = arguments.size

    def seconds(self, rows: int) -> float:
        """Of the processor, for one inference."""
        data = np.full((rows, self._size), 0.1, np.float32)
        start = time.process_time()
        self._request.infer([data])
        return time.process_time() - start


def quick(times: list[float]) -> float:
    """The mean of the quicker half."""
    return statistics.fmean(sorted(times)[: max(1, len(times) // 2)])


def measured(arguments: argparse.Namespace) -> Iterator[tuple[str, float, float]]:
    """Each format with its times beside the reference's, for one row and for many."""
    reference = Contender(REFERENCE, arguments)
    for choice in usual_formats(float("inf"), None):
        other = Contender(str(choice), arguments)
        ratios = []
        for rows, turns in ((1, arguments.turns), (MANY_ROWS, max(3, arguments.turns // 4))):
            times: tuple[list[float], list[float]] = ([], [])
            for turn in range(turns + 1):
                pair = reference.seconds(rows), other.seconds(rows)
                if turn:  # the first makes the kernels
                    times[0].append(pair[0])
                    times[1].append(pair[1])
            ratios.append(quick(times[1]) / quick(times[0]))
        print(f"{choice}: {ratios[0]:.2f} {ratios[1]:.2f}", flush=True)
        yield str(choice), ratios[0], ratios[1]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--json", type=Path, help="write a table for the option format_times, and no result")
    arguments = parser.parse_args()
    found = list(measured(arguments))
    if arguments.json is not None:
        table: dict[str, dict[str, tuple[float, float]]] = {}
        for name, one, many in found:
            mode, _, group = name.partition(":")
            table.setdefault(mode, {})[group or "-1"] = (round(one, 3), round(many, 3))
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
        return
    rows = [(name, f"{one:.2f}", f"{many:.2f}") for name, one, many in found]
    RESULT.write_text(
        f"# Time of each format beside {REFERENCE}\n\n"
        "Processor time of MatMuls, run in turns on one thread (`python -m benchmarks.format_times`): a ratio "
        f"for one row of input, as for a generated token, and for {MANY_ROWS}, as for a prompt.\n\n"
        + markdown(("format", "one row", f"{MANY_ROWS} rows"), rows)
        + f"\n{describe(None)}\n"
    )


if __name__ == "__main__":
    main()
