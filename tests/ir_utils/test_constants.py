"""Reading weights piece by piece, and giving pages back only where that is certain to lose nothing."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openvino import opset13 as op

from ov_weight_compression.ir_utils import constants as module
from ov_weight_compression.ir_utils.constants import ConstantReader, FileMappings, bf16_to_f32
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.layout import Layout
from tests.models import constant, linear

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc/self/maps")


def reader_of(values: np.ndarray, reduced: tuple[int, ...] = (1,), kind: str | None = None) -> ConstantReader:
    node = op.constant(values, dtype=getattr(ov.Type, kind)) if kind else op.constant(values)
    node.set_friendly_name("weight")
    return ConstantReader(node, Layout.of(values.shape, reduced))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("reduced", [(1,), (0,)])
def test_pieces_are_the_whole(kind: str, reduced: tuple[int, ...]) -> None:
    node = constant((37, 24), dtype=kind)
    layout = Layout.of((37, 24), reduced)
    reader = ConstantReader(node, layout)
    whole = reader.read_all()
    assert whole.dtype == np.float32
    assert whole.shape == (layout.rows, layout.columns)
    pieces = np.concatenate([np.asarray(reader.read(slab), np.float32) for slab in layout.slabs(5)])
    assert (pieces == whole).all()
    reference = op.constant(node.data) if kind != "bf16" else None
    if reference is not None:
        assert (whole == layout.to_matrix(node.data).astype(np.float32)).all()
    assert reader.nbytes == node.get_byte_size()


def test_halves_stay_halves() -> None:
    reader = reader_of(np.ones((4, 8), np.float16))
    assert reader.read(next(iter(reader.layout.slabs(2)))).dtype == np.float16


@given(hnp.arrays(np.uint16, 64))
def test_bf16_is_the_upper_half_of_f32(bits: np.ndarray) -> None:
    values = bf16_to_f32(bits)
    assert (values.view(np.uint32) >> 16 == bits).all()
    assert (values.view(np.uint32) & 0xFFFF == 0).all()


@given(hnp.arrays(np.uint16, (3, 17)))
def test_a_scan_of_any_halves(bits: np.ndarray) -> None:
    values = bits.view(np.float16)
    found = reader_of(values).scan()
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    assert found.bad == values.size - finite.size
    assert found.absmax == finite.max(initial=0)


@given(hnp.arrays(np.float32, (3, 17), elements=st.floats(width=32)))
def test_a_scan_of_any_floats(values: np.ndarray) -> None:
    found = reader_of(values).scan()
    finite = np.abs(values[np.isfinite(values)])
    assert found.bad == values.size - finite.size
    assert found.absmax == finite.max(initial=0)


def test_a_scan_goes_on_after_its_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCAN_BYTES", 64)
    values = np.zeros((16, 16), np.float16)
    values[15, 15] = -7
    values[3, 3] = np.nan
    found = reader_of(values).scan()
    assert (found.absmax, found.bad) == (7, 1)


def test_doubles_that_are_too_large_count_as_infinite() -> None:
    values = np.ones((2, 2))
    values[0, 0] = -1e300
    found = reader_of(values).scan()
    assert (found.absmax, found.bad) == (1, 1)


@linux
def test_memory_that_is_no_file_is_never_given_back() -> None:
    """Anonymous memory that is given back comes back as zeros: that would be the weights' end."""
    values = np.arange(1 << 20, dtype=np.float32)
    mappings = FileMappings()
    mappings.drop(values)
    assert (values == np.arange(1 << 20, dtype=np.float32)).all()


@linux
def test_a_private_writable_mapping_of_a_file_is_not_given_back_either(tmp_path: Path) -> None:
    """What was written to it would be lost."""
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    values = np.frombuffer(memory, np.uint8)
    memory[: 1 << 19] = b"\x07" * (1 << 19)
    FileMappings().drop(values)
    assert (values[: 1 << 19] == 7).all()


@linux
def test_a_mapped_file_is_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "data"
    contents = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    path.write_bytes(contents.tobytes())
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    values = np.frombuffer(memory, np.uint8)
    assert values.sum() == contents.sum()
    before = resident_of(path)
    FileMappings().drop(values)
    assert before >= 1 << 20
    assert resident_of(path) < 1 << 16
    assert (values == contents).all()


@linux
def test_a_mapping_made_later_is_not_touched(tmp_path: Path) -> None:
    mappings = FileMappings()
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 4096)
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    values = np.frombuffer(memory, np.uint8)
    total = int(values.sum())
    mappings.drop(values)
    assert resident_of(path) >= 1 << 20
    assert int(values.sum()) == total


@linux
def test_reading_a_model_through_a_reader_gives_its_pages_back(tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    ov.save_model(linear(1024, 1024, dtype="f16"), path)
    model = ov.Core().read_model(path)
    node = next(one for one in model.get_ops() if one.get_friendly_name() == "weight")
    layout = Layout.of((1024, 1024), (1,))
    reader = ConstantReader(node, layout, FileMappings())
    first = reader.scan()
    total = np.float64(0)
    for slab in layout.slabs(256):
        total += reader.read(slab).astype(np.float64).sum()
        reader.release(slab)
    assert resident_of(tmp_path / "m.bin") < 1 << 20
    assert reader.scan() == first
    assert total == reader.read_all().astype(np.float64).sum()


def resident_of(path: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def on_disk(path: Path) -> ov.Node:
    """A weight in a mapped file."""
    ov.save_model(linear(256, 256), path, compress_to_fp16=False)
    model = ov.Core().read_model(path)
    return max((node for node in model.get_ops() if node.get_type_name() == "Constant"), key=lambda n: n.data.size)


@linux
def test_a_file_that_was_cut_short_is_an_error_before_it_is_touched(tmp_path: Path) -> None:
    """Reading on would end the process."""
    weight = on_disk(tmp_path / "m.xml")
    reader = ConstantReader(weight, Layout.of((256, 256), (1,)), FileMappings())
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
    reader = ConstantReader(weight, Layout.of((256, 256), (1,)), FileMappings())
    assert np.isfinite(reader.read_all()).all()
