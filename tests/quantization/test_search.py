"""The scale search never loses to the plain scale, and gains where there is something to gain."""

import numpy as np
import pytest

from ov_weight_compression.quantization import FORMATS, Spec, decode_rows, encode_rows, tensor_scale_of
from ov_weight_compression.quantization.reference import SUM_LIMIT, candidate_factors, group_weights
from tests.quantization.groups import nasty_groups

SEARCHED = [name for name, row in FORMATS.items() if row.default_search]


def spec_of(name: str, search: int, group: int = 64) -> Spec:
    row = FORMATS[name]
    return Spec(row, row.default_group if row.fixed_group else group, row.scale, search)


def weighted_errors(values: np.ndarray, spec: Spec, importance: np.ndarray, **options: object) -> np.ndarray:
    """[rows, groups] of sum w (W - decoded)^2, in double precision."""
    scalar = tensor_scale_of(float(np.abs(values).max()), spec.format)
    decoded = decode_rows(encode_rows(values, spec, importance=importance, tensor_scale=scalar, **options), spec)
    weight = np.broadcast_to(importance.astype(np.float64), values.shape)
    if options["weighting"] == "graph":
        groups = np.abs(values.astype(np.float64)).reshape(len(values), -1, spec.group_of(values.shape[1]))
        shaped = groups + np.sqrt((groups**2).mean(axis=2, keepdims=True))
        weight = weight * shaped.reshape(values.shape)
    errors = weight * (values.astype(np.float64) - decoded) ** 2
    return errors.reshape(len(values), -1, spec.group_of(values.shape[1])).sum(axis=2)


@pytest.mark.parametrize("weighting", ["graph", "data"])
@pytest.mark.parametrize("name", SEARCHED)
def test_no_group_is_worse_than_with_its_plain_scale(name: str, weighting: str) -> None:
    values = nasty_groups(200, 64, seed=5)
    importance = (10.0 ** np.random.default_rng(6).uniform(-3, 2, 64)).astype(np.float32)
    row = FORMATS[name]
    plain = weighted_errors(values, spec_of(name, 0), importance, weighting=weighting)
    searched = weighted_errors(values, spec_of(name, row.default_search), importance, weighting=weighting)
    assert (searched <= plain * (1 + 1e-6)).all()
    normal = np.abs(values.reshape(len(values), plain.shape[1], -1)).max(axis=2) > 1e-3
    assert searched[normal].sum() < plain[normal].sum()


@pytest.mark.parametrize(("name", "gain"), [("int4_sym", 0.95), ("int4_asym", 0.94), ("nf4", 0.9), ("nvfp4", 0.87)])
def test_what_the_default_gains_on_heavy_tails(name: str, gain: float) -> None:
    values = (np.random.default_rng(0).standard_t(5, (200, 256)) * 0.02).astype(np.float16)
    ones = np.ones(256, np.float32)
    plain = weighted_errors(values, spec_of(name, 0), ones, weighting="graph").sum()
    searched = weighted_errors(values, spec_of(name, FORMATS[name].default_search), ones, weighting="graph").sum()
    assert searched < gain * plain


def test_importance_moves_the_scale_towards_what_matters() -> None:
    values = (np.random.default_rng(0).standard_normal((50, 32)) * 0.02).astype(np.float32)
    values[:, 0] = 0.4  # an outlier on a channel that hardly matters
    importance = np.ones(32, np.float32)
    spec = spec_of("int4_sym", 20, 32)
    importance[0] = 1e-6
    small = np.abs(encode_rows(values, spec, importance=importance, weighting="data").scale)
    importance[0] = 1e6
    large = np.abs(encode_rows(values, spec, importance=importance, weighting="data").scale)
    assert (small < large).all()


def test_only_ratios_of_importance_count() -> None:
    values = (np.random.default_rng(0).standard_t(5, (20, 128)) * 0.02).astype(np.float16)
    importance = np.random.default_rng(1).random(128).astype(np.float32)
    spec = spec_of("int4_asym", 8)
    first = encode_rows(values, spec, importance=importance)
    for factor in (2.0**-60, 2.0**40):
        second = encode_rows(values, spec, importance=importance * np.float32(factor))
        np.testing.assert_array_equal(first.codes, second.codes)
    nothing = encode_rows(values, spec, importance=np.zeros(128, np.float32))
    np.testing.assert_array_equal(nothing.codes, encode_rows(values, spec).codes)


def test_one_candidate_is_no_search() -> None:
    values = nasty_groups(20, 64)
    for name in SEARCHED:
        np.testing.assert_array_equal(
            encode_rows(values, spec_of(name, 1)).codes, encode_rows(values, spec_of(name, 0)).codes
        )


@pytest.mark.parametrize("name", SEARCHED)
def test_the_plain_scale_is_the_first_candidate(name: str) -> None:
    factors = candidate_factors(spec_of(name, 12))
    assert factors[0] == 1
    assert (factors > 0).all()
    assert len(factors) == (3 if name == "mxfp4" else 12)


@pytest.mark.parametrize("group", [3, 16, 128, 5000])
def test_sums_are_exact_in_f32(group: int) -> None:
    """The largest summand the search allows, in every place: f32 holds each partial sum, in any order."""
    limit = SUM_LIMIT // group
    assert limit * group <= 1 << 24
    groups = nasty_groups(30, group).astype(np.float32)
    weights = group_weights(groups, None, True, FORMATS["int4_sym"])
    assert np.isfinite(weights).all()
    summands = np.rint(np.minimum(weights, limit))
    assert (summands.sum(axis=1, dtype=np.float32) == summands.sum(axis=1, dtype=np.float64)).all()
