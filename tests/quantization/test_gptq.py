"""GPTQ: against the paper's own formulation on small matrices, and against plain rounding in every format."""

import numpy as np
import pytest

from ov_weight_compression.quantization import Encoded, Spec, decode_rows, encode_rows
from ov_weight_compression.quantization.gptq import (
    Draft,
    Grid,
    Hessian,
    Start,
    cost,
    fit_rows,
    gptq,
    hessian_of,
    starting_draft,
)
from tests.quantization.layerwise_cases import SPECS, gram_of, layer, output_error


def fitted_from_plain_scales(weight: np.ndarray, spec: Spec, hessian: Hessian) -> Encoded:
    return fit_rows(weight, spec, hessian, (gptq,), start=Start.PLAIN)


def textbook(weight: np.ndarray, draft: Draft, gram: np.ndarray, order: np.ndarray, damping: float, grid: Grid):
    """GPTQ as published: the Cholesky factor of the inverse, every later channel updated after each. f64, one row."""
    width = len(gram)
    damped = gram + damping * np.median(np.diag(gram)) * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    group, out = width // len(draft.scale), np.empty(weight.shape)
    for r in range(len(weight)):
        left = weight[r, order].astype(np.float64)
        for j, channel in enumerate(order):
            scale = draft.scale[channel // group, r : r + 1]
            zero = None if draft.zero is None else draft.zero[channel // group, r : r + 1]
            level = grid.nearest(np.array([left[j]], np.float32) / scale, zero)
            out[r, channel] = (level * scale)[0]
            left[j:] -= (left[j] - out[r, channel]) / upper[j, j] * upper[j, j:]
    return out


@pytest.mark.parametrize("name", ["int4_sym", "int4_asym", "int2_sym", "nf4", "mxfp4"])
def test_it_is_the_published_algorithm(name):
    weight, x = layer(rows=7, width=64)
    spec, gram = SPECS[name], gram_of(x)
    grid, hessian = Grid(spec), hessian_of(gram, damping=0.05)
    start = starting_draft(weight, Start.PLAIN, hessian, grid)
    found = gptq(np.ascontiguousarray(weight.T), start, hessian, grid).values().T
    order = np.argsort(-np.diag(gram), kind="stable")
    expected = textbook(weight, start, gram.astype(np.float64), order, 0.05, grid)
    same = np.isclose(found, expected, rtol=1e-6, atol=1e-12)
    assert same.mean() > 0.98  # a tie that f32 breaks otherwise than f64 may change what follows in its row
    assert output_error(weight, found, gram) == pytest.approx(output_error(weight, expected, gram), rel=0.02)


@pytest.mark.parametrize("name", ["int4_asym", "int2_sym", "nf4"])
def test_it_knows_what_its_codes_cost(name):
    weight, x = layer(rows=7, width=160)
    spec, hessian, target = SPECS[name], hessian_of(gram_of(x)), np.ascontiguousarray(weight.T)
    grid = Grid(spec)
    start = starting_draft(weight, Start.PLAIN, hessian, grid)
    found = gptq(target, start, hessian, grid)
    np.testing.assert_allclose(found.cost, cost(target, found, hessian), rtol=1e-4)
    assert found.copy().cost is None
    found.take(np.arange(7) < 3, start)
    assert found.cost is None  # of what is known of some rows only


@pytest.mark.parametrize("name", SPECS)
def test_it_beats_rounding_with_the_same_scales(name):
    weight, x = layer()
    spec, gram = SPECS[name], gram_of(x)
    hessian = hessian_of(gram)
    plain = encode_rows(weight, spec)
    fitted = fitted_from_plain_scales(weight, spec, hessian)
    np.testing.assert_array_equal(fitted.scale, plain.scale)
    ratio = output_error(weight, decode_rows(fitted, spec), gram) / output_error(weight, decode_rows(plain, spec), gram)
    assert ratio < 0.8


@pytest.mark.parametrize("name", SPECS)
def test_uncorrelated_channels_are_rounded_to_nearest(name):
    weight, _ = layer()
    spec = SPECS[name]
    fitted = fitted_from_plain_scales(weight, spec, hessian_of(np.eye(96)))
    np.testing.assert_array_equal(decode_rows(fitted, spec), decode_rows(encode_rows(weight, spec), spec))


@pytest.mark.parametrize("name", ["int4_sym", "int4_asym", "nvfp4"])
def test_dead_channels_are_rounded_to_nearest_and_disturb_nothing(name):
    weight, x = layer()
    dead = [0, 5, 40, 95]
    x[:, dead] = 0
    spec = SPECS[name]
    fitted = decode_rows(fitted_from_plain_scales(weight, spec, hessian_of(gram_of(x))), spec)
    plain = decode_rows(encode_rows(weight, spec), spec)
    np.testing.assert_array_equal(fitted[:, dead], plain[:, dead])
    assert np.isfinite(fitted).all()
    assert output_error(weight, fitted, gram_of(x)) < 0.8 * output_error(weight, plain, gram_of(x))


def test_an_input_that_is_always_zero_gives_plain_rounding():
    weight, _ = layer()
    spec = SPECS["int4_sym"]
    fitted = fitted_from_plain_scales(weight, spec, hessian_of(np.zeros((96, 96))))
    np.testing.assert_array_equal(fitted.codes, encode_rows(weight, spec).codes)


def test_more_rows_than_a_block_and_more_channels_than_a_block():
    weight, x = layer(rows=1100, width=288, tokens=900)
    spec, hessian = SPECS["int4_sym"], hessian_of(gram_of(x))
    whole = fit_rows(weight, spec, hessian, (gptq,))
    assert whole.codes.shape == weight.shape
    assert whole.scale.shape == (1100, 9)
    tail = fit_rows(weight[1024:], spec, hessian, (gptq,))
    np.testing.assert_array_equal(whole.codes[1024:], tail.codes)


def test_the_same_bytes_every_time():
    weight, x = layer(rows=50, width=256)
    spec, hessian = SPECS["int4_asym"], hessian_of(gram_of(x))
    first, second = (fit_rows(weight, spec, hessian) for _ in range(2))
    np.testing.assert_array_equal(first.codes, second.codes)
    np.testing.assert_array_equal(first.scale, second.scale)
    np.testing.assert_array_equal(first.zero_point, second.zero_point)


def test_the_scale_of_the_gram_matrix_does_not_matter():
    weight, x = layer()
    spec, gram = SPECS["int4_sym"], gram_of(x)
    first, second = (fit_rows(weight, spec, hessian_of(gram * factor)).codes for factor in (1, 2.0**-40))
    np.testing.assert_array_equal(first, second)


def test_a_gram_matrix_with_nan_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        hessian_of(np.full((4, 4), np.nan))
