"""Divergence of single predictions, and the figures made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov_weight_compression.evaluation.predictions import Scores, score, summarise
from tests.evaluation.small import found_figures, from_positions, log_softmax


def of_probabilities(*rows: tuple[float, ...]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows)).astype(np.float32)


def test_a_case_by_hand() -> None:
    base = of_probabilities((0.5, 0.25, 0.25), (0.5, 0.25, 0.25))
    compressed = of_probabilities((0.25, 0.5, 0.25), (0.5, 0.25, 0.25))
    found = score(base, compressed, np.array([1, -1]))
    assert found.kl == pytest.approx([0.25 * math.log(2), 0.0], abs=1e-7)
    assert found.nll_base[0] == pytest.approx(math.log(4), rel=1e-6)
    assert found.nll[0] == pytest.approx(math.log(2), rel=1e-6)
    assert np.isnan(found.nll[1])
    assert np.isnan(found.nll_base[1])
    assert found.top_base.tolist() == [0, 0]
    assert found.top.tolist() == [1, 0]
    assert found.top_base_p == pytest.approx([0.5, 0.5])


def test_what_the_base_holds_impossible_adds_nothing() -> None:
    base = of_probabilities((0.5, 0.5, 0.0))
    assert score(base, of_probabilities((0.5, 0.25, 0.25)), np.array([0])).kl == pytest.approx([0.5 * math.log(2)])
    assert score(base, base, np.array([0])).kl == pytest.approx([0.0])
    assert score(base, of_probabilities((1.0, 0.0, 0.0)), np.array([0])).kl[0] == math.inf


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(2, 40), st.floats(0.01, 30))
@settings(max_examples=40, deadline=None)
def test_properties(seed: int, positions: int, vocabulary: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    base, compressed = (random.standard_normal((2, positions, vocabulary)) * spread).astype(np.float32)
    following = random.integers(0, vocabulary, positions)
    found = score(base, compressed, following)
    log_p, log_q = log_softmax(base), log_softmax(compressed)
    assert found.kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(axis=1), rel=1e-9, abs=1e-12)
    assert found.nll == pytest.approx(-log_q[np.arange(positions), following], rel=1e-9, abs=1e-12)
    assert (found.kl > -1e-12).all()
    assert score(base, base, following).kl == pytest.approx(np.zeros(positions), abs=1e-12)


def test_no_result_depends_on_how_the_work_is_cut() -> None:
    random = np.random.default_rng(0)
    base, compressed = random.standard_normal((2, 37, 300)).astype(np.float32)
    following = random.integers(0, 300, 37)
    whole = score(base, compressed, following)
    assert np.array_equal(score(base, compressed, following, elements=700).kl, whole.kl)


def scores(seed: int, count: int) -> Scores:
    random = np.random.default_rng(seed)
    nll_base = random.exponential(2, count)
    nll = np.abs(nll_base + 0.2 * random.standard_normal(count))
    nll_base[-1] = nll[-1] = np.nan
    tops = random.integers(0, 2, (2, count))
    return Scores(random.lognormal(-4, 2, count), nll_base, nll, *tops, *random.random((2, count)))


@pytest.mark.parametrize("count", [3, 13, 4000])
def test_figures_are_those_of_llama_cpp(count: int) -> None:
    given_scores = scores(count, count)
    found = found_figures(summarise(given_scores))
    wanted = from_positions(
        given_scores.kl, given_scores.top == given_scores.top_base, given_scores.nll_base[:-1], given_scores.nll[:-1]
    )
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-7), name


def test_the_histogram_counts_every_position() -> None:
    given_scores = scores(1, 5000)
    given_scores.kl[:70] = 0
    histogram = summarise(given_scores).histogram
    assert histogram.below >= 70
    assert histogram.below + sum(histogram.counts) == 5000
    assert histogram.edges[-1] >= given_scores.kl.max()
    assert list(histogram.edges) == sorted(histogram.edges)
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        inside = (given_scores.kl >= low) & (given_scores.kl < high)
        assert abs(int(inside.sum()) - count) <= 1  # the largest value belongs to the last bar


def test_equal_models() -> None:
    nothing = scores(2, 50)
    nothing.kl[:] = 0
    found = summarise(nothing)
    assert found.histogram.counts == ()
    assert found.histogram.below == 50
    assert found.kl.mean.value == 0
