"""Float targets: the least-squares weight, what it is exact for, and what it must leave alone."""

import numpy as np
import pytest

from ov_weight_compression.quantization.gptq import input_correction, solve_positive
from tests.quantization.layerwise_cases import layer


def streams(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight, x = layer()
    rng = np.random.default_rng(seed)
    mixing = np.eye(96) + 0.1 * rng.normal(size=(96, 96)) / np.sqrt(96)
    return weight, x, (x @ mixing + 0.05 * rng.normal(size=x.shape)).astype(np.float32)


def test_it_minimises_the_regularised_distance_to_the_float_output():
    weight, x, seen = streams()
    gram, damping = seen.T @ seen, 0.1
    target = weight + weight @ input_correction(gram, (x - seen).T @ seen, damping=damping)
    ridge = np.sqrt(damping * np.diag(gram).mean()) * np.eye(96)
    rows = np.concatenate([seen, ridge])
    wanted = np.concatenate([x @ weight.T, ridge @ weight.T])
    expected = np.linalg.lstsq(rows.astype(np.float64), wanted.astype(np.float64), rcond=None)[0].T
    np.testing.assert_allclose(target, expected, atol=2e-3)


def test_a_matrix_that_rounding_leaves_not_positive_has_a_target_too():
    gram = np.array([[1, 1.01], [1.01, 1]], np.float32)
    damped = gram + 1e-4 * np.eye(2, dtype=np.float32)
    with pytest.raises(np.linalg.LinAlgError):
        solve_positive(damped, np.eye(2, dtype=np.float32))
    np.testing.assert_allclose(input_correction(gram, gram, damping=0) @ damped, gram, atol=1e-4)


def test_of_few_rows_it_is_computed_without_the_matrix():
    weight, x, seen = streams()
    gram, drift = seen.T @ seen, (x - seen).T @ seen
    expected = weight @ input_correction(gram, drift)
    np.testing.assert_allclose(input_correction(gram, weight @ drift), expected, atol=1e-5 * np.abs(expected).max())
    assert not input_correction(np.zeros((5, 5)), np.ones((2, 5), np.float32)).any()


def test_it_brings_the_output_nearer_to_the_float_models():
    weight, x, seen = streams()
    target = weight + weight @ input_correction(seen.T @ seen, (x - seen).T @ seen, damping=0.01)
    before, after = (np.square(x @ weight.T - seen @ w.T).sum() for w in (weight, target))
    assert after < 0.5 * before


def test_nothing_to_correct_where_the_prefix_is_exact():
    _, x, _ = streams()
    gram = x.T @ x
    assert np.abs(input_correction(gram, 0 * gram)).max() == 0


@pytest.mark.parametrize("gram", [np.zeros((5, 5)), np.diag([1.0, 0, 2, 0, 0])])
def test_dead_channels_get_no_correction(gram):
    correction = input_correction(gram, gram)
    dead = np.diag(gram) == 0
    assert not correction[dead].any()
    assert not correction[:, dead].any()
    assert correction[~dead].any() == (~dead).any()
