"""LoRA correction: a product of two thin matrices beside the layer carries what rounding lost where it matters most.

    y = Q x + B (A x),      min over A [rank, in], B [rows, rank] of   tr((E − B A) H (E − B A)ᵀ),   E = W − Q

For a given B the best A is `B⁺ E` whatever H is, for a given A the best B is `E H Aᵀ (A H Aᵀ)⁻¹`. The best pair spans
the leading left singular vectors of `E H^½`, which a few subspace iterations find. The adapters are stored in 8 bits,
so the rounds alternate: round A, fit B to it, round B, fit A to it; the best of all rounds is returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, Encoded, Spec

ADAPTER_SPEC = Spec(FORMATS["int8_asym"])
ROUNDS = 2
_ITERATIONS = 3
_EXTRA = 8
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Adapters:
    """Both matrices as stored by `ADAPTER_SPEC`, a scale per row, and what is left."""

    down: Encoded  # A [rank, in]
    up: Encoded  # B [rows, rank]
    left: float  # the objective as a share of that without adapters


def lora_adapters(missing: Float32, gram: Float32, rank: int, *, rounds: int = ROUNDS) -> Adapters | None:
    """Fit adapters to what a layer's weight has lost.

    Args:
        missing: E [rows, in], the weight (or its target) less its stored values.
        gram: H [in, in] of the layer's input, in any scale.
        rank: of the correction; at most min(rows, in) is of use.
        rounds: alternations of rounding one matrix and fitting the other.

    Returns:
        The adapters, or None where nothing is missing or the input is always zero.
    """
    rank = min(rank, *missing.shape)
    total = _cost(missing, gram)
    if not total > 0:
        return None
    up = _leading(missing, gram, rank)
    best: Adapters | None = None
    for _ in range(max(rounds, 1)):
        down, down_values = _rounded(_balanced(_solve(up.T @ up, up.T @ missing), up))
        weighted = np.asarray(down_values @ gram, dtype=np.float32)
        inner, outer = weighted @ down_values.T, missing @ weighted.T
        up_stored, up = _rounded(_solve(inner, outer.T).T)
        saved = np.sum(up * (2 * outer - up @ inner), dtype=np.float64)
        left = max(1 - float(saved) / total, 0.0)
        if best is None or left < best.left:
            best = Adapters(down, up_stored, left)
    return best


def _cost(missing: Float32, gram: Float32) -> float:
    """`tr(E H Eᵀ)`."""
    pieces = (missing[begin : begin + _ROWS] for begin in range(0, len(missing), _ROWS))
    return sum(float(np.einsum("ri,ri->", piece @ gram, piece, dtype=np.float64)) for piece in pieces)


def _balanced(down: Float32, up: Float32) -> Float32:
    """A times a power of two, so that the B that fits it is as large: f16 scales hold neither tiny nor huge values."""
    ratio = float(np.abs(up).max()) / max(float(np.abs(down).max()), 1e-30)
    if not 0 < ratio < np.inf:  # nothing to balance: what is missing is too small for its squares
        return down
    return np.asarray(np.ldexp(down, round(np.log2(ratio) / 2)), dtype=np.float32)


def _leading(missing: Float32, gram: Float32, rank: int) -> Float32:
    """[rows, rank] basis of the leading left singular vectors of `E H^½`, that is eigenvectors of `E H Eᵀ`."""
    columns = min(rank + _EXTRA, *missing.shape)
    basis = np.random.default_rng(0).standard_normal((len(missing), columns)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(missing @ ((basis.T @ missing) @ gram).T)[0]
    small = basis.T @ missing
    _, vectors = np.linalg.eigh(small @ gram @ small.T)
    return np.asarray(basis @ vectors[:, ::-1][:, :rank])


def _solve(matrix: Float32, right: Float32) -> Float32:
    """`matrix⁻¹ right` for a symmetric positive matrix that may be singular."""
    ridge = 1e-6 * float(np.trace(matrix)) / len(matrix)
    return np.asarray(np.linalg.solve(matrix + np.float32(ridge or 1.0) * np.eye(len(matrix), dtype=np.float32), right))


def _rounded(matrix: Float32) -> tuple[Encoded, Float32]:
    encoded = encode_rows(np.ascontiguousarray(matrix), ADAPTER_SPEC)
    return encoded, decode_rows(encoded, ADAPTER_SPEC)
