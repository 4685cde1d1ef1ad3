"""fp8 checkpoints compressed: as if they had been decompressed first, in one step and in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.evaluation import inspect
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.weight_source import ChainSource
from ov_weight_compression.passes import WeightCompression, apply_weight_compression, apply_weight_decompression
from ov_weight_compression.patterns import find_weights
from tests.models import fp8_checkpoint
from tests.running import constants, files_of, matrix_of

KINDS = ("channel", "tensor", "block", "none")


def stored(model: ov.Model, folder: Path, name: str) -> ov.Model:
    save_model(model, folder / f"{name}.xml")
    return ov.Core().read_model(folder / f"{name}.xml")


def bits(model: ov.Model) -> dict[str, bytes]:
    """The stored parts of the only weight."""
    return {
        name: node.get_tensor_view().data.tobytes()
        for name, node in constants(model).items()
        if name.startswith("weight") and not name.endswith("shape")
    }


@pytest.mark.parametrize("out", [0, 1])
@pytest.mark.parametrize("scales", KINDS)
@pytest.mark.parametrize("mode", ["int8_asym", "int4_asym", "int4_sym", "nf4", "nvfp4", "cb4"])
def test_as_if_decompressed_first(mode: str, scales: str, out: int, tmp_path: Path) -> None:
    options = {"mode": mode, **({} if mode.startswith("int8") else {"all_layers": True})}
    shape = (128, 64) if out else (64, 128)
    floats = stored(apply_weight_decompression(fp8_checkpoint(scales, shape=shape, out=out), "f32"), tmp_path, "floats")
    expected = bits(stored(apply_weight_compression(floats, **options), tmp_path, "expected"))
    source = stored(fp8_checkpoint(scales, shape=shape, out=out), tmp_path, "source")
    report = WeightCompression(**options)
    report.run_on_model(source)
    found = bits(stored(source, tmp_path, "found"))
    assert found == expected
    (row,) = report.report.rows
    assert row.element_type == "f8e4m3"
    assert (row.mode, row.name) == (mode, "weight")


@pytest.mark.parametrize("to", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("scales", KINDS)
def test_it_runs_compressed(scales: str, to: str, tmp_path: Path) -> None:
    model = fp8_checkpoint(scales, to)
    before = matrix_of(model, 128)
    apply_weight_compression(model, mode="int8_sym")
    found = inspect(stored(model, tmp_path, "model"), "CPU")
    assert [(weight.mode, weight.executed) for weight in found.weights] == [
        ("int8_sym", "runs from codes: FullyConnected")
    ]
    after = matrix_of(model, 128)
    step = np.abs(before).max(axis=0) / 127
    # a step where both sides are equally large; bf16 chains are folded in bf16
    assert (np.abs(after - before) <= (1.6 if to == "bf16" else 1.1) * step).all()


@pytest.mark.parametrize("scales", KINDS)
@pytest.mark.parametrize("mode", ["int4_sym", "fp8_e4m3", "mxfp8_e4m3"])
def test_twice_changes_nothing(scales: str, mode: str, tmp_path: Path) -> None:
    """Neither what became of a checkpoint nor a fp8 model of our own, per channel so that it looks like one."""
    model = apply_weight_compression(fp8_checkpoint(scales), mode=mode, all_layers=True, group_size=32)
    save_model(model, tmp_path / "once.xml")
    again = WeightCompression(mode="int4_asym", all_layers=True)
    if mode != "int4_sym":  # it has been skipped, so there is no recipe and it may be compressed yet
        assert not model.has_rt_info(["weight_compression"])
        return
    read = ov.Core().read_model(tmp_path / "once.xml")
    assert not again.run_on_model(read)
    save_model(read, tmp_path / "twice.xml")
    assert files_of(tmp_path / "once.xml") == files_of(tmp_path / "twice.xml")


def test_our_own_fp8_per_channel_is_left_alone(tmp_path: Path) -> None:
    from tests.models import linear

    model = apply_weight_compression(linear(48, 64), mode="fp8_e4m3", all_layers=True, group_size=-1)
    read = stored(model, tmp_path, "once")
    again = WeightCompression(mode="int4_sym", all_layers=True)
    assert not again.run_on_model(read)
    assert again.report.skips[0].reason == "already compressed (f8e4m3)"


def test_fp8_to_fp8_is_refused() -> None:
    own = WeightCompression(mode="fp8_e4m3", all_layers=True)
    assert not own.run_on_model(fp8_checkpoint())
    assert [skip.reason for skip in own.report.skips] == ["stored as f8e4m3 already"]
    assert WeightCompression(mode="fp8_e4m3", all_layers=True).run_on_model(fp8_checkpoint(storage="f8e5m2"))


@pytest.mark.parametrize("out", [0, 1])
@pytest.mark.parametrize("scales", KINDS)
def test_chains_in_pieces(scales: str, out: int, tmp_path: Path) -> None:
    shape = (128, 64) if out else (64, 128)
    model = stored(fp8_checkpoint(scales, shape=shape, out=out), tmp_path, "model")
    whole = matrix_of(model, 128).T
    (weight,), _ = find_weights(model)
    source = ChainSource(weight.constant, weight.layout, FileMappings())
    np.testing.assert_array_equal(source.read_all(), whole)
    for rows in (1, 5, 64):
        for _ in range(2):  # what has been released can be read again
            for slab in source.layout.slabs(rows):
                np.testing.assert_array_equal(source.read(slab), whole[slab.start : slab.stop])
                source.release(slab)
    found = source.scan()
    assert (found.absmax, found.bad) == (float(np.abs(whole).max()), 0)
    assert source.element_type == "f32"


def test_nan_codes_are_counted_and_skipped() -> None:
    model = fp8_checkpoint()
    codes = constants(model)["weight"]
    raw = ov.Tensor(ov.Type.f8e4m3, ov.Shape([64, 128]))
    raw.data.view(np.uint8)[:] = codes.get_tensor_view().data.view(np.uint8)
    raw.data.reshape(-1).view(np.uint8)[[3, 700]] = 0x7F
    codes.output(0).replace(ov.op.Constant(raw).output(0))
    own = WeightCompression()
    assert not own.run_on_model(model)
    assert own.report.skips[0].reason == "2 NaN or infinite values"


def test_lazy_and_eager_are_the_same(tmp_path: Path) -> None:
    files = []
    for lazy in (True, False):
        model = apply_weight_compression(fp8_checkpoint("block"), mode="int4_asym", all_layers=True, lazy=lazy)
        save_model(model, tmp_path / f"{lazy}.xml")
        files.append(files_of(tmp_path / f"{lazy}.xml")[1])
    assert files[0] == files[1]
