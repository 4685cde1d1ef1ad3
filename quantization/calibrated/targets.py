"""What a layer should aim at when the layers before it are compressed already.

A compressed layer sees `x̂`, the compressed prefix's activation, but what it must reproduce is the float model's output
`W x`. The weight that does so best is a least-squares problem, regularised towards W:

    W* = argmin Σ |W x − W* x̂|² + λ̄ |W* − W|²
       = W + W (C − Ĥ) (Ĥ + λ̄ I)⁻¹          C = Σ x x̂ᵀ,  Ĥ = Σ x̂ x̂ᵀ,  λ̄ = λ mean(diag Ĥ)

and whatever rounds `W*` under Ĥ afterwards minimises the distance to the float output (GPTAQ, 2504.02692; Qronos,
2505.11695). `input_correction` is the part that layers with the same input share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TARGET_DAMPING", "input_correction"]

Floats = npt.NDArray[np.float32]

TARGET_DAMPING = 0.5
"""λ. C is known from a sample only: a model with outlier channels and sixteen thousand tokens loses 4 % less with 0.3
than with 0.1, and 3 % less again with 0.6; small models without outliers stay within a few per cent."""


def input_correction(gram: npt.NDArray[Any], cross: npt.NDArray[Any], *, damping: float = TARGET_DAMPING) -> Floats:
    """`K = (C − Ĥ) (Ĥ + λ̄ I)⁻¹`, [in, in] f32: the target of weight W [rows, in] is `W + W @ K`.

    Args:
        gram: Ĥ [in, in], Gram matrix of the compressed prefix's activation.
        cross: C [in, in], rows follow the float activation, columns the compressed one.
        damping: λ, in units of the mean diagonal of Ĥ.
    """
    damped = np.array(gram, np.float32)
    missing = np.asarray(cross, np.float32) - damped
    mean = float(np.diagonal(damped).mean(dtype=np.float64))
    if not mean > 0:
        return np.zeros_like(missing)
    damped[np.diag_indices_from(damped)] += np.float32(max(damping, 1e-4) * mean)
    return np.ascontiguousarray(np.linalg.solve(damped, missing.T).T)
