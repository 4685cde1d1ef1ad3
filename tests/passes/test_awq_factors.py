"""Factors of input channels: cheaper to round with, shared where they must be, never worse than none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ov_weight_compression.passes.awq import Factors, Sample, choose_factors, lift_factors
from ov_weight_compression.quantization import Spec, decode_rows, encode_rows
from tests.quantization.layerwise_cases import SPECS

FEW_BITS = sorted(name for name, spec in SPECS.items() if spec.format.bits <= 4)
IDENTITY = range(96)


def layer(outlier: float = 30.0, small: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A weight [64, 96] and E[x²], with a few channels that are much larger than the others."""
    random = np.random.default_rng(4)
    weight = random.standard_normal((64, 96)).astype(np.float32)
    size = np.exp(0.3 * random.standard_normal(96)) * np.where(np.arange(96) % 31 == 5, outlier, 1)
    weight[:, 5::31] *= small
    return weight, np.square(size).astype(np.float32)


def cost(weight: np.ndarray, spec: Spec, energy: np.ndarray, factors: np.ndarray) -> float:
    encoded = encode_rows(weight * factors, spec, importance=energy / factors**2, weighting="data")
    error = decode_rows(encoded, spec) / factors - weight
    return float((error.astype(np.float64) ** 2 * energy).sum())


@pytest.mark.parametrize("name", FEW_BITS)
def test_outliers_cost_less_in_every_format(name: str) -> None:
    weight, energy = layer()
    spec = SPECS[name]
    found = choose_factors([Sample(weight, spec)], energy, IDENTITY)
    before, after = (cost(weight, spec, energy, factors) for factors in (np.ones(96, np.float32), found.columns))
    assert after < 0.8 * before
    assert found.cost == pytest.approx(after / before, rel=1e-2)


@pytest.mark.parametrize("name", FEW_BITS)
def test_a_layer_that_gains_nothing_is_left_alone_or_costs_less(name: str) -> None:
    weight, _ = layer()
    energy = np.ones(96, np.float32)
    spec = SPECS[name]
    found = choose_factors([Sample(weight, spec)], energy, IDENTITY)
    assert found.cost is not None
    assert found.cost <= 1
    assert cost(weight, spec, energy, found.columns) <= cost(weight, spec, energy, np.ones(96, np.float32)) * (1 + 1e-6)


def test_every_group_chooses_for_itself() -> None:
    weight, energy = layer()
    energy[:32] = 1
    weight[:, :32] = np.sign(weight[:, :32])  # rounded without any error: nothing to gain
    found = choose_factors([Sample(weight, SPECS["int4_sym"])], energy, IDENTITY).columns
    assert np.all(found[:32] == 1)
    assert np.all(found[[36, 67]] > 1.5)


def test_channels_of_a_class_share_their_factor_across_groups() -> None:
    weight, energy = layer()
    classes = [channel % 48 for channel in range(96)]
    for found in (
        choose_factors([Sample(weight, SPECS["int4_sym"])], energy, classes),
        lift_factors([Sample(layer(small=0.01)[0], SPECS["int4_sym"])], classes),
    ):
        assert np.any(found.columns != 1)
        np.testing.assert_array_equal(found.columns[:48], found.columns[48:])


def test_several_layers_are_weighed_together() -> None:
    weight, energy = layer()
    spec = SPECS["int4_sym"]
    samples = [Sample(weight, spec), Sample(weight[::-1] * np.float32(3), replace(spec, group_size=-1))]
    found = choose_factors(samples, energy, IDENTITY)
    totals = [
        sum(cost(sample.values, sample.spec, energy, factors) for sample in samples)
        for factors in (np.ones(96, np.float32), found.columns)
    ]
    assert totals[1] < 0.8 * totals[0]
    assert found.cost == pytest.approx(totals[1] / totals[0], rel=1e-4)


def test_the_factors_of_a_group_have_a_geometric_mean_of_one() -> None:
    weight, energy = layer()
    found = choose_factors([Sample(weight, SPECS["int4_sym"])], energy, IDENTITY).columns
    np.testing.assert_allclose(np.log(found).reshape(3, 32).mean(axis=1), 0, atol=1e-5)


@pytest.mark.parametrize("energy", [np.zeros(96), np.where(np.arange(96) == 7, 1e30, 0), np.full(96, 1e-30)])
def test_extreme_inputs_give_finite_factors(energy: np.ndarray) -> None:
    weight, _ = layer()
    weight[:, 3] = 0
    found: Factors = choose_factors([Sample(weight, SPECS["int4_asym"])], energy.astype(np.float32), IDENTITY)
    assert np.all((found.columns >= 2.0**-8) & (found.columns <= 2.0**8))
    assert found.cost is not None
    assert found.cost <= 1


def test_without_data_only_columns_far_below_the_usual_are_lifted() -> None:
    weight, _ = layer(small=0.05)
    found = lift_factors([Sample(weight, SPECS["int4_sym"])], IDENTITY)
    assert found.cost is None
    assert set(np.flatnonzero(found.columns != 1)) == {5, 36, 67}
    lifted = np.abs(weight * found.columns).mean(axis=0)
    np.testing.assert_allclose(lifted[[5, 36, 67]], np.median(np.abs(weight).mean(axis=0)), rtol=0.1)


def test_without_data_all_columns_can_be_brought_to_one_size() -> None:
    weight, _ = layer(small=0.05)
    weight[:, 11] *= 20
    found = lift_factors([Sample(weight, SPECS["int4_sym"])], IDENTITY, equal=True)
    size = np.abs(weight * found.columns).mean(axis=0).reshape(3, 32)
    np.testing.assert_allclose(size, np.broadcast_to(size[:, :1], size.shape), rtol=1e-4)


def test_without_data_lifting_pays_where_small_weights_meet_large_inputs() -> None:
    weight, energy = layer(outlier=60, small=0.03)
    spec = SPECS["int4_sym"]
    factors = lift_factors([Sample(weight, spec)], IDENTITY).columns
    plain = [decode_rows(encode_rows(weight * one, spec), spec) / one - weight for one in (np.float32(1), factors)]
    before, after = (float((np.square(error) * energy).sum()) for error in plain)
    assert after < 0.2 * before
