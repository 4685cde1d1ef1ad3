"""Formats within a budget: never above it, near the best there is, and what the bound says."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov_weight_compression.quantization.allocation import allocate, curve

ROWS = st.lists(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 9, allow_nan=False)), min_size=1, max_size=4),
    min_size=1,
    max_size=6,
)


def split(rows: list[list[tuple[int, float]]]) -> tuple[list[list[int]], list[list[float]]]:
    return [[size for size, _ in row] for row in rows], [[loss for _, loss in row] for row in rows]


def best_of_all(rows: list[list[tuple[int, float]]], budget: int) -> float | None:
    totals = [
        sum(loss for _, loss in chosen)
        for chosen in itertools.product(*rows)
        if sum(size for size, _ in chosen) <= budget
    ]
    return min(totals, default=None)


@given(ROWS, st.integers(1, 2400))
@settings(max_examples=150, deadline=None)
def test_within_the_budget_and_as_good_as_trying_all(rows: list[list[tuple[int, float]]], budget: int) -> None:
    """So few weights are all large ones, which are enumerated."""
    sizes, losses = split(rows)
    best, found = best_of_all(rows, budget), allocate(sizes, losses, budget)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.size == sum(row[one] for row, one in zip(sizes, found.formats, strict=True)) <= budget
    assert found.loss == pytest.approx(sum(row[one] for row, one in zip(losses, found.formats, strict=True)))
    assert found.bound <= found.loss + 1e-9
    assert found.bound <= best + 1e-9
    if np.prod([len(row) for row in rows]) <= 200:
        assert found.loss == pytest.approx(best)


def model(weights: int, seed: int = 0) -> tuple[list[list[int]], list[list[float]]]:
    """Sizes and losses as models have them: bits from 2 to 8, errors that fall by four with each bit."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.5, 3.25, 4.25, 4.5, 5.0, 8.1])
    elements = rng.choice([1 << 18, 1 << 20, 3 << 20], size=weights)
    weight = np.exp(rng.normal(0, 1.5, size=weights))
    spread = np.exp(rng.normal(0, 0.2, size=(weights, len(bits))))
    sizes = (elements[:, None] * bits / 8).astype(int)
    return sizes.tolist(), (weight[:, None] * spread * 4.0**-bits).tolist()


@pytest.mark.parametrize("weights", [30, 210])
def test_what_is_left_to_the_bound_is_small(weights: int) -> None:
    sizes, losses = model(weights)
    for share in (0.4, 0.5, 0.6, 0.8):
        budget = int(share * sum(max(row) for row in sizes))
        found = allocate(sizes, losses, budget)
        assert found is not None
        assert found.size <= budget
        assert found.loss <= found.bound * (1.05 if weights == 30 else 1.003)


def test_a_weight_of_a_third_of_the_bytes_strands_nothing() -> None:
    """An embedding: the walk up the hulls alone stops before it, and leaves its bytes unused."""
    sizes, losses = model(60)
    sizes.append([sum(row[2] for row in sizes) // 2, sum(row[5] for row in sizes) // 2])
    losses.append([1.0, 0.0])
    budget = sum(row[3] for row in sizes[:-1]) + sizes[-1][1] - 1000
    found = allocate(sizes, losses, budget)
    assert found is not None
    assert found.loss <= found.bound * 1.01


def test_five_thousand_weights_in_a_second_the_same_each_time() -> None:
    sizes, losses = model(5000)
    budget = int(0.55 * sum(max(row) for row in sizes))
    start = time.process_time()
    found = allocate(sizes, losses, budget)
    assert time.process_time() - start < 2
    assert found == allocate(sizes, losses, budget)
    assert found is not None
    assert found.loss <= found.bound * 1.0005


def test_the_curve_falls_ever_less_steeply() -> None:
    size, loss = curve(*model(50))
    slopes = np.diff(loss) / np.diff(size)
    assert (slopes < 0).all()
    assert (np.diff(slopes) >= -1e-12 * np.abs(slopes[:-1])).all()
