"""numpy's matrix products take as many threads as they are told, and then as many as before."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from ov_weight_compression.calibration import grams as module
from ov_weight_compression.calibration.grams import blas_threads


@pytest.fixture
def threads() -> Callable[[], int]:
    """What OpenBLAS says that it uses."""
    calls = module._calls()
    if calls is None or calls[0]() < 2:
        pytest.skip("numpy has no OpenBLAS of its own here, or one processor")
    return calls[0]


def test_products_take_fewer_threads_while_the_block_runs(threads: Callable[[], int]) -> None:
    before = threads()
    with blas_threads(1):
        assert threads() == 1
        with blas_threads(before + 3):  # never more than there are
            assert threads() == 1
        np.testing.assert_array_equal(np.ones((300, 300)) @ np.ones((300, 300)), np.full((300, 300), 300))
    assert threads() == before
    with pytest.raises(ZeroDivisionError), blas_threads(1):
        _ = 1 // (threads() - 1)
    assert threads() == before


def test_the_last_block_to_end_puts_back_what_the_first_found(threads: Callable[[], int]) -> None:
    before = threads()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with blas_threads(1):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with blas_threads(1):
        thread.start()
        inside.wait()
    assert threads() == 1
    leave.set()
    thread.join()
    assert threads() == before
