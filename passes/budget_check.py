"""Measure what a budget has chosen, on data that nothing was predicted from, and choose again where that says so.

    target_divergence          measured / predicted ─▸ choose again by the corrected prediction, two rounds at most;
                               of what was measured the smallest that meets the target is kept
    target_bits, target_size   measured beside the uniform format that fits; whichever moves predictions less is kept

Predictions are optimistic for what was chosen by them: the solver takes bits from where the probes happened to see
little. A measured figure has no such preference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.wording import plain
from ov_weight_compression.passes.layer_losses import measured_divergence
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Plan
from ov_weight_compression.passes.planning import with_choice

__all__ = ["Prepared", "with_check"]

_ROUNDS = 2
_NEAR = 0.85
"""What is nearer below the target than this share of it is not worth another round."""


@dataclass(frozen=True)
class Prepared:
    """A plan from which weights can be encoded, and what there is to say about the data."""

    plan: Plan
    remarks: tuple[str, ...]
    unmet: tuple[str, ...] = ()
    """What was asked for and not reached."""


def with_check(first: Plan, prepare: Callable[[Plan], Prepared], data: Measurements) -> Prepared:
    """What is kept of a budget's choice and its alternatives, prepared, with what was measured of it in its outcome.

    Args:
        first: the choice, not prepared.
        prepare: runs a plan's algorithms.
        data: of the run.
    """
    prepared = prepare(first)
    outcome = first.budget
    if outcome is None or outcome.unit == "none" or not first.weights:
        return prepared
    one = _measured(prepared, data)
    return _corrected(first, one, prepare, data) if outcome.allowed is None else _beside_uniform(one, prepare, data)


def _measured(prepared: Prepared, data: Measurements) -> Prepared:
    outcome = prepared.plan.budget
    assert outcome is not None
    found = measured_divergence(prepared.plan, data)
    return replace(prepared, plan=replace(prepared.plan, budget=replace(outcome, measured=found)))


def _divergence(prepared: Prepared) -> float:
    outcome = prepared.plan.budget
    assert outcome is not None
    assert outcome.measured is not None
    return outcome.measured


def _corrected(first: Plan, one: Prepared, prepare: Callable[[Plan], Prepared], data: Measurements) -> Prepared:
    """Choose again by what was measured, as long as that is off."""
    found, correction = [one], 1.0
    for _ in range(_ROUNDS):
        outcome = found[-1].plan.budget
        assert outcome is not None
        measured = _divergence(found[-1])
        if _NEAR * outcome.target <= measured <= outcome.target or outcome.predicted <= 0:
            break
        correction *= measured / outcome.predicted
        try:
            again = with_choice(first, correction)
        except OptionError:  # the best there is is not good enough, by the corrected prediction
            break
        if again.weights == first.weights:
            break
        found.append(_measured(prepare(again), data))
    target = found[0].plan.budget.target if found[0].plan.budget is not None else 0.0
    fine = [prepared for prepared in found if _divergence(prepared) <= target]
    if fine:
        return min(fine, key=_bytes)
    best = min(found, key=lambda prepared: (_divergence(prepared), _bytes(prepared)))
    told = f"target_divergence: {plain(target)} was not met: {plain(_divergence(best))} was measured"
    return replace(best, unmet=(told,))


def _bytes(prepared: Prepared) -> int:
    return 0 if prepared.plan.budget is None else prepared.plan.budget.bytes


def _beside_uniform(one: Prepared, prepare: Callable[[Plan], Prepared], data: Measurements) -> Prepared:
    """The choice, or the uniform format that fits where that moves predictions less."""
    outcome = one.plan.budget
    assert outcome is not None
    beside = outcome.beside()
    if beside is None:
        return one
    same = with_choice(one.plan, uniform=beside.format)
    if same.budget is None or (outcome.allowed is not None and same.budget.bytes > outcome.allowed):
        return one
    other = _measured(prepare(same), data)
    kept = one if _divergence(one) <= _divergence(other) else other
    told = (
        f"Measured {plain(_divergence(one))} {outcome.unit}, beside {plain(_divergence(other))} for the uniform format "
        f"{beside.format}: {'the choice' if kept is one else 'the uniform format'} was kept."
    )
    assert kept.plan.budget is not None
    return replace(kept, plan=replace(kept.plan, budget=replace(kept.plan.budget, remarks=(told,))))
