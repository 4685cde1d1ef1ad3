"""Whether a change of the code changed a byte: what is stored for the zoo and the sample models, as hashes.

    python -m benchmarks.same_bytes --keep     # write benchmarks/results/bytes.json; with --only those cases of it
    python -m benchmarks.same_bytes            # compare with it: exit code 1 and the names of what differs

A hash is of the constants sorted by name: name, type, shape and bytes; names that OpenVINO made up count the nodes of a
process, and are left out. Arithmetic of calibrated runs depends on the kind of processor, so the file says on which one
it was made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.machine import describe
from benchmarks.places import ROOT, SHARED
from ov_weight_compression.ir_utils.errors import CompressionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import apply_weight_compression

KEPT = ROOT / "benchmarks" / "results" / "bytes.json"

PLAIN: dict[str, dict[str, Any]] = {
    "int8_asym": {},
    "int8_sym": {"mode": "int8_sym"},
    **{
        mode: {"mode": mode, "all_layers": True}
        for mode in ("int4_asym", "int4_sym", "int3_sym", "int2_sym", "int2_asym", "nf4", "fp4", "mxfp4", "nvfp4")
    },
    "fp8_e4m3": {"mode": "fp8_e4m3"},
    "mxfp8_e4m3": {"mode": "mxfp8_e4m3"},
    "cb4": {"mode": "cb4"},
    "int4_asym, group 32, half": {"mode": "int4_asym", "group_size": 32, "ratio": 0.5},
    "int4_sym, per channel, no search": {"mode": "int4_sym", "group_size": -1, "scale_search": "off"},
    "int4_sym, awq": {"mode": "int4_sym", "group_size": 32, "awq": True},
    "adaptive_codebook": {"mode": "adaptive_codebook", "codebook_sharing": "block"},
}
DATA: dict[str, dict[str, Any]] = {
    "fast, random": {"mode": "int4_sym", "group_size": 64, "accuracy": "fast", "dataset": "random", "subset_size": 4},
    "fast": {"mode": "int4_asym", "group_size": 64, "accuracy": "fast"},
    "balanced": {"mode": "int4_sym", "group_size": 64, "accuracy": "balanced"},
    "best": {"mode": "int4_sym", "group_size": 64, "accuracy": "best"},
    "best, int2": {"mode": "int2_sym", "group_size": 64, "accuracy": "best"},
    "lora": {"mode": "int4_asym", "group_size": 64, "lora_correction": True},
    "ratio by data": {"mode": "int4_sym", "ratio": 0.6, "sensitivity_metric": "hessian_input_activation"},
}


def cases() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Each model with each set of options, named."""
    models = {"pylm": ROOT / "samples" / "pylm" / "openvino_model.xml"}
    for folder in sorted((SHARED / "zoo").glob("*/")):
        models[folder.name] = folder / "openvino_model.xml"
    for name, path in models.items():
        if path.exists():
            yield from ((f"{name}: {label}", path, options) for label, options in PLAIN.items())
    ids = np.load(ROOT / "samples" / "python_tokens.npy").reshape(-1)[:1024]
    tokens = list(ids.reshape(8, 1, 128))
    for label, options in DATA.items():
        yield f"pylm: {label}", models["pylm"], {"dataset": tokens, **options}


def hash_of(path: Path, options: dict[str, Any]) -> str:
    """The hash of what is saved, or the error."""
    try:
        model = apply_weight_compression(ov.Core().read_model(path), **options)
        with tempfile.TemporaryDirectory() as folder:
            save_model(model, Path(folder) / "model.xml")
            saved = ov.Core().read_model(Path(folder) / "model.xml")
            kept = sorted(filter(None, map(_constant, saved.get_ops())))
            digest = hashlib.sha256(repr(kept).encode())
            del saved
    except CompressionError as error:
        return f"{type(error).__name__}: {error}"
    return digest.hexdigest()[:24]


def _constant(node: Any) -> tuple[str, str, list[int], str] | None:
    if node.get_type_name() != "Constant":
        return None
    value = hashlib.sha256(np.ascontiguousarray(node.data).tobytes()).hexdigest()
    name = re.sub(r"^Constant_\d+$", "", node.get_friendly_name())
    return name, node.get_element_type().get_type_name(), list(node.shape), value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="write what is stored now as what is to be")
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    arguments = parser.parse_args()
    found = {}
    for name, path, options in cases():
        if arguments.only in name:
            found[name] = hash_of(path, options)
            print(f"{name:60} {found[name]}", flush=True)
    if arguments.keep:
        found = {**json.loads(KEPT.read_text())["hashes"], **found} if arguments.only else found
        KEPT.write_text(json.dumps({"machine": describe(None), "hashes": found}, indent=1) + "\n")
        return 0
    if not found:
        print("no cases: the models of ../shared are not there, or --only names none")
        return 1
    kept = json.loads(KEPT.read_text())["hashes"]
    different = [name for name, value in found.items() if kept.get(name) != value]
    for name in different:
        print(f"differs: {name}\n  was {kept.get(name)}\n  is  {found[name]}")
    print(f"{len(found)} cases, {len(different)} differ")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
