"""Measure what a budget has chosen, on data that nothing was predicted from, and choose again where that says so.

    target_divergence          measured / predicted ─▸ choose again by the corrected prediction, two rounds at most;
                               of what was measured the smallest that meets the target is kept
    target_bits, target_size   measured beside the uniform formats that fit; of those the best is kept, unless the
                               choice moves predictions less by more than the error of the comparison; where there are
                               losses of two kinds, the better choice by either

Predictions are optimistic for what was chosen by them: the solver takes bits from where the probes happened to see
little. A measured figure has no such preference. Codes that are fitted to data look better on those than they are, each
choice in its own degree, so what is measured is coded without the samples that it is measured on (see
`Measurements.for_checks`), and what is kept is coded again with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.printing import plain
from ov_weight_compression.passes.budget import with_choice
from ov_weight_compression.passes.budget_outcome import BudgetOutcome, UniformChoice
from ov_weight_compression.passes.layer_losses import measured_divergence
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Plan

if TYPE_CHECKING:
    from ov_weight_compression.calibration.divergence import MeasuredDivergence

_ROUNDS = 2
_NEAR = 0.85
"""What is nearer below the target than this share of it is not worth another round."""
_UNIFORM = 3
_UNIFORM_NEAR = 1.15
"""So many uniform formats are measured: those that are predicted to be about as good as the best of them."""

_Prepare = Callable[[Plan, Measurements], Plan]


def with_check(first: Plan, prepare: _Prepare, data: Measurements) -> Plan:
    """What is kept of a budget's choice and its alternatives, prepared, with what was measured of it in its outcome.

    Args:
        first: the choice, not prepared.
        prepare: runs a plan's algorithms on data.
        data: of the run.
    """
    outcome = first.budget
    if outcome is None or outcome.unit == "none" or not first.weights:
        return prepare(first, data)
    shown = data.for_checks()

    def tried(plan: Plan) -> _Tried:
        prepared = prepare(plan, shown)
        return _Tried(plan, prepared, measured_divergence(prepared, shown))

    one = tried(first)
    kept = _corrected(one, tried) if outcome.allowed is None else _beside_uniform(one, tried)
    if shown is data:
        return kept.told
    return replace(prepare(kept.chosen, data), budget=kept.told.budget, unmet=kept.told.unmet)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A choice that was measured."""

    chosen: Plan
    """Not prepared."""
    prepared: Plan
    moved: MeasuredDivergence
    remarks: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()

    @property
    def outcome(self) -> BudgetOutcome:
        assert self.chosen.budget is not None
        return self.chosen.budget

    @property
    def told(self) -> Plan:
        """The prepared plan, with what was found."""
        outcome = replace(self.outcome, measured=self.moved.value, remarks=self.remarks)
        return replace(self.prepared, budget=outcome, unmet=self.unmet)


_Try = Callable[[Plan], _Tried]


def _corrected(one: _Tried, tried: _Try) -> _Tried:
    """Choose again by what was measured, as long as that is off."""
    found, correction, target = [one], 1.0, one.outcome.target
    for _ in range(_ROUNDS):
        measured, predicted = found[-1].moved.value, found[-1].outcome.predicted
        if _NEAR * target <= measured <= target or predicted <= 0:
            break
        correction *= measured / predicted
        try:
            again = with_choice(one.chosen, correction)
        except OptionError:  # the best there is is not good enough, by the corrected prediction
            break
        if again.weights == found[-1].chosen.weights:
            break
        found.append(tried(again))
    fine = [each for each in found if each.moved.value <= target]
    if fine:
        return min(fine, key=lambda each: each.outcome.bytes)
    best = min(found, key=lambda each: (each.moved.value, each.outcome.bytes))
    told = f"target_divergence: {plain(target)} was not met: {plain(best.moved.value)} was measured"
    return replace(best, unmet=(told,))


def _beside_uniform(one: _Tried, tried: _Try) -> _Tried:
    """The choice where it is surely better than every uniform format that fits, else the best of those. Where there are
    losses of two kinds, the better of the choices by either."""
    if one.chosen.survey is not None and one.chosen.survey.others:
        other = with_choice(one.chosen, other=True)
        if _fits(other) and other.weights != one.chosen.weights:
            one = min((one, tried(other)), key=lambda each: (each.moved.total, each.outcome.bytes))
    plans = {each.format: with_choice(one.chosen, uniform=each.format) for each in _near(one.outcome.fitting())}
    plans = {name: plan for name, plan in plans.items() if _fits(plan)}
    others = {name: tried(plan) for name, plan in plans.items() if plan.weights != one.chosen.weights}
    if not others:
        return one
    name, best = min(others.items(), key=lambda pair: (pair[1].moved.total, pair[1].outcome.bytes))
    is_uniform = len(others) < len(plans)
    less = one.moved.total <= best.moved.total if is_uniform else one.moved.surely_less(best.moved)
    kept = one if less else best
    sure = ""
    if kept is best and one.moved.total < best.moved.total:
        sure = ", for it is not better by more than the windows it was measured on may be wrong"
    left = any(each.format == name and each.bytes < best.outcome.bytes for each in best.outcome.uniform)
    more = " and better ones in the bytes that it leaves" if left else ""
    told = (
        f"Measured {plain(one.moved.value)} {one.outcome.unit}, beside {plain(best.moved.value)} for the uniform "
        f"format {name}{more}: {'the choice' if kept is one else 'the uniform format'} was kept{sure}."
    )
    return replace(kept, remarks=(told,))


def _near(fitting: Sequence[UniformChoice]) -> list[UniformChoice]:
    """Those that are predicted to be about as good as the first."""
    return [one for one in fitting[:_UNIFORM] if one.divergence <= _UNIFORM_NEAR * fitting[0].divergence]


def _fits(plan: Plan) -> bool:
    outcome = plan.budget
    return outcome is not None and (outcome.allowed is None or outcome.bytes <= outcome.allowed)
