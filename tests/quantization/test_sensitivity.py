"""Sensitivity scores against their formulas in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ov_weight_compression.quantization.allocation import METRICS, InputMeans, sensitivity, weight_noise

EPSILON = float(np.finfo(np.float32).eps)
MEANS = InputMeans(mean_square=2.0, mean_variance=3.0, max_variance=5.0, mean_max_abs=7.0)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Asymmetric 8 bits per row with scales of half precision."""
    low, high = np.minimum(values.min(1, keepdims=True), 0), np.maximum(values.max(1, keepdims=True), 0)
    scale = ((high - low) / 255).astype(np.float16).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


def test_noise_of_a_weight_in_any_cut() -> None:
    values = (np.random.default_rng(0).standard_normal((40, 96)) * np.linspace(0.1, 3, 40)[:, None]).astype(np.float32)
    errors = np.square(eight_bits(values) - values)
    whole = weight_noise([values], EPSILON)
    assert whole.worst_row == pytest.approx(errors.mean(1).max(), rel=0.05)
    assert whole.frobenius == pytest.approx(np.sqrt(errors.sum()), rel=0.05)
    cut = weight_noise([values[:7], values[7:8], values[8:]], EPSILON)
    assert (cut.worst_row, cut.frobenius) == pytest.approx((whole.worst_row, whole.frobenius))
    assert weight_noise([values.astype(np.float16)], EPSILON).frobenius == pytest.approx(whole.frobenius, rel=0.05)


def test_scores() -> None:
    noise = weight_noise([np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)], EPSILON)
    inverse = 1 / (noise.worst_row + EPSILON)
    expected = [inverse, noise.frobenius * 4.0, inverse * 3.0, inverse * 5.0, inverse * 7.0]
    assert [sensitivity(metric, noise, MEANS) for metric in METRICS] == pytest.approx(expected)


def test_an_input_that_was_not_seen_is_the_least_sensitive() -> None:
    noise = weight_noise([np.ones((2, 4), np.float32)], EPSILON)
    assert sensitivity("weight_quantization_error", noise) > 0
    assert [sensitivity(metric, noise) for metric in METRICS[1:]] == [0.0] * 4


def test_unknown_metric() -> None:
    noise = weight_noise([np.ones((2, 4), np.float32)], EPSILON)
    with pytest.raises(ValueError, match="metric 'entropy': allowed are weight_quantization_error"):
        sensitivity("entropy", noise, MEANS)
