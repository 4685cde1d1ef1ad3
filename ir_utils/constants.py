"""Reading a weight out of a Constant, piece by piece, without ever holding a copy of the whole.

A model read from an IR maps its .bin file: the constant's memory is the file's. Where possible pieces are read from the
file itself (see `FileMappings`). Pages that were read through the mapping count as resident memory until they are given
back, which is done after each piece and only where the memory is certain to be a read-only mapping of a file (anonymous
memory would lose its contents).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.chain_matrix import ChainMatrix
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.types import Array, Float32

__all__ = [
    "FLOAT_TYPES",
    "ConstantReader",
    "FileMappings",
    "ValueRange",
    "bf16_to_f32",
    "float_values",
    "tensor_values",
]

FLOAT_TYPES = ("f16", "bf16", "f32", "f64")
_NUMPY_TYPES = ("f16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "boolean")
_SCAN_BYTES = 1 << 20
_STRETCH_BYTES = 1 << 12
_SCAN_BLOCKS = 8  # mapped and given back at a time
_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22


def bf16_to_f32(bits: Array) -> Float32:
    """The values of bfloat16 bit patterns: the upper half of a float32."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def float_values(constant: Any) -> Float32:
    """All values of a small float Constant as float32, in its own shape."""
    values: Array = constant.data
    if constant.get_output_element_type(0).get_type_name() == "bf16":
        return bf16_to_f32(values)
    return values.astype(np.float32)


def tensor_values(tensor: ov.Tensor) -> Array:
    """The numbers in a tensor: its own array, or float32 for a type that numpy does not know, whose `data` are bits."""
    kind = tensor.element_type
    known = kind.get_type_name() in _NUMPY_TYPES
    return np.asarray(tensor.data if known else ov.op.Constant(tensor).get_data(dtype=np.float32))


@dataclass(frozen=True)
class ValueRange:
    """What one look at a weight's values tells: the largest finite magnitude, and how many are NaN or infinite."""

    absmax: float
    bad: int


