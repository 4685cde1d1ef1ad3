"""Formats for a number of bytes: never more than asked for, near it, and what cannot be reached is said."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.passes import (
    OptionError,
    Report,
    WeightCompression,
    apply_weight_compression,
    report_of,
    save_model,
)
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.layer_losses import LayerLosses
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.options import read_options
from ov_weight_compression.passes.recipe import Recipe, save_recipe
from ov_weight_compression.quantization.formats import Spec
from tests.models import constant, in_f32, layers

SMALLEST_LAYER = 128 * 64


@pytest.fixture(autouse=True)
def guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses that fall by four with each bit, more in some layers: what is measured is tested with what measures it."""

    def losses(candidates: Mapping[str, Sequence[Spec]], data: Measurements) -> LayerLosses:
        elements = {weight.name: weight.elements for weight in data.weights}

        def loss(name: str, spec: Spec) -> float:
            share = 1.0 if spec.format.bits == 8 else 1 - 8 / (spec.group_of(128) + 16)
            better = {"nf4": 0.8, "int4_asym": 0.9, "int2_asym": 0.9}.get(spec.format.name, 1.0)
            return elements[name] * (1 + zlib.crc32(name.encode()) % 7) * better * share * 4.0**-spec.format.bits / 1e4

        return LayerLosses(
            {name: tuple(loss(name, one) for one in specs) for name, specs in candidates.items()}, "none"
        )

    monkeypatch.setattr("ov_weight_compression.passes.budget.layer_losses", losses)


def network(blocks: int = 6, width: int = 128, tied: bool = False) -> ov.Model:
    """An embedding, blocks of two layers that read one input and one that reads both, and a head."""
    ids = op.parameter([-1], np.int64, name="ids")
    table = constant((320, width), "table", "f16")
    value = op.gather(in_f32(table), ids, op.constant(0))
    for block in range(blocks):
        left = op.matmul(
            value, in_f32(constant((width, width), f"left_{block}", "f16", 0.1 * (1 + block))), False, True
        )
        right = op.matmul(value, in_f32(constant((width, width), f"right_{block}", "f16")), False, True)
        both = op.multiply(left, op.sigmoid(right))
        value = op.add(value, op.matmul(both, in_f32(constant((width, width), f"down_{block}", "f16")), False, True))
        value = op.multiply(value, op.constant(np.full((1, width), 1.5 + block, np.float32)))
    head = op.matmul(value, in_f32(table if tied else constant((320, width), "head", "f16")), False, True)
    return ov.Model([op.result(head)], [ids], "network")


def made(model: ov.Model, **options: object) -> tuple[Report, BudgetOutcome]:
    apply_weight_compression(model, **options)  # type: ignore[arg-type]
    report = report_of(model)
    assert report.budget is not None
    return report, report.budget


@pytest.mark.parametrize("bits", [2.9, 4.3, 5.0, 6.5])
def test_bits_are_at_most_those_asked_for_and_near_them(bits: float) -> None:
    report, outcome = made(network(), target_bits=bits)
    elements = sum(row.elements for row in report.rows)
    assert report.bits_per_weight <= bits
    assert report.bits_per_weight >= bits - 8 * SMALLEST_LAYER / 2 / elements
    assert outcome.bits == pytest.approx(report.bits_per_weight, abs=0.01)
    assert outcome.met
    assert sum(outcome.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [180_000, 240_000, 330_000])
def test_the_size_is_that_of_the_file(size: int, tied: bool, tmp_path: Path) -> None:
    model = network(tied=tied)
    _, outcome = made(model, target_size=size)
    save_model(model, tmp_path / "model.xml")
    found = (tmp_path / "model.bin").stat().st_size
    assert found == outcome.bytes
    assert size - SMALLEST_LAYER / 2 <= found <= size


