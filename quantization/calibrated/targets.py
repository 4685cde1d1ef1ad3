"""What a layer should aim at when the layers before it are compressed already.

A compressed layer sees `x̂`, the compressed prefix's activation, but what it must reproduce is the float model's output
`W x`. The weight that does so best is a least-squares problem, regularised towards W:

    W* = argmin Σ |W x − W* x̂|² + λ̄ |W* − W|²
       = W + W (C − Ĥ) (Ĥ + λ̄ I)⁻¹          C = Σ x x̂ᵀ,  Ĥ = Σ x̂ x̂ᵀ,  λ̄ = λ mean(diag Ĥ)

and whatever rounds `W*` under Ĥ afterwards minimises the distance to the float output (GPTAQ, 2504.02692; Qronos,
2505.11695). `input_correction` is the part that layers with the same input share.

A layer whose output is added to a residual stream can do more: it knows what the stream has lost so far, `r − r̂`, and
may make up for the part of it that `x̂` predicts:

    W* = argmin Σ |r + W x − r̂ − W* x̂|² + λ̄ |W* − W|²     adds     E (Ĥ + λ̄ I)⁻¹,   E = Σ (r − r̂) x̂ᵀ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TARGET_DAMPING", "input_correction", "output_correction"]

Floats = npt.NDArray[np.float32]

TARGET_DAMPING = 0.1


def input_correction(gram: npt.NDArray[Any], cross: npt.NDArray[Any], *, damping: float = TARGET_DAMPING) -> Floats:
    """`K = (C − Ĥ) (Ĥ + λ̄ I)⁻¹`, [in, in] f32: the target of weight W [rows, in] is `W + W @ K`.

    Args:
        gram: Ĥ [in, in], Gram matrix of the compressed prefix's activation.
        cross: C [in, in], rows follow the float activation, columns the compressed one.
        damping: λ, in units of the mean diagonal of Ĥ.
    """
    return output_correction(gram, np.asarray(cross, np.float32) - np.asarray(gram, np.float32), damping=damping)


def output_correction(gram: npt.NDArray[Any], missing: npt.NDArray[Any], *, damping: float = TARGET_DAMPING) -> Floats:
    """`D (Ĥ + λ̄ I)⁻¹`, f32: what to add to a weight whose output lacks `y`, for `D = Σ y x̂ᵀ` = `missing` [rows, in]."""
    damped = np.array(gram, np.float32)
    mean = float(np.diagonal(damped).mean(dtype=np.float64))
    if not mean > 0:
        return np.zeros_like(missing, np.float32)
    damped[np.diag_indices_from(damped)] += np.float32(max(damping, 1e-4) * mean)
    return np.ascontiguousarray(np.linalg.solve(damped, np.asarray(missing, np.float32).T).T)
