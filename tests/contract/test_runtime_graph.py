"""What the CPU plugin makes of a compressed model: codes read as codes where it can; the same outputs when reloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.passes import apply_weight_compression
from tests.models import embedding, layers, linear, llama, op, tied_head
from tests.running import layer_types, run

STORAGE = {
    "int8_asym": "u8",
    "int8_sym": "i8",
    "int4_asym": "u4",
    "int4_sym": "i4",
    "nf4": "nf4",
    "fp4": "f4e2m1",
    "mxfp4": "f4e2m1",
    "nvfp4": "f4e2m1",
    "int2_sym": "u2",
    "int2_asym": "u2",
}


def options_of(mode: str, group: int | None = None) -> dict[str, object]:
    options: dict[str, object] = {"mode": mode}
    if not mode.startswith("int8"):
        options["all_layers"] = True
        if group is not None and mode not in ("mxfp4", "nvfp4"):
            options["group_size"] = group
    return options


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "plain"])
@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("mode", STORAGE)
def test_layers_run_on_codes(mode: str, dtype: str, lazy: bool) -> None:
    model = apply_weight_compression(layers(2, 128, dtype), **options_of(mode, 64), lazy=lazy)
    assert layer_types(model) == [f"FullyConnected {STORAGE[mode]}"] * 2


@pytest.mark.parametrize("transpose", [True, False], ids=["out-in", "in-out"])
@pytest.mark.parametrize("mode", STORAGE)
def test_either_orientation_runs_on_codes(mode: str, transpose: bool) -> None:
    model = apply_weight_compression(linear(96, 128, dtype="f16", transpose=transpose), **options_of(mode, 32))
    assert layer_types(model) == [f"FullyConnected {STORAGE[mode]}"]


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "plain"])
@pytest.mark.parametrize("group", [-1, 64])
@pytest.mark.parametrize("mode", ["int8_asym", "int8_sym", "int4_asym", "int4_sym"])
def test_embeddings_are_read_as_codes(mode: str, group: int, lazy: bool) -> None:
    model = apply_weight_compression(embedding((256, 128), dtype="f16"), **options_of(mode, group), lazy=lazy)
    assert layer_types(model) == [f"Gather {STORAGE[mode]}"]


@pytest.mark.parametrize("mode", ["int8_asym", "int8_sym", "int4_asym", "int4_sym"])
def test_a_tied_table_is_read_as_codes_by_both(mode: str) -> None:
    model = apply_weight_compression(tied_head(256, 128, "f16"), **options_of(mode, 64))
    assert layer_types(model) == [*[f"FullyConnected {STORAGE[mode]}"] * 2, f"Gather {STORAGE[mode]}"]


@pytest.mark.parametrize("mode", [*STORAGE, "int3_sym", "fp8_e4m3", "mxfp8_e4m3", "cb4"])
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "plain"])
def test_saved_and_reloaded_gives_equal_outputs(mode: str, lazy: bool, tmp_path: Path) -> None:
    model = apply_weight_compression(llama(128, 4, 2, 256, dtype="f16"), **options_of(mode), lazy=lazy)
    ov.save_model(model, tmp_path / "m.xml")
    assert (run(model)[0] == run(tmp_path / "m.xml")[0]).all()


@pytest.mark.parametrize("mode", [*STORAGE, "int3_sym", "fp8_e4m3", "cb4"])
def test_a_tied_table_gives_equal_outputs_when_reloaded(mode: str, tmp_path: Path) -> None:
    model = apply_weight_compression(tied_head(256, 128, "f16"), **options_of(mode, 64))
    ov.save_model(model, tmp_path / "m.xml")
    assert (run(model)[0] == run(tmp_path / "m.xml")[0]).all()


@pytest.mark.parametrize("mode", ["int8_sym", "int8_asym", "int4_asym"])
def test_a_table_of_matrices_gives_equal_outputs_when_reloaded(mode: str, tmp_path: Path) -> None:
    model = apply_weight_compression(embedding((80, 4, 64), dtype="f16"), **options_of(mode, 32))
    ov.save_model(model, tmp_path / "m.xml")
    assert (run(model)[0] == run(tmp_path / "m.xml")[0]).all()


def runs_on_codes_before_and_after_saving(model: ov.Model, mode: str, folder: Path) -> None:
    """One layer's model, compressed: equal outputs, near the original's, from codes."""
    before = run(model.clone())[0]
    apply_weight_compression(model, **options_of(mode, 32))
    ov.save_model(model, folder / "m.xml")
    after = run(folder / "m.xml")[0]
    assert (run(model)[0] == after).all()
    assert np.linalg.norm(after - before) < 0.13 * np.linalg.norm(before)
    for read in (model, ov.Core().read_model(folder / "m.xml")):
        assert layer_types(read) == [f"FullyConnected {STORAGE[mode]}"]


@pytest.mark.parametrize("shape", [(8, 12, 64), (1, 96, 64), (96, 1, 64), (96, 8, 8), (96, 64, 1, 1), (32, 192)])
@pytest.mark.parametrize("mode", ["int8_asym", "int8_sym", "int4_asym", "nf4"])
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_weights_behind_a_reshape_run_on_codes(mode: str, shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    """A constant of another shape, which a Reshape brings into the layer's: stored in three dimensions the CPU plugin
    takes it for codes in groups, and fails to compile the model or expands it."""

    def to_matrix(node: ov.Node) -> ov.Node:
        return op.reshape(node, op.constant(np.array([96, 64])), False)

    model = linear(96, 64, dtype=dtype, shape=shape, through=to_matrix)
    runs_on_codes_before_and_after_saving(model, mode, tmp_path)


@pytest.mark.parametrize("transpose", [True, False], ids=["out-in", "in-out"])
@pytest.mark.parametrize("mode", ["int8_asym", "int8_sym", "int4_asym", "nf4"])
@pytest.mark.parametrize("dtype", ["f16", "f16 converted last", "f32"])
def test_weights_behind_a_transpose_run_on_codes(mode: str, transpose: bool, dtype: str, tmp_path: Path) -> None:
    """The plugin would expand them; the MatMul turns them instead."""

    def turned(node: ov.Node) -> ov.Node:
        if dtype == "f16 converted last":
            return op.convert(op.transpose(node.input_value(0), op.constant(np.array([1, 0]))), "f32")
        return op.transpose(node, op.constant(np.array([1, 0])))

    shape = (64, 96) if transpose else (96, 64)
    model = linear(96, 64, dtype=dtype[:3], shape=shape, through=turned, transpose=transpose)
    runs_on_codes_before_and_after_saving(model, mode, tmp_path)


@pytest.mark.parametrize(
    ("mode", "limit"), [("int8_asym", 0.01), ("int8_sym", 0.01), ("int4_asym", 0.12), ("int4_sym", 0.12)]
)
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_outputs_stay_close_to_the_original(mode: str, limit: float, dtype: str) -> None:
    model = linear(96, 128, dtype=dtype)
    before = run(model.clone())[0]
    after = run(apply_weight_compression(model, **options_of(mode, 32)))[0]
    assert 0 < np.linalg.norm(after - before) / np.linalg.norm(before) < limit


def test_bf16_inference_runs_on_codes_too() -> None:
    model = apply_weight_compression(layers(2, 128, "f16"), mode="int4_sym", all_layers=True)
    types = layer_types(model, {"INFERENCE_PRECISION_HINT": "bf16"})
    assert types == ["FullyConnected i4"] * 2
