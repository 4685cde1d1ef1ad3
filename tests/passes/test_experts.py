"""Experts side by side: one format for a block, one that is run from, in chains that the plugin gathers from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.passes import Report, WeightCompression
from ov_weight_compression.passes.decompress import apply_weight_decompression
from tests import expert_models as experts
from tests import models
from tests.running import run

BLOCKS = [experts.two_gemms, experts.three_gemms]


def compressed(model: ov.Model, **options: Any) -> Report:
    own = WeightCompression(**options)
    own.run_on_model(model)
    return own.report


def formats(report: Report) -> dict[str, str]:
    return {row.name: f"{row.mode} {row.group_size}" for row in report.rows if row.kind == "experts"}


def gathered(model: ov.Model) -> list[str]:
    """The types that the compiled model's GatherMatmuls read, with those of their zero points."""
    nodes = ov.Core().compile_model(model, "CPU").get_runtime_model().get_ops()
    kinds = [node for node in nodes if node.get_rt_info()["layerType"].astype(str) == "GatherMatmul"]
    ports = [
        [node.get_input_element_type(port).get_type_name() for port in (1, 5)] for node in kinds if node.inputs()[5:]
    ]
    return [" ".join(types) for types in ports]


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize(
    ("mode", "given", "read"),
    [
        ("int4_sym", "int4_sym 32", "i4 dynamic"),
        ("int4_asym", "int4_asym 32", "u4 u4"),
        ("int8_asym", "int8_asym -1", "u8 u8"),
        ("int8_sym", "int8_sym -1", "i8 dynamic"),
        ("nf4", "int4_sym 32", "i4 dynamic"),
        ("fp4", "int4_sym 32", "i4 dynamic"),
        ("mxfp4", "int4_sym 32", "i4 dynamic"),
        ("nvfp4", "int4_sym 32", "i4 dynamic"),
        ("int3_sym", "int4_sym 32", "i4 dynamic"),
        ("int2_asym", "int4_sym 32", "i4 dynamic"),
        ("cb4", "int4_sym 32", "i4 dynamic"),
        ("fp8_e4m3", "int8_sym -1", "i8 dynamic"),
        ("mxfp8_e4m3", "int8_sym -1", "i8 dynamic"),
    ],
)
def test_a_block_has_one_format_and_runs_from_its_codes(
    make: Callable[[], ov.Model], mode: str, given: str, read: str
) -> None:
    model = make()
    own = {} if mode.startswith(("int8", "mx", "nv")) else {"group_size": 32}
    report = compressed(model, mode=mode, **own, **({} if mode.startswith("int8") else {"all_layers": True}))
    found = formats(report)
    assert set(found.values()) == {given}
    assert gathered(model) == [read] * len(found)
    why = f"experts run from integers of 4 and 8 bits, {mode} would be expanded"
    assert {row.reason for row in report.rows if row.kind == "experts"} == {"" if given.startswith(mode) else why}
    assert not [warning for warning in report.warnings if "3-D" in warning or "tiled" in warning]


def test_grouped_and_batched_experts_get_integers_too() -> None:
    for model in (models.grouped_matmul(), models.linear(batch=(3,))):
        assert set(formats(compressed(model, mode="nf4", group_size=32, all_layers=True)).values()) == {"int4_sym 32"}
    assert set(formats(compressed(models.grouped_matmul(), mode="fp8_e4m3", all_layers=True)).values()) == {
        "int8_sym -1"
    }


def test_the_group_that_fits_one_expert_is_that_of_all() -> None:
    """Of 64 and 96 channels 64 divides only the first."""
    report = compressed(experts.three_gemms(), mode="int4_sym", group_size=64, all_layers=True)
    assert formats(report) == {"gate": "int4_sym 32", "up": "int4_sym 32", "down": "int4_sym 32"}
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["gate"] == "as the other experts of its block"
    assert reasons["down"] == "96 channels cannot be cut into groups of 64"


def test_what_no_device_runs_as_a_block_is_planned_layer_by_layer() -> None:
    """The backup mode of the last layer is none of the others' business."""
    x = op.parameter([3, -1, 64], np.float32)
    values = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    inner = op.matmul(x, op.constant(values[0], name="inner"), False, True)
    last = op.matmul(op.relu(inner), op.constant(values[1], name="last"), False, True)
    report = compressed(ov.Model([last], [x]), mode="int4_sym", group_size=32)
    assert formats(report) == {"inner": "int4_sym 32", "last": "int8_asym -1"}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_the_ratio_decides_over_a_block_as_one(ratio: float) -> None:
    found = formats(compressed(experts.three_gemms(), mode="int4_sym", group_size=32, ratio=ratio, all_layers=True))
    assert len(set(found.values())) == 1


