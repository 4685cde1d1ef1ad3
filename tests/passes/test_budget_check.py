"""What a budget has chosen is measured: chosen again where the prediction was off, and never worse than uniform."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence

import pytest

from ov_weight_compression.passes import CompressionWarning, OptionError, apply_weight_compression, report_of
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.layer_losses import LayerLosses
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Plan
from ov_weight_compression.quantization.formats import Spec
from tests.passes.test_budget import network

Use = Callable[[Callable[[Plan, float], float]], list[float]]


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
        def divergence(plan: Plan, data: Measurements) -> float:
            assert plan.budget is not None
            found.append(measure(plan, plan.budget.predicted / plan.budget.correction))
            return found[-1]

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


@pytest.mark.parametrize("uniform_is_better", [False, True])
def test_uniform_is_kept_where_it_is_better(uniform_is_better: bool, measured: Use) -> None:
    def measure(plan: Plan, predicted: float) -> float:
        four = {one.spec.group_size for one in plan.weights if one.spec.format.bits == 4}
        return 0.5 if (len(four) == 1) == uniform_is_better else 1.0

    found = measured(measure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = outcome_of(target_bits=5.6, formats=["int4_sym:64", "int4_sym:32", "int8_sym"])
    assert sorted(found) == [0.5, 1.0]
    assert outcome.measured == 0.5
    kept = "the uniform format" if uniform_is_better else "the choice"
    assert f"{kept} was kept" in outcome.remarks[0]
    assert outcome.bits <= 5.6


def test_a_preview_of_bytes_measures_nothing(measured: Use) -> None:
    from ov_weight_compression.passes import WeightCompression

    found = measured(lambda plan, predicted: 1.0)
    assert WeightCompression(target_bits=5).preview(network()).budget is not None
    assert not found
