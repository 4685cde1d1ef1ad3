"""Products in bf16: as near to those in f64 as eight bits of each element let them be, distances not rounded before."""

from __future__ import annotations

import numpy as np
import pytest

from ov_weight_compression.calibration import grams
from ov_weight_compression.calibration.grams import BATCH_ROWS, GramSums, Products

needs_bf16 = pytest.mark.skipif(not grams.computes_bf16(), reason="this CPU does not multiply in bf16")
WIDTH = 640


def activations(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, WIDTH)) * np.exp(2 * rng.standard_normal(WIDTH))).astype(np.float32)


def relative(found: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """The largest error of `leftᵀ right`, in units of the norms of the two columns."""
    norms = [np.sqrt(np.square(one.astype(np.float64)).sum(axis=0)) for one in (left, right)]
    return float(np.abs((found - left.astype(np.float64).T @ right) / np.outer(*norms)).max())


@needs_bf16
def test_they_are_as_exact_as_their_elements() -> None:
    rows = 5 * BATCH_ROWS
    hat = activations(rows)
    x = hat * (1 + 1e-3 * np.random.default_rng(1).standard_normal(hat.shape)).astype(np.float32)
    hat, x = np.asfortranarray(hat), np.asfortranarray(x)  # as a transposed activation comes
    y = x[:, :300] + x[:, 300:600]
    for beside, expected, kernel in (
        (x, x - hat, Products(WIDTH, WIDTH, drift=True)),
        (y, y, Products(WIDTH, 300)),
        (None, hat, Products(WIDTH)),
    ):
        gram, cross = np.zeros((WIDTH, WIDTH), np.float32), np.zeros((expected.shape[1], WIDTH), np.float32)
        for begin in range(0, rows, BATCH_ROWS):
            span = slice(begin, begin + BATCH_ROWS)
            if beside is None:
                kernel.add([hat[span]], gram)
            else:
                kernel.add([hat[span], beside[span]], gram, cross)
        kernel.finish()
        upper = np.triu(gram)
        assert relative(upper + np.triu(gram, 1).T, hat, hat) < 1e-3
        assert beside is None or relative(cross, expected, hat) < 1e-3


@needs_bf16
@pytest.mark.parametrize("bf16", [True, False])
def test_sums_take_every_row_once(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "computes_bf16", lambda: bf16)
    rows = 6500
    hat, x = activations(rows), activations(rows, seed=1)
    sums = GramSums(WIDTH, {})
    for begin, end in ((0, 300), (300, 1900), (1900, 2300), (2300, 2500), (2500, rows)):
        given = hat[None, begin:end].copy(), x[None, begin:end].copy()
        sums.add(*given)
        for one in given:
            one[:] = 0  # as the runtime's memory, which the next window overwrites
    seen = sums.result()
    assert seen.n == rows
    assert seen.drift is not None
    np.testing.assert_array_equal(seen.gram, seen.gram.T)
    errors = relative(seen.gram, hat, hat), relative(seen.drift, x - hat, hat)
    assert all((error > 1e-5) == bf16 and error < 1e-3 for error in errors)


def test_few_channels_and_cpus_without_it_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, bf16 in ((64, True), (WIDTH, False)):
        monkeypatch.setattr(grams, "computes_bf16", lambda bf16=bf16: bf16)
        kernels: grams.Kernels = {}
        GramSums(width, kernels).add(np.ones((1, 4, width), np.float32))
        assert not kernels
