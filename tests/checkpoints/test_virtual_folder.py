"""Quantised checkpoints shown to an exporter as float ones with holes, and the codes back in the holes' places."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.checkpoints.constant_origins import TensorPlaces, explain_constants
from ov_weight_compression.checkpoints.folder import read_checkpoint
from ov_weight_compression.checkpoints.opening import (
    Exported,
    HolesReadError,
    Skeleton,
    export_opened,
    open_checkpoint,
    open_exported,
)
from ov_weight_compression.checkpoints.safetensors_file import mapped_constants
from ov_weight_compression.checkpoints.skeleton import (
    HOLES,
    forget_reads,
    holes_read,
    write_skeleton,
    write_virtual_folder,
)
from ov_weight_compression.cli import main
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.passes.recipe import Recipe
from ov_weight_compression.patterns import find_compressed
from tests import models
from tests.checkpoints.quantised_writers import tensor, write_checkpoint
from tests.checkpoints.test_transplant import GPTQ, quantised_llama, with_values
from tests.cli.commands import failing
from tests.running import constants, run

pytestmark = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="only Linux says which pages are there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors, _ = quantised_llama(models.llama())
    tensors["model.layers.0.self_attn.k_scale"] = tensor("F32", np.ones(1))
    made = write_checkpoint(tmp_path / "hf", tensors, {**GPTQ, "torch_dtype": "bfloat16"}, shards=2)
    (made / "tokenizer.json").write_text("{}")
    (made / "quantize_config.json").write_text("{}")
    return made


def shown(folder: Path, to: Path, dequantised: tuple[str, ...] = ()) -> tuple[Path, tuple[str, ...]]:
    """A virtual folder of a checkpoint, and the tensors that count in it."""
    opened = open_checkpoint(folder)
    to.mkdir()
    return to, write_virtual_folder(opened.checkpoint, opened.quantised, dequantised, to)


def test_the_folder_is_a_float_checkpoint_that_takes_no_disk(folder: Path, tmp_path: Path) -> None:
    virtual, tensors = shown(folder, tmp_path / "shown")
    read = read_checkpoint(virtual)
    assert read.quantization is None
    assert read.config["torch_dtype"] == "bfloat16"
    assert set(tensors) == {name for name in constants(models.llama()) if name.endswith("weight")}
    projection = read.tensors["model.layers.0.mlp.up_proj.weight"]
    assert (projection.dtype, projection.shape) == ("BF16", (96, 64))
    assert not projection.values().any()
    norm = read.tensors["model.norm.weight"]
    np.testing.assert_array_equal(norm.values(), read_checkpoint(folder).tensors["model.norm.weight"].values())
    holes = (virtual / HOLES).stat()
    assert holes.st_blocks * 512 <= 1 << 16 < holes.st_size / 16
    assert (virtual / "tokenizer.json").is_symlink()
    assert not (virtual / "quantize_config.json").exists()


def test_weights_that_an_exporter_computes_with_have_their_values(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    virtual, _ = shown(folder, tmp_path / "shown", (name,))
    stored = read_checkpoint(virtual).tensors[name]
    np.testing.assert_array_equal(stored.values(), open_checkpoint(folder).quantised[name].values(0, 64))
    index = json.loads((virtual / "model.safetensors.index.json").read_text())["weight_map"]
    assert index[name] != HOLES


def test_a_file_that_has_codes_by_the_float_weights_name_is_not_shown(tmp_path: Path) -> None:
    """int8's `weight` beside a small norm and a large table: the norm is copied, the table is a hole of its own."""
    tensors = {
        "a.up.weight": tensor("I8", np.ones((16, 32))),
        "a.up.weight_scale": tensor("F32", np.ones((16, 1))),
        "a.norm.weight": tensor("F16", np.arange(32)),
        "a.table.weight": tensor("F16", np.ones((1 << 14, 64))),
    }
    group = {"targets": ["Linear"], "weights": {"num_bits": 8}}
    said = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": group}}
    folder = write_checkpoint(tmp_path / "hf", tensors, {"quantization_config": said, "torch_dtype": "float16"})
    virtual, tensors = shown(folder, tmp_path / "shown")
    read = read_checkpoint(virtual)
    assert set(read.tensors) - {name for name in read.tensors if name.startswith("gap")} == set(tensors)
    assert (read.tensors["a.up.weight"].dtype, read.tensors["a.up.weight"].file.name) == ("F16", HOLES)
    np.testing.assert_array_equal(read.tensors["a.norm.weight"].values(), np.arange(32))
    assert read.tensors["a.table.weight"].file.name == HOLES
    again, _ = shown(folder, tmp_path / "again", ("a.table.weight",))
    assert (read_checkpoint(again).tensors["a.table.weight"].values() == 1).all()


