"""Checkpoints of a small Llama written whole by the original tools on the CPU, converted and held against torch.

    python -m benchmarks.original_checkpoints --tool gptqmodel=/tools/a/bin/python --tool auto-round=… [CASE …]

Each tool quantises in its own interpreter, and says what it dequantises its own checkpoint to. Compared are the values
that are read from the codes of each weight with the tool's, and the converted model's logits in f32 with those of
torch's model that has these values; both as the largest difference over the largest value. This interpreter needs
torch, transformers and optimum-intel; the package is imported from where it is run. Exit code 1 where something
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.architectures import write_tokenizer
from benchmarks.quantised_checkpoints import LENGTH, TOLERANCE, VOCABULARY, logits_of, model
from ov_weight_compression.checkpoints.opening import open_checkpoint
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.ir_utils.types import Array, bf16_to_f32
from ov_weight_compression.passes.recipe import Recipe

WORKER = Path(__file__).parent / "workers" / "quantiser_worker.py"
F16_ROUNDS = 2.0**-10
"""What tools that dequantise in f16 round away."""


def integers(**weights: Any) -> dict[str, Any]:
    """A group of compressed-tensors' configuration."""
    return {"config_groups": {"g": {"targets": ["Linear"], "weights": {"type": "int", **weights}}}}


GPTQ = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "gptqmodel 4": ("gptqmodel", GPTQ, F16_ROUNDS),
    "gptqmodel 4 asym": ("gptqmodel", {**GPTQ, "sym": False}, F16_ROUNDS),
    "gptqmodel 4 act-order": ("gptqmodel", {**GPTQ, "desc_act": True, "sym": False}, F16_ROUNDS),
    "gptqmodel 4 v2": ("gptqmodel", {**GPTQ, "group_size": 32, "sym": False, "format": "gptq_v2"}, F16_ROUNDS),
    "gptqmodel 3": ("gptqmodel", {**GPTQ, "bits": 3}, F16_ROUNDS),
    "gptqmodel 2": ("gptqmodel", {**GPTQ, "bits": 2, "group_size": 32, "sym": False}, F16_ROUNDS),
    "gptqmodel 8 per channel": (
        "gptqmodel",
        {**GPTQ, "bits": 8, "group_size": -1, "act_group_aware": False},
        F16_ROUNDS,
    ),
    "gptqmodel awq": (
        "gptqmodel",
        {"bits": 4, "group_size": 64, "method": "awq", "format": "gemm", "sym": False},
        F16_ROUNDS,
    ),
    "auto-round 4": ("auto-round", {"scheme": "W4A16", "format": "auto_round"}, F16_ROUNDS),
    "auto-round 4 asym": (
        "auto-round",
        {"scheme": "W4A16", "sym": False, "group_size": 32, "format": "auto_round"},
        F16_ROUNDS,
    ),
    "auto-round 4 as gptq": ("auto-round", {"scheme": "W4A16", "format": "auto_gptq"}, F16_ROUNDS),
    "auto-round 4 as awq": ("auto-round", {"scheme": "W4A16", "sym": False, "format": "auto_awq"}, F16_ROUNDS),
    "auto-round 2": ("auto-round", {"scheme": "W2A16", "group_size": 32, "format": "auto_round"}, F16_ROUNDS),
    "auto-round 8": ("auto-round", {"scheme": "W8A16", "format": "auto_round"}, F16_ROUNDS),
    "llm-compressor W4A16": ("llm-compressor", {"modifier": "plain", "scheme": "W4A16"}, 0.0),
    "llm-compressor W4A16 asym": ("llm-compressor", {"modifier": "plain", "scheme": "W4A16_ASYM"}, 0.0),
    "llm-compressor GPTQ order": (
        "llm-compressor",
        {
            "modifier": "gptq",
            **integers(num_bits=4, symmetric=True, strategy="group", group_size=64, actorder="weight"),
        },
        0.0,
    ),
    "llm-compressor W8A8": ("llm-compressor", {"modifier": "plain", "scheme": "W8A8"}, 0.0),
    "llm-compressor W8A16": ("llm-compressor", {"modifier": "plain", "scheme": "W8A16"}, 0.0),
    "llm-compressor FP8": ("llm-compressor", {"modifier": "plain", "scheme": "FP8_DYNAMIC"}, 0.0),
    "llm-compressor FP8 blocks": ("llm-compressor", {"modifier": "plain", "scheme": "FP8_BLOCK"}, 0.0),
    "llm-compressor NVFP4": ("llm-compressor", {"modifier": "plain", "scheme": "NVFP4A16"}, 2.0**-8),
    "llm-compressor MXFP4": ("llm-compressor", {"modifier": "plain", "scheme": "MXFP4A16"}, 0.0),
    "torchao int8": ("torchao", {"config": "Int8WeightOnlyConfig", "version": 2}, 0.0),
    "torchao int4 in int8": (
        "torchao",
        {"config": "IntxWeightOnlyConfig", "weight_dtype": "int4", "group": 32, "version": 2},
        0.0,
    ),
    "torchao float8": ("torchao", {"config": "Float8WeightOnlyConfig"}, 0.0),
    "bitsandbytes nf4": ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 0.0),
    "bitsandbytes nf4 nested": (
        "bitsandbytes",
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        0.0,
    ),
    "bitsandbytes fp4": ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, 0.0),
    "bitsandbytes int8": ("bitsandbytes", {"load_in_8bit": True}, 2.0**-22),
}
"""The tool, its settings, and how far its own dequantised values may be from what is read: what its type rounds."""


