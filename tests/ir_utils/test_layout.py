"""A constant of any rank as a matrix, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov_weight_compression.ir_utils.weight_source import Layout


@st.composite
def layouts(draw: st.DrawFn, adjacent: bool = False) -> Layout:
    """Shapes of one to five axes, any of them reduced, at least one."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    axes = range(len(shape))
    if adjacent:
        first = draw(st.integers(0, len(shape) - 1))
        reduced = list(range(first, draw(st.integers(first, len(shape) - 1)) + 1))
    else:
        reduced = draw(st.lists(st.sampled_from(list(axes)), min_size=1, unique=True))
    return Layout.of(shape, reduced)


def values_of(layout: Layout) -> np.ndarray:
    return np.arange(math.prod(layout.shape)).reshape(layout.shape)


@given(layouts())
def test_there_and_back(layout: Layout) -> None:
    values = values_of(layout)
    matrix = layout.to_matrix(values)
    assert matrix.shape == (layout.rows, layout.columns)
    assert (layout.from_matrix(matrix) == values).all()


@given(layouts())
def test_a_row_holds_what_is_reduced_together(layout: Layout) -> None:
    """The matrix's row sums are the sums over the reduced axes."""
    values = values_of(layout)
    expected = values.sum(axis=layout.reduced).reshape(-1)
    assert (layout.to_matrix(values).sum(axis=1) == expected).all()


@given(layouts(), st.integers(1, 9))
def test_slabs_cover_every_row_once_in_order(layout: Layout, step: int) -> None:
    values = values_of(layout)
    whole = layout.to_matrix(values)
    view = layout.matrix_view(values)
    at = 0
    for slab in layout.slabs(step):
        assert slab.start == at
        assert 0 < slab.stop - slab.start <= step
        piece = np.ascontiguousarray(view[slab.index]).reshape(-1, layout.columns)
        assert (piece == whole[slab.start : slab.stop]).all()
        at = slab.stop
    assert at == layout.rows


@given(layouts())
def test_contiguous_means_that_no_axis_moves(layout: Layout) -> None:
    values = values_of(layout)
    same = layout.to_matrix(values).reshape(-1).tolist() == values.reshape(-1).tolist()
    if layout.contiguous:
        assert same
    view = layout.matrix_view(values)
    assert np.shares_memory(view, values)


@settings(max_examples=200)
@given(layouts(adjacent=True), st.data())
def test_scales_meet_their_groups(layout: Layout, data: st.DataObject) -> None:
    """Codes times scales in the stored shapes are what they are in the matrix."""
    divisors = [size for size in range(1, layout.columns + 1) if layout.columns % size == 0]
    group = data.draw(st.sampled_from([-1, *divisors]))
    assert layout.groupable
    codes = values_of(layout)
    scales = np.arange(layout.rows * (1 if group < 0 else layout.columns // group)).reshape(layout.rows, -1) + 2
    stored = codes.reshape(layout.in_groups(group)[0]) * layout.scales_in_place(scales, layout.in_groups(group)[1])
    width = layout.columns if group < 0 else group
    expected = (layout.to_matrix(codes).reshape(layout.rows, -1, width) * scales[:, :, None]).reshape(layout.rows, -1)
    assert (layout.to_matrix(stored.reshape(layout.shape)) == expected).all()


@pytest.mark.parametrize(
    ("shape", "reduced", "grouped", "scales"),
    [
        ((48, 64), (1,), (48, 2, 32), (48, 2, 1)),
        ((64, 48), (0,), (2, 32, 48), (2, 1, 48)),
        ((3, 48, 64), (2,), (3, 48, 2, 32), (3, 48, 2, 1)),
        ((3, 64, 48), (1,), (3, 2, 32, 48), (3, 2, 1, 48)),
    ],
)
def test_the_shapes_that_openvino_is_given(
    shape: tuple[int, ...], reduced: tuple[int, ...], grouped: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    layout = Layout.of(shape, reduced)
    assert layout.in_groups(32) == (grouped, scales)
    assert layout.in_groups(-1) == (shape, tuple(1 if axis in reduced else size for axis, size in enumerate(shape)))


def test_axes_that_lie_apart_cannot_be_grouped() -> None:
    assert not Layout.of((4, 5, 6), (0, 2)).groupable
    assert Layout.of((4, 5, 6), (2, 1)).groupable
    assert Layout.of((4, 5, 6), (2, 1)).reduced == (1, 2)


@pytest.mark.parametrize(
    ("shape", "reduced"), [((500, 8), (1,)), ((8, 500), (0,)), ((3, 100, 8), (2,)), ((3, 8, 100), (1,)), ((5, 8), (1,))]
)
@pytest.mark.parametrize("count", [1, 7, 40, 10_000])
def test_sampled_rows_are_whole_rows_spread_over_the_matrix(
    shape: tuple[int, ...], reduced: tuple[int, ...], count: int
) -> None:
    layout = Layout.of(shape, reduced)
    values = np.arange(np.prod(shape)).reshape(shape)
    view, matrix = layout.matrix_view(values), layout.to_matrix(values)
    slabs = list(layout.spread(count))
    assert slabs
    for slab in slabs:
        np.testing.assert_array_equal(view[slab.index].reshape(-1, layout.columns), matrix[slab.start : slab.stop])
    seen = sum(slab.stop - slab.start for slab in slabs)
    assert min(count, layout.rows) / 2 <= seen <= max(2 * count + 8, 1)
    if count == 10_000:
        assert seen == layout.rows
