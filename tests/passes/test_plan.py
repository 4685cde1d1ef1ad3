"""What every weight gets: roles, ratio, groups that do not divide."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.passes import OptionError, Report, WeightCompression
from tests.models import constant, convolution, embedding, layers, linear, llama, no_weights, op, tied_head
from tests.running import run


def report_of(model: ov.Model, **options: object) -> Report:
    compression = WeightCompression(**options)
    compression.run_on_model(model)
    return compression.report


def modes(report: Report) -> dict[str, tuple[str, int]]:
    return {row.name: (row.mode, row.group_size) for row in report.rows}


def rows_of_sizes(*sizes: int) -> ov.Model:
    """MatMuls in a row with 64 columns and so many outputs, the last one of no interest."""
    x = op.parameter([-1, 64], np.float32)
    ends = [op.matmul(x, constant((size, 64), f"weight_{number}"), False, True) for number, size in enumerate(sizes)]
    head = op.matmul(op.concat(ends, 1), constant((sum(sizes), 16), "head"), False, False)
    return ov.Model([op.result(head)], [x], "sizes")


def test_embedding_and_last_layer_get_the_backup_mode() -> None:
    report = report_of(llama(), mode="int4_sym", group_size=32)
    assert [row.name for row in report.rows if row.mode == "int8_asym"] == [
        "model.embed_tokens.weight",
        "lm_head.weight",
    ]
    assert [row.reason for row in report.rows if row.mode == "int8_asym"] == ["embedding", "last layer"]
    assert {row.group_size for row in report.rows if row.mode == "int4_sym"} == {32}


def test_all_layers_gives_them_the_mode_too() -> None:
    assert {row.mode for row in report_of(llama(), mode="int4_sym", group_size=32, all_layers=True).rows} == {
        "int4_sym"
    }


def test_backup_modes() -> None:
    for backup in ("int8_sym", "int8_asym"):
        report = report_of(llama(), mode="int4_sym", group_size=32, backup_mode=backup)
        assert modes(report)["lm_head.weight"] == (backup, -1)
    report = report_of(llama(), mode="int4_sym", group_size=32, backup_mode="none")
    assert {row.mode for row in report.rows} == {"int4_sym"}
    skips = {skip.name: skip.reason for skip in report.skips}
    assert skips["model.embed_tokens.weight"] == "embedding, and backup_mode is none"
    assert skips["lm_head.weight"] == "last layer, and backup_mode is none"


def test_convolutions_always_get_8_bits() -> None:
    for form in ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"):
        for mode in ("int4_sym", "nf4", "int8_sym"):
            (row,) = report_of(convolution(form), mode=mode).rows
            assert (row.mode, row.group_size) == ("int8_sym" if mode == "int8_sym" else "int8_asym", -1)


def test_ratio_counts_parameters_and_fills_up() -> None:
    model = rows_of_sizes(64, 64, 64, 64)
    for ratio, expected in {1.0: 4, 0.99: 3, 0.75: 3, 0.5: 2, 0.25: 1, 0.2: 0, 0.0: 0}.items():
        found = modes(report_of(model.clone(), mode="int4_sym", group_size=32, ratio=ratio))
        assert [mode for mode, _ in found.values()].count("int4_sym") == expected, ratio
        assert found["head"] == ("int8_asym", -1)


def test_ratio_skips_what_is_too_large_and_goes_on() -> None:
    report = report_of(rows_of_sizes(1024, 64, 64, 64), mode="int4_sym", group_size=32, ratio=0.2)
    assert {row.name for row in report.rows if row.mode == "int4_sym"} == {"weight_1", "weight_2", "weight_3"}


def test_ratio_keeps_the_most_sensitive() -> None:
    """What 8 bits store best keeps them: a weight with an outlier is the first to get 4."""
    model = rows_of_sizes(64, 64)
    for node in model.get_ops():
        if node.get_friendly_name() == "weight_0":
            values = node.data.copy()
            values[0, 0] = 100
            spoilt = op.constant(values)
            spoilt.set_friendly_name("weight_0")
            node.output(0).replace(spoilt.output(0))
    report = report_of(model, mode="int4_sym", group_size=32, ratio=0.5)
    assert modes(report)["weight_0"] == ("int4_sym", 32)
    assert modes(report)["weight_1"] == ("int8_asym", -1)
    assert "sensitive" in {row.name: row.reason for row in report.rows}["weight_1"]


def test_ratio_zero_means_no_4_bit_weight_at_all() -> None:
    report = report_of(llama(), mode="int4_sym", group_size=32, ratio=0)
    assert {row.mode for row in report.rows} == {"int8_asym"}
    assert not report_of(llama(), mode="int4_sym", group_size=32, ratio=0, backup_mode="none").rows


@pytest.mark.parametrize(
    ("columns", "group", "expected"),
    [(96, 64, 32), (96, 128, 32), (96, 32, 32), (80, 128, 16), (48, 100, 16), (64, 64, -1), (640, 128, 128)],
)
def test_a_group_that_does_not_divide_is_adjusted(columns: int, group: int, expected: int) -> None:
    (row,) = report_of(linear(32, columns), mode="int4_sym", group_size=group, all_layers=True).rows
    assert (row.mode, row.group_size) == ("int4_sym", expected)
    assert bool(row.reason) == (columns % group != 0)


def test_where_no_group_from_16_up_divides_it_gets_8_bits() -> None:
    (row,) = report_of(linear(32, 72), mode="int4_sym", group_size=64, all_layers=True).rows
    assert (row.mode, row.group_size) == ("int8_asym", -1)
    assert row.reason == "72 channels cannot be cut into groups of 64"


def test_fallback_ignore_leaves_it_alone() -> None:
    options = {"mode": "int4_sym", "group_size": 64, "all_layers": True, "group_size_fallback": "ignore"}
    report = report_of(linear(32, 96), **options)
    assert not report.rows
    assert [(skip.name, skip.reason) for skip in report.skips] == [
        ("weight", "96 channels cannot be cut into groups of 64")
    ]


def test_fallback_error_names_the_weight() -> None:
    options = {"mode": "int4_sym", "group_size": 64, "all_layers": True, "group_size_fallback": "error"}
    with pytest.raises(OptionError, match=r"group_size: 64 does not fit weight \(used by layer\): it has 96 channels"):
        report_of(linear(32, 96), **options)


def test_per_channel_always_fits() -> None:
    (row,) = report_of(linear(32, 77), mode="int4_sym", group_size=-1, all_layers=True).rows
    assert (row.mode, row.group_size) == ("int4_sym", -1)


def test_experts_in_groups() -> None:
    (row,) = report_of(linear(32, 64, batch=(3,)), mode="int4_sym", group_size=32, all_layers=True).rows
    assert (row.kind, row.mode, row.group_size, row.shape) == ("experts", "int4_sym", 32, (3, 32, 64))


def test_a_shared_table_is_one_row() -> None:
    report = report_of(tied_head(), mode="int4_sym", group_size=32)
    assert modes(report) == {"weight": ("int8_asym", -1), "weight_0": ("int4_sym", 32)}


def test_a_model_without_weights() -> None:
    model = no_weights()
    before = run(model)[0]
    compression = WeightCompression(mode="int4_sym")
    assert compression.run_on_model(model) is False
    assert (compression.report.rows, compression.report.skips) == ((), ())
    assert (run(model)[0] == before).all()
    assert "No weight" in str(compression.report)


def test_one_embedding_alone() -> None:
    (row,) = report_of(embedding(), mode="int4_sym").rows
    assert (row.mode, row.reason) == ("int8_asym", "embedding")


def test_ratio_is_not_thrown_off_by_broken_weights() -> None:
    model = layers(4, 64)
    for node in model.get_ops():
        if node.get_friendly_name() == "weight_0":
            values = node.data.copy()
            values[:] = np.nan
            node.output(0).replace(op.constant(values).output(0))
    report = report_of(model, mode="int4_sym", group_size=32, all_layers=True, ratio=0.67)
    assert [row.mode for row in report.rows].count("int4_sym") == 2
