"""What a budget has chosen is measured: chosen again where the prediction was off, and never worse than uniform."""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.calibration.divergence import MeasuredDivergence
from ov_weight_compression.passes import (
    CompressionWarning,
    OptionError,
    apply_weight_compression,
    report_of,
    save_model,
)
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.layer_losses import LayerLosses, measured_divergence
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Plan
from ov_weight_compression.passes.recipe import Recipe, save_recipe
from ov_weight_compression.quantization.formats import Spec
from tests.calibration import small
from tests.passes.test_budget import SMALLEST_LAYER, network

Use = Callable[[Callable[[Plan, float], float]], list[float]]

WINDOWS = np.array([1.0, -1.0, 1.0, -1.0])


def guess(name: str, elements: int, spec: Spec) -> float:
    return elements * (1 + zlib.crc32(name.encode()) % 7) * 4.0**-spec.format.bits / spec.group_of(128) ** -0.2 / 1e4


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Losses are guessed, and a divergence is made from what was predicted; gives the list of what was measured."""
    found: list[float] = []

    def losses(candidates: Mapping[str, Sequence[Spec]], data: Measurements) -> LayerLosses:
        elements = {weight.name: weight.elements for weight in data.weights}
        table = {name: tuple(guess(name, elements[name], one) for one in own) for name, own in candidates.items()}
        return LayerLosses(table, "nats")

    def use(measure: Callable[[Plan, float], float]) -> list[float]:
        def divergence(plan: Plan, data: Measurements) -> MeasuredDivergence:
            assert plan.budget is not None
            found.append(measure(plan, plan.budget.predicted / plan.budget.correction))
            return MeasuredDivergence(found[-1], found[-1], 0.1 * WINDOWS * len(found))

        monkeypatch.setattr("ov_weight_compression.passes.budget_check.measured_divergence", divergence)
        return found

    monkeypatch.setattr("ov_weight_compression.passes.budget.layer_losses", losses)
    return use


def outcome_of(**options: object) -> BudgetOutcome:
    model = network()
    apply_weight_compression(model, **options)  # type: ignore[arg-type]
    outcome = report_of(model).budget
    assert outcome is not None
    return outcome


TARGET = 0.3


def test_a_prediction_that_holds_is_measured_once(measured: Use) -> None:
    found = measured(lambda plan, predicted: predicted)
    outcome = outcome_of(target_divergence=TARGET)
    assert len(found) == 1
    assert outcome.met
    assert 0.5 * TARGET < outcome.predicted <= TARGET
    assert outcome.measured == pytest.approx(outcome.predicted)


def test_what_is_off_is_corrected_and_chosen_again(measured: Use) -> None:
    found = measured(lambda plan, predicted: 1.5 * predicted)
    outcome = outcome_of(target_divergence=TARGET)
    assert found[0] > TARGET
    assert 2 <= len(found) <= 3
    assert outcome.met
    assert outcome.correction == pytest.approx(1.5)
    assert outcome.measured == found[-1] <= TARGET
    assert found[-1] > 0.5 * TARGET


def test_what_was_too_careful_becomes_smaller(measured: Use) -> None:
    measured(lambda plan, predicted: predicted)
    careful = outcome_of(target_divergence=TARGET)
    measured(lambda plan, predicted: 0.5 * predicted)
    outcome = outcome_of(target_divergence=TARGET)
    assert outcome.met
    assert outcome.bytes < careful.bytes


def test_a_target_that_is_not_met_is_said_to_be_not_met(measured: Use) -> None:
    found = measured(lambda plan, predicted: 1.0)
    with pytest.warns(CompressionWarning, match=r"^target_divergence: 0\.3000 was not met: 1\.000 was measured$"):
        outcome = outcome_of(target_divergence=TARGET)
    assert not outcome.met
    assert len(found) <= 3


def test_one_that_no_format_reaches_is_an_error_with_the_best_there_is(measured: Use) -> None:
    measured(lambda plan, predicted: predicted)
    with pytest.raises(OptionError, match=r"^target_divergence: .* cannot be reached: with the best .* 0\.005773 nats"):
        outcome_of(target_divergence=1e-8)


FORMATS = ["int4_sym:64", "int4_sym:32", "int8_sym"]
TWO_ERRORS = 2 * 0.1 * 4 / 3**0.5
"""Of the difference of what is measured first, the choice, and of what is measured next."""


@pytest.mark.parametrize(
    ("choice", "uniform", "kept"),
    [
        (1.0, 0.5, "the uniform format was kept."),
        (0.5, 1.0, "the choice was kept."),
        (0.5, 0.5 + 1.01 * TWO_ERRORS, "the choice was kept."),
        (
            0.5,
            0.5 + 0.99 * TWO_ERRORS,
            "the uniform format was kept, for it is not better by more than the windows it was measured on may be "
            "wrong.",
        ),
    ],
)
def test_uniform_is_kept_unless_the_choice_is_surely_better(
    choice: float, uniform: float, kept: str, measured: Use
) -> None:
    found = measured(lambda plan, predicted: uniform if found else choice)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = outcome_of(target_bits=5.2, formats=FORMATS)
    assert found == [choice, uniform]
    assert outcome.measured == (choice if "choice was" in kept else uniform)
    assert outcome.remarks[0].endswith(kept)
    assert outcome.bits <= 5.2


def test_every_uniform_format_that_is_about_as_good_is_measured(measured: Use) -> None:
    names = []

    def measure(plan: Plan, predicted: float) -> float:
        (name, _), *_ = Counter(one.spec.format.name for one in plan.weights).most_common()
        names.append(name)
        return 2.0 if len(names) == 1 else 0.5 if name == "int4_sym" else 1.0

    measured(measure)
    outcome = outcome_of(target_bits=5.2, formats=["int4_sym:64", "int4_asym:64", "int8_sym"])
    assert sorted(names[1:]) == ["int4_asym", "int4_sym"]
    assert outcome.measured == 0.5
    assert "for the uniform format int4_sym:64" in outcome.remarks[0]


@pytest.mark.parametrize("better", [0, 1])
def test_of_losses_of_two_kinds_those_whose_choice_is_better_count(
    better: int, measured: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def measure(plan: Plan, predicted: float) -> float:
        chosen.append({one.weight.name: one.spec.format.bits for one in plan.weights})
        return [[0.3, 0.5], [0.5, 0.3]][better][len(chosen) - 1] if len(chosen) < 3 else 1.0 * len(chosen)

    def losses(candidates: Mapping[str, Sequence[Spec]], data: Measurements) -> LayerLosses:
        def table(loved: str) -> dict[str, tuple[float, ...]]:
            return {
                name: tuple((9.0 if loved in name else 1.0) * 4.0**-one.format.bits for one in own)
                for name, own in candidates.items()
            }

        return LayerLosses(table("left"), "nats", table("right"))

    measured(measure)
    monkeypatch.setattr("ov_weight_compression.passes.budget.layer_losses", losses)
    model = network()
    apply_weight_compression(model, target_bits=5.4, formats=["int4_sym:64", "int8_sym"])
    outcome = report_of(model).budget
    assert outcome is not None
    assert outcome.measured == 0.3
    for loved, bits in zip(("right", "left"), chosen, strict=False):
        assert {bits[f"{loved}_{block}"] for block in range(6)} == {8}
    kept = {row.name for row in report_of(model).rows if row.mode == "int8_sym"}
    assert {f"{('right', 'left')[better]}_{block}" for block in range(6)} <= kept


def test_a_uniform_format_fits_into_its_own_bytes(measured: Use, tmp_path: Path) -> None:
    """Of the embedding, which has one scale a row, no shape is stored."""
    found = measured(lambda plan, predicted: 0.5 if found else 1.0)
    model = network()
    apply_weight_compression(model, mode="int4_sym", group_size=64)
    save_model(model, tmp_path / "model.xml")
    size = (tmp_path / "model.bin").stat().st_size
    model = network()
    apply_weight_compression(model, target_size=size, formats=["int4_sym:64", "int4_sym:32", "int8_asym"])
    assert "the uniform format was kept" in report_of(model).budget.remarks[0]
    save_model(model, tmp_path / "same.xml")
    assert (tmp_path / "same.bin").read_bytes() == (tmp_path / "model.bin").read_bytes()


def test_bytes_that_a_uniform_format_leaves_are_spent(measured: Use) -> None:
    found = measured(lambda plan, predicted: 0.5 if found else 1.0)
    outcome = outcome_of(target_size=262_000, formats=FORMATS)
    assert "the uniform format was kept" in outcome.remarks[0]
    beside = outcome.beside()
    assert beside is not None
    assert beside.bytes < 262_000 - SMALLEST_LAYER / 2 <= outcome.bytes <= 262_000
    assert outcome.predicted < beside.divergence


def test_bytes_that_no_better_format_fits_into_are_spent_on_others_groups(measured: Use) -> None:
    """From groups of 16 the next format has 8 bits; so some weights get larger groups."""
    found = measured(lambda plan, predicted: 0.5 if found else 1.0)
    for size in range(300_000, 312_000, 3_000):
        found.clear()
        formats = ["int4_sym:16", "int4_sym:32", "int4_sym:64", "int8_sym"]
        outcome = outcome_of(target_size=size, formats=formats)
        assert "the uniform format was kept" in outcome.remarks[0]
        assert size - SMALLEST_LAYER / 2 <= outcome.bytes <= size


def test_what_was_measured_without_some_samples_is_coded_with_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokens = np.random.default_rng(3).integers(0, small.VOCABULARY, 48 * 40)
    seen = []

    def divergence(plan: Plan, data: Measurements) -> MeasuredDivergence:
        seen.append(sum(len(window["input_ids"]) for window in data.samples()))
        return measured_divergence(plan, data)

    monkeypatch.setattr("ov_weight_compression.passes.budget_check.measured_divergence", divergence)
    files = []
    formats = ["int4_sym:32", "int4_sym:16", "int8_asym"]
    for options in ({"target_bits": 6.6, "formats": formats}, {"recipe": tmp_path / "plan.json"}):
        model = small.language_model()
        apply_weight_compression(model, dataset=tokens, accuracy="best", context_length=30, **options)
        layers = {row.name: (row.mode, row.group_size) for row in report_of(model).rows}
        save_recipe(tmp_path / "plan.json", Recipe({"mode": "int4_sym"}), {"": layers})
        save_model(model, tmp_path / "model.xml")
        files.append((tmp_path / "model.bin").read_bytes())
    assert set(seen) == {30}
    assert files[0] == files[1]


def test_a_preview_of_bytes_measures_nothing(measured: Use) -> None:
    from ov_weight_compression.passes import WeightCompression

    found = measured(lambda plan, predicted: 1.0)
    assert WeightCompression(target_bits=5).preview(network()).budget is not None
    assert not found