class ConstantReader:
    """One float Constant, or the end of a chain that stands for one, as a matrix `[rows, columns]` (see `layout`), read
    in pieces of rows.

    Keeps the node, and with it the mapped file, alive for as long as the weight may still be asked for.
    """

    columns: Float32 | None = None
    """Factors of the columns, where what is read is not the constant's own values (see `scaled_reader`)."""

    def __init__(self, constant: Any, layout: Layout, mappings: FileMappings | None = None) -> None:
        self.layout = layout
        self._mappings = mappings
        self.name: str = constant.get_friendly_name()
        self._constant = constant
        self._type: str = constant.get_output_element_type(0).get_type_name()
        self._chain: ChainMatrix | None = None
        if constant.get_type_name() != "Constant":
            self._chain, self._type = ChainMatrix(constant, layout), "f32"

    @property
    def element_bytes(self) -> int:
        """Bytes per element as stored."""
        return {"f64": 8, "f32": 4}.get(self._type, 2)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole constant."""
        return self.layout.rows * self.layout.columns * self.element_bytes

    @property
    def identity(self) -> Hashable | None:
        """Equal for readers of the same memory in the same way, so that what follows from it is computed once."""
        if not self.as_it_is:
            return None
        return self._values().__array_interface__["data"][0], self._type, self.layout

    @property
    def as_it_is(self) -> bool:
        """Whether what is read are the values of one Constant and nothing else."""
        return self._chain is None

    @property
    def kind(self) -> str:
        """OpenVINO's name of the type that is read."""
        return self._type

    @property
    def fingerprint(self) -> int:
        """Equal for readers of Constants that hold the same bits; seldom for others."""
        flat, found = self._values().reshape(-1).view(np.uint8), 0
        for start in sorted({0, flat.size // 2, max(0, flat.size - _STRETCH_BYTES)}):
            stretch = flat[start : start + _STRETCH_BYTES]
            found = zlib.crc32((stretch if self._mappings is None else self._mappings.read(stretch)).tobytes(), found)
        return found

    def equals(self, other: ConstantReader) -> bool:
        """Whether two readers of Constants read the same bits; at the speed of memory where they do."""
        mine, theirs = (reader._values().reshape(-1).view(np.uint8) for reader in (self, other))
        if mine.size != theirs.size or mine.__array_interface__["data"] == theirs.__array_interface__["data"]:
            return mine.size == theirs.size
        for start in range(0, mine.size, _SCAN_BYTES):
            pieces = [values[start : start + _SCAN_BYTES] for values in (mine, theirs)]
            if self._mappings is not None:
                pieces = [self._mappings.read(piece) for piece in pieces]
            if not np.array_equal(pieces[0], pieces[1]):
                return False
        return True

    def read(self, slab: Slab) -> Array:
        """The rows of a slab as contiguous `[n, columns]`: float16 as it is (a view where possible), else float32."""
        if self._chain is not None:
            codes = self._chain.codes(slab)
            if self._mappings is not None and codes is not None:
                self._mappings.check(codes)
            return self._chain.rows(slab)
        view = self._matrix_view()[slab.index]
        if self._mappings is not None:
            view = self._mappings.read(view)
        return self._widen(np.ascontiguousarray(view).reshape(-1, self.layout.columns))

    def sample(self, count: int) -> Float32:
        """About `count` rows, evenly spread, as float32."""
        return np.concatenate([self.read(slab).astype(np.float32) for slab in self.layout.spread(count)])

    def read_all(self) -> Float32:
        """The whole matrix as float32."""
        if self._chain is not None:
            return self._chain.all()
        values = self._values()
        if self._mappings is not None:
            values = self._mappings.read(values)
        whole = self._widen(self.layout.to_matrix(values))
        return np.asarray(whole, dtype=np.float32)

    def unscaled(self, matrix: Array) -> Array:
        """A matrix of values like those that are read, in terms of the constant's own values: itself here."""
        return matrix

    def release(self, slab: Slab) -> None:
        """Give back the file's pages under a slab that has been read."""
        if self._chain is not None:
            self._chain.release(slab)
            codes = self._chain.codes(slab)
            if self._mappings is not None and codes is not None:
                self._mappings.drop(codes)
            return
        if self._mappings is not None and self.layout.contiguous:
            self._mappings.drop(self._matrix_view()[slab.index])

    def scan(self) -> ValueRange:
        """Largest finite magnitude and count of NaN and infinite values, at the speed of memory."""
        if self._chain is not None:
            found = [_scan_wide(piece) for piece in self._chain.pieces()]
            return ValueRange(max(peak for peak, _ in found), sum(bad for _, bad in found))
        flat = self._values().reshape(-1)
        step = _SCAN_BYTES // self.element_bytes
        absmax, bad = 0.0, 0
        buffer: Array = np.empty(min(step, flat.size), flat.dtype)
        for first in range(0, flat.size, step * _SCAN_BLOCKS):
            window = flat[first : first + step * _SCAN_BLOCKS]
            for start in range(0, window.size, step):
                block = window[start : start + step]
                if self._mappings is not None:
                    block = self._mappings.read(block, buffer)
                peak, count = _scan_half(block) if self._type == "f16" else _scan_wide(self._widen(block))
                absmax, bad = max(absmax, peak), bad + count
            if self._mappings is not None:
                self._mappings.drop(window)
        return ValueRange(absmax, bad)

    def _values(self) -> Array:
        values: Array = self._constant.data
        return values

    def _matrix_view(self) -> Array:
        return self.layout.matrix_view(self._values().reshape(self.layout.shape))

    def _widen(self, values: Array) -> Array:
        if self._type == "f16":
            return values
        if self._type == "bf16":
            return bf16_to_f32(values)
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is counted as such
            return values.astype(np.float32, copy=False)


def _scan_half(block: Array) -> tuple[float, int]:
    """On the bit patterns: integer maxima are several times faster than float16 arithmetic and see NaN as large."""
    bits = block.view(np.uint16)
    largest = int(bits.max(initial=0))
    peak = max(int(block.view(np.int16).max(initial=0)), largest & 0x7FFF if largest >> 15 else 0)
    if peak < 0x7C00:
        return float(np.uint16(peak).view(np.float16)), 0
    magnitudes = bits & 0x7FFF
    finite = magnitudes[magnitudes < 0x7C00]
    return float(finite.max(initial=0).view(np.float16)), int(magnitudes.size - finite.size)


def _scan_wide(block: Float32) -> tuple[float, int]:
    if block.size == 0:
        return 0.0, 0
    peak = max(float(block.max()), -float(block.min()))
    if np.isfinite(peak):
        return peak, 0
    finite = block[np.isfinite(block)]
    return float(np.abs(finite).max(initial=0.0)), int(block.size - finite.size)


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
        """Whether the file can be asked and read."""
        if not self._known:
            self._open()
        return self._file is not None

    def read(self, address: int, values: Array) -> None:
        """Read what lies at an address of the mapping from the file. Raises where the file no longer has it."""
        assert self._file is not None
        view, place = values.reshape(-1).view(np.uint8).data, self.offset + address - self.start
        while view:
            count = os.preadv(self._file, [view], place)
            if not count:
                self.check(address - self.start + values.nbytes)
                raise WorkError(f"{self.path}: cannot be read any more")
            view, place = view[count:], place + count

    def _open(self) -> None:
        """Keep the file itself, whoever has its name later; it may have lost its name already."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
            if os.fstat(descriptor).st_ino == self.inode:
                self._file = descriptor
                weakref.finalize(self, os.close, descriptor)
            else:
                os.close(descriptor)
        self._known = True


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
        self._ranges: list[_Range] = []
        self._starts: list[int] = []
        if not sys.platform.startswith("linux"):
            return
        with open("/proc/self/maps") as lines:
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
        return self._at(values.__array_interface__["data"][0])

    def _at(self, address: int) -> _Range | None:
        """The mapping that an address lies in; they do not overlap, and the kernel lists them rising."""
        place = bisect_right(self._starts, address) - 1
        return self._ranges[place] if place >= 0 and address < self._ranges[place].stop else None

    def fetch(self, values: Array) -> None:
        """Map the pages under `values`, which are about to be read, in one call instead of a fault for every few.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        self.check(values)
        self._advise(values, _MADV_POPULATE_READ)

    def holds(self, values: Array) -> bool:
        """Whether an array's memory is a file's."""
        address = values.__array_interface__["data"][0]
        return any(one.start <= address < one.stop for one in self._ranges)

    def read(self, values: Array, buffer: Array | None = None) -> Array:
        """The values, read from the file and not through the mapping where that is possible: in a copy, or in `buffer`.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        one = self._around(values) if values.flags.c_contiguous and values.nbytes else None
        if one is None or not one.opened():
            self.fetch(values)
            return values
        copy = np.empty(values.shape, values.dtype) if buffer is None else buffer[: values.size].reshape(values.shape)
        one.read(values.__array_interface__["data"][0], copy)
        return copy

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
        one = self._at(first)
        if last > first and one is not None and last <= one.stop:
            _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)
