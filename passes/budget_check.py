"""Measure what a budget has chosen, on data that nothing was predicted from, and choose again where that says so.

    target_divergence          measured / predicted ─▸ choose again by the corrected prediction, two rounds at most;
                               of what was measured the smallest that meets the target is kept
    target_bits, target_size   measured beside the uniform format that fits; whichever moves predictions less is kept

Predictions are optimistic for what was chosen by them: the solver takes bits from where the probes happened to see
little. A measured figure has no such preference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.wording import plain
from ov_weight_compression.passes.layer_losses import measured_divergence
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Plan
from ov_weight_compression.passes.planning import with_choice

__all__ = ["with_check"]

_ROUNDS = 2
_NEAR = 0.85
"""What is nearer below the target than this share of it is not worth another round."""


def with_check(first: Plan, prepare: Callable[[Plan], Plan], data: Measurements) -> Plan:
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


def _measured(prepared: Plan, data: Measurements) -> Plan:
    outcome = prepared.budget
    assert outcome is not None
    found = measured_divergence(prepared, data)
    return replace(prepared, budget=replace(outcome, measured=found))


def _divergence(prepared: Plan) -> float:
    outcome = prepared.budget
    assert outcome is not None
    assert outcome.measured is not None
    return outcome.measured


def _corrected(first: Plan, one: Plan, prepare: Callable[[Plan], Plan], data: Measurements) -> Plan:
    """Choose again by what was measured, as long as that is off."""
    found, correction = [one], 1.0
    for _ in range(_ROUNDS):
        outcome = found[-1].budget
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
    target = found[0].budget.target if found[0].budget is not None else 0.0
    fine = [prepared for prepared in found if _divergence(prepared) <= target]
    if fine:
        return min(fine, key=_bytes)
    best = min(found, key=lambda prepared: (_divergence(prepared), _bytes(prepared)))
    told = f"target_divergence: {plain(target)} was not met: {plain(_divergence(best))} was measured"
    return replace(best, unmet=(told,))


def _bytes(prepared: Plan) -> int:
    return 0 if prepared.budget is None else prepared.budget.bytes


def _beside_uniform(one: Plan, prepare: Callable[[Plan], Plan], data: Measurements) -> Plan:
    """The choice, or the uniform format that fits where that moves predictions less."""
    outcome = one.budget
    assert outcome is not None
    beside = outcome.beside()
    if beside is None:
        return one
    same = with_choice(one, uniform=beside.format)
    if same.budget is None or (outcome.allowed is not None and same.budget.bytes > outcome.allowed):
        return one
    other = _measured(prepare(same), data)
    kept = one if _divergence(one) <= _divergence(other) else other
    told = (
        f"Measured {plain(_divergence(one))} {outcome.unit}, beside {plain(_divergence(other))} for the uniform format "
        f"{beside.format}: {'the choice' if kept is one else 'the uniform format'} was kept."
    )
    assert kept.budget is not None
    return replace(kept, budget=replace(kept.budget, remarks=(told,)))
