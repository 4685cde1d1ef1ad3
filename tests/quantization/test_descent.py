"""Descent: never upwards, and on a problem small enough to enumerate it ends where no single step helps."""

import numpy as np
import pytest

from ov_weight_compression.quantization import decode_rows, encode_rows
from ov_weight_compression.quantization.calibrated import Effort, Start, curvature_of, fit_rows
from ov_weight_compression.quantization.calibrated.descent import cost, descend
from ov_weight_compression.quantization.calibrated.draft import Grid, draft_of
from tests.quantization.calibrated_cases import SPECS, gram_of, layer, output_error


@pytest.mark.parametrize("name", SPECS)
def test_no_row_ever_gets_worse(name):
    weight, x = layer(rows=40)
    spec = SPECS[name]
    grid, curvature, target = Grid(spec), curvature_of(gram_of(x)), np.ascontiguousarray(weight.T)
    if spec.format.tensor_scale:
        grid = Grid(spec, encode_rows(weight, spec).tensor_scale)
    draft = draft_of(encode_rows(weight, spec), spec)
    costs = [cost(target, draft, curvature)]
    for _ in range(4):
        draft = descend(target, draft, curvature, grid, 1)
        costs.append(cost(target, draft, curvature))
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
    curvature, target = curvature_of(gram), np.ascontiguousarray(weight.T)
    draft = descend(target, draft_of(encode_rows(weight, spec), spec), curvature, grid, 60)
    base = cost(target, draft, curvature)
    for channel in range(0, len(target), 7):
        for step in (-1, 1):
            other = draft_of(grid.encode(draft), spec)
            zero = None if other.zero is None else other.zero[channel // other.group]
            scale = other.scale[channel // other.group]
            nudged = other.levels[channel] + np.float32(step * 0.51 if row.levels is None else step * 0.1)
            other.levels[channel] = grid.nearest(nudged, zero)
            assert (cost(target, other, curvature) >= base * (1 - 1e-5)).all(), (channel, step, scale)


def test_sweeps_after_gptq_and_more_starts_help():
    weight, x = layer(rows=64, width=192)
    spec, gram = SPECS["int2_sym"], gram_of(x)
    curvature = curvature_of(gram)
    errors = [
        output_error(weight, decode_rows(fit_rows(weight, spec, curvature, effort), spec), gram)
        for effort in (
            Effort((Start.PLAIN,), 0),
            Effort((Start.PLAIN, Start.ENERGY), 0),
            Effort((Start.PLAIN, Start.ENERGY), 1),
            Effort((Start.PLAIN, Start.ENERGY), 4),
        )
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]
