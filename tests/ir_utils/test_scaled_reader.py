"""A reader that multiplies: the same values however they are read."""

from __future__ import annotations

import numpy as np
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.layout import Layout
from ov_weight_compression.ir_utils.scaled_reader import ScaledReader
from tests.models import constant

COLUMNS = np.exp2(np.linspace(-3, 3, 48)).astype(np.float32)
ROWS = np.exp2(np.linspace(2, -2, 40)).astype(np.float32)


def reader(shape: tuple[int, ...], reduced: int, kind: str, columns: bool, rows: bool) -> ScaledReader:
    node = constant(shape, dtype=kind)
    layout = Layout.of(shape, [reduced])
    return ScaledReader(node, layout, columns=COLUMNS if columns else None, rows=ROWS if rows else None)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(("shape", "reduced"), [((40, 48), 1), ((48, 40), 0)])
@pytest.mark.parametrize(("columns", "rows"), [(True, False), (False, True), (True, True)])
def test_all_ways_of_reading_agree(kind: str, shape: tuple[int, ...], reduced: int, columns: bool, rows: bool) -> None:
    scaled, plain = reader(shape, reduced, kind, columns, rows), reader(shape, reduced, kind, False, False)
    expected = plain.read_all() * (COLUMNS if columns else 1) * (ROWS[:, None] if rows else 1)
    np.testing.assert_allclose(scaled.read_all(), expected, rtol=1e-6)
    pieces = [scaled.read(slab) for slab in scaled.layout.slabs(7)]
    assert all(piece.dtype == np.float32 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), scaled.read_all())
    np.testing.assert_allclose(scaled.unscaled(scaled.read_all()), plain.read_all(), rtol=1e-6)
    assert scaled.scan().absmax == np.abs(scaled.read_all()).max()
    assert scaled.scan().bad == 0


def test_values_that_are_not_finite_are_counted() -> None:
    values = np.ones((40, 48), np.float32)
    values[3, :5] = np.nan
    values[4, 7] = np.inf
    scaled = ScaledReader(op.constant(values), Layout.of(values.shape, [1]), rows=ROWS)
    found = scaled.scan()
    assert (found.bad, found.absmax) == (6, ROWS.max())
