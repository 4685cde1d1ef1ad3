"""Block by block it is what numpy gives, at any size; and what is not positive is refused in whatever block."""

import numpy as np
import pytest

from ov_weight_compression.quantization.gptq import cholesky, solve_positive


def positive(size: int) -> np.ndarray:
    x = np.random.default_rng(size).normal(size=(2 * size, size))
    return (x.T @ x / size + 0.1 * np.eye(size)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_the_factor_and_the_solution_are_those_of_double_precision(size: int) -> None:
    matrix, right = positive(size), np.random.default_rng(0).normal(size=(size, 7)).astype(np.float32)
    factor, _ = cholesky(matrix)
    assert factor.dtype == np.float32
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix.astype(np.float64)), atol=2e-6)
    assert not np.triu(factor, 1).any()
    before = right.copy()
    solution = solve_positive(matrix, right)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix.astype(np.float64), right), atol=1e-4)
    np.testing.assert_array_equal(right, before)


@pytest.mark.parametrize("place", [0, 63, 64, 150])
def test_what_is_not_positive_is_refused(place: int) -> None:
    matrix = positive(160)
    matrix[place, place] = -1
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(matrix)
    with pytest.raises(np.linalg.LinAlgError):
        solve_positive(matrix, matrix)
