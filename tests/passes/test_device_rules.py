"""What a device would expand is replaced where the device is named, and told where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from ov_weight_compression.evaluation.device import RuntimeGraph
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes import Report, WeightCompression
from ov_weight_compression.quantization.formats import FORMATS
from tests import models


def compressed(model: ov.Model, **options: Any) -> Report:
    own = WeightCompression(**options)
    own.run_on_model(model)
    return own.report


def got(report: Report) -> dict[str, tuple[str, int]]:
    return {row.kind: (row.mode, row.group_size) for row in report.rows}


@pytest.mark.parametrize(
    ("mode", "group", "gather", "matmul"),
    [
        ("nf4", 64, ("int4_sym", 64), ("nf4", 64)),
        ("fp4", 64, ("int4_sym", 64), ("fp4", 64)),
        ("mxfp4", 32, ("int4_sym", 32), ("mxfp4", 32)),
        ("nvfp4", 16, ("int4_sym", 32), ("nvfp4", 16)),
        ("int2_asym", 64, ("int4_sym", 64), ("int2_asym", 64)),
        ("int3_sym", 64, ("int4_sym", 64), ("int4_sym", 64)),
        ("fp8_e4m3", 64, ("int8_sym", -1), ("int8_sym", -1)),
        ("cb4", -1, ("int4_sym", 128), ("int4_sym", 128)),
        ("int4_asym", 64, ("int4_asym", 64), ("int4_asym", 64)),
    ],
)
def test_the_cpu_executes_what_it_is_given(
    mode: str, group: int, gather: tuple[str, int], matmul: tuple[str, int], tmp_path: Path
) -> None:
    options = {"mode": mode, "group_size": group, "all_layers": True, "device": "CPU"}
    model = models.llama(hidden=256, inner=256, layers=1)
    report = compressed(model, **options)
    assert got(report) == {"gather": gather, "matmul": matmul}
    assert report.warnings == ()
    for row in report.rows:
        assert ("CPU would expand" in row.reason) == (row.mode != mode)
    ov.save_model(model, tmp_path / "model.xml")
    read = ov.Core().compile_model(tmp_path / "model.xml", "CPU")
    graph = RuntimeGraph(read, {node.get_friendly_name() for node in model.get_ops()})
    types = {row.name: graph.weight_edge(row.consumer, row.elements).type for row in report.rows}
    assert types == {row.name: FORMATS[row.mode].storage for row in report.rows}


@pytest.mark.parametrize(
    ("mode", "group", "to"),
    [("int4_asym", -1, "int4_sym"), ("int4_sym", 128, "int4_sym"), ("int8_asym", None, "int8_sym")],
)
def test_the_npu_gets_symmetric_integers_and_its_head_in_int8_asym(mode: str, group: int | None, to: str) -> None:
    report = compressed(models.layers(3, 256), mode=mode, group_size=group, device="NPU")
    assert [row.mode for row in report.rows] == [to, to, "int8_asym"]
    if group == 128:
        assert [row.group_size for row in report.rows] == [128, 128, -1]
    report = compressed(models.layers(2, 96), mode="int4_sym", device="NPU", all_layers=True)  # 128 does not divide
    assert [(row.mode, row.group_size) for row in report.rows] == [("int4_sym", -1), ("int8_asym", -1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "int4_asym", "device": "NPU"}, "mode: an NPU does not run int4_asym in groups of 128; use int4_sym"),
        ({"mode": "nf4", "device": "NPU"}, "mode: an NPU does not run nf4 in groups of 128; use int4_sym in groups of"),
        (
            {"mode": "int4_sym", "group_size": 64, "device": "NPU"},
            r"group_size: an NPU takes int4_sym in groups of 128 or per channel \(-1\), got 64",
        ),
        (
            {"rules": [("*", {"mode": "int4_asym", "group_size": 64})], "device": "NPU"},
            r"rules\[0\]: an NPU does not run int4_asym in groups of 64",
        ),
        ({"rules": [("*", "nf4")], "device": "GPU"}, r"rules\[0\]: a GPU does not run nf4; use int4_sym, int4_asym"),
        ({"rules": [("*", "nvfp4")], "device": "GPU"}, r"rules\[0\]: a GPU does not run nvfp4"),
        (
            {"rules": [("*", {"mode": "int8_asym", "group_size": 64})], "device": "GPU"},
            r"rules\[0\]: a GPU expands int8_asym in groups of 64; use int8_sym, or -1",
        ),
        ({"device": "TPU"}, "device: 'TPU' is not one of CPU, GPU, NPU, AUTO or several of them"),
        ({"device": "CPU,TPU"}, "device: 'TPU' is not one of"),
        ({"device": 3}, "device: must be one of CPU, GPU, NPU, AUTO or several of them, got 3"),
        ({"device": []}, "device: must be one of"),
    ],
)
def test_what_a_device_cannot_take_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}"):
        WeightCompression(**options)


def test_several_devices_get_what_all_of_them_take() -> None:
    def given(mode: str, device: object) -> set[str]:
        return {row.mode for row in compressed(models.layers(3, 256), mode=mode, all_layers=True, device=device).rows}

    assert given("nf4", "CPU") == {"nf4"}
    assert given("nf4", "CPU,GPU") == given("nf4", ["gpu", "CPU"]) == given("nf4", "AUTO:GPU,CPU.0") == {"int4_sym"}
    assert given("fp8_e4m3", "GPU") == {"fp8_e4m3"}
    assert given("fp8_e4m3", "GPU,CPU") == {"int8_sym"}
    assert given("int4_asym", "CPU,GPU") == {"int4_asym"}
    assert given("int4_asym", "AUTO") == given("int4_asym", "GPU,NPU") == {"int4_sym", "int8_asym"}  # the head
    report = compressed(models.layers(1, 256), mode="int4_sym", device="CPU,GPU", all_layers=True)
    assert report.recipe["device"] == "CPU; GPU"


def test_misread_groups_are_not_given_where_a_cpu_is_among_the_devices() -> None:
    def groups(device: str) -> set[int]:
        options = {"mode": "int4_sym", "group_size": 48, "all_layers": True, "device": device}
        return {row.group_size for row in compressed(models.layers(1, 96), **options).rows}

    assert groups("GPU") == {48}
    assert groups("CPU,GPU") == {32}


def test_without_a_device_the_mode_stays_and_the_report_warns() -> None:
    report = compressed(models.llama(hidden=128, layers=1), mode="nf4", group_size=32, all_layers=True)
    assert got(report) == {"gather": ("nf4", 32), "matmul": ("nf4", 32)}
    (warning,) = report.warnings
    assert warning.startswith("CPU expands 1 weight in nf4 (Gather) to floats")
    assert report.to_dict()["warnings"] == [warning]
    assert "note: CPU expands 1 weight" in str(report)


def test_a_rule_has_its_way() -> None:
    report = compressed(
        models.llama(hidden=128, layers=1), rules=[("*q_proj*", "fp8_e4m3")], mode="int8_asym", device="CPU"
    )
    (row,) = [row for row in report.rows if "q_proj" in row.name]
    assert row.mode == "fp8_e4m3"
    assert [warning.partition(" to floats")[0] for warning in report.warnings] == [
        "CPU expands 1 weight in fp8_e4m3 (MatMul)"
    ]


def test_the_backup_is_fitted_to_the_device_too() -> None:
    options = {"mode": "nf4", "group_size": 32, "backup_mode": "fp8_e4m3"}
    assert got(compressed(models.embedding(), **options)) == {"gather": ("fp8_e4m3", -1)}  # one group is a channel
    assert got(compressed(models.embedding(), **options, device="CPU")) == {"gather": ("int8_sym", -1)}
    options["all_layers"] = True  # and no group fits
    assert got(compressed(models.linear(48, 54), **options, device="CPU")) == {"matmul": ("int8_asym", -1)}


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (models.convolution(), "convolution"),
        (models.linear(batch=(3,)), "MatMul of 3-D weights"),
        (models.linear(port=0), "MatMul with the weight as first input"),
    ],
)
def test_where_nothing_helps_the_mode_stays(model: ov.Model, layer: str) -> None:
    report = compressed(model, device="CPU")
    assert [row.mode for row in report.rows] == ["int8_asym"]
    assert f"({layer})" in report.warnings[0]


def test_what_is_not_known_is_not_claimed() -> None:
    assert compressed(models.grouped_matmul(), mode="nf4", group_size=32, device="GPU").warnings == ()
