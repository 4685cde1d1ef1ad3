"""Iterables that are read more than once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ov_weight_compression.calibration.datasets import Replay, readable, reads_once


class Shared:
    """A loader whose readers share one position."""

    def __init__(self) -> None:
        self._items = iter(range(3))

    def __iter__(self) -> Iterator[int]:
        return self._items


class Fresh:
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize("source", [[0, 1, 2], (0, 1, 2), range(3), np.arange(3), Fresh()])
def test_what_can_be_read_again_is_left_as_it_is(source: object) -> None:
    assert readable(source, "dataset") is source


@pytest.mark.parametrize("source", [iter([0, 1, 2]), (n for n in range(3)), Shared()])
def test_what_cannot_is_kept(source: object) -> None:
    assert reads_once(source)  # type: ignore[arg-type]
    again = readable(source, "dataset")
    assert [list(again), list(again)] == [[0, 1, 2], [0, 1, 2]]


def test_two_readers_at_once_find_the_same_items() -> None:
    kept = Replay(n for n in range(4))
    first, second = iter(kept), iter(kept)
    assert [next(first), next(second), next(second), next(first)] == [0, 0, 1, 1]
    assert [list(first), list(second)] == [[2, 3], [2, 3]]
