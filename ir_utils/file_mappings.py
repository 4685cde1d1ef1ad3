"""Memory that is a file's: reading it without touching pages that the file no longer has, and giving it back.

A model read from an IR maps its .bin file: a constant's memory is the file's. Pages that were read through the mapping
count as resident memory until they are given back, which is done only where the memory is certain to be a read-only
mapping of a file (anonymous memory would lose its contents).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import weakref
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import read_into
from ov_weight_compression.ir_utils.types import Array

_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22


@dataclass(eq=False)
class _Range:
    """A mapping of a part of a file."""

    start: int
    stop: int
    offset: int
    inode: int
    path: str
    _file: int | None = None
    _known: bool = False

    def check(self, size: int) -> None:
        """Raise where the file does not have the first `size` bytes of the mapping."""
        if not self.opened() or self._file is None:
            return
        there = os.fstat(self._file).st_size
        if there < self.offset + size:
            raise WorkError(
                f"{self.path}: became shorter while it was read ({there} bytes, {self.offset + size} are needed); a "
                "model must not be written over the file that it was read from, except by save_model of this package"
            )

    def opened(self) -> bool:
        """Whether the file can be asked and read: it itself is kept, whoever has its name later, unless it has lost its
        name already."""
        if not self._known:
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
                descriptor = os.open(self.path, flags)
                if os.fstat(descriptor).st_ino == self.inode:
                    self._file = descriptor
                    weakref.finalize(self, os.close, descriptor)
                else:
                    os.close(descriptor)
            self._known = True
        return self._file is not None

    def read(self, address: int, values: Array) -> None:
        """Read what lies at an address of the mapping from the file. Raises where the file no longer has it."""
        assert self._file is not None
        view, place = values.reshape(-1).view(np.uint8).data, self.offset + address - self.start
        if read_into(self._file, view, place) < values.nbytes:
            self.check(address - self.start + values.nbytes)
            raise WorkError(f"{self.path}: cannot be read any more")


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of numbers that are still in their file: read into the memory of whoever computes with them, once, and not
    into an array that is copied from. As much of an array as that takes."""

    _values: Array
    """Where they are mapped: nothing of it is touched."""
    _range: _Range

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return self._values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As an array's."""
        return self._values.dtype

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self._values.size

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, rows: slice) -> FileRows:
        return FileRows(self._values[rows], self._range)

    def reshape(self, rows: int, columns: int) -> FileRows:
        """The same numbers in rows of another length."""
        return FileRows(self._values.reshape(rows, columns), self._range)

    def read_into(self, target: Array) -> None:
        """Put all of them into a contiguous array of the same shape and type.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        self._range.read(self._values.__array_interface__["data"][0], target)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        values = np.empty(self.shape, self.dtype)
        self.read_into(values)
        return values if dtype is None else values.astype(dtype, copy=False)


class FileMappings:
    """The address ranges of this process that are read-only mappings of files, as they are now.

    Make it while every constant that it will be asked about is alive: memory that is unmapped later may be used again
    for something else at the same address.

    Touching a mapped page that its file no longer has ends the process (SIGBUS), as when somebody has cut the file
    short or written another model over it, `ov.save_model` over a model's own source included. So pieces are read from
    the file and not through the mapping, which costs 3 to 6 % of a run's processor time. Where that is not possible (a
    weight whose axes are permuted, a chain of constants) the file is asked for its size before each piece; what is left
    is the moment until the piece has been read, and what OpenVINO reads itself.

    Args:
        listing: where the kernel lists the mappings; None for none, so that all memory is taken for the process's own.
    """

    def __init__(self, listing: str | None = "/proc/self/maps") -> None:
        self._ranges: list[_Range] = []
        self._starts: list[int] = []
        if listing is None or not sys.platform.startswith("linux"):
            return
        self._madvise = ctypes.CDLL(None).madvise
        with open(listing) as lines:
            for line in lines:
                span, permissions, offset, _, inode, *path = line.split(maxsplit=5)
                if permissions[:2] == "r-" and inode != "0" and path:
                    start, stop = (int(end, 16) for end in span.split("-"))
                    self._ranges.append(_Range(start, stop, int(offset, 16), int(inode), path[0].rstrip("\n")))
                    self._starts.append(start)

    def check(self, values: Array) -> None:
        """Whether the file still has what is about to be read.

        Raises:
            WorkError: it does not; names the file.
        """
        one = self._around(values)
        if one is not None:
            one.check(values.__array_interface__["data"][0] - one.start + values.nbytes)

    def _around(self, values: Array) -> _Range | None:
        """The mapping that values begin in; they do not overlap, and the kernel lists them rising."""
        address = values.__array_interface__["data"][0]
        place = bisect_right(self._starts, address) - 1
        return self._ranges[place] if place >= 0 and address < self._ranges[place].stop else None

    def fetch(self, values: Array) -> None:
        """Map the pages under `values`, which are about to be read, in one call instead of a fault for every few.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        self.check(values)
        self._advise(values, _MADV_POPULATE_READ)

    def path_of(self, values: Array) -> str | None:
        """The file that an array's memory is."""
        one = self._around(values)
        return None if one is None else one.path

    def holds(self, values: Array) -> bool:
        """Whether an array's memory is a file's."""
        return self._around(values) is not None

    def read(self, values: Array, buffer: Array | None = None) -> Array:
        """The values, read from the file and not through the mapping where that is possible: in a copy, or in `buffer`.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        one = self._around(values)
        if one is None:
            return values
        if not values.flags.c_contiguous or not values.nbytes or not one.opened():
            self.fetch(values)
            return values
        copy = np.empty(values.shape, values.dtype) if buffer is None else buffer[: values.size].reshape(values.shape)
        one.read(values.__array_interface__["data"][0], copy)
        return copy

    def rows(self, values: Array) -> FileRows | None:
        """Contiguous values `[rows, columns]` to be read from the file later; None where that is not possible."""
        one = self._around(values) if values.flags.c_contiguous and values.nbytes else None
        return FileRows(values, one) if one is not None and one.opened() else None

    def drop(self, values: Array) -> None:
        """Give back the whole pages under `values`; the file keeps them, so a later read finds them again."""
        self._advise(values, _MADV_DONTNEED)

    def _advise(self, values: Array, advice: int) -> None:
        """`madvise` for whole pages of a mapped file. A kernel that does not know the advice refuses: no harm done."""
        if not values.flags.c_contiguous:
            return
        address = values.__array_interface__["data"][0]
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (address + values.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        one = self._around(values)
        if last > first and one is not None and last <= one.stop:
            self._madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def file_of(model: ov.Model) -> Path | None:
    """The model's own file, an .xml, as its constants' memory tells it; None where that is no file's, or another's."""
    mappings = FileMappings()
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant" and node.get_byte_size())
    for constant in sorted(constants, key=lambda node: -int(node.get_byte_size()))[:_ASKED]:
        path = mappings.path_of(np.asarray(constant.data).view())
        file = None if path is None else Path(path).with_suffix(".xml")
        if file is not None and file.is_file():
            return file
    return None


_ASKED = 8
"""Constants, the largest first: some were perhaps computed when the model was read."""