def check(name: str, python: str, source: Path, work: Path) -> str:
    """Let the tool write the checkpoint, convert it, and say how far off it is; begins with "WRONG" where too far."""
    import torch

    tool, settings, allowed = CASES[name]
    folder = work / "checkpoint"
    places = (str(source.resolve()), str(folder.resolve()))
    done = subprocess.run(
        [*python.split(), "-W", "ignore", str(WORKER.resolve()), tool, json.dumps(settings), *places],
        cwd=work,  # gptqmodel writes its logs where it runs
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        timeout=600,
        check=False,
    )
    if done.returncode:
        return f"NOT WRITTEN: {(done.stdout.strip().splitlines() or ['?'])[-1][:300]}"
    truth = dict(np.load(folder / "truth.npz"))
    (folder / "truth.npz").unlink()
    opened = open_checkpoint(folder)
    off = largest_difference(opened.quantised, truth)
    own = model()
    floats = {
        key: bf16_to_f32(one.values()) if one.dtype == "BF16" else one.values().astype(np.float32)
        for key, one in opened.checkpoint.tensors.items()
        if key in own.state_dict()
    }
    read = {key: weight.values(0, weight.row_count) for key, weight in opened.quantised.items()}
    own.load_state_dict({key: torch.from_numpy(np.array(one, np.float32)) for key, one in {**floats, **read}.items()})
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, LENGTH)).astype(np.int64)
    with torch.no_grad():
        expected = own(torch.from_numpy(ids)).logits.numpy()
    (result,) = compress_path(folder, work / "ov", Recipe({"mode": "none"}))
    got, types = logits_of(work / "ov" / "openvino_model.xml", ids)
    outputs = float(np.abs(got - expected).max() / np.abs(expected).max())
    reasons = sorted({row.reason for row in result.report.rows})
    wrong = "" if off <= allowed and outputs < TOLERANCE else "WRONG "
    executed = ", ".join(types) or "floats"
    return f"{wrong}weights {off:.1e}, logits {outputs:.1e}, executed: {executed}; {' | '.join(reasons)}"


def largest_difference(quantised: Any, truth: dict[str, Array]) -> float:
    """Between what is read from codes and what the tool says, of every weight; infinite where one lacks a weight."""
    if quantised.keys() != truth.keys():
        return float("inf")
    found = []
    for name, weight in quantised.items():
        read = weight.values(0, weight.row_count)
        found.append(float(np.abs(read - truth[name].reshape(read.shape)).max() / np.abs(read).max()))
    return max(found)


def main() -> int:
    """Print a line for each case; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=PYTHON", help="its interpreter")
    parser.add_argument("--work", type=Path, help="folder to work in")
    arguments = parser.parse_args()
    tools = dict(said.split("=", 1) for said in arguments.tool)
    bad = 0
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        source = Path(folder) / "float"
        model().half().save_pretrained(source)
        write_tokenizer(source)
        for name in arguments.cases or CASES:
            if CASES[name][0] not in tools:
                print(f"{name:28} no interpreter for {CASES[name][0]}", flush=True)
                continue
            begun, work = time.perf_counter(), Path(tempfile.mkdtemp(dir=folder))
            try:
                said = check(name, tools[CASES[name][0]], source, work)
            except Exception as error:  # whatever happens to one of them, the others are looked at
                said = f"WRONG {type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
            finally:
                shutil.rmtree(work, ignore_errors=True)
            bad += said.startswith("WRONG")
            print(f"{name:28} {time.perf_counter() - begun:5.1f} s  {said}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
