"""Cholesky factors and positive definite systems, block by block: numpy has the one unblocked, the other only by LU.

    L [n, n] lower,  L Lᵀ = A          A⁻¹ B = L⁻ᵀ (L⁻¹ B)

The blocks on the diagonal are left to numpy, and inverted; all else is matrix products. Of 1,536 channels in f32 on one
core the factor takes 23 ms in place of 83, a system with 576 right-hand sides 59 in place of 175.
"""

from __future__ import annotations

import numpy as np

from ov_weight_compression.ir_utils.types import Float32

_BLOCK = 64


def cholesky(matrix: Float32) -> Float32:
    """L of a symmetric `matrix` [n, n], zeros above the diagonal. Raises LinAlgError where it is not positive."""
    return _factored(matrix)[0]


def solve_positive(matrix: Float32, right: Float32) -> Float32:
    """`matrix⁻¹ right`, [n, m], of a symmetric positive matrix. Raises LinAlgError where it is not positive."""
    factor, inverses = _factored(matrix)
    x = np.array(right, np.float32, order="C")  # a transposed one would make every difference below a slow one
    spans = list(zip(_spans(len(x)), inverses, strict=True))
    for span, inverse in spans:
        x[span] = inverse @ x[span]
        x[span.stop :] -= factor[span.stop :, span] @ x[span]
    for span, inverse in reversed(spans):
        x[span] = inverse.T @ x[span]
        x[: span.start] -= factor[span, : span.start].T @ x[span]
    return x


def _factored(matrix: Float32) -> tuple[Float32, list[Float32]]:
    """L, and the inverses of its blocks on the diagonal."""
    factor, inverses = np.zeros(matrix.shape, np.float32), []
    for span in _spans(len(matrix)):
        panel = matrix[span.start :, span] - factor[span.start :, : span.start] @ factor[span, : span.start].T
        size = span.stop - span.start
        factor[span, span] = np.linalg.cholesky(panel[:size])
        inverses.append(np.linalg.inv(factor[span, span]))
        factor[span.stop :, span] = panel[size:] @ inverses[-1].T
    return factor, inverses


def _spans(size: int) -> list[slice]:
    return [slice(begin, min(begin + _BLOCK, size)) for begin in range(0, size, _BLOCK)]