def test_what_awq_inserts_and_tells_apart_is_counted(tmp_path: Path) -> None:
    """Multiplies in front of layers behind an activation; gains that were equal and stored once, and are no more."""
    width, random = 64, np.random.default_rng(3)
    x = op.parameter([-1, width], np.float32, name="x")
    value: ov.Node = x
    for block in range(3):
        value = op.multiply(value, op.constant(np.ones((1, width), np.float32)))  # a norm's gain
        for name in ("up", "down"):
            columns = np.exp(random.normal(size=width) * 0.9)
            weight = op.constant((random.standard_normal((width, width)) * columns).astype(np.float16))
            weight.set_friendly_name(f"{name}_{block}")
            value = op.matmul(value, in_f32(weight), False, True)
            value = op.sigmoid(value) if name == "up" else value
    model = ov.Model([op.result(value)], [x], "model")
    report, outcome = made(model, target_size=16_500, awq=True)
    into = sorted(one.into for one in report.scalings)
    assert into.count("multiply") == 3
    assert into.count("norm") == 3
    save_model(model, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").stat().st_size == outcome.bytes <= 16_500


def test_equal_constants_that_are_stored_once_are_counted_once(tmp_path: Path) -> None:
    """Two layers of the same values: what the second does not take is left for the others."""
    model = network(blocks=2)
    for node in model.get_ordered_ops():
        if node.get_friendly_name() == "right_1":
            same = next(one for one in model.get_ordered_ops() if one.get_friendly_name() == "right_0")
            copy = op.constant(same.data.copy())
            copy.set_friendly_name("right_1")
            node.output(0).replace(copy.output(0))
    _, outcome = made(model, target_bits=9)
    save_model(model, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").stat().st_size == outcome.bytes


def test_what_cannot_be_reached_says_what_can() -> None:
    with pytest.raises(
        OptionError, match=r"^target_bits: 1\.5 bits a weight cannot be reached: the smallest .* 2\.343"
    ):
        made(network(), target_bits=1.5)
    with pytest.raises(
        OptionError,
        match=r"^target_size: 9 000 bytes cannot be reached: with the smallest .* \d+ \d+ bytes, [\d ]+ of them for",
    ):
        made(network(), target_size="9kB")
    with pytest.raises(OptionError, match=r"^target_bits: 4 bits .* take 4\.1"):
        made(network(), target_bits=4, formats=["int4_sym:128", "int8_asym"])


def test_more_than_there_is_gives_every_weight_its_best() -> None:
    report, outcome = made(network(), target_bits=16)
    assert {share.mode for share in report.shares} <= {"int8_asym", "int8_sym"}
    assert outcome.met


def test_two_bits_come_in_only_where_they_have_to() -> None:
    modes = {share.mode for share in made(network(), target_bits=4.2)[0].shares}
    assert not any(mode.startswith("int2") for mode in modes)
    modes = {share.mode for share in made(network(), target_bits=3)[0].shares}
    assert any(mode.startswith("int2") for mode in modes)


def test_the_formats_are_those_named() -> None:
    report, _ = made(network(), target_bits=5, formats=["nf4:32", ("int8_sym", -1)])
    assert {(share.mode, share.group_size) for share in report.shares} == {("nf4", 32), ("int8_sym", -1)}


def test_slow_formats_are_kept_out_unless_any_may_be() -> None:
    def modes(**options: object) -> set[str]:
        return {share.mode for share in made(network(), target_bits=4.3, **options)[0].shares}

    assert not modes() & {"nf4", "fp4"}
    assert "nf4" in modes(max_slowdown=None)


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_rows_are_picked_from_may_have_slow_formats(tied: bool) -> None:
    """One that a head multiplies with may not."""
    slow = {("int4_sym", 16), ("int4_asym", 16), ("int4_asym", 32)}
    rows = made(network(tied=tied), target_bits=4.6)[0].rows
    taken = {row.name for row in rows if (row.mode, row.group_size) in slow}
    assert taken == (set() if tied else {"table"})


def test_rules_win_and_their_bytes_are_counted() -> None:
    rules = [("left_0", "int8_sym"), ("right_*", ("int4_sym"))]
    report, outcome = made(network(), target_bits=4.6, rules=rules, ignored_scope=["down_0"])
    rows = {row.name: row for row in report.rows}
    assert rows["left_0"].mode == "int8_sym"
    assert all(rows[f"right_{block}"].mode == "int4_sym" for block in range(6))
    assert "down_0" not in rows
    assert report.bits_per_weight <= 4.6
    assert outcome.bits == pytest.approx(report.bits_per_weight, abs=0.01)


def test_layers_of_one_input_get_one_format_where_that_is_asked_for() -> None:
    report, _ = made(network(), target_bits=4.45, tie_inputs=True)
    rows = {row.name: (row.mode, row.group_size) for row in report.rows}
    assert all(rows[f"left_{block}"] == rows[f"right_{block}"] for block in range(6))
    assert len(set(rows.values())) > 1


def test_what_no_candidate_fits_has_eight_bits() -> None:
    report, _ = made(layers(columns=48), target_bits=9, formats=["int4_sym:32"])
    assert {row.mode for row in report.rows} == {"int8_asym"}
    assert all("no format of the budget fits it" in row.reason for row in report.rows)


def test_never_more_loss_than_a_uniform_format_of_as_many_bytes() -> None:
    for bits in (4.3, 4.7, 5.2):
        outcome = made(network(), target_bits=bits)[1]
        beside = outcome.beside()
        if beside is not None:
            assert outcome.predicted <= beside.divergence
        divergences = [point.divergence for point in outcome.curve]
        assert divergences == sorted(divergences, reverse=True)


def test_where_nothing_is_measured_no_weight_loses_more_than_in_a_uniform_format(tmp_path: Path) -> None:
    """At the bytes of that format it is that format."""
    names = ["int4_sym:64", "int4_sym:32", "int4_sym:16", "int8_asym"]
    uniform = network()
    apply_weight_compression(uniform, mode="int4_sym", group_size=64)
    save_model(uniform, tmp_path / "uniform.xml")
    size = (tmp_path / "uniform.bin").stat().st_size
    model = network()
    _, outcome = made(model, target_size=size, formats=names)
    save_model(model, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "uniform.bin").read_bytes()
    assert outcome.remarks[0].startswith(
        "Nothing was measured, so that no choice is known to be better than the uniform"
    )
    report, outcome = made(network(), target_size=size + 20_000, formats=names)
    assert size + 20_000 - SMALLEST_LAYER / 2 <= outcome.bytes <= size + 20_000
    base = next(one for one in outcome.uniform if f"format {one.format}:" in outcome.remarks[0])
    group = int(base.format.partition(":")[2])
    assert all(row.mode.startswith("int8") or row.group_size <= group for row in report.rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target_bits": 4, "target_size": 900}, "target_size: target_bits is given too"),
        ({"target_bits": 4, "mode": "int8_asym"}, "mode: means nothing with target_bits"),
        ({"target_bits": 4, "ratio": 0.5}, "ratio: means nothing with target_bits"),
        ({"target_bits": 4, "group_size": 64}, "group_size: means nothing with target_bits"),
        ({"formats": ["nf4"]}, "formats: means nothing without target_bits"),
        ({"target_bits": 4, "formats": ["nf4"], "max_slowdown": 2}, "max_slowdown: means nothing but for a budget"),
        ({"target_bits": 4, "formats": []}, "formats: must be a list of formats"),
        ({"target_bits": 4, "formats": ["int5"]}, "formats[0]: 'int5' is not one of"),
        ({"target_bits": 4, "formats": ["mxfp4:64"]}, "formats[0]: mxfp4 is defined for groups of 32, got 64"),
        ({"target_bits": 4, "formats": ["codebook"]}, "formats[0]: codebook has a table"),
        ({"target_size": "many"}, "target_size: must be a number of bytes, or a size such as"),
        ({"target_size": 0}, "target_size: must be a number of bytes"),
        ({"target_divergence": -1}, "target_divergence: must be a number from"),
        ({"target_bits": 4, "max_slowdown": 0.5}, "max_slowdown: must be a number from 1"),
    ],
)
def test_what_means_nothing_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as error:
        read_options(**given)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3.5GB", 3_500_000_000), ("1 KiB", 1024), ("900MiB", 900 << 20), ("12345", 12345), ("2g", 2 * 10**9)],
)
def test_sizes_are_read_from_words(text: str, size: int) -> None:
    assert read_options(target_size=text).target_size == size


def test_a_divergence_needs_something_that_was_measured() -> None:
    with pytest.raises(OptionError, match=r"^target_divergence: nothing was measured"):
        WeightCompression(target_divergence=0.1).preview(layers())


def test_a_recipe_is_taken_back_and_what_is_given_beside_it_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    report, _ = made(network(), target_bits=4.6)
    layers = {row.name: (row.mode, row.group_size) for row in report.rows}
    save_recipe(path, Recipe({"mode": "int4_sym"}), {"": layers})
    model = network()
    apply_weight_compression(model, recipe=path)
    again = report_of(model)
    assert {row.name: (row.mode, row.group_size) for row in again.rows} == layers
    assert again.bytes_after == report.bytes_after
    model = network()
    apply_weight_compression(model, recipe=path, rules=[("left_0", "int8_sym")])
    rows = {row.name: row.mode for row in report_of(model).rows}
    assert rows["left_0"] == "int8_sym"
    assert rows["left_1"] == layers["left_1"][0]
    with pytest.raises(OptionError, match=r"^recipe: .*none\.json cannot be read"):
        read_options(recipe=tmp_path / "none.json")
