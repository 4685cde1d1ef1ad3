"""AWQ without data beside NNCF's, on small random layers: ``python -m benchmarks.awq_without_data --peer-python PATH``.

Multilayer perceptrons of one and of three blocks, plain and gated, alone and as experts side by side, whose hidden
channels have sizes of different kinds. Both tools compress the same models, with AWQ and without, in groups of 32 and
64; the error is that of the output, relative, in L2. Takes some minutes; the exit code is 1 where the median over the
seeds of the ratio of the two errors is above the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as op

from benchmarks import peers
from benchmarks.tables import markdown

WORKER = Path(__file__).parent / "workers" / "awq_worker.py"
KINDS = ("alike", "outliers", "inverse", "independent")
BLOCKS = ("relu", "clamp", "swish", "gated", "parts", "product")
_ACTIVATIONS = {"relu": op.relu, "clamp": lambda x: op.clamp(x, 0, 6), "swish": op.swish}
_GATES = {"gated": op.swish, "parts": lambda x: op.multiply(x, op.sigmoid(x)), "product": lambda x: x}
_COLUMNS, _HIDDEN, _ROWS, _EXPERTS = 64, 128, 64, 4
_LIMIT = 1.02
"""A median ratio of errors above this counts as larger."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One kind of model; `name` says all of it."""

    kind: str
    block: str
    depth: int
    experts: int

    @property
    def name(self) -> str:
        return f"{self.block}-{self.kind}-{self.depth}" + ("-experts" if self.experts else "")

    def model(self, seed: int) -> ov.Model:
        """The blocks one behind another, `[rows, 64]` or `[4, rows, 64]` in and out."""
        random = np.random.default_rng(seed)
        lead = (self.experts,) if self.experts else ()
        value = first = op.parameter([*lead, -1, _COLUMNS], np.float32, name="x")
        for number in range(self.depth):
            rows, columns = _sizes(random, self.kind, (*lead, _HIDDEN))
            hidden = _layer(random, value, (*lead, _HIDDEN, _COLUMNS), f"up{number}", rows[..., None])
            if self.block in ("gated", "parts", "product"):
                gate = _layer(random, value, (*lead, _HIDDEN, _COLUMNS), f"gate{number}")
                hidden = op.multiply(_GATES[self.block](gate), hidden)
            else:
                hidden = _ACTIVATIONS[self.block](hidden)
            value = _layer(random, hidden, (*lead, _COLUMNS, _HIDDEN), f"down{number}", 2 * columns[..., None, :])
        return ov.Model([op.result(value)], [first], self.name)

    def rows(self, seed: int) -> Floats:
        """Normal inputs."""
        lead = (self.experts,) if self.experts else ()
        return np.random.default_rng(1000 + seed).normal(size=(*lead, _ROWS, _COLUMNS)).astype(np.float32)


def _sizes(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """The sizes of a block's hidden channels in the weight that makes them, and in the one that reads them."""
    rows = np.ones(shape)
    if kind == "outliers":
        places = random.permutation(shape[-1])[: shape[-1] // 20]
        rows[..., places] = random.uniform(5, 30, size=len(places))
    elif kind != "alike":
        rows = np.exp(0.7 * random.normal(size=shape))
    return rows, np.exp(0.7 * random.normal(size=shape)) if kind == "independent" else 1 / rows


def _layer(
    random: np.random.Generator, value: ov.Output, shape: tuple[int, ...], name: str, scale: Floats | float = 1.0
) -> ov.Output:
    weight = op.constant((random.normal(size=shape) / np.sqrt(shape[-1]) * scale).astype(np.float32))
    weight.set_friendly_name(name)
    layer = op.matmul(value, weight, False, True)
    layer.set_friendly_name(f"layer_{name}")
    return layer


def cases() -> Iterator[Case]:
    for experts, depth, block, kind in product((0, _EXPERTS), (1, 3), BLOCKS, KINDS):
        yield Case(kind, block, depth, experts)


def output(path: Path, rows: Floats) -> Floats:
    """What a model computes, in f32 on the CPU."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "NUM_STREAMS": "1"}
    return np.array(ov.Core().compile_model(path, "CPU", settings)(rows)[0], dtype=np.float64)


def measure(chosen: list[Case], seeds: int, groups: list[int], python: str | None) -> dict[str, Floats]:
    """Errors [seeds] by "case group tool awq"."""
    tools = {"ours": sys.executable} | ({"nncf": python} if python else {})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = []
        for case, seed in product(chosen, range(seeds)):
            names.append(f"{case.name}.{seed}")
            ov.save_model(case.model(seed), root / f"{names[-1]}.xml", compress_to_fp16=False)
        (root / "job.json").write_text(json.dumps({"names": names, "groups": groups}))
        commands = [[at, str(WORKER), tool, folder] for tool, at in tools.items()]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda command: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), commands))
        found: dict[str, Floats] = {}
        for case in chosen:
            for seed in range(seeds):
                rows = case.rows(seed)
                expected = output(root / f"{case.name}.{seed}.xml", rows)
                for tool, group, awq in product(tools, groups, (False, True)):
                    got = output(root / f"{case.name}.{seed}.{tool}.{group}.{int(awq)}.xml", rows)
                    errors = found.setdefault(f"{case.name} {group} {tool} {int(awq)}", np.zeros(seeds))
                    errors[seed] = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    return found


def table(found: dict[str, Floats], chosen: list[Case], groups: list[int]) -> tuple[list[list[str]], list[str]]:
    """A line for each case and group, and the cases whose ratio is too large."""
    lines, larger = [], []
    for case, group in product(chosen, groups):
        own = [found[f"{case.name} {group} ours {awq}"] for awq in (0, 1)]
        line = [case.name, str(group), *(f"{np.median(errors):.3f}" for errors in own)]
        if f"{case.name} {group} nncf 0" in found:
            other = [found[f"{case.name} {group} nncf {awq}"] for awq in (0, 1)]
            ratios = own[1] / other[1]
            line += [f"{np.median(errors):.3f}" for errors in other]
            line += [f"{np.median(ratios):.2f}", f"{int(np.sum(ratios < 1))} of {len(ratios)}"]
            if not np.median(ratios) <= _LIMIT:  # NaN is not
                larger.append(f"{case.name} in groups of {group}: {np.median(ratios):.3f} of NNCF's error")
        lines.append(line)
    return lines, larger


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_option(parser)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--groups", default="32,64")
    parser.add_argument("--only", default="*", help="a pattern of the names of the cases, such as gated-*-3*")
    parser.add_argument("--save", type=Path, help="an .npz of all errors")
    given = parser.parse_args()
    groups = [int(size) for size in given.groups.split(",")]
    chosen = [case for case in cases() if fnmatchcase(case.name, given.only)]
    found = measure(chosen, given.seeds, groups, given.peer_python)
    if given.save:
        np.savez(given.save, **found)
    lines, larger = table(found, chosen, groups)
    header = ["model", "group", "without", "with AWQ", "NNCF without", "NNCF with", "ratio", "seeds better"]
    print(markdown(header, lines))
    print("\n".join(larger))
    return 1 if larger else 0


if __name__ == "__main__":
    sys.exit(main())
