"""Floats from codes: the values that OpenVINO computes, in the type asked for, whoever compressed the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.passes import Manager

from ov_weight_compression.cli import main
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.weight_source import source_at
from ov_weight_compression.passes import (
    DecompressWeights,
    WeightCompression,
    apply_weight_compression,
    apply_weight_decompression,
)
from ov_weight_compression.patterns import find_compressed, find_weights
from tests import models
from tests.running import constants, files_of, matrix_of, run

MODES = (
    *("int8_asym", "int8_sym", "int4_asym", "int4_sym", "int3_sym", "int2_sym", "int2_asym"),
    *("nf4", "fp4", "mxfp4", "nvfp4", "fp8_e4m3", "mxfp8_e4m3", "cb4"),
)


def compressed(model: ov.Model, mode: str, folder: Path | None = None, **options: Any) -> ov.Model:
    """Compressed, and read back from a file where a folder is given."""
    if not mode.startswith("int8"):
        options = {"all_layers": True, **options}
    apply_weight_compression(model, mode=mode, **options)
    if folder is None:
        return model
    ov.save_model(model, folder / "compressed.xml")
    return ov.Core().read_model(folder / "compressed.xml")


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_values_are_those_that_openvino_computes(mode: str, lazy: bool, tmp_path: Path) -> None:
    model = compressed(models.linear(48, 256), mode, tmp_path)
    before = matrix_of(model, 256)
    apply_weight_decompression(model, "f32", lazy=lazy)
    assert find_compressed(model) == []
    np.testing.assert_array_equal(matrix_of(model, 256), before)
    save_model(model, tmp_path / "floats.xml")
    read = ov.Core().read_model(tmp_path / "floats.xml")
    stored = constants(read)["weight"]
    np.testing.assert_array_equal(stored.data, before.T)
    assert stored.get_output_element_type(0) == ov.Type.f32


@pytest.mark.parametrize("mode", MODES)
def test_f16_is_rounded_once(mode: str, tmp_path: Path) -> None:
    model = compressed(models.linear(48, 256), mode, tmp_path)
    exact = matrix_of(model, 256).T
    apply_weight_decompression(model, "f16")
    save_model(model, tmp_path / "floats.xml")
    stored = constants(ov.Core().read_model(tmp_path / "floats.xml"))["weight"]
    np.testing.assert_array_equal(stored.data, exact.astype(np.float16))


@pytest.mark.parametrize(
    ("mode", "dtype"), [("int4_asym", "f16"), ("nvfp4", "f16"), ("fp8_e4m3", "f32"), ("cb4", "f32")]
)
def test_without_a_dtype_the_chain_decides(mode: str, dtype: str) -> None:
    own = DecompressWeights()
    own.run_on_model(compressed(models.linear(48, 256), mode))
    assert [one.dtype for one in own.weights] == [dtype]


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.linear(48, 256, transpose=False),
        lambda: models.linear(48, 256, port=0),
        lambda: models.linear(48, 64, batch=(3,)),
        lambda: models.linear(48, 64, dtype="f16"),
        lambda: models.linear(48, 64, dtype="bf16"),
        models.grouped_matmul,
        models.embedding,
        models.tied_head,
        models.convolution,
        models.in_if,
        models.in_loop,
        models.in_tensor_iterator,
        lambda: models.llama(dtype="f16"),
    ],
)
@pytest.mark.parametrize("dtype", [None, "f16", "f32"])
def test_every_place(make: Any, dtype: str | None) -> None:
    model = make()
    names = [weight.name for weight in find_weights(model)[0]]
    elements = sum(weight.elements for weight in find_weights(model)[0])
    apply_weight_compression(model)
    before = run(model)
    own = DecompressWeights(dtype)
    assert own.run_on_model(model)
    assert sorted(one.name for one in own.weights) == sorted(names)
    weights, _ = find_weights(model)
    assert sum(weight.elements for weight in weights) in (0, elements)  # 0: postponed, none of find_weights' business
    assert find_compressed(model) == []
    for after, known in zip(run(model), before, strict=True):
        tolerance = (1e-5 if dtype == "f32" else 2e-3) * max(1.0, np.abs(known).max())
        np.testing.assert_allclose(after, known, rtol=0, atol=tolerance)


def test_the_file_has_the_size_of_the_original(tmp_path: Path) -> None:
    save_model(models.llama(dtype="f16"), tmp_path / "original.xml")
    model = apply_weight_compression(models.llama(dtype="f16"))
    own = DecompressWeights()
    own.run_on_model(model)
    save_model(model, tmp_path / "back.xml")
    assert (tmp_path / "back.bin").stat().st_size == (tmp_path / "original.bin").stat().st_size
    assert sum(one.bytes_after for one in own.weights) == sum(one.bytes for one in _weights(tmp_path / "original.xml"))


def _weights(path: Path) -> list[Any]:
    return find_weights(ov.Core().read_model(path))[0]


def test_compressing_again_finds_the_same_weights(tmp_path: Path) -> None:
    model = apply_weight_compression(models.llama(dtype="f16"), mode="int4_sym", group_size=32)
    apply_weight_decompression(model)
    save_model(model, tmp_path / "back.xml")
    again = WeightCompression(mode="int4_sym", group_size=32)
    again.run_on_model(ov.Core().read_model(tmp_path / "back.xml"))
    original = WeightCompression(mode="int4_sym", group_size=32)
    original.run_on_model(models.llama(dtype="f16"))
    assert [(row.name, row.mode) for row in again.report.rows] == [(row.name, row.mode) for row in original.report.rows]


def test_a_foreign_chain_in_f32_without_a_last_convert() -> None:
    codes = op.constant(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64))
    codes.set_friendly_name("weight")
    value = op.subtract(op.convert(codes, "f32"), op.constant(np.float32(128)))
    value = op.multiply(value, op.constant(np.full((48, 1), 0.3, np.float32)))
    x = op.parameter([-1, 64], np.float32)
    model = ov.Model([op.result(op.matmul(x, value, False, True))], [x])
    apply_weight_decompression(model, "f16")
    (convert,) = [node for node in model.get_ops() if node.get_type_name() == "Convert"]
    assert convert.get_friendly_name() == "weight/as_f32"
    expected = ((np.arange(48 * 64) % 256 - 128.0).astype(np.float32) * np.float32(0.3)).astype(np.float16)
    np.testing.assert_array_equal(matrix_of(model, 64).T.reshape(-1), expected)


def test_values_that_f16_cannot_hold_stay_f32() -> None:
    model = models.compressed_linear("i8", zero_point=None, scale="f32", convert_to="f32", group=-1)
    scale = constants(model)["weight/scale"]
    large = op.constant(np.full((48, 1), 1e4, np.float32))
    scale.output(0).replace(large.output(0))
    own = DecompressWeights("f16")
    own.run_on_model(model)
    assert [one.dtype for one in own.weights] == ["f32"]
    model = models.compressed_linear("i8", zero_point=None, scale="f32", convert_to="f32", group=-1)
    constants(model)["weight/scale"].output(0).replace(op.constant(np.full((48, 1), 100, np.float32)).output(0))
    own.run_on_model(model)
    assert [one.dtype for one in own.weights] == ["f16"]


def test_one_constant_of_codes_for_two_layers() -> None:
    codes = op.constant(np.arange(64 * 64, dtype=np.int8).reshape(64, 64))
    x: ov.Node = op.parameter([-1, 64], np.float32, name="x")
    hidden = x
    for factor in (0.01, 0.02):
        scale = op.constant(np.full((64, 1), factor, np.float32))
        hidden = op.matmul(hidden, op.multiply(op.convert(codes, "f32"), scale), False, True)
    model = ov.Model([op.result(hidden)], [x])
    before = run(model, {0: np.ones((1, 64), np.float32)})[0]
    apply_weight_decompression(model, "f32")
    np.testing.assert_allclose(run(model, {0: np.ones((1, 64), np.float32)})[0], before, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("mode", ["int4_asym", "int3_sym", "int2_sym", "nvfp4", "cb4", "int8_asym"])
def test_a_weight_in_pieces_is_the_weight(mode: str, tmp_path: Path) -> None:
    model = compressed(models.llama(hidden=64, dtype="f16"), mode, tmp_path)
    for weight in find_compressed(model):
        source = source_at(weight.end, FileMappings())
        whole = source.read_all()
        for _ in range(2):  # what is kept of a chain goes with its last rows, and comes again
            pieces = list(source.pieces(3 * source.layout.columns))
            assert [len(piece) for _, piece in pieces[:-1]] == [8] * (source.layout.rows // 8 - 1)
            np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces]), whole)


def test_both_writers_give_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's takes whole weights, the package's own writes pieces."""
    model = compressed(models.llama(hidden=64, dtype="f16"), "int4_sym", tmp_path, group_size=32)
    apply_weight_decompression(model)
    ov.serialize(model, tmp_path / "whole.xml", tmp_path / "whole.bin")
    monkeypatch.setattr(LazyWeight, "computed", None)
    save_model(model, tmp_path / "pieces.xml")
    assert files_of(tmp_path / "whole.xml") == files_of(tmp_path / "pieces.xml")


