"""Models as exporters write them, in every mode: compressed, saved, reloaded, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import Mode, WeightCompression
from ov_weight_compression.passes.options import read_options
from tests.running import inputs_for, run

MODELS = [
    *("bert", "bloom", "clip", "falcon", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama"),
    *("mamba", "opt", "phi3", "qwen2", "qwen2_moe", "resnet", "whisper/decoder", "whisper/encoder"),
]
NEEDS_MORE = {Mode.CODEBOOK, Mode.ADAPTIVE_CODEBOOK}  # a codebook of the caller's, values to fit one to
MODES = [mode.value for mode in Mode if mode not in NEEDS_MORE]
TELLING = ("bert", "llama", "qwen2_moe", "resnet", "whisper/decoder")  # one of each kind, to try every mode on
GRID = [(name, mode) for name in MODELS for mode in (MODES if name in TELLING else ("int8_asym", "int4_asym", "nf4"))]


def path_of(shared: Path, name: str) -> Path:
    folder, _, part = name.partition("/")
    return shared / "zoo" / folder / (f"openvino_{part}_model.xml" if part else "openvino_model.xml")


@pytest.mark.parametrize(("name", "mode"), GRID)
def test_compressed_saved_reloaded_and_run(shared: Path, name: str, mode: str, tmp_path: Path) -> None:
    own = read_options(mode=mode)
    grouped = not own.mode.is_int8 and own.effective_group not in (-1, 16, 32)
    compression = WeightCompression(mode=mode, **({"group_size": 32} if grouped else {}))
    model = ov.Core().read_model(path_of(shared, name))
    feed = inputs_for(model)
    original = run(model.clone(), feed)
    compression.run_on_model(model)
    save_model(model, tmp_path / "m.xml")
    outputs = run(tmp_path / "m.xml", feed)
    report = compression.report
    assert report.rows
    assert report.bytes_after < report.bytes_before
    for before, after in zip(original, outputs, strict=True):
        assert np.isfinite(after).all()
        assert before.shape == after.shape
    if mode in ("int8_asym", "int8_sym"):
        largest = max(original, key=lambda output: output.size).astype(np.float64)
        error = max(outputs, key=lambda output: output.size) - largest
        assert np.linalg.norm(error) < 0.05 * np.linalg.norm(largest)


@pytest.mark.parametrize("name", MODELS)
def test_every_large_float_constant_is_accounted_for(shared: Path, name: str) -> None:
    compression = WeightCompression(mode="int4_sym", group_size=32)
    model = ov.Core().read_model(path_of(shared, name))
    floats = {
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_output_element_type(0).get_type_name() in ("f32", "f16", "bf16", "f64")
        and np.prod(list(node.get_output_shape(0))) >= 1024
    }
    compression.run_on_model(model)
    reported = [*compression.report.rows, *compression.report.skips]
    assert floats <= {entry.name for entry in reported}
    assert all(skip.reason for skip in compression.report.skips)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_as_it_is_gives_what_the_saved_one_gives(shared: Path, name: str, tmp_path: Path) -> None:
    model = ov.Core().read_model(path_of(shared, name))
    compression = WeightCompression(mode="int4_asym", group_size=32)
    compression.run_on_model(model)
    save_model(model, tmp_path / "m.xml")
    feed = inputs_for(model)
    for lazy, saved in zip(run(model, feed), run(tmp_path / "m.xml", feed), strict=True):
        np.testing.assert_allclose(lazy, saved, rtol=1e-3, atol=1e-5 * np.abs(saved).max())


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "resnet"])
def test_the_report_tells_the_size_of_the_file(shared: Path, name: str, tmp_path: Path) -> None:
    model = ov.Core().read_model(path_of(shared, name))
    source = path_of(shared, name).with_suffix(".bin").stat().st_size
    compression = WeightCompression(mode="int4_sym", group_size=32)
    compression.run_on_model(model)
    save_model(model, tmp_path / "m.xml")
    saved = source - compression.report.bytes_before + compression.report.bytes_after
    assert abs((tmp_path / "m.bin").stat().st_size - saved) <= 24 * len(compression.report.rows)
