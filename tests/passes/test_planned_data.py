"""A plan is data: what each weight gets, who decided, what will be done with it and what it costs."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.options import read_options
from ov_weight_compression.passes.plan import Algorithm, DecidedBy, Plan, Statistic, method_of
from ov_weight_compression.passes.planning import make_plan
from ov_weight_compression.patterns import find_weights, sources_of
from tests.models import llama

TOKENS = list(np.random.default_rng(0).integers(0, 160, (2, 1, 8)))
DOWN, Q, HEAD = "model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"


def planned(**given: Any) -> Plan:
    model, options = llama(), read_options(mode="int4_sym", group_size=32, **given)
    weights, skips = find_weights(model)
    data = Measurements(model, weights, sources_of(weights), method_of(options, model), options)
    plan = make_plan(weights, skips, options, data)
    assert data.recipe == {}  # nothing of this runs the model
    return plan


@pytest.mark.parametrize(
    ("options", "algorithms", "statistics"),
    [
        ({"scale_search": "off"}, (), ()),
        ({}, (Algorithm.SCALE_SEARCH,), ()),
        ({"awq": True}, (Algorithm.AWQ, Algorithm.SCALE_SEARCH), ()),
        ({"dataset": TOKENS}, (Algorithm.SCALE_SEARCH,), (Statistic.ENERGY,)),
        ({"dataset": TOKENS, "gptq": True}, (Algorithm.SCALE_SEARCH, Algorithm.LAYERWISE), (Statistic.GRAM,)),
    ],
    ids=["off", "search", "awq", "data", "gptq"],
)
def test_what_will_be_done_follows_from_the_options(
    options: dict[str, Any], algorithms: tuple[Algorithm, ...], statistics: tuple[Statistic, ...]
) -> None:
    by_name = {one.weight.name: one for one in planned(**options).weights}
    assert (by_name[Q].algorithms, by_name[Q].statistics) == (algorithms, statistics)
    assert (by_name[HEAD].algorithms, by_name[HEAD].statistics) == ((), ())


def test_who_decided() -> None:
    plan = planned(rules=[(DOWN, "int8_sym")])
    found = {one.weight.name: one.decided_by for one in plan.weights}
    assert found[Q] == (DecidedBy.RATIO,)
    assert found[HEAD] == (DecidedBy.BACKUP,)
    assert found[DOWN] == (DecidedBy.RULE,)


def test_what_it_costs_is_what_the_report_says() -> None:
    compression = WeightCompression(mode="int4_sym", group_size=32)
    report = compression.preview(llama())
    assert {row.name: row.bytes_after for row in report.rows} == {
        one.weight.name: one.nbytes for one in planned().weights
    }


def test_nothing_of_it_can_be_changed() -> None:
    plan = planned()
    with pytest.raises(FrozenInstanceError):
        plan.weights[0].absmax = 1.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan.weights = ()  # type: ignore[misc]
