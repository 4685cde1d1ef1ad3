"""From scored positions to the figures of a report, each with its uncertainty, as llama.cpp defines them.

With n positions, mean(x) = sum x / n and the standard error of a mean se(x) = sqrt((mean(x²) - mean(x)²) / (n - 1)):

    KL            mean(kl) ± se(kl); percentiles interpolate linearly between sorted values, as numpy.percentile does
    perplexity    exp(mean(nll)) ± exp(mean(nll)) se(nll)
    ln ratio      d = nll - nll_base:  mean(d) ± se(d). se(d)² = se(nll)² + se(nll_base)² - 2 cov(nll, nll_base)/n,
                  so the covariance of two models on one text is what makes the ratio far more certain than either
    ratio         exp(mean(d)) ± exp(mean(d)) se(d)
    same top      share s of positions with the same likeliest token ± sqrt(s (1 - s) / (n - 1))
    Δp            q_y - p_y, the change of the right token's probability: mean ± se, and the root of its mean square,
                  rms ± se(Δp²) / (2 rms)

The errors take positions for independent of each other, which neighbours in a text are not quite: they are a lower
bound. Everything about the right token leaves out the last position of a window, which has no next token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_weight_compression.evaluation.divergence import Scores

__all__ = ["Divergence", "Estimate", "Histogram", "LanguageFigures", "mean_of", "summarise"]

_Values = npt.NDArray[np.float64]
_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Divergence:
    """KL(base || compressed) in nats over all scored positions."""

    mean: Estimate
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    maximum: float
    minimum: float


@dataclass(frozen=True)
class Histogram:
    """Counts of positions by KL: `edges` (rising, logarithmic, one more than counts) in nats, and what lies below."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    """Positions with a KL under the first edge, equal predictions included."""


@dataclass(frozen=True)
class LanguageFigures:
    """What a compressed language model's predictions lost, beside the base model's."""

    positions: int
    """Positions scored for `kl` and `same_top`."""
    predicted: int
    """Of those, the ones with a next token: what everything else is about."""
    kl: Divergence
    same_top: Estimate
    """Share of positions where both models find the same token likeliest, 0..1."""
    perplexity_base: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    """Compressed over base: 1 is no loss."""
    log_perplexity_ratio: Estimate
    correlation: float
    """Of the two models' log-probabilities of the right token; NaN where one of them does not vary."""
    delta_p_mean: Estimate
    """Mean change of the probability of the right token: below 0 the compressed model is less sure of it."""
    delta_p_rms: Estimate
    """Root mean square of that change, 0..1."""
    histogram: Histogram


def mean_of(values: _Values) -> Estimate:
    """The mean and its standard error; an error of 0 for a single value."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def summarise(scores: Scores) -> LanguageFigures:
    """All figures of a run. At least one position must have a next token."""
    predicted = ~np.isnan(scores.nll)
    nll_base, nll = scores.nll_base[predicted], scores.nll[predicted]
    delta_p = np.exp(-nll) - np.exp(-nll_base)
    with np.errstate(invalid="ignore"):  # two infinite losses differ by NaN: said so, not hidden
        log_ratio = mean_of(nll - nll_base)
    return LanguageFigures(
        positions=len(scores.kl),
        predicted=int(predicted.sum()),
        kl=_divergence(scores.kl),
        same_top=_share(scores.top == scores.top_base),
        perplexity_base=_exponential(mean_of(nll_base)),
        perplexity=_exponential(mean_of(nll)),
        perplexity_ratio=_exponential(log_ratio),
        log_perplexity_ratio=log_ratio,
        correlation=_correlation(nll, nll_base),
        delta_p_mean=mean_of(delta_p),
        delta_p_rms=_root(mean_of(delta_p**2)),
        histogram=_histogram(scores.kl),
    )


def _divergence(kl: _Values) -> Divergence:
    p50, p90, p95, p99, p999 = (float(value) for value in np.percentile(kl, _PERCENTILES))
    return Divergence(mean_of(kl), p50, p90, p95, p99, p999, float(kl.max()), float(kl.min()))


def _share(agrees: npt.NDArray[np.bool_]) -> Estimate:
    share, n = float(agrees.mean()), len(agrees)
    return Estimate(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0)


def _exponential(log: Estimate) -> Estimate:
    value = float(np.exp(log.value))
    return Estimate(value, value * log.error)


def _root(square: Estimate) -> Estimate:
    root = math.sqrt(square.value)
    return Estimate(root, square.error / (2 * root) if root else 0.0)


def _correlation(x: _Values, y: _Values) -> float:
    if len(x) < 2:
        return math.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(x, y)[0, 1])


def _histogram(kl: _Values) -> Histogram:
    """Four bins to the decade, from a millionth of the largest value or 1e-8, whichever is more."""
    seen = kl[np.isfinite(kl) & (kl > 0)]
    if not len(seen):
        return Histogram((), (), len(kl))
    top = math.ceil(math.log10(float(seen.max())) * 4 + 1e-9)
    bottom = max(math.floor(math.log10(float(np.percentile(seen, 1))) * 4), top - 40, -32)
    edges = 10.0 ** (np.arange(min(bottom, top - 1), top + 1) / 4)
    edges[-1] = max(edges[-1], float(seen.max()))
    counts, _ = np.histogram(seen, edges)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)), int((kl < edges[0]).sum()))
