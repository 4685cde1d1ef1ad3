"""What routers of experts and gates of recurrences get where other weights get few bits."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes import Report, WeightCompression


def mixed() -> ov.Model:
    """A router over eight experts, a decay, a plain layer, and the last layer."""
    random = np.random.default_rng(0)

    def linear(name: str, x: ov.Output, channels: int) -> ov.Node:
        weight = op.constant(random.normal(size=(channels, 64)).astype(np.float32), name=name)
        return op.matmul(x, weight, False, True)

    x = op.parameter([1, 7, 64], np.float32)
    plain = linear("plain", x.output(0), 64)
    chosen = op.topk(op.softmax(linear("route", plain.output(0), 8), -1), op.constant(2), -1, "max", "value")
    used = op.reduce_sum(op.convert(chosen.output(1), "f32"), op.constant([-1]), True)
    dt = op.softplus(linear("decay", plain.output(0), 64))
    state = op.cum_sum(op.multiply(dt, op.constant(np.full(64, -1, np.float32))), op.constant(1))
    return ov.Model([op.result(linear("head", op.add(op.exp(state), used).output(0), 64))], [x])


def compressed(**options: object) -> Report:
    own = WeightCompression(**{"mode": "int4_sym", "group_size": 32, **options})  # type: ignore[arg-type]
    own.run_on_model(mixed())
    return own.report


def modes(report: Report) -> dict[str, str]:
    return {row.name: row.mode for row in report.rows}


def test_by_default_they_have_the_backup_mode_and_the_report_says_why() -> None:
    report = compressed()
    assert modes(report) == {"plain": "int4_sym", "route": "int8_asym", "decay": "int8_asym", "head": "int8_asym"}
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["route"] == "router: it chooses the experts"
    assert reasons["decay"] == "gate of a recurrence: it decides what is forgotten"
    assert "router: it chooses the experts" in str(report)
    assert modes(compressed(backup_mode="int8_sym"))["route"] == "int8_sym"


def test_all_layers_does_not_mean_them() -> None:
    report = compressed(all_layers=True)
    assert modes(report) == {"plain": "int4_sym", "route": "int8_asym", "decay": "int8_asym", "head": "int4_sym"}


def test_the_ratio_is_not_of_them() -> None:
    report = compressed(ratio=0.99)
    assert {row.name: row.in_ratio for row in report.rows if row.name in ("route", "decay")} == {
        "route": False,
        "decay": False,
    }


def test_they_can_be_left_as_floats() -> None:
    for mode in ("int4_sym", "int8_asym"):
        own = WeightCompression(mode=mode, fragile_layers="float")
        own.run_on_model(mixed())
        skipped = {skip.name: skip.reason for skip in own.report.skips}
        assert skipped["route"] == "router: it chooses the experts, and fragile_layers is float"
        assert skipped["decay"].startswith("gate of a recurrence")
        assert set(modes(own.report)) == {"plain", "head"}


def test_they_can_have_the_mode_or_what_a_rule_says() -> None:
    assert set(modes(compressed(fragile_layers="mode", all_layers=True)).values()) == {"int4_sym"}
    assert modes(compressed(rules=[("route", "int4_asym")]))["route"] == "int4_asym"
    assert compressed(fragile_layers="mode").recipe["fragile_layers"] == "mode"


def test_the_mode_for_all_says_nothing_more_in_8_bits() -> None:
    with pytest.raises(OptionError, match="fragile_layers: mode means nothing with int8_asym"):
        WeightCompression(mode="int8_asym", fragile_layers="mode")
