"""The report: complete, exact, and readable by people and programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.passes import Manager

from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import (
    CompressionWarning,
    OptionError,
    Report,
    WeightCompression,
    apply_weight_compression,
    compat,
    report_of,
)
from tests.models import convolution, linear, llama, lstm, tied_head
from tests.running import constants, stored


@pytest.fixture
def report() -> Report:
    compression = WeightCompression(mode="int4_asym", group_size=32, rules=[("*gate*", None)])
    compression.run_on_model(llama(dtype="f16"))
    return compression.report


def test_one_row_or_skip_for_every_weight(report: Report) -> None:
    names = [row.name for row in report.rows] + [skip.name for skip in report.skips]
    assert len(set(names)) == len(names)
    weights = {name for name in constants(llama(dtype="f16")) if name.startswith(("model.", "lm_head"))}
    assert {name for name in weights if "norm" not in name} <= set(names)
    assert all(skip.reason for skip in report.skips)


def test_a_row_tells_everything(report: Report) -> None:
    row = next(row for row in report.rows if row.name == "model.layers.1.mlp.down_proj.weight")
    assert row.consumer == "model.layers.1.mlp.down_proj/MatMul"
    assert (row.kind, row.shape, row.element_type) == ("matmul", (64, 96), "f16")
    assert (row.mode, row.group_size, row.scale_type) == ("int4_asym", 32, "f16")
    assert row.elements == 64 * 96
    assert row.bytes_before == 64 * 96 * 2
    groups = 64 * 96 // 32
    assert row.bytes_after == 64 * 96 // 2 + groups * 2 + groups // 2
    assert row.bits_per_weight == pytest.approx(4 + (16 + 4) / 32)


def test_totals_add_up(report: Report) -> None:
    assert report.bytes_before == sum(row.bytes_before for row in report.rows)
    assert sum(share.weights for share in report.shares) == len(report.rows)
    assert sum(share.bytes_after for share in report.shares) == report.bytes_after
    assert report.bits_per_weight == 8 * report.bytes_after / sum(row.elements for row in report.rows)
    assert [share.elements for share in report.shares] == sorted((s.elements for s in report.shares), reverse=True)


@pytest.mark.parametrize(
    "mode", ["int8_asym", "int4_sym", "int3_sym", "int2_sym", "int2_asym", "nf4", "mxfp4", "nvfp4", "fp8_e4m3", "cb4"]
)
@pytest.mark.parametrize("transpose", [True, False])
def test_sizes_are_those_of_the_file(mode: str, transpose: bool, tmp_path: Path) -> None:
    model = linear(40, 96, transpose=transpose)
    compression = WeightCompression(mode=mode, **({} if mode.startswith("int8") else {"all_layers": True}))
    compression.run_on_model(model)
    stored(model, tmp_path)
    names = ("weight", "weight/scale", "weight/zero_point", "weight/tensor_scale", "weight/table")
    found = constants(ov.Core().read_model(tmp_path / "model.xml"))
    assert compression.report.bytes_after == sum(found[name].get_byte_size() for name in names if name in found)


@pytest.mark.parametrize("mode", ["int8_sym", "nvfp4"])
def test_sizes_are_those_of_the_file_where_cpus_are_kept_from_the_codes(mode: str, tmp_path: Path) -> None:
    x = op.parameter([16], np.float32)
    weight = op.constant(np.random.default_rng(0).standard_normal((1, 20, 16)).astype(np.float32))
    model = ov.Model([op.result(op.matmul(x, weight, False, True))], [x], "one channel")
    compression = WeightCompression(mode=mode, **({} if mode.startswith("int8") else {"all_layers": True}))
    compression.run_on_model(model)
    assert len(compression.report.rows) == 1
    stored(model, tmp_path)
    found = constants(ov.Core().read_model(tmp_path / "model.xml")).values()
    held = [node.get_byte_size() for node in found if node.get_output_element_type(0) != ov.Type.i64]
    assert compression.report.bytes_after == sum(held)


def test_as_json(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read == json.loads(json.dumps(report.to_dict()))
    assert read["totals"]["weights"] == len(report.rows)
    assert read["recipe"]["mode"] == "int4_asym"
    assert {"name", "consumer", "shape", "reason", "bytes"} <= set(read["skips"][0])
    assert {"name", "mode", "group_size", "bytes_before", "bytes_after", "bits_per_weight"} <= set(read["weights"][0])


def test_as_text(report: Report) -> None:
    text = str(report)
    for word in ("int4_asym", "int8_asym", "embedding", "last layer", "rule '*gate*' leaves it alone", "all"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120
    assert "\x1b" not in text


def test_it_is_frozen(report: Report) -> None:
    with pytest.raises(FrozenInstanceError):
        report.rows = ()  # type: ignore[misc]


def test_recurrent_weights_are_skipped_with_a_reason() -> None:
    compression = WeightCompression()
    compression.run_on_model(lstm())
    assert not compression.report.rows
    assert {"weight", "weight_1"} <= {skip.name for skip in compression.report.skips}
    assert all("LSTM" in skip.reason for skip in compression.report.skips if skip.name.startswith("weight"))


def test_a_preview_changes_nothing_and_tells_the_same() -> None:
    model = tied_head()
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    compression = WeightCompression(mode="int4_sym", group_size=32)
    preview = compression.preview(model)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before
    compression.run_on_model(model)
    assert preview == compression.report


def test_equal_weights_are_counted_once(tmp_path: Path) -> None:
    """They are stored once; the sizes are those of the file."""
    x = op.parameter([-1, 64], np.float32)
    values = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    named = [op.constant(values), op.constant(values.copy())]
    for node, name in zip(named, ("first", "second"), strict=True):
        node.set_friendly_name(name)
    model = ov.Model([op.result(op.matmul(x, node, False, True)) for node in reversed(named)], [x], "equal")
    compression = WeightCompression(mode="int8_sym")
    assert compression.preview(model).rows[1].bytes_after == 0
    compression.run_on_model(model)
    first, second = compression.report.rows
    assert (first.name, first.bytes_after, first.reason) == ("first", 48 * 64 + 48 * 2, "")
    assert (second.name, second.bytes_after, second.reason) == ("second", 0, "the same bytes as first")
    save_model(model, tmp_path / "m.xml")
    assert (tmp_path / "m.bin").stat().st_size - compression.report.bytes_after < 64


def test_the_function_leaves_a_report_too() -> None:
    model = linear()
    with pytest.raises(OptionError, match=r"^report_of: apply_weight_compression has not been called with this model"):
        report_of(model)
    compression = WeightCompression(mode="int8_sym")
    compression.run_on_model(linear())
    assert apply_weight_compression(model, mode="int8_sym") is model
    assert report_of(model) == compression.report
    with pytest.raises(OptionError, match="clones"):
        report_of(model.clone())
    with pytest.raises(OptionError, match=r"^model: expected an openvino.Model, got str"):
        report_of("m.xml")  # type: ignore[arg-type]


def test_what_a_device_expands_is_warned_of_once_and_the_rest_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "ov_weight_compression"), pytest.warns(CompressionWarning) as caught:
        apply_weight_compression(convolution(), mode="int8_sym")
    (warning,) = caught
    assert str(warning.message).startswith("CPU expands 1 weight in int8_sym (convolution) to floats when it compiles")
    summary, *details = [record.getMessage() for record in caplog.records]
    assert summary.startswith("1 weights compressed (")
    assert any("int8_sym, group -1" in detail for detail in details)


def compressed_in_a_manager() -> None:
    manager = Manager()
    manager.register_pass(WeightCompression(mode="int8_sym"))
    manager.run_passes(convolution())


@pytest.mark.parametrize(
    "call",
    [
        lambda: apply_weight_compression(convolution(), mode="int8_sym"),
        lambda: compat.compress_weights(convolution(), mode="int8_sym"),
        lambda: WeightCompression(mode="int8_sym").run_on_model(convolution()),
        lambda: WeightCompression(mode="int8_sym").preview(convolution()) and compressed_in_a_manager(),
    ],
    ids=["function", "compat", "pass", "manager"],
)
def test_a_warning_is_at_the_callers_line(call: Callable[[], object]) -> None:
    with pytest.warns(CompressionWarning) as caught:
        call()
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.filterwarnings("error::ov_weight_compression.passes.CompressionWarning")
def test_a_warning_made_an_error_leaves_the_model_as_it_was() -> None:
    model = convolution()
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    with pytest.raises(CompressionWarning, match=r"^CPU expands 1 weight"):
        apply_weight_compression(model, mode="int8_sym")
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before
