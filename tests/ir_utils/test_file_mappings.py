"""Giving pages of mapped files back only where that is certain to lose nothing."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import OWN_MEMORY, FileMappings
from tests.running import linux, resident_of


@linux
def test_memory_that_is_no_file_is_never_given_back() -> None:
    """Anonymous memory that is given back comes back as zeros: that would be the weights' end."""
    values = np.arange(1 << 20, dtype=np.float32)
    mappings = FileMappings()
    mappings.around(values).advise(values)
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
    FileMappings().around(values).advise(values)
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
    FileMappings().around(values).advise(values)
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
    mappings.around(values).advise(values)
    assert resident_of(path) >= 1 << 20
    assert int(values.sum()) == total


@linux
def test_rows_are_read_from_the_file_into_the_readers_memory(tmp_path: Path) -> None:
    path = tmp_path / "data"
    contents = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float16)
    path.write_bytes(contents.tobytes())
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    values = np.frombuffer(memory, np.float16).reshape(64, 128)
    file = FileMappings().around(values)
    target = np.zeros((32, 32), np.float16)
    file.read_into(target, values.reshape(-1, 32)[8:40])
    assert (target == contents.reshape(-1, 32)[8:40]).all()
    assert (file.read(values[3:5]) == contents[3:5]).all()
    assert resident_of(path) == 0
    assert FileMappings().around(contents) is OWN_MEMORY
    assert OWN_MEMORY.read(contents) is contents
    os.truncate(path, 100)
    with pytest.raises(WorkError, match="became shorter while it was read"):
        file.read(values)
