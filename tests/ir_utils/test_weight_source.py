"""Reading weights piece by piece: the same values from every kind of source and in every way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openvino import opset13 as op

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.types import Array, bf16_to_f32
from ov_weight_compression.ir_utils.weight_source import ConstantSource, FoldedSource, Layout, Slab, WeightSource
from tests.models import constant, linear
from tests.running import linux, resident_of


def source_of(values: np.ndarray, reduced: tuple[int, ...] = (1,), kind: str | None = None) -> ConstantSource:
    node = op.constant(values, dtype=getattr(ov.Type, kind)) if kind else op.constant(values)
    node.set_friendly_name("weight")
    return ConstantSource(node, Layout.of(values.shape, reduced))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("reduced", [(1,), (0,)])
def test_pieces_are_the_whole(kind: str, reduced: tuple[int, ...]) -> None:
    node = constant((37, 24), dtype=kind)
    layout = Layout.of((37, 24), reduced)
    reader = ConstantSource(node, layout)
    whole = reader.read_all()
    assert whole.dtype == np.float32
    assert whole.shape == (layout.rows, layout.columns)
    pieces = np.concatenate([np.asarray(reader.read(slab), np.float32) for slab in layout.slabs(5)])
    assert (pieces == whole).all()
    reference = op.constant(node.data) if kind != "bf16" else None
    if reference is not None:
        assert (whole == layout.to_matrix(node.data).astype(np.float32)).all()


def test_halves_stay_halves() -> None:
    reader = source_of(np.ones((4, 8), np.float16))
    assert reader.read(next(iter(reader.layout.slabs(2)))).dtype == np.float16


@given(hnp.arrays(np.uint16, 64))
def test_bf16_is_the_upper_half_of_f32(bits: np.ndarray) -> None:
    values = bf16_to_f32(bits)
    assert (values.view(np.uint32) >> 16 == bits).all()
    assert (values.view(np.uint32) & 0xFFFF == 0).all()


@given(hnp.arrays(np.uint16, (3, 17)))
def test_a_scan_of_any_halves(bits: np.ndarray) -> None:
    values = bits.view(np.float16)
    found = source_of(values).scan()
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    assert found.bad == values.size - finite.size
    assert found.absmax == finite.max(initial=0)


@given(hnp.arrays(np.float32, (3, 17), elements=st.floats(width=32)))
def test_a_scan_of_any_floats(values: np.ndarray) -> None:
    found = source_of(values).scan()
    finite = np.abs(values[np.isfinite(values)])
    assert found.bad == values.size - finite.size
    assert found.absmax == finite.max(initial=0)


def test_a_scan_goes_on_after_its_first_block() -> None:
    values = np.zeros((1024, 1024), np.float16)
    values[-1, -1] = -7
    values[3, 3] = np.nan
    found = source_of(values).scan()
    assert (found.absmax, found.bad) == (7, 1)


def test_doubles_that_are_too_large_count_as_infinite() -> None:
    values = np.ones((2, 2))
    values[0, 0] = -1e300
    found = source_of(values).scan()
    assert (found.absmax, found.bad) == (1, 1)


@linux
def test_reading_a_model_through_a_reader_gives_its_pages_back(tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    ov.save_model(linear(1024, 1024, dtype="f16"), path)
    model = ov.Core().read_model(path)
    node = next(one for one in model.get_ops() if one.get_friendly_name() == "weight")
    layout = Layout.of((1024, 1024), (1,))
    reader = ConstantSource(node, layout, FileMappings())
    first = reader.scan()
    total = np.float64(0)
    for slab in layout.slabs(256):
        total += reader.read(slab).astype(np.float64).sum()
        reader.release(slab)
    assert resident_of(tmp_path / "m.bin") < 1 << 20
    assert reader.scan() == first
    assert total == reader.read_all().astype(np.float64).sum()


def on_disk(path: Path) -> ov.Node:
    """A weight in a mapped file."""
    ov.save_model(linear(256, 256), path, compress_to_fp16=False)
    model = ov.Core().read_model(path)
    return max((node for node in model.get_ops() if node.get_type_name() == "Constant"), key=lambda n: n.data.size)


@linux
def test_a_file_that_was_cut_short_is_an_error_before_it_is_touched(tmp_path: Path) -> None:
    """Reading on would end the process."""
    weight = on_disk(tmp_path / "m.xml")
    reader = ConstantSource(weight, Layout.of((256, 256), (1,)), FileMappings())
    reader.scan()
    os.truncate(tmp_path / "m.bin", 5000)
    for read in (reader.scan, reader.read_all, lambda: reader.sample(4)):
        with pytest.raises(WorkError, match=r"m\.bin: became shorter while it was read \(5000 bytes, \d+ are needed\)"):
            read()


@linux
def test_a_file_that_was_replaced_is_read_on(tmp_path: Path) -> None:
    weight = on_disk(tmp_path / "m.xml")
    (tmp_path / "other.bin").write_bytes(b"")
    (tmp_path / "other.bin").replace(tmp_path / "m.bin")
    reader = ConstantSource(weight, Layout.of((256, 256), (1,)), FileMappings())
    assert np.isfinite(reader.read_all()).all()


class Steps(WeightSource):
    """A source that says no more than it must."""

    element_type = "f32"

    def __init__(self, rows: int, columns: int) -> None:
        self.layout = Layout.of((rows, columns), (1,))
        self.released: list[int] = []

    def read(self, slab: Slab) -> Array:
        steps = np.arange(slab.start, slab.stop, dtype=np.float32)[:, None]
        return np.ascontiguousarray(np.broadcast_to(-steps, (len(steps), self.layout.columns)))

    def release(self, slab: Slab) -> None:
        self.released.append(slab.start)


def test_what_follows_from_reading_a_few_rows() -> None:
    source = Steps(100, 8)
    whole = -np.repeat(np.arange(100, dtype=np.float32)[:, None], 8, 1)
    assert (source.read_all() == whole).all()
    found = source.scan()
    assert (found.absmax, found.bad) == (99, 0)
    assert len(source.sample(16)) == 16
    assert source.identity is None
    assert not source.equals(source)


def test_pieces_are_released_before_the_next_is_read() -> None:
    source = Steps(10, 8)
    seen = []
    for slab, values in source.pieces(elements=32):
        seen.append((slab.start, len(values)))
        assert source.released == [start for start, _ in seen[:-1]]
    assert seen == [(0, 4), (4, 4), (8, 2)]
    assert [slab.start for slab, _ in source.pieces(elements=32, block=5)] == [0, 4, 5, 9]
    assert [slab.start for slab, _ in source.pieces(elements=8, every=3)] == [0, 3, 6, 9]
    assert [len(values) for _, values in source.pieces(elements=1)] == [1] * 10


def test_constants_of_the_same_bits_are_equal() -> None:
    values = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float16)
    one, other, third = source_of(values), source_of(values.copy()), source_of(-values)
    assert one.fingerprint == other.fingerprint
    assert one.equals(other)
    assert one.identity != other.identity
    assert not one.equals(third)
    assert not one.equals(Steps(64, 48))


COLUMNS = np.exp2(np.linspace(-3, 3, 48)).astype(np.float32)
ROWS = np.exp2(np.linspace(2, -2, 40)).astype(np.float32)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize(("shape", "reduced"), [((40, 48), 1), ((48, 40), 0)])
@pytest.mark.parametrize(("columns", "rows"), [(True, False), (False, True), (True, True)])
def test_folded_values(kind: str, shape: tuple[int, ...], reduced: int, columns: bool, rows: bool) -> None:
    plain = ConstantSource(constant(shape, dtype=kind), Layout.of(shape, [reduced]))
    folded = FoldedSource(plain, COLUMNS if columns else None, ROWS if rows else None)
    expected = plain.read_all() * (COLUMNS if columns else 1) * (ROWS[:, None] if rows else 1)
    np.testing.assert_allclose(folded.read_all(), expected, rtol=1e-6)
    pieces = [folded.read(slab) for slab in folded.layout.slabs(7)]
    assert all(piece.dtype == np.float32 for piece in pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), folded.read_all())
    np.testing.assert_allclose(folded.unfolded(folded.read_all()), plain.read_all(), rtol=1e-6)
    assert folded.scan().absmax == np.abs(folded.read_all()).max()
    assert folded.scan().bad == 0
    assert folded.identity is None


def test_any_source_can_be_folded() -> None:
    folded = FoldedSource(Steps(4, 2), columns=np.array([1, 2], np.float32))
    np.testing.assert_array_equal(folded.read_all(), [[0, 0], [-1, -2], [-2, -4], [-3, -6]])


def test_folded_values_that_are_not_finite_are_counted() -> None:
    values = np.ones((40, 48), np.float32)
    values[3, :5] = np.nan
    values[4, 7] = np.inf
    found = FoldedSource(source_of(values), rows=ROWS).scan()
    assert (found.bad, found.absmax) == (6, ROWS.max())