def test_the_pages_say_which_hole_was_read(folder: Path, tmp_path: Path) -> None:
    virtual, _ = shown(folder, tmp_path / "shown")
    holes = np.memmap(virtual / HOLES, np.uint8, "r")
    assert holes_read(virtual) == []
    tensors = read_checkpoint(virtual).tensors
    one = tensors["model.layers.1.mlp.down_proj.weight"]
    assert holes[one.offset + one.nbytes - 1] == 0
    assert holes_read(virtual) == ["model.layers.1.mlp.down_proj.weight"]
    assert holes[tensors["model.layers.0.self_attn.q_proj.weight"].offset] == 0
    assert len(holes_read(virtual)) == 2
    forget_reads(virtual)
    assert holes_read(virtual) == []


def exported(folder: Path, work: Path) -> Exported:
    """What an exporter would make of the folder's holes: a graph whose constants lie in its files."""
    virtual, _ = shown(folder, work / "shown")
    read = read_checkpoint(virtual)
    model = models.llama(dtype="f16")
    named = {name: node for name, node in constants(model).items() if name in read.tensors}
    stored = [read.tensors[name] for name in named]
    shapes = [tuple(node.shape) for node in named.values()]
    for node, constant in zip(named.values(), mapped_constants(stored, shapes), strict=True):
        constant.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(constant.output(0))
    explained = explain_constants(model, TensorPlaces(stored))
    output = work / "export"
    output.mkdir()
    placed = write_skeleton(model, output / "openvino_model.xml", explained.stored)
    assert holes_read(virtual) == []
    return Exported(output, {"openvino_model.xml": Skeleton(placed, {})}, {})


def test_codes_stand_where_the_holes_were(folder: Path, tmp_path: Path) -> None:
    opened = open_exported(exported(folder, tmp_path), "openvino_model.xml", open_checkpoint(folder))
    _, values = quantised_llama(models.llama())
    np.testing.assert_allclose(run(opened.model)[0], run(with_values(models.llama(), values))[0], rtol=1e-4, atol=1e-5)
    assert len(find_compressed(opened.model)) == 14
    assert opened.kept is not None
    assert {row.reason for row in opened.kept.rows} == {"GPTQ 4 bit g32, codes kept"}
    name = "model.layers.1.mlp.down_proj.weight"
    assert opened.origins[name].endswith(f".safetensors: {name}")
    assert opened.origins["model.norm.weight"].endswith(".safetensors: model.norm.weight")