def test_a_rule_for_one_of_them_has_its_way_and_is_warned_of() -> None:
    options = {"mode": "int4_sym", "group_size": 32, "all_layers": True}
    report = compressed(experts.three_gemms(), **options, rules=[("up", "int8_asym")])
    assert formats(report) == {"gate": "int4_sym 32", "up": "int8_asym -1", "down": "int4_sym 32"}
    (warning,) = report.warnings
    assert warning.startswith("a block of experts is stored in several formats, so that a GPU decompresses all of it")
    assert "'up' in int8_asym" in warning


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize("group", [48, 40])
def test_groups_that_the_kernel_misreads_are_not_given(
    make: Callable[[], ov.Model], group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GatherMatmul takes groups that are no power of two for others, without an error."""
    monkeypatch.setattr(experts, "HIDDEN", 2 * group)
    monkeypatch.setattr(experts, "INNER", 2 * group)
    model = make("f32")
    report = compressed(model, mode="int4_sym", group_size=group, all_layers=True)
    assert set(formats(report).values()) <= {"int4_sym 32", "int4_sym 16", "int8_asym -1"}
    plain = model.clone()
    apply_weight_decompression(plain)
    expected = run(plain)[0]
    assert np.linalg.norm(run(model)[0] - expected) < 2e-3 * np.linalg.norm(expected)


def sparse(random: np.random.Generator, windows: int) -> list[dict[str, Any]]:
    """Inputs `[1, 16, in]` of which a few channels are large, as those of language models are."""
    scale = np.where(np.arange(experts.HIDDEN) % 9 == 0, 6.0, 0.5)
    return [{"x": (random.standard_normal((1, 16, experts.HIDDEN)) * scale).astype(np.float32)} for _ in range(windows)]


@pytest.mark.parametrize("make", BLOCKS)
@pytest.mark.parametrize("options", [{"scale_estimation": True}, {"gptq": True}, {"awq": True}, {"accuracy": "best"}])
def test_with_data_they_lose_less_and_are_gathered_all_the_same(
    make: Callable[[], ov.Model], options: dict[str, Any]
) -> None:
    random = np.random.default_rng(3)
    dataset, (unseen,) = sparse(random, 12), sparse(random, 1)
    expected = run(make(), unseen)[0]
    errors = []
    for own in ({}, {**options, "dataset": dataset}):
        model = make()
        compressed(model, mode="int4_sym", group_size=32, all_layers=True, **own)
        assert gathered(model) == ["i4 dynamic"] * (2 if make is experts.two_gemms else 3)
        errors.append(np.linalg.norm(run(model, unseen)[0] - expected))
    assert errors[1] < 0.97 * errors[0]


def test_awq_scales_the_rows_of_up_for_down() -> None:
    dataset = sparse(np.random.default_rng(3), 12)
    report = compressed(
        experts.three_gemms(), mode="int4_sym", group_size=32, all_layers=True, awq=True, dataset=dataset
    )
    assert [(one.weights, one.into, one.name) for one in report.scalings if one.into] == [(("down",), "weight", "up")]
    report = compressed(experts.two_gemms(), mode="int4_sym", group_size=32, all_layers=True, awq=True, dataset=dataset)
    assert {one.into for one in report.scalings} == {""}
    assert "experts side by side, which a Multiply before them would keep from being gathered" in {
        one.reason for one in report.scalings
    }


def test_a_budget_gives_a_block_one_format() -> None:
    for bits in (4.6, 5.5, 7.0):
        assert len(set(formats(compressed(experts.three_gemms(), target_bits=bits)).values())) == 1


def test_a_budget_chooses_for_each_layer_of_a_block_that_nothing_runs_as_one() -> None:
    """gpt-oss as it is exported in floats: no device gathers it, and one format for all would leave bytes unused."""
    report = compressed(experts.two_gemms(transpose=False), target_bits=6.3)
    assert formats(report) == {"gate_up": "int4_asym 16", "down": "int8_asym -1"}
    assert not any("several formats" in warning for warning in report.warnings)


@pytest.mark.parametrize("make", BLOCKS)
def test_an_npu_gets_experts_with_one_scale_a_channel(make: Callable[[], ov.Model]) -> None:
    report = compressed(make(), mode="int4_sym", device="NPU", all_layers=True)
    assert set(formats(report).values()) == {"int4_sym -1"}
    why = "NPU chooses among experts with one scale a channel alone"
    assert {row.reason for row in report.rows if row.kind == "experts"} == {why}
    assert set(formats(compressed(make(), mode="int8_asym", device="NPU")).values()) == {"int8_sym -1"}
    several = compressed(make(), mode="int4_asym", group_size=32, device="GPU,NPU", all_layers=True)
    assert set(formats(several).values()) == {"int4_sym -1"}
