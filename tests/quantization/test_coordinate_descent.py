"""Coordinate descent: never upwards, and on a problem small enough to enumerate it ends where no single step helps."""

import numpy as np
import pytest

from ov_weight_compression.quantization import decode_rows, encode_rows
from ov_weight_compression.quantization.gptq import (
    BestOf,
    CoordinateDescent,
    Draft,
    Grid,
    Start,
    cost,
    fit_rows,
    gptq,
    hessian_of,
    starting_draft,
)
from tests.quantization.layerwise_cases import SPECS, gram_of, layer, output_error


@pytest.mark.parametrize("name", SPECS)
def test_no_row_ever_gets_worse(name):
    weight, x = layer(rows=40)
    spec = SPECS[name]
    grid, hessian, target = Grid(spec), hessian_of(gram_of(x)), np.ascontiguousarray(weight.T)
    if spec.format.tensor_scale:
        grid = Grid(spec, encode_rows(weight, spec).tensor_scale)
    draft = starting_draft(weight, Start.PLAIN, hessian, grid)
    costs = [cost(target, draft, hessian)]
    for _ in range(4):
        draft = CoordinateDescent(1)(target, draft, hessian, grid)
        costs.append(cost(target, draft, hessian))
        assert (costs[-1] <= costs[-2] * (1 + 1e-6)).all()
    assert costs[-1].sum() < 0.7 * costs[0].sum()
    stored = decode_rows(grid.encode(draft), spec)
    np.testing.assert_array_equal(stored.T, draft.values())


@pytest.mark.parametrize("name", ["int4_sym", "int4_asym", "int2_sym", "nf4"])
@pytest.mark.parametrize("group", [16, -1])
def test_in_the_end_no_single_code_can_be_bettered(name, group):
    weight, x = layer(rows=3, width=320 if group == -1 else 48)
    row = SPECS[name].format
    spec = type(SPECS[name])(row, group)
    grid, gram = Grid(spec), gram_of(x)
    hessian, target = hessian_of(gram), np.ascontiguousarray(weight.T)
    draft = CoordinateDescent(60)(target, starting_draft(weight, Start.PLAIN, hessian, grid), hessian, grid)
    base = cost(target, draft, hessian)
    for channel in range(0, len(target), 7):
        for step in (-1, 1):
            other = draft.copy()
            zero = None if other.zero is None else other.zero[channel // other.group]
            scale = other.scale[channel // other.group]
            nudged = other.levels[channel] + np.float32(step * 0.51 if row.levels is None else step * 0.1)
            other.levels[channel] = grid.nearest(nudged, zero)
            assert (cost(target, other, hessian) >= base * (1 - 1e-5)).all(), (channel, step, scale)


def test_sweeps_after_gptq_and_more_starts_help():
    weight, x = layer(rows=64, width=192)
    spec, gram = SPECS["int2_sym"], gram_of(x)
    hessian = hessian_of(gram)
    errors = [
        output_error(weight, decode_rows(fit_rows(weight, spec, hessian, steps, start=Start.PLAIN), spec), gram)
        for steps in (
            (gptq,),
            (BestOf(gptq, (Start.ENERGY,)),),
            (BestOf(gptq, (Start.ENERGY,)), CoordinateDescent(1)),
            (BestOf(gptq, (Start.ENERGY,)), CoordinateDescent(4)),
        )
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("name", ["int4_sym", "int4_asym", "nf4"])
def test_starts_side_by_side_give_each_row_the_best_of_them(name):
    weight, x = layer()
    spec, hessian, target = SPECS[name], hessian_of(gram_of(x)), np.ascontiguousarray(weight.T)
    grid, columns = Grid(spec), []

    def step(target, draft, hessian, grid) -> Draft:
        columns.append(target.shape[1])
        return gptq(target, draft, hessian, grid)

    drafts = [starting_draft(weight, start, hessian, grid) for start in (Start.RESIDUAL, Start.ENERGY, Start.PLAIN)]
    best = BestOf(step, (Start.ENERGY, Start.PLAIN))(target, drafts[0], hessian, grid)
    assert columns == [3 * len(weight)]
    alone = np.array([gptq(target, draft, hessian, grid).cost for draft in drafts])
    assert len(set(alone.argmin(axis=0))) > 1
    np.testing.assert_allclose(best.cost, alone.min(axis=0), rtol=1e-4)
    np.testing.assert_allclose(cost(target, best, hessian), best.cost, rtol=1e-3)
