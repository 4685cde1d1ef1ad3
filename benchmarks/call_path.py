"""How much code a weight passes: the package's functions and files, in the order in which they are first called.

    python -m benchmarks.call_path            # how many functions in how many files, for each way
    python -m benchmarks.call_path --list     # and which

Counted with a profiler in all threads: functions and methods of the package (no comprehensions and lambdas, none that
a dataclass makes, nothing at import) on the way of one int4 weight before and while it is saved, of a layer of
`accuracy="best"` and of `compare`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

import ov_weight_compression
from benchmarks.places import ROOT
from ov_weight_compression.evaluation import compare
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import apply_weight_compression

PACKAGE = Path(ov_weight_compression.__file__).parent
Calls = dict[CodeType, None]
PYLM = ROOT / "samples" / "pylm" / "openvino_model.xml"


@contextmanager
def profiled(calls: Calls) -> Iterator[None]:
    """Note every function that is called while the block runs, in any thread."""

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls[frame.f_code] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def of_the_package(calls: Calls) -> list[tuple[str, str]]:
    """Files and names of the package's functions among those that were called."""
    found: dict[tuple[str, str], None] = {}
    for code in list(calls):  # threads that were started meanwhile still add to it
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE) and not code.co_name.startswith("<"):
            name = getattr(code, "co_qualname", code.co_name)
            found[str(path.relative_to(PACKAGE)), f"{name}:{code.co_firstlineno}"] = None
    return list(found)


def one_layer(folder: Path) -> Path:
    """A model with one MatMul, whose weight is f16."""
    x = ops.parameter([-1, 256], np.float32, name="x")
    values = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float16)
    layer = ops.matmul(x, ops.convert(ops.constant(values), "f32"), False, True)
    ov.save_model(ov.Model([ops.result(layer)], [x]), folder / "one.xml")
    return folder / "one.xml"


def ways(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is counted; each after whatever has to be there for it."""
    core, kept = ov.Core(), {}
    path = one_layer(folder)

    def compress() -> None:
        kept["model"] = apply_weight_compression(
            core.read_model(path), mode="int4_asym", group_size=64, all_layers=True
        )

    yield "int4_asym, before saving", compress
    yield "int4_asym, ov.save_model", lambda: ov.save_model(kept["model"], folder / "theirs.xml")
    compress()
    yield "int4_asym, save_model", lambda: save_model(kept["model"], folder / "ours.xml")
    tokens = np.load(ROOT / "samples" / "python_tokens.npy").reshape(-1)[:256]
    options = {"mode": "int4_sym", "group_size": 64, "dataset": list(tokens.reshape(2, 1, 128))}

    def best() -> None:
        model = apply_weight_compression(core.read_model(PYLM), accuracy="best", **options)
        save_model(model, folder / "best.xml")

    yield "best, apply and save", best
    yield "compare", lambda: compare(PYLM, folder / "best.xml", tokens, windows=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the functions, in the order of their first calls")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for label, run in ways(Path(name)):
            gc.collect()
            calls: Calls = {}
            with profiled(calls):
                run()
            found = of_the_package(calls)
            print(f"{label:28} {len(found):4} functions in {len({file for file, _ in found}):3} files", flush=True)
            if arguments.list:
                print(*(f"    {file:40} {function}" for file, function in found), sep="\n")


if __name__ == "__main__":
    main()
