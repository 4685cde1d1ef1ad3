"""Layers to try the calibrated algorithms on: correlated inputs with outlier channels, and a spec for every format."""

import numpy as np

from ov_weight_compression.quantization import FORMATS, Spec

SPECS = {
    name: Spec(row, row.default_group if row.fixed_group else 32, row.scale)
    for name, row in FORMATS.items()
    if name not in ("codebook", "adaptive_codebook")
}


def layer(rows: int = 24, width: int = 96, tokens: int = 512, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A weight [rows, width] and the activations [tokens, width] that it meets."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) / np.sqrt(width) + np.eye(width)
    gains = np.exp(rng.normal(size=width)) * np.where(np.arange(width) % 29 == 3, 12, 1)
    x = rng.normal(size=(tokens, width)) @ mixing * gains
    return rng.normal(size=(rows, width)).astype(np.float32), x.astype(np.float32)


def gram_of(x: np.ndarray) -> np.ndarray:
    return (x.T @ x).astype(np.float32)


def output_error(weight: np.ndarray, approximation: np.ndarray, gram: np.ndarray) -> float:
    """tr((W − Q) H (W − Q)ᵀ) in f64."""
    error = (weight - approximation).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", error, gram.astype(np.float64), error))