def test_an_export_that_reads_holes_is_made_again_with_values(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, seen = "model.layers.1.self_attn.o_proj.weight", []

    def export(source: Path, output: Path, task: object, tensors: object) -> Exported:
        stored = read_checkpoint(source).tensors[name]
        seen.append(stored.dtype)
        if stored.dtype != "F32":
            raise HolesReadError(f"it computes with {name}", [name])
        return Exported(output, {}, {"buffer": "computed"})

    module = import_module("ov_weight_compression.checkpoints.opening")
    monkeypatch.setattr(module, "export", export)
    made = export_opened(open_checkpoint(folder), tmp_path / "out")
    assert made.unused == {
        "buffer": "computed",
        "model.layers.0.self_attn.k_scale": "of activations, which stay floats",
    }
    assert seen == ["BF16", "F32"]


def _missing(folder: Path) -> str:
    tensors, _ = quantised_llama(models.llama())
    del tensors["model.layers.0.mlp.up_proj.scales"]
    write_checkpoint(folder, tensors, GPTQ, shards=2)
    return "model.layers.0.mlp.up_proj.scales: the checkpoint has no such tensor"


def _wrong(folder: Path) -> str:
    tensors, _ = quantised_llama(models.llama())
    tensors["model.layers.0.mlp.up_proj.scales"] = tensors["model.layers.0.mlp.down_proj.scales"]
    write_checkpoint(folder, tensors, GPTQ, shards=2)
    return "model.layers.0.mlp.up_proj.scales: has shape [3, 64], must be [any, 96]"


def _unknown(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "hqq"
    (folder / "config.json").write_text(json.dumps(config))
    return "its quant_method is 'hqq'; those that are read: gptq, awq"


@pytest.mark.parametrize("break_it", [_missing, _wrong, _unknown])
def test_a_quantised_checkpoint_that_cannot_be_read(
    break_it: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = break_it(folder)
    assert main([str(folder), "-o", str(tmp_path / "out"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_leaving_all_in_floats_is_for_quantised_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.linear()
    ov.save_model(model, tmp_path / "m.xml")
    assert main([str(tmp_path / "m.xml"), "-o", str(tmp_path / "out.xml"), "--mode", "none", "--quiet"]) == 2
    assert "mode: 'none' leaves everything in floats" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "out.xml")


def test_leaving_floats_leaves_a_model_that_has_only_floats(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint that is exported as several models, the text model may be the only one that is quantised."""
    made = exported(folder, tmp_path)
    ov.save_model(models.linear(), made.folder / "openvino_vision_model.xml", compress_to_fp16=False)
    both = {**made.models, "openvino_vision_model.xml": Skeleton((), {})}

    def export(_source: Path, output: Path, _task: object, _tensors: object) -> Exported:
        shutil.copytree(made.folder, output, dirs_exist_ok=True)
        return replace(made, folder=output, models=both)

    monkeypatch.setattr(import_module("ov_weight_compression.checkpoints.opening"), "export", export)
    out = tmp_path / "out"
    text, vision = compress_path(folder, out, Recipe({"mode": "none"}))
    assert (len(text.report.rows), len(vision.report.rows)) == (14, 0)
    np.testing.assert_array_equal(run(out / "openvino_vision_model.xml")[0], run(models.linear())[0])
    text, vision = compress_path(folder, tmp_path / "int8", Recipe({"mode": "int8_sym"}))
    assert len(vision.report.rows) == 1
    assert len(set(text.report.warnings)) == len(text.report.warnings)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "none", "--ratio", "0.5"], "ratio: means nothing with mode 'none', which compresses nothing"),
        (["--mode", "none", "--data", "random"], "data: means nothing with mode 'none'"),
        (["--mode", "none", "--device", "XPU"], "device: 'XPU' is not one of CPU, GPU, NPU"),
        (["--mode", "int4_sym", "--awq", "--data", "random", "--device", "XPU"], "device: 'XPU' is not one of CPU"),
    ],
)
def test_options_of_a_quantised_checkpoint_are_looked_at_before_the_export(
    words: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_module("ov_weight_compression.checkpoints.opening"), "export", None)
    assert message in failing(capsys, 2, folder, "-o", tmp_path / "out", "--quiet", *words)


def test_a_home_in_quotes_is_the_checkpoint_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(import_module("ov_weight_compression.checkpoints.opening"), "export", None)
    assert "is the checkpoint itself" in failing(capsys, 2, folder, "-o", "~/hf", "--quiet", "--force")
    assert (folder / "config.json").exists()
