"""A checkpoint that cannot be used ends the command with code 2 and one line, and nothing is written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.checkpoints import from_checkpoint
from ov_weight_compression.checkpoints import opening as export_module
from ov_weight_compression.checkpoints.opening import missing_package
from ov_weight_compression.cli import main
from ov_weight_compression.ir_utils.errors import ModelError, WorkError
from tests.checkpoints.files import write_folder

SHARDS = {
    "model-00001-of-00002.safetensors": {"one": np.ones((2, 3), np.float16)},
    "model-00002-of-00002.safetensors": {"two": np.ones(4, np.float32)},
}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def _cut(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])


def _spoil(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])


def _elsewhere(folder: Path) -> None:
    index = {"weight_map": {"one": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated shard": (_cut, "cut short: its tensors need"),
    "bad header": (_spoil, "not a safetensors file, or cut short"),
    "a file outside the folder": (_elsewhere, "which is no file of this folder"),
    "pickles": (_pickles, "its weights are pickles ('pytorch_model.bin'), which run code"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_one_line_and_code_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "run_worker", None)  # it must not come to that
    spoil, message = BAD[case]
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    spoil(folder)
    assert main([str(folder), "-o", str(tmp_path / "out"), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("ov-compress: ")
    assert message in told
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_options_and_the_place_are_looked_at_before_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "run_worker", None)
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    for arguments, message in (
        (["-o", str(tmp_path / "out"), "--mode", "int5"], "mode: 'int5' is not one of"),
        (
            ["-o", str(tmp_path / "out"), "--mode", "nf4", "--data", "nowhere.txt"],
            "data='nowhere.txt': there is no such file",
        ),
        (["-o", str(folder), "--force"], "is the checkpoint itself; write somewhere else"),
        (["-o", str(folder / "out")], "lies inside the input folder"),
        (["-o", str(tmp_path)], "exists; write somewhere else"),
    ):
        assert main([str(folder), "--quiet", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", *SHARDS, "model.safetensors.index.json"]


def test_a_task_is_for_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "model.xml"), "-o", str(tmp_path / "out.xml"), "--task", "text-generation"]) == 2
    assert "is no checkpoint; a model is exported already" in capsys.readouterr().err


@pytest.mark.skipif(missing_package() is None, reason="the extra is installed")
def test_without_the_extra_the_error_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    assert main([str(folder), "-o", str(tmp_path / "out"), "--quiet"]) == 1
    assert "pip install 'ov-weight-compression[checkpoint]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_worker_that_says_nothing_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    monkeypatch.setattr(export_module, "missing_package", lambda: None)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named torch' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Exception, match=r"the export ended with code 1: .*No module named"):
        from_checkpoint(folder)


def test_quantised_weights_are_not_taken_for_floats(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", SHARDS, {**CONFIG, "quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(ModelError, match="says gptq, but none of the tensors is quantised so"):
        from_checkpoint(folder)


def test_nothing_that_reports_is_imported_by_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's converter sends what it does from forks of the process: to the network, with all of its memory."""
    (tmp_path / "openvino_telemetry.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nTelemetry = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(export_module, "missing_package", lambda: None)
    with pytest.raises((ModelError, WorkError)):
        export_module.export(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "imported").exists()
