"""Models of every format, by this package and as other tools write them, looked into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.cli import main
from ov_weight_compression.evaluation import inspect
from ov_weight_compression.evaluation.inspection import Inspection
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.quantization.formats import FORMATS
from tests import models

MODES = (
    *("int8_asym", "int8_sym", "int4_asym", "int4_sym", "int3_sym", "int2_sym", "int2_asym"),
    *("nf4", "fp4", "mxfp4", "nvfp4", "fp8_e4m3", "mxfp8_e4m3", "cb4"),
)


def layer_of(value: ov.Node, columns: int, transpose: bool = True) -> ov.Model:
    """A model of one MatMul that reads `value` as its weight."""
    x = op.parameter([-1, columns], np.float32, name="x")
    if value.get_output_element_type(0) != ov.Type.f32:
        value = op.convert(value, "f32")
    layer = op.matmul(x, value, False, transpose)
    layer.set_friendly_name("layer")
    return ov.Model([op.result(layer)], [x], "foreign")


def stored(kind: str, shape: tuple[int, ...], name: str = "") -> ov.Node:
    """A constant of any type, its bytes all different."""
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(shape))
    data = tensor.data.reshape(-1).view(np.uint8)
    data[:] = np.resize(np.arange(0x31, 0x3C, dtype=np.uint8), data.size)
    node = op.constant(tensor)
    if name:
        node.set_friendly_name(name)
    return node


def nncf_int4(symmetric: bool, second: str | None = "f32") -> ov.Model:
    """As NNCF writes 4 bits in groups: names, f16 arithmetic, a last Convert inside the chain."""
    value: ov.Node = op.convert(stored("i4" if symmetric else "u4", (48, 4, 16), "w"), "f16")
    if not symmetric:
        value = op.subtract(value, op.convert(stored("u4", (48, 4, 1), "w/zero_point"), "f16"))
    value = op.multiply(value, stored("f16", (48, 4, 1), "w/scale"))
    value = op.reshape(value, op.constant(np.array([48, 64])), False)
    return layer_of(op.convert(value, second) if second else value, 64)


def gptq() -> ov.Model:
    """As GPTQ checkpoints are exported: codes `[groups, group, out]`, u4 zero points per group, `transpose_b` off."""
    value: ov.Node = op.convert(stored("u4", (4, 16, 48), "qweight"), "f16")
    value = op.subtract(value, op.convert(stored("u4", (4, 1, 48)), "f16"))
    value = op.multiply(value, stored("f16", (4, 1, 48)))
    return layer_of(op.reshape(value, op.constant(np.array([64, 48])), False), 64, transpose=False)


def gptq_of_one_zero_point() -> ov.Model:
    """As GPTQ checkpoints without zero points are exported: u4 with 8 for all."""
    value = op.subtract(op.convert(stored("u4", (48, 4, 16)), "f32"), op.constant(np.array([[[8]]], np.float32)))
    value = op.multiply(value, stored("f32", (48, 4, 1)))
    return layer_of(op.reshape(value, op.constant(np.array([48, 64])), False), 64)


def nncf_codebook() -> ov.Model:
    """As NNCF writes codebooks: `Gather(Convert(table), Convert(codes to u8))`."""
    table = op.convert(stored("f8e4m3", (16,), "w_nncf_codebook"), "f16")
    codes = op.convert(stored("u4", (48, 4, 16), "w_nncf_codebook_idxs"), "u8")
    value = op.multiply(op.gather(table, codes, op.constant(np.int64(0))), stored("f16", (48, 4, 1)))
    return layer_of(op.reshape(value, op.constant(np.array([48, 64])), False), 64)


def only(inspection: Inspection) -> Any:
    (weight,) = inspection.weights
    return weight


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_own_formats_have_their_own_names_and_sizes(mode: str, lazy: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if mode.startswith("int8") else {"all_layers": True}
    own = WeightCompression(mode=mode, lazy=lazy, **options)
    model = models.layers(3, 128)
    own.run_on_model(model)
    in_memory = inspect(model)
    ov.save_model(model, tmp_path / "model.xml")
    from_file = inspect(tmp_path / "model.xml")
    assert from_file.weights == in_memory.weights
    for weight, row in zip(from_file.weights, own.report.rows, strict=True):
        assert (weight.name, weight.mode, weight.group_size) == (row.name, row.mode, row.group_size)
        assert (weight.shape, weight.elements, weight.kind) == (row.shape, row.elements, row.kind)
        assert weight.bytes == row.bytes_after
    assert from_file.recipe["weight_compression"]["mode"] == mode
    assert from_file.recipe["weight_compression"]["version"]
    assert from_file.device is None


@pytest.mark.parametrize(
    ("make", "mode", "group", "zero_point", "size"),
    [
        (lambda: nncf_int4(True), "int4_sym", 16, "", 48 * 32 + 48 * 4 * 2),
        (lambda: nncf_int4(False), "int4_asym", 16, "u4", 48 * 32 + 48 * 4 * 2 + 48 * 2),
        (lambda: nncf_int4(False, None), "int4_asym", 16, "u4", 48 * 32 + 48 * 4 * 2 + 48 * 2),
        (gptq, "int4_asym", 16, "u4", 48 * 32 + 48 * 4 * 2 + 48 * 2),
        (gptq_of_one_zero_point, "int4_sym", 16, "f32, one", 48 * 32 + 48 * 4 * 4 + 4),
        (nncf_codebook, "codebook", 16, "", 48 * 32 + 48 * 4 * 2 + 16),
        (lambda: models.compressed_linear("u6", zero_point="u8"), "int6_asym", 32, "u8", 48 * 48 + 48 * 2 * 3),
        (lambda: models.compressed_linear("f8e5m2", zero_point=None), "fp8_e5m2", 32, "", 48 * 64 + 48 * 2 * 2),
    ],
)
def test_foreign_formats(make: Any, mode: str, group: int, zero_point: str, size: int) -> None:
    weight = only(inspect(make()))
    assert (weight.mode, weight.group_size, weight.zero_point, weight.bytes) == (mode, group, zero_point, size)
    assert weight.layer == "layer"
    assert weight.bits_per_weight == pytest.approx(8 * size / (48 * 64))


@pytest.mark.parametrize(
    ("scales", "text"), [("channel", "f32"), ("tensor", "f32"), ("block", "f32 per 16 × 32"), ("none", "")]
)
def test_fp8_checkpoints(scales: str, text: str) -> None:
    """Compressed as they are, and weights that can be compressed: listed once."""
    found = inspect(models.fp8_checkpoint(scales), "CPU")
    weight = only(found)
    assert (weight.mode, weight.scale_type, weight.shape) == ("fp8_e4m3", text, (64, 128))
    assert weight.executions[0].verdict == "expanded"
    assert found.floats == ()


def test_constants_that_two_weights_share_are_counted_once() -> None:
    """One constant of codes that two layers decompress, each for itself."""
    codes, scale = stored("i8", (64, 64), "codes"), stored("f16", (64, 1), "scale")
    x: ov.Node = op.parameter([-1, 64], np.float32, name="x")
    hidden = x
    for _ in range(2):
        hidden = op.matmul(hidden, op.convert(op.multiply(op.convert(codes, "f16"), scale), "f32"), False, True)
    found = inspect(ov.Model([op.result(hidden)], [x]))
    assert [weight.bytes for weight in found.weights] == [64 * 64 + 128, 0]
    assert found.bytes == 64 * 64 + 128
    assert found.elements == 2 * 64 * 64


def test_what_is_not_compressed_has_a_reason() -> None:
    model = models.llama(hidden=64, layers=1)
    WeightCompression(mode="int4_sym", group_size=32, backup_mode="none").run_on_model(model)
    found = inspect(model)
    assert {row.mode for row in found.weights} == {"int4_sym"}
    (row,) = found.float_groups
    assert (row.element_type, row.reason, row.constants) == ("f32", "a weight that can be compressed", 2)
    assert row.bytes == 2 * 160 * 64 * 4
    parts = {one.name for one in found.floats}
    assert parts == {"model.embed_tokens.weight", "lm_head.weight"}


def test_sums_and_shares_add_up() -> None:
    model = models.llama(hidden=64, layers=2)
    WeightCompression(mode="int4_sym", group_size=32).run_on_model(model)
    found = inspect(model)
    assert sum(row.bytes for row in found.formats) == found.bytes
    assert sum(row.weights for row in found.formats) == len(found.weights) == 16
    assert [row.bytes for row in found.formats] == sorted((row.bytes for row in found.formats), reverse=True)
    assert found.bits_per_weight == pytest.approx(8 * found.bytes / found.elements)
    assert found.bytes <= found.constants_bytes
    assert json.loads(json.dumps(found.to_dict()))["totals"]["weights"] == 16


def test_the_table_of_many_layers_fits_a_screen() -> None:
    model = models.llama(hidden=32, heads=2, key_heads=1, inner=64, layers=30)
    WeightCompression(mode="int4_sym", group_size=32).run_on_model(model)
    text = str(inspect(model))
    assert len(text.splitlines()) < 24
    assert "int4_sym g32" in text
    assert "int8_asym" in text
    assert f"all {212:>38}" in text


def test_sections_of_other_tools() -> None:
    model = nncf_int4(True)
    model.set_rt_info("3.4.0", ["nncf", "version"])
    model.set_rt_info("int4_sym", ["nncf", "weight_compression", "mode"])
    model.set_rt_info("1.27.0", ["optimum", "optimum_intel_version"])
    found = inspect(model)
    assert found.recipe == {
        "nncf": {"version": "3.4.0", "weight_compression": {"mode": "int4_sym"}},
        "optimum": {"optimum_intel_version": "1.27.0"},
    }
    assert "nncf: version 3.4.0, weight_compression (mode int4_sym)" in str(found)


def test_a_model_without_weights() -> None:
    found = inspect(models.no_weights())
    assert (found.weights, found.floats, found.bits_per_weight) == ((), (), 0.0)
    assert "No weight is stored compressed" in str(found)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = models.layers(2, 64)
    WeightCompression().run_on_model(model)
    ov.save_model(model, tmp_path / "in" / "openvino_model.xml")
    return tmp_path / "in"


def test_a_folder(saved: Path) -> None:
    assert len(inspect(saved).weights) == 2
    ov.save_model(models.layers(1, 64), saved / "part" / "openvino_decoder_model.xml")
    with pytest.raises(ModelError, match=r"several models \(openvino_model.xml, part/openvino_decoder_model.xml\)"):
        inspect(saved)


def test_the_command(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved)]) == 0
    printed = capsys.readouterr().out
    assert "int8_asym" in printed
    assert "weight_0" not in printed
    assert main(["inspect", str(saved / "openvino_model.xml"), "--all"]) == 0
    assert "weight_0" in capsys.readouterr().out
    assert main(["inspect", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"][0]["name"] == "weight_0"
    assert main(["inspect", str(saved), "--json", str(saved / "found.json")]) == 0
    assert json.loads((saved / "found.json").read_text())["totals"]["weights"] == 2


def test_the_command_lists_every_model_of_a_folder(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ov.save_model(models.layers(1, 64), saved / "part" / "openvino_decoder_model.xml")
    assert main(["inspect", str(saved), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [one["totals"]["weights"] for one in listed] == [2, 0]


def test_errors_of_the_command(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved / "none.xml")]) == 2
    assert "there is no such file" in capsys.readouterr().err
    (saved / "openvino_model.bin").write_bytes(b"too short")
    assert main(["inspect", str(saved)]) == 2
    assert "truncated" in capsys.readouterr().err
    assert main(["inspect", str(saved.parent / "empty")]) == 2
    capsys.readouterr()


@pytest.mark.parametrize("mode", ["int8_asym", "int8_sym"])
def test_a_weight_of_one_channel_is_called_what_it_is(mode: str) -> None:
    model = models.linear(1, 96)
    WeightCompression(mode=mode).run_on_model(model)
    assert [weight.mode for weight in inspect(model).weights] == [mode]


def test_a_format_that_somebody_added_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.linear(32, 64)
    WeightCompression(mode="int8_sym").run_on_model(model)
    assert inspect(model).weights[0].mode == "int8_sym"
    row = FORMATS["int8_sym"]
    monkeypatch.delitem(FORMATS, "int8_sym")
    assert inspect(model).weights[0].mode == "int8_sym"
    monkeypatch.setitem(FORMATS, "bytes", replace(row, name="bytes"))
    assert inspect(model).weights[0].mode == "bytes"
