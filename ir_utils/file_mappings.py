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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import read_into
from ov_weight_compression.ir_utils.types import Array

_madvise: Any = ctypes.CDLL(None).madvise if sys.platform.startswith("linux") else None
_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22


@dataclass(eq=False)
class FileRange:
    """A mapping of a part of a file; or, without a path, all memory that is no file's."""

    start: int = 0
    stop: int = 0
    offset: int = 0
    inode: int = 0
    path: str = ""
    file: int | None = None
    """The file itself, whoever has its name later; None where it had lost its name before."""
    known: bool = False
    """Whether that has been looked at."""

    def check(self, values: Array) -> None:
        """Whether the file still has what is about to be read.

        Raises:
            WorkError: it does not; names the file.
        """
        if self.file is None:
            return
        there = os.fstat(self.file).st_size
        needed = self.offset + values.__array_interface__["data"][0] - self.start + values.nbytes
        if there < needed:
            raise WorkError(
                f"{self.path}: became shorter while it was read ({there} bytes, {needed} are needed); a model must not "
                "be written over the file that it was read from, except by save_model of this package"
            )

    def read(self, values: Array, buffer: Array | None = None) -> Array:
        """The values, read from the file and not through the mapping where that is possible: in a copy, or in `buffer`.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        if not self.path:
            return values
        if not values.flags.c_contiguous or not values.nbytes or self.file is None:
            self.check(values)
            self.advise(values, _MADV_POPULATE_READ)  # one call instead of a fault for every few pages
            return values
        copy = np.empty(values.shape, values.dtype) if buffer is None else buffer[: values.size].reshape(values.shape)
        self.read_into(copy, values)
        return copy

    def read_into(self, target: Array, values: Array) -> None:
        """Put contiguous values of a file that can be read into a contiguous array of the same shape and type.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        assert self.file is not None
        place = self.offset + values.__array_interface__["data"][0] - self.start
        if read_into(self.file, target.reshape(-1).view(np.uint8).data, place) < values.nbytes:
            self.check(values)
            raise WorkError(f"{self.path}: cannot be read any more")

    def advise(self, values: Array, advice: int = _MADV_DONTNEED) -> None:
        """`madvise` for the whole pages under `values`: by default they are given back, and the file keeps them, so
        that a later read finds them again. A kernel that does not know the advice refuses: no harm done."""
        if not self.path or not values.flags.c_contiguous:
            return
        address = values.__array_interface__["data"][0]
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (address + values.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last <= self.stop:
            _madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


OWN_MEMORY = FileRange()
"""Of this process."""


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of numbers that are still in their file: read into the memory of whoever computes with them, once, and not
    into an array that is copied from."""

    mapped: Array
    """Where they are mapped, contiguous `[rows, columns]`: shape and type tell, nothing of it is touched."""
    read_into: Callable[[Array, Array], None]
    """Puts some of them into an array, as `FileRange.read_into` does."""


class FileMappings:
    """The address ranges of this process that are read-only mappings of files, as they are now.

    Make it while every constant that it will be asked about is alive: memory that is unmapped later may be used again
    for something else at the same address.

    Touching a mapped page that its file no longer has ends the process (SIGBUS), as when somebody has cut the file
    short or written another model over it, `ov.save_model` over a model's own source included. So pieces are read from
    the file and not through the mapping, which costs 3 to 6 % of a run's processor time. Where that is not possible (a
    weight whose axes are permuted, a chain of constants) the file is asked for its size before each piece; what is left
    is the moment until the piece has been read, and what OpenVINO reads itself.
    """

    def __init__(self) -> None:
        self._ranges: list[FileRange] = []
        self._starts: list[int] = []
        if not sys.platform.startswith("linux"):
            return
        with open("/proc/self/maps") as lines:
            for line in lines:
                span, permissions, offset, _, inode, *path = line.split(maxsplit=5)
                if permissions[:2] == "r-" and inode != "0" and path:
                    start, stop = (int(end, 16) for end in span.split("-"))
                    self._ranges.append(FileRange(start, stop, int(offset, 16), int(inode), path[0].rstrip("\n")))
                    self._starts.append(start)

    def around(self, values: Array) -> FileRange:
        """The mapping that values begin in (they do not overlap, and the kernel lists them rising), or `OWN_MEMORY`."""
        address = values.__array_interface__["data"][0]
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address >= self._ranges[place].stop:
            return OWN_MEMORY
        found = self._ranges[place]
        if not found.known:
            found.known = True
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
                descriptor = os.open(found.path, flags)
                if os.fstat(descriptor).st_ino == found.inode:
                    found.file = descriptor
                    weakref.finalize(found, os.close, descriptor)
                else:
                    os.close(descriptor)
        return found


def file_of(model: ov.Model) -> Path | None:
    """The model's own file, an .xml, as its constants' memory tells it; None where that is no file's, or another's."""
    mappings = FileMappings()
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant" and node.get_byte_size())
    for constant in sorted(constants, key=lambda node: -int(node.get_byte_size()))[:_ASKED]:
        path = mappings.around(np.asarray(constant.data).view()).path
        if path and Path(path).with_suffix(".xml").is_file():
            return Path(path).with_suffix(".xml")
    return None


_ASKED = 8
"""Constants, the largest first: some were perhaps computed when the model was read."""
