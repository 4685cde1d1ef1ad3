"""The pass in an `openvino.passes.Manager`, beside other passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino.passes import ConstantFolding, Manager, Serialize

from ov_weight_compression.passes import WeightCompression, apply_weight_compression
from tests.models import layers, linear, op, tied_head
from tests.running import layer_types, matrix_of, run, stored

MODES = ["int8_asym", "int8_sym", "int4_asym", "int4_sym", "nf4", "fp4", "mxfp4", "nvfp4", "int2_sym", "int2_asym"]
OTHERS = ["int3_sym", "fp8_e4m3", "mxfp8_e4m3", "cb4"]  # what the CPU plugin expands when it compiles


def options_of(mode: str) -> dict[str, object]:
    return {"mode": mode} if mode.startswith("int8") else {"mode": mode, "all_layers": True}


@pytest.mark.parametrize("mode", MODES + OTHERS)
def test_a_manager_gives_the_same_model_as_the_function(mode: str, tmp_path: Path) -> None:
    compression = WeightCompression(**options_of(mode))
    model = layers(2, 128)
    manager = Manager()
    manager.register_pass(compression)
    manager.run_passes(model)
    expected = apply_weight_compression(layers(2, 128), **options_of(mode))
    assert stored(model, tmp_path / "manager") == stored(expected, tmp_path / "function")
    assert [row.mode for row in compression.report.rows] == [mode, mode]


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "plain"])
@pytest.mark.parametrize("mode", MODES)
def test_constant_folding_afterwards_leaves_the_weights_compressed(mode: str, lazy: bool, tmp_path: Path) -> None:
    model = linear(128, 128, dtype="f16")
    manager = Manager()
    manager.register_pass(WeightCompression(**options_of(mode), lazy=lazy))
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    alone = apply_weight_compression(linear(128, 128, dtype="f16"), **options_of(mode))
    stored(model, tmp_path, "folded")
    stored(alone, tmp_path, "alone")
    folded_size, alone_size = ((tmp_path / f"{name}.bin").stat().st_size for name in ("folded", "alone"))
    assert folded_size <= 1.2 * alone_size  # scales of one byte may become two
    assert (run(model)[0] == run(alone)[0]).all()
    assert layer_types(model) == layer_types(alone)
    assert not {"FullyConnected f32", "FullyConnected f16", "FullyConnected bf16"} & set(layer_types(model))


@pytest.mark.parametrize("mode", OTHERS)
def test_constant_folding_leaves_what_the_plugin_expands_alone_too(mode: str, tmp_path: Path) -> None:
    model = linear(128, 128, dtype="f16")
    manager = Manager()
    manager.register_pass(WeightCompression(**options_of(mode)))
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    _, weights = stored(model, tmp_path)
    assert len(weights) < 128 * 128 * 1.2
    assert (run(model)[0] == run(tmp_path / "model.xml")[0]).all()


def test_constant_folding_before_changes_nothing() -> None:
    model = tied_head(dtype="f16")
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.register_pass(WeightCompression())
    manager.run_passes(model)
    codes = [node.get_output_element_type(0).get_type_name() for node in model.get_ops()].count("u8")
    assert codes == 4  # codes and zero points of two weights


def test_serialize_in_the_same_manager_writes_the_compressed_model(tmp_path: Path) -> None:
    manager = Manager()
    manager.register_pass(WeightCompression(mode="int4_sym", all_layers=True))
    manager.register_pass(Serialize(str(tmp_path / "m.xml"), str(tmp_path / "m.bin")))
    model = layers(3, 128)
    expected = run(apply_weight_compression(layers(3, 128), mode="int4_sym", all_layers=True))[0]
    manager.run_passes(model)
    assert (tmp_path / "m.bin").stat().st_size < 3 * (128 * 128 / 2 + 128 * 2 + 128 * 4) + 1000
    assert (run(tmp_path / "m.xml")[0] == expected).all()


def test_one_pass_object_serves_several_models() -> None:
    compression = WeightCompression(mode="int4_sym")
    for count in (2, 3):
        compression.run_on_model(layers(count, 128))
        assert len(compression.report.rows) == count


@pytest.mark.parametrize("mode", MODES + OTHERS)
def test_f32_scales_survive_folding_and_saving(mode: str, tmp_path: Path) -> None:
    """Weights beyond f16: nothing of the chain may be rounded to f16, and the file must be readable."""
    model = linear(32, 128)
    weight = next(node for node in model.get_ops() if node.get_friendly_name() == "weight")
    values = weight.data * np.float32(1e8)
    weight.output(0).replace(op.constant(values).output(0))
    manager = Manager()
    manager.register_pass(WeightCompression(**options_of(mode)))
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    stored(model, tmp_path)
    found = matrix_of(ov.Core().read_model(tmp_path / "model.xml"), 128).T / 1e8
    assert np.linalg.norm(found - values / 1e8) < 0.5 * np.linalg.norm(values / 1e8)