def test_the_recipe_goes() -> None:
    model = apply_weight_compression(models.layers())
    model.set_rt_info("3.4.0", ["nncf", "version"])
    model.set_rt_info("int8_asym", ["nncf", "weight_compression", "mode"])
    model.set_rt_info("1", ["optimum", "version"])
    apply_weight_decompression(model)
    assert not model.has_rt_info(["weight_compression"])
    assert not model.has_rt_info(["nncf", "weight_compression"])
    assert model.get_rt_info(["nncf", "version"]).astype(str) == "3.4.0"
    assert model.has_rt_info(["optimum"])


def test_a_float_model_is_left_as_it_is() -> None:
    model = models.layers()
    model.set_rt_info("kept", ["weight_compression", "mode"])
    own = DecompressWeights()
    assert own.run_on_model(model) is False
    assert own.weights == ()
    assert model.has_rt_info(["weight_compression"])


def test_as_a_pass_of_a_manager() -> None:
    model = apply_weight_compression(models.linear(48, 64))
    before = matrix_of(model, 64)
    manager = Manager()
    own = DecompressWeights("f32")
    manager.register_pass(own)
    manager.run_passes(model)
    np.testing.assert_array_equal(matrix_of(model, 64), before)
    assert len(own.weights) == 1


def test_errors() -> None:
    with pytest.raises(OptionError, match="dtype: must be 'f16' or 'f32'"):
        DecompressWeights("bf16")
    with pytest.raises(OptionError, match=r"expected an openvino\.Model, got str"):
        apply_weight_decompression("model.xml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "in"
    ov.save_model(apply_weight_compression(models.layers(2)), source / "openvino_model.xml")
    (source / "config.json").write_text("{}")
    (source / "openvino_config.json").write_text(
        json.dumps({"dtype": "int8", "weight_compression": {"mode": "int8_asym"}, "optimum_version": "2"})
    )
    return source


def test_the_command_on_a_file_and_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    assert main(["decompress", str(folder / "openvino_model.xml"), "-o", str(out / "model.xml"), "--dtype", "f32"]) == 0
    assert "2 compressed weights" in capsys.readouterr().out
    assert find_compressed(ov.Core().read_model(out / "model.xml")) == []
    assert main(["decompress", str(folder), "-o", str(folder.parent / "all"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert (folder.parent / "all" / "config.json").exists()
    assert json.loads((folder.parent / "all" / "openvino_config.json").read_text()) == {
        "dtype": "fp16",
        "optimum_version": "2",
    }
    read = ov.Core().read_model(folder.parent / "all" / "openvino_model.xml")
    assert {node.get_output_element_type(0).to_string() for node in constants(read).values()} == {"f16", "f32"}


def test_errors_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    assert main(["decompress", str(folder)]) == 2
    assert main(["decompress", str(folder), "-o", str(folder)]) == 2
    assert main(["decompress", str(folder / "none.xml"), "-o", str(folder / "out.xml")]) == 2
    assert main(["decompress", str(folder), "-o", str(folder.parent / "new"), "--dtype", "f8"]) == 2
    capsys.readouterr()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ov, "serialize", full)
    assert main(["decompress", str(folder), "-o", str(folder.parent / "new")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not (folder.parent / "new").exists()
