"""A real, if small, language model: compressed by the command, run by openvino-genai. And the samples as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.cli import main
from tests.running import run

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "samples" / "pylm"
LINE = "    if not isinstance("


@pytest.fixture(scope="module", params=["int8_asym", "int4_asym", "nf4"])
def compressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, compressed."""
    folder = tmp_path_factory.mktemp("pylm") / str(request.param)
    group = [] if request.param == "int8_asym" else ["--group-size", "64"]
    assert main([str(MODEL), "-o", str(folder), "--mode", request.param, *group, "--quiet"]) == 0
    return folder


def test_genai_completes_a_line(compressed: Path) -> None:
    genai = pytest.importorskip("openvino_genai")
    config = genai.GenerationConfig(max_new_tokens=8, do_sample=False)
    lines = [str(genai.LLMPipeline(folder, "CPU").generate(LINE, config)) for folder in (MODEL, compressed)]
    assert lines[0].startswith("self")
    assert lines[1].startswith("self")


def test_predictions_stay_close(compressed: Path) -> None:
    feed = {
        "input_ids": np.random.default_rng(2).integers(5, 2000, (1, 48)),
        "attention_mask": np.ones((1, 48), np.int64),
        "position_ids": np.arange(48)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    before, after = (run(folder / "openvino_model.xml", feed)[0].astype(np.float64) for folder in (MODEL, compressed))
    before -= np.log(np.exp(before).sum(-1, keepdims=True))
    after -= np.log(np.exp(after).sum(-1, keepdims=True))
    divergence = (np.exp(before) * (before - after)).sum(-1).mean()
    assert 0 < divergence < (0.002 if compressed.name == "int8_asym" else 0.25)


def test_what_lies_beside_the_model(compressed: Path) -> None:
    mode = compressed.name
    for path in MODEL.iterdir():
        if path.name not in ("openvino_model.xml", "openvino_model.bin"):
            beside = (compressed / path.name).read_bytes()
            assert beside.startswith(path.read_bytes()) if path.name == "README.md" else beside == path.read_bytes()
    said = json.loads((compressed / "openvino_config.json").read_text())
    assert said["dtype"] == mode.removesuffix("_asym")
    words = {"quant_method": "default", "dtype": mode.removesuffix("_asym"), "ratio": 1.0}
    if mode == "int8_asym":
        words |= {"bits": 8, "sym": False, "group_size": -1}
    else:
        words |= {"bits": 4, "sym": mode == "nf4", "group_size": 64, "all_layers": False}
        words |= {"backup_precision": "int8_asym"}
    assert said["quantization_config"] == words
    assert said["weight_compression"]["mode"] == mode


def sample(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "samples" / name, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_minute(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    printed = sample("first_minute.py", tmp_path / "int4")
    assert "int4_asym" in printed
    assert printed.count("original") == printed.count("compressed  ") == 3
    size = (tmp_path / "int4" / "openvino_model.bin").stat().st_size
    assert size < (MODEL / "openvino_model.bin").stat().st_size / 3


def test_rules_from_the_sample(tmp_path: Path) -> None:
    lines = sample("compress_with_rules.py", MODEL / "openvino_model.xml", tmp_path / "m.xml").splitlines()
    assert all(
        line.startswith("int8_sym") for line in lines if "layers.0." in line and "down" not in line and "v_" not in line
    )
    assert all(line.startswith("int8_asym") for line in lines if "down_proj" in line)
    assert (tmp_path / "m.bin").exists()


def test_the_manager_from_the_sample(tmp_path: Path) -> None:
    assert "int4_sym" in sample("in_a_manager.py", MODEL / "openvino_model.xml", tmp_path / "m.xml")
    size = (tmp_path / "m.bin").stat().st_size
    assert size < (MODEL / "openvino_model.bin").stat().st_size / 3
