"""What the CPU executes from codes, and what it misreads: single layers of random codes beside numpy.

    python -m benchmarks.device_sweep                  # a quarter of an hour; writes benchmarks/results/device_sweep.md
    python -m benchmarks.device_sweep --quick          # a minute, printed; exit code 1 where the rule is broken
    python -m benchmarks.device_sweep --isa AVX2       # as a processor of that kind would, in f32

A layer is *misread* where an output differs by more than its arithmetic explains, in units of ‖x‖·‖w‖/√n. The rule that
`passes.device_rules` states is then tried on random shapes, channels, threads and rows: none may be misread.
`--isa` limits the kernels (oneDNN's ONEDNN_MAX_CPU_ISA); what OpenVINO itself asks the processor is not changed by it,
so only f32 without quantised activations is meaningful then.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino import opset17

from benchmarks.machine import describe
from benchmarks.places import ROOT
from benchmarks.tables import markdown
from ov_weight_compression.evaluation.device import RuntimeGraph
from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization
from ov_weight_compression.passes.device_rules import misread

RESULT = ROOT / "benchmarks" / "results" / "device_sweep.md"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
ARITHMETIC: dict[str, tuple[dict[str, str], float]] = {
    "f32": (EXACT, 1e-3),
    "f32, activations in 8 bits": ({"INFERENCE_PRECISION_HINT": "f32"}, 0.12),
    "bf16": ({**EXACT, "INFERENCE_PRECISION_HINT": "bf16"}, 0.06),
    "as deployed": ({}, 0.12),
}
KINDS = (
    ("i4", ""),
    ("u4", "u4"),
    ("nf4", ""),
    ("f4e2m1", ""),
    ("u2", "one"),
    ("u2", "u2"),
    ("u2", "i8"),
    ("i8", ""),
    ("u8", "u8"),
)
"""Storage type of the codes, and that of the zero points ("one": a single i8)."""
OTHER_KINDS = (("u3", "one"), ("u6", ""), ("f8e4m3", ""), ("f8e5m2", ""))
GROUPS = (4, 5, 7, 8, 9, 12, 16, 20, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 144, 160, 192, 200)
GROUPS += (224, 256, 288, 320, 384, 448, 512, 640, 768, 1024)
CHANNELS = (17, 30, 31, 33, 34, 36, 50, 63, 64, 66, 100, 101, 126, 127, 128, 255, 258, 1000, 1001, 1002)
ROWS = (1, 4, 5, 33)


@dataclass(frozen=True)
class Case:
    """One weight `[out, channels]` and the layer that reads it."""

    storage: str
    zero: str
    channels: int
    group: int
    out: int = 64
    layer: str = "MatMul"
    transposed: bool = True
    scale: str = "f16"


def _tensor(kind: str, shape: Sequence[int], rng: np.random.Generator) -> ov.Tensor:
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(list(shape)))
    raw = tensor.data.reshape(-1).view(np.uint8)
    low, high = {"f8e4m3": (0x30, 0x40), "f8e5m2": (0x38, 0x40), "f8e8m0": (120, 126)}.get(kind, (0, 256))
    raw[:] = rng.integers(low, high, raw.size)
    return tensor


def _values(tensor: ov.Tensor) -> Any:
    return np.array(ov.op.Constant(tensor).get_data(dtype=np.float32), np.float64)


EXPERTS = 3


def weight_of(case: Case) -> tuple[ov.Node, Any]:
    """The chain's last node, in f32, and the values `[…, out, channels]`."""
    rng = np.random.default_rng(0)
    lead = (EXPERTS,) if case.layer == "GroupedMatMul" else ()
    parts = (case.channels,) if case.group == -1 else (case.channels // case.group, case.group)
    shape: tuple[int, ...] = (*lead, case.out, *parts)
    scales: tuple[int, ...] = (*lead, case.out, *parts[:-1], 1)
    whole: tuple[int, ...] = (*lead, case.out, case.channels)
    if not case.transposed:
        shape, scales, whole = (*parts, case.out), (*parts[:-1], 1, case.out), (case.channels, case.out)
    codes = _tensor(case.storage, shape, rng)
    drawn = rng.uniform(0.5, 1.5, scales)
    wide = {"f16": np.float16, "f32": np.float32}
    scale = ov.Tensor(drawn.astype(wide[case.scale])) if case.scale in wide else _tensor(case.scale, scales, rng)
    zero = None
    if case.zero == "one":
        zero = ov.Tensor(np.array(1 << (int(case.storage[1:]) - 1), np.int8))
    elif case.zero == "i8":
        zero = ov.Tensor(rng.integers(0, 4, scales).astype(np.int8))
    elif case.zero:
        zero = _tensor(case.zero, scales, rng)
    values = _values(codes).reshape(shape)
    if zero is not None:
        values = values - _values(zero).reshape(zero.shape)
    values = (values * _values(scale).reshape(scales)).reshape(whole)
    constants = [None if part is None else ov.op.Constant(part, shared_memory=True) for part in (codes, scale, zero)]
    node = build_dequantization(ChainParts(*constants), "weight", whole)
    if node.get_output_element_type(0) != ov.Type.f32:
        node = op.convert(node, "f32")
    return node, values if case.transposed else values.T


def model_of(case: Case, node: ov.Node, rows: int = -1) -> ov.Model:
    """The layer, called "layer"."""
    if case.layer == "Gather":
        inputs = [op.parameter([rows], np.int64)]
        layer = op.gather(node, inputs[0], op.constant(np.int64(0)))
    elif case.layer == "GroupedMatMul":
        inputs = [op.parameter([rows, case.channels], np.float32), op.parameter([EXPERTS], np.int32)]
        layer = opset17.grouped_matmul(inputs[0], node, inputs[1])
    else:
        inputs = [op.parameter([rows, case.channels], np.float32)]
        layer = op.matmul(inputs[0], node, False, case.transposed)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], inputs, "sweep")


