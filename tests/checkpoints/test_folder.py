"""A checkpoint's folder: what its files name is there and lies in it, and nothing of it is code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.checkpoints.folder import is_checkpoint, read_checkpoint
from ov_weight_compression.checkpoints.opening import OpenedCheckpoint
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.passes.recipe import Recipe
from tests.checkpoints.files import write_folder, write_tensors

ONE, TWO = np.arange(6, dtype=np.float16).reshape(2, 3), np.ones(4, np.float32)
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
SHARDS = {"model-00001-of-00002.safetensors": {"one": ONE}, "model-00002-of-00002.safetensors": {"two": TWO}}


def test_one_file_and_shards_hold_the_same(tmp_path: Path) -> None:
    whole = read_checkpoint(write_folder(tmp_path / "whole", {"model.safetensors": {"one": ONE, "two": TWO}}, CONFIG))
    shards = read_checkpoint(write_folder(tmp_path / "shards", SHARDS, CONFIG))
    for checkpoint in (whole, shards):
        assert checkpoint.config == CONFIG
        assert checkpoint.quantization is None
        assert np.array_equal(checkpoint.tensors["one"].values(), ONE)
        assert np.array_equal(checkpoint.tensors["two"].values(), TWO)
    assert OpenedCheckpoint(whole, {}).place("two") == "model.safetensors: two"
    assert OpenedCheckpoint(shards, {}).place("two") == "model-00002-of-00002.safetensors: two"


def test_a_folder_of_links_is_read_as_the_hubs_cache_makes_them(tmp_path: Path) -> None:
    blob = write_tensors(tmp_path / "blob", {"one": ONE})
    folder = write_folder(tmp_path / "snapshot", {}, CONFIG)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").symlink_to(blob)
    assert list(read_checkpoint(folder).tensors) == ["one"]


def test_what_counts_as_a_checkpoint(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    assert is_checkpoint(folder)
    assert not is_checkpoint(folder / "config.json")
    assert not is_checkpoint(tmp_path / "none")
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.xml").touch()
    assert is_checkpoint(folder)
    index = folder / "model.safetensors.index.json"
    index.rename(folder / "index.json")
    assert not is_checkpoint(folder)
    (folder / "index.json").rename(index)
    (folder / "openvino_model.xml").touch()
    assert not is_checkpoint(folder)


@pytest.mark.parametrize(
    ("tables", "files", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {}, "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, {}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, {}, "compressed-tensors"),
        ({}, {"quantize_config.json": {"bits": 4}}, "gptq"),
        ({}, {"quant_config.json": {"w_bit": 4}}, "awq"),
        ({}, {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}}, "modelopt"),
    ],
)
def test_what_is_said_of_quantised_weights_is_found(
    tables: dict[str, object], files: dict[str, object], method: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, SHARDS, {**CONFIG, **tables})
    for name, table in files.items():
        (folder / name).write_text(json.dumps(table))
    said = read_checkpoint(folder).quantization
    assert said is not None
    assert said["quant_method"] == method
    if method == "modelopt":
        assert said["quant_algo"] == "NVFP4"


@pytest.mark.parametrize(
    "named",
    [
        "../m.safetensors",
        "/tmp/m.safetensors",
        "a/../../m.safetensors",
        "..\\m.safetensors",
        "C:\\m.safetensors",
        "",
        3,
    ],
)
def test_an_index_may_not_name_a_file_elsewhere(named: object, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {"one": ONE})
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"one": named}}))
    with pytest.raises(ModelError, match=r"index\.json: places 'one' in .*, which is no file of this folder"):
        read_checkpoint(folder)


def test_what_the_files_name_must_be_there(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", SHARDS, CONFIG)
    index = folder / "model.safetensors.index.json"
    files = {name: file for file, tensors in SHARDS.items() for name in tensors}
    index.write_text(json.dumps({"weight_map": {**files, "three": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(
        ModelError, match=r"00002-of-00002\.safetensors: tensor 'three' is missing, which .* places there"
    ):
        read_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {**files, "three": "model-00003-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"00003-of-00002\.safetensors: there is no such file"):
        read_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {**files, "one": "model.bin"}}))
    with pytest.raises(ModelError, match=r"places 'one' in 'model\.bin', which is no safetensors file"):
        read_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(ModelError, match="has no weight_map"):
        read_checkpoint(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json: holds no table"):
        read_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = {"a.safetensors": {"zero": TWO, "one": ONE}, "b.safetensors": {"one": ONE, "two": TWO}}
    with pytest.raises(ModelError, match=r"tensor 'one' is both in a\.safetensors and b\.safetensors"):
        read_checkpoint(write_folder(tmp_path, shards, CONFIG))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", r"its weights are pickles \('pytorch_model\.bin'\).*safe_serialization=True"),
        ("adapter_config.json", "an adapter, not a model: merge it"),
        ("model_index.json", "a pipeline of several models"),
        ("consolidated.safetensors", r"only 'consolidated\.safetensors': no checkpoint of transformers"),
        ("model-Q4_K_M.gguf", r"its weights are GGUF \('model-Q4_K_M\.gguf'\), which are not read"),
        ("tf_model.h5", "its weights are TensorFlow's"),
        ("README.md", r"neither model\.safetensors nor model\.safetensors\.index\.json is there"),
    ],
)
def test_a_folder_without_weights_says_what_to_do(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path)


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    """transformers takes the adapter's base model instead, where peft is installed."""
    folder = write_folder(tmp_path, SHARDS, CONFIG)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has an adapter \(adapter_config\.json\) beside the model.*: merge it, or"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "given", "message"),
    [
        ("adapter_config.json", "", "an adapter, not a model: merge it"),
        ("model.gguf", "", r"its weights are GGUF \('model\.gguf'\)"),
        ("model.gguf", "model.gguf", r"model\.gguf: its weights are GGUF"),
        ("model.safetensors", "model.safetensors", "weights without a model: give the folder"),
        ("pytorch_model.bin", "pytorch_model.bin", "its weights are pickles"),
        ("consolidated.safetensors", "", r"only 'consolidated\.safetensors'"),
    ],
)
def test_what_has_no_config_is_called_what_it_is(file: str, given: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=message):
        compress_path(tmp_path / given, tmp_path / "out", Recipe({}))
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_a_model_s_own_weights_are_not_called_pickles(tmp_path: Path) -> None:
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=r"openvino_model\.bin: the weights of openvino_model\.xml: give that file"):
        compress_path(tmp_path / "openvino_model.bin", tmp_path / "out", Recipe({}))
