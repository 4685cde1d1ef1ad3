"""What CPUs misread is not produced: another group, a chain that they expand, or a refusal with the sizes that work."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.passes import CompressionWarning, OptionError, WeightCompression
from ov_weight_compression.passes.device_rules import misread, release_of, working_groups
from ov_weight_compression.passes.report import Row
from tests import models
from tests.running import run


def row_of(model: ov.Model, **options: Any) -> Row:
    own = WeightCompression(**options)
    own.run_on_model(model)
    (row,) = own.report.rows
    return row


@pytest.mark.parametrize(
    ("mode", "group", "columns", "got"),
    [
        ("int4_sym", 48, 192, ("int4_sym", 32)),
        ("int4_asym", 80, 320, ("int4_asym", 64)),
        ("nf4", 40, 160, ("nf4", 32)),
        ("fp4", 120, 480, ("fp4", 32)),
        ("int2_sym", 96, 384, ("int2_sym", 64)),
        ("int4_sym", 5, 20, ("int8_asym", -1)),
        ("int4_sym", 24, 72, ("int8_asym", -1)),
    ],
)
def test_a_misread_group_is_adjusted_with_the_reason(mode: str, group: int, columns: int, got: tuple[str, int]) -> None:
    with pytest.warns(CompressionWarning, match="does not have the group_size that was asked for: CPUs misread"):
        row = row_of(models.linear(48, columns), mode=mode, group_size=group, all_layers=True)
    assert (row.mode, row.group_size) == got
    storage = {"int4_sym": "i4", "int4_asym": "u4", "fp4": "f4e2m1", "int2_sym": "u2"}.get(mode, mode)
    assert row.reason == f"CPUs misread {storage} in groups of {group} (no power of two)"


def test_experts_are_adjusted_too_and_what_is_executed_in_floats_is_not() -> None:
    assert row_of(models.grouped_matmul(3, 32, 192), mode="int4_sym", group_size=48, all_layers=True).group_size == 32
    assert row_of(models.embedding((80, 192)), mode="int4_sym", group_size=48, all_layers=True).group_size == 48
    assert row_of(models.linear(48, 192), mode="fp8_e4m3", group_size=48, all_layers=True).group_size == 48
    assert row_of(models.linear(48, 192, batch=(3,)), mode="int4_sym", group_size=48, all_layers=True).group_size == 48


@pytest.mark.parametrize(("device", "group"), [(None, 32), ("CPU", 32), ("GPU", 48)])
def test_another_device_is_not_asked_what_cpus_misread(device: str | None, group: int) -> None:
    options = {"device": device} if device else {}
    assert (
        row_of(models.linear(48, 192), mode="int4_sym", group_size=48, all_layers=True, **options).group_size == group
    )


def test_a_size_named_for_a_weight_is_refused_with_those_that_work() -> None:
    with pytest.raises(OptionError) as refused:
        row_of(models.linear(48, 192), mode="int8_asym", rules=[("weight", {"mode": "int4_sym", "group_size": 48})])
    assert str(refused.value) == (
        "rule 'weight': group_size: 48 cannot be used for weight (used by layer): the CPU plugin of OpenVINO 2026.4 "
        "computes something else from i4 in groups of 48; sizes that work for its 192 channels: 16, 32, 64; "
        "device='GPU' or 'NPU' says that no CPU will run it"
    )


def test_with_the_fallback_error_it_is_refused_for_the_whole_model() -> None:
    with pytest.raises(OptionError, match=r"^group_size: 80 cannot be used for weight .* channels: 16, 32, 64; device"):
        row_of(models.linear(48, 320), mode="int4_sym", group_size=80, group_size_fallback="error", all_layers=True)
    with pytest.raises(OptionError, match=r"channels: 16, 32, 64, 128, 256; device"):
        row_of(models.linear(48, 72), mode="int4_sym", group_size=24, group_size_fallback="error", all_layers=True)


@pytest.mark.parametrize(
    ("mode", "columns", "multiple"),
    [("int4_sym", 127, 2), ("nf4", 33, 2), ("int2_sym", 50, 4), ("int8_asym", 31, 2), ("int8_sym", 127, 2)],
)
def test_rows_that_are_misread_are_stored_so_that_cpus_expand_them(mode: str, columns: int, multiple: int) -> None:
    own = WeightCompression(mode=mode, **({} if mode.startswith("int8") else {"group_size": -1, "all_layers": True}))
    model = models.linear(48, columns)
    own.run_on_model(model)
    (row,) = own.report.rows
    assert (row.mode, row.group_size) == (mode, -1)
    assert f"{columns} channels are no multiple of {multiple}, so it is stored in a way that they expand" in row.reason
    assert [node.get_friendly_name() for node in model.get_ops() if node.get_friendly_name().endswith("/one")]


def test_rows_that_are_read_right_run_from_codes() -> None:
    for model in (models.linear(48, 128), models.embedding((80, 63)), models.linear(1, 2047)):
        own = WeightCompression(mode="int8_asym")
        own.run_on_model(model)
        assert own.report.rows[0].reason == ""


def test_the_table() -> None:
    assert misread("MatMul", "i4", 128, 512) is None
    assert misread("MatMul", "i4", 48, 48) is None  # one group: the channel
    assert misread("MatMul", "i8", 24, 72) == "CPUs misread i8 in groups of 24 (no power of two)"
    assert misread("MatMul", "i4", 3, 9) is None  # computed in floats
    assert misread("MatMul", "i4", -1, 127, rows=1) is None  # computed in floats
    assert misread("GroupedMatMul", "i4", -1, 127) is None
    assert misread("GroupedMatMul", "nf4", 48, 96) is None  # computed in floats
    assert working_groups() == (16, 32, 64, 128, 256)
    assert working_groups(96) == (16, 32)
    assert release_of("2026.4.1-22982-e213a147257-releases/2026/4") == "2026.4"


@pytest.mark.parametrize("options", [{"mode": "int8_asym"}, {"mode": "int4_sym", "group_size": 32, "all_layers": True}])
def test_a_grouped_matmul_of_one_expert_compiles(options: dict[str, object]) -> None:
    """From codes the plugin drops the expert's axis and refuses the model."""
    model = models.grouped_matmul(1, 32, 64)
    feed = {0: np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32), 1: np.array([5], np.int32)}
    before = run(model, feed)[0]
    compression = WeightCompression(**options)
    compression.run_on_model(model)
    assert "CPUs refuse" in compression.report.rows[0].reason
    after = run(model, feed)[0]
    assert np.abs(after - before).max() < 0.15 * np.abs(before).max()


def test_a_leading_one_does_not_hide_rows_that_are_misread() -> None:
    x, weight = op.parameter([1, 224, 17], np.float32), models.constant((1, 5, 17))
    model = ov.Model([op.result(op.matmul(x, weight, False, True))], [x])
    row = row_of(model)
    assert row.reason.startswith("CPUs misread u8 per channel where 17 channels are no multiple of 2")