def run(
    core: ov.Core, case: Case, arithmetic: str, rows: Sequence[int] = ROWS, *, threads: int = 0, static: bool = False
) -> tuple[dict[int, float], str]:
    """The largest difference by rows of activations (infinity: refused), and the type that the kernel reads."""
    properties = dict(ARITHMETIC[arithmetic][0])
    if threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    node, values = weight_of(case)
    rng = np.random.default_rng(1)
    differences: dict[int, float] = {}
    compiled: Any = None
    for count in rows:
        try:
            if compiled is None or static:
                compiled = core.compile_model(model_of(case, node, count if static else -1), "CPU", properties)
            differences[count] = _difference(compiled, case, values, count, rng)
        except RuntimeError:
            differences[count] = float("inf")
    kind = ""
    if compiled is not None:
        edge = RuntimeGraph(compiled, {"layer"}).weight_edge("layer", values.size)
        kind = edge.type if edge is not None else ""
    return differences, kind


def _difference(compiled: Any, case: Case, values: Any, rows: int, rng: np.random.Generator) -> float:
    if case.layer == "Gather":
        indices = rng.integers(0, case.out, rows)
        return float(np.abs(compiled([indices])[0] - values[indices]).max() / np.abs(values).max())
    x = rng.standard_normal((rows, case.channels)).astype(np.float32)
    if case.layer == "GroupedMatMul":
        ends = np.array([rows // 3, rows // 3, rows], np.int32)
        owner = np.repeat(np.arange(EXPERTS), np.diff(ends, prepend=0))
        found, own = compiled([x, ends])[0], values[owner]
        expected, norms = np.einsum("tn,ton->to", x.astype(np.float64), own), np.linalg.norm(own, axis=2)
    else:
        found, expected, norms = compiled([x])[0], x @ values.T, np.linalg.norm(values, axis=1)
    unit = np.linalg.norm(x, axis=1, keepdims=True) * norms / case.channels**0.5 + 1e-9
    off = np.abs(found - expected) / unit
    return float(off.max()) if np.isfinite(off).all() else 1e9


def _bad(differences: dict[int, float], arithmetic: str) -> list[int]:
    return [rows for rows, off in differences.items() if not off <= ARITHMETIC[arithmetic][1]]


def _name(storage: str, zero: str) -> str:
    return storage + (f", zero point {zero}" if zero else "")


def executed(core: ov.Core) -> str:
    """Which storage types each layer runs on codes."""
    rows = []
    for storage, zero in (*KINDS, *OTHER_KINDS):
        told = []
        for layer in ("MatMul", "Gather", "GroupedMatMul"):
            differences, kind = run(core, Case(storage, zero, 128, 32, layer=layer), "f32")
            kept = kind and getattr(ov.Type, kind).bitwidth <= 8
            told.append(("codes" if kept else "expanded") + (", MISREAD" if _bad(differences, "f32") else ""))
        rows.append([_name(storage, zero), *told])
    return markdown(["stored as, groups of 32", "MatMul", "Gather", "GroupedMatMul"], rows)


def misread_table(core: ov.Core, arithmetics: Sequence[str], cases: Sequence[tuple[str, list[Case]]]) -> str:
    """A line for each kind and arithmetic: what of a list of cases is misread, by their names."""
    rows = []
    for storage, zero in KINDS:
        for arithmetic in arithmetics:
            found = []
            for name, members in cases:
                bad: set[int] = set()
                refused = False
                for one in members:
                    differences, _ = run(core, _with(one, storage, zero), arithmetic)
                    bad.update(_bad(differences, arithmetic))
                    refused |= any(off == float("inf") for off in differences.values())
                if bad:
                    found.append(name + _rows_in_words(bad) + (" refused" if refused else ""))
            rows.append([_name(storage, zero), arithmetic, ", ".join(found) or "–"])
    return markdown(["stored as", "arithmetic", "misread"], rows)


def _with(case: Case, storage: str, zero: str) -> Case:
    return replace(case, storage=storage, zero=zero)


def _rows_in_words(bad: set[int]) -> str:
    return {True: "", False: " (≤ 4 rows)" if max(bad) < 5 else " (≥ 5 rows)" if min(bad) > 4 else ""}[len(bad) == 4]


def right_by_rule(seconds: float, arithmetics: Sequence[str], seed: int) -> Iterator[tuple[Case, str, int, bool]]:
    """Random cases that the rule calls right, with arithmetic, threads and whether shapes are static."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    while time.monotonic() < end:
        storage, zero = rng.choice([kind for kind in KINDS if kind != ("u2", "u2")])
        channels = rng.randint(2, rng.choice((40, 500, 1500)))
        group = -1
        if rng.random() < 0.7:
            group = rng.choice((4, 8, 16, 32, 64, 128, 256, 512, 1024))
            channels = group * rng.randint(2, max(2, min(50, 8192 // group)))
        out = rng.choice((2, 3, 8, 15, 16, 17, 31, 33, 64, 100, 384))
        scale = rng.choice(("f16", "f16", "f32", "f8e8m0" if storage == "f4e2m1" and group == 32 else "f16"))
        layer = rng.choice(("MatMul", "MatMul", "MatMul", "GroupedMatMul", "Gather"))
        if layer == "Gather":
            scale = "f16"
        case = Case(storage, zero, channels, group, out, layer, layer != "MatMul" or rng.random() < 0.7, scale)
        if misread(layer, storage, group, channels, out) is None:
            yield case, rng.choice(list(arithmetics)), rng.choice((0, 1, 2)), rng.random() < 0.25


def sweep(quick: bool, isa: str | None, seconds: float, seed: int) -> tuple[str, int]:
    """The whole text, and how many random cases were misread that the rule calls right."""
    core = ov.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    arithmetics = ["f32"] if isa else [name for name in ARITHMETIC if has_bf16 or "f32" in name]
    groups, counts = (GROUPS[::4], (2, 5)) if quick else (GROUPS, (3, 5))
    channels = CHANNELS[::3] if quick else CHANNELS
    by_group = [(str(size), [Case("", "", size * n, size) for n in counts if size * n <= 4096]) for size in groups]
    by_channels = [
        (str(size), [Case("", "", size, -1, transposed=turn) for turn in (True, False)]) for size in channels
    ]
    experts = [(name, [_as_experts(one) for one in members[:2]]) for name, members in by_group]
    broken, tried = [], 0
    for case, arithmetic, threads, static in right_by_rule(seconds, arithmetics, seed):
        differences, _ = run(core, case, arithmetic, (1, 3, 4, 5, 8, 33), threads=threads, static=static)
        tried += 1
        if _bad(differences, arithmetic):
            broken.append(f"- {case}, {arithmetic}, threads {threads}, static {static}: {differences}")
    kinds = f", kernels of {isa}" if isa else ""
    text = "\n".join(
        [
            f"{describe(None)} OpenVINO {ov.get_version()}{kinds}",
            "\n### What runs on codes\n",
            executed(core),
            "### Groups that are misread in a MatMul\n",
            misread_table(core, arithmetics, by_group),
            "### Channels that are misread in a MatMul, one scale per channel\n",
            misread_table(core, arithmetics, by_channels),
            "### Groups that are misread in a GroupedMatMul\n",
            misread_table(core, arithmetics[:1], experts),
            "### What the rule calls right\n",
            f"{tried} random layers of which the rule says that they are right, {len(broken)} of them misread.",
            *broken,
            "",
        ]
    )
    return text, len(broken)


def _as_experts(case: Case) -> Case:
    return replace(case, layer="GroupedMatMul", out=32)


_HEAD = """# What the CPU executes from codes, and what it misreads

Made by `python -m benchmarks.device_sweep`. Random codes in single layers of 64 output channels (experts: 3 of 32),
{counts} groups a channel, 1, 4, 5 and 33 rows of activations, beside numpy on the stored constants. *Refused* is an
exception at compilation or at the first inference. Sizes without an addition are misread with any number of rows.
`f32` and `bf16` are without quantised activations, `as deployed` is without any property.

"""


def main() -> int:
    """Run the sweep, or one for each kind of kernels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, printed")
    parser.add_argument("--isa", help="one of oneDNN's names: AVX2, AVX512_CORE, …")
    parser.add_argument("--seconds", type=float, help="for random layers (full 120, quick 10)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    seconds = args.seconds if args.seconds is not None else 10 if args.quick else 120
    if args.isa and os.environ.get("ONEDNN_MAX_CPU_ISA") != args.isa:
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": args.isa}
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.device_sweep", *sys.argv[1:]], env=environment
        ).returncode
    text, broken = sweep(args.quick, args.isa, seconds, args.seed)
    print(text)
    if not args.quick:
        heading = f"## Kernels of {args.isa}" if args.isa else "## This processor"
        before = RESULT.read_text() if args.isa and RESULT.exists() else _HEAD.format(counts="3 and 5")
        RESULT.write_text(f"{before}{heading}\n\n{text}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
