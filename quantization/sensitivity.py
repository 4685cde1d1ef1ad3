"""How sensitive a layer is to fewer bits: the scores behind `ratio`, from a weight's 8-bit noise and its input.

For a weight `W` with its 8-bit (asymmetric, per channel) copy `Ŵ` and the layer's input `x` over calibration:

    weight_quantization_error     1 / (e + ε)                        e = max over rows of mean (W − Ŵ)²
    mean_activation_variance      1 / (e + ε) · mean var x           variances along the tokens of a sequence,
    max_activation_variance       1 / (e + ε) · max var x            then over channels; mean over sequences
    mean_activation_magnitude     1 / (e + ε) · mean max|x|
    hessian_input_activation      ‖W − Ŵ‖_F · 2 mean x²              the trace of the layer's Hessian, per element

The weights of the lowest scores get the fewer bits first. Names and definitions are NNCF's; so is ε, the machine
epsilon of the weight's own type, which for half-precision weights makes the first factor nearly constant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, Spec

METRICS = (
    "weight_quantization_error",
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
)
_INT8 = Spec(FORMATS["int8_asym"])


@dataclass(frozen=True)
class WeightNoise:
    """What 8 bits do to a weight."""

    worst_row: float
    """The largest over the rows of the mean squared error."""
    frobenius: float
    """The root of the sum of squared errors."""
    epsilon: float
    """Machine epsilon of the weight's type as stored."""


@dataclass(frozen=True)
class InputMeans:
    """Means over the sequences of a layer's input, as `calibration.LayerStatistics` has them."""

    mean_square: float
    mean_variance: float
    max_variance: float
    mean_max_abs: float


def weight_noise(pieces: Iterable[Array], epsilon: float) -> WeightNoise:
    """The noise of 8 bits on a weight given as pieces `[n, in]` of its rows, in any cut."""
    worst, total = 0.0, 0.0
    for piece in pieces:
        values = np.asarray(piece, np.float32)
        squares = np.square(decode_rows(encode_rows(values, _INT8), _INT8) - values)
        worst = max(worst, float(squares.mean(axis=1).max(initial=0.0)))
        total += float(squares.sum(dtype=np.float64))
    return WeightNoise(worst, sqrt(total), epsilon)


def sensitivity(metric: str, noise: WeightNoise, means: InputMeans | None = None) -> float:
    """The score of one weight: higher keeps its bits for longer.

    `means` is None for a weight whose input was not seen (an embedding): every metric on data then scores it 0, so
    that it gets fewer bits first. Raises ValueError for a metric that is not in `METRICS`.
    """
    inverse = 1.0 / (noise.worst_row + noise.epsilon)
    if metric == "weight_quantization_error":
        return inverse
    if metric not in METRICS:
        raise ValueError(f"metric '{metric}': allowed are {', '.join(METRICS)}")
    if means is None:
        return 0.0
    if metric == "hessian_input_activation":
        return noise.frobenius * 2 * means.mean_square
    return (
        inverse
        * {
            "mean_activation_variance": means.mean_variance,
            "max_activation_variance": means.max_variance,
            "mean_activation_magnitude": means.mean_max_abs,
        }[metric]
    )
