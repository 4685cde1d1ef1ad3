"""A weight as a matrix `[rows, columns]`, and where its values come from: read a piece of rows at a time, never copied
as a whole.

**Layouts.** The columns are what a weight is reduced over (`in` of a MatMul; `in·kh·kw` of a convolution), so groups
run along them and every row is independent of the others. The rows are all other axes in order (`out`; `experts, out`;
`vocabulary`).

    [out, in]            reduced over axis 1      → rows out,           columns in
    [in, out]            reduced over axis 0      → rows out,           columns in (transposed)
    [experts, out, in]   reduced over axis 2      → rows experts·out,   columns in
    [out, in, kh, kw]    reduced over 1, 2, 3     → rows out,           columns in·kh·kw

Codes are stored in the constant's own order; only the group axis is split: `[in, out]` becomes `[in/g, g, out]`, its
scales `[in/g, 1, out]`.

**Sources.**

    ConstantSource    a float Constant, most often of a mapped file
    ChainSource       the end of a chain of constants: codes behind a scale, as fp8 checkpoints and compressed models
                      have them
    FoldedSource      another source, multiplied by factors of its rows and columns (AWQ)

Whatever reads a weight does so through a `WeightSource` and asks nothing about its kind, so values may come from
anywhere: derive from the protocol, and say how some rows are read.

**Widened constants.** A graph may want in f32 what lies in a file in 16 bits:

    Constant (f16, bf16) ─ Convert(f32), marked ─▸ consumers

The marked Convert stands for a Constant of f32: a weight is read, encoded and named as if it were one. What is left of
them when a model is saved can be written as what it stands for (`float_constants`).
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.postponed_constant import PostponedConstant

from ov_weight_compression.ir_utils.constant_values import ConstantValues
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import OWN_MEMORY, FileMappings, FileRows
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.types import Array, Float32, bf16_to_f32, sizes_of, to_f32
from ov_weight_compression.ir_utils.worker_pool import Job, Part, Pipeline, Task

_SIDE_BY_SIDE = 8
"""Rows that are sampled together: reading one costs nearly as much as reading eight."""


@dataclass(frozen=True)
class Slab:
    """Some consecutive rows: `start` to `stop` in matrix order, and where they lie in the permuted constant."""

    start: int
    stop: int
    index: tuple[int | slice, ...]


@dataclass(frozen=True)
class Layout:
    """The correspondence between a constant of `shape` and its matrix; `reduced` are the columns' axes, rising."""

    shape: tuple[int, ...]
    reduced: tuple[int, ...]

    order: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The permutation of the constant's axes that brings the reduced ones last."""
    lead: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """The sizes of the row axes."""
    rows: int = field(init=False, repr=False, compare=False)
    columns: int = field(init=False, repr=False, compare=False)
    contiguous: bool = field(init=False, repr=False, compare=False)
    """Whether the matrix is the constant itself, read in its own order."""
    groupable: bool = field(init=False, repr=False, compare=False)
    """Whether a Reshape alone can cut the constant into groups: its reduced axes lie side by side."""

    def __post_init__(self) -> None:
        outer = tuple(axis for axis in range(len(self.shape)) if axis not in self.reduced)
        lead = tuple(self.shape[axis] for axis in outer)
        order = (*outer, *self.reduced)
        follows = {
            "order": order,
            "lead": lead,
            "rows": math.prod(lead),
            "columns": math.prod(self.shape[axis] for axis in self.reduced),
            "contiguous": order == tuple(range(len(self.shape))),
            "groupable": len(self.reduced) > 0 and self.reduced[-1] - self.reduced[0] == len(self.reduced) - 1,
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)

    def slabs(self, max_rows: int, block: int = 0) -> Iterator[Slab]:
        """Cut the rows into pieces of at most `max_rows` that can each be read by one index.

        With `block` no piece goes across a multiple of so many rows (an expert's).
        """
        if self.contiguous or not self.lead:
            block = block or self.rows
            for first in range(0, self.rows, max(1, block)):
                for start in range(first, first + block, max_rows):
                    stop = min(start + max_rows, first + block)
                    yield Slab(start, stop, (slice(start, stop),))
            return
        *outer, last = self.lead
        for number, position in enumerate(np.ndindex(*outer)):
            for start in range(0, last, max_rows):
                stop = min(start + max_rows, last)
                base = number * last
                yield Slab(base + start, base + stop, (*position, slice(start, stop)))

    def spread(self, count: int) -> Iterator[Slab]:
        """About `count` rows, a few side by side and evenly spread over the matrix; all where there are no more."""
        if self.rows <= count:
            return self.slabs(max(1, count))
        wanted = max(1, count // _SIDE_BY_SIDE)
        step = max(1, self.rows // _SIDE_BY_SIDE // wanted)
        if not self.contiguous:
            return islice(self.slabs(_SIDE_BY_SIDE), step // 2, None, step)
        starts = range(0, self.rows, _SIDE_BY_SIDE)[step // 2 :: step]
        ends = [min(start + _SIDE_BY_SIDE, self.rows) for start in starts]
        return (Slab(start, stop, (slice(start, stop),)) for start, stop in zip(starts, ends, strict=True))

    def matrix_view(self, values: Array) -> Array:
        """`values` of the constant's shape, so that a slab's `index` picks `[n, columns]` (after a reshape)."""
        return values.reshape(self.rows, self.columns) if self.contiguous else values.transpose(self.order)

    def to_matrix(self, values: Array) -> Array:
        """The whole constant as a contiguous `[rows, columns]`; a copy where the axes are permuted."""
        return np.ascontiguousarray(values.reshape(self.shape).transpose(self.order)).reshape(self.rows, self.columns)

    def from_matrix(self, matrix: Array) -> Array:
        """`[rows, columns]` in the constant's own order and shape."""
        sizes = [self.shape[axis] for axis in self.order]
        return np.ascontiguousarray(matrix.reshape(sizes).transpose(np.argsort(self.order)))

    def in_groups(self, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of codes and of scales: the constant's, with the reduced axes cut into `in/g, g`, and the same
        with 1 along what shares a scale. The codes keep the constant's own for one scale a channel, and for one group
        `[1, in, out]`, for whose Reshape the CPU plugin of OpenVINO 2026.4 makes up a wrong shape where it expands the
        chain."""
        if group < 0 or (group == self.columns and not self.contiguous):
            return self.shape, tuple(1 if axis in self.reduced else size for axis, size in enumerate(self.shape))
        before, behind = self.shape[: self.reduced[0]], self.shape[self.reduced[-1] + 1 :]
        groups = self.columns // group
        return (*before, groups, group, *behind), (*before, groups, 1, *behind)

    def scales_in_place(self, scales: Array, shape: tuple[int, ...]) -> Array:
        """Scales `[rows, columns/g]` of the matrix, in the constant's order and in the shape that `in_groups` has for
        them."""
        if shape != tuple(1 if axis in self.reduced else size for axis, size in enumerate(self.shape)):
            before = len(self.lead) - (len(self.shape) - 1 - self.reduced[-1])
            scales = np.moveaxis(scales.reshape(*self.lead, -1), -1, before)
        return np.ascontiguousarray(scales).reshape(shape)

    @staticmethod
    def of(shape: Sequence[int], reduced: Sequence[int]) -> Layout:
        """A layout from any sequences; the reduced axes are sorted."""
        return Layout(tuple(int(size) for size in shape), tuple(sorted(int(axis) for axis in reduced)))


_PIECE_ELEMENTS = 1 << 18
_SCAN_BYTES = 1 << 20
_SCAN_BLOCKS = 8  # mapped and given back at a time
_STRETCH_BYTES = 1 << 12
_WRITTEN_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class ValueRange:
    """What one look at a weight's values tells: the largest finite magnitude, and how many are NaN or infinite."""

    absmax: float
    bad: int


class WeightSource(Protocol):
    """A weight's values as a matrix `[rows, columns]` (see `Layout`).

    Derived classes have `layout`, `element_type` and `read`; everything else follows from those, and may be done
    better. Methods are called from several threads at once, and again each time the model is saved or compiled.
    """

    layout: Layout
    element_type: str
    """OpenVINO's name of the floating-point type in which the values are exact: `f16`, `bf16`, `f32` or `f64`."""

    def read(self, slab: Slab) -> Array:
        """The rows of a slab as contiguous `[n, columns]`, float16 or float32. Not written to by whoever gets them."""
        ...

    def unread(self, slab: Slab) -> Array | FileRows:
        """As `read`, or what reads them where they are wanted."""
        return self.read(slab)

    def release(self, slab: Slab) -> None:
        """Rows that have been read and will not be asked for again soon."""

    @property
    def identity(self) -> Hashable | None:
        """Equal for sources of the same values, which are then encoded once; None where that cannot be told."""
        return None

    @property
    def fingerprint(self) -> int:
        """Equal for sources that are `equal`; seldom for others. Asked only where `identity` is not None."""
        return hash(self.identity)

    def equals(self, other: WeightSource) -> bool:
        """Whether another source, of the same layout and type, has the same values."""
        return self.identity is not None and self.identity == other.identity

    def pieces(self, elements: int = _PIECE_ELEMENTS, block: int = 0, every: int = 1) -> Iterator[tuple[Slab, Array]]:
        """All rows in order, at most so many `elements` at a time (but at least one row), each released before the
        next is read.

        Args:
            elements: of a piece.
            block: no piece goes across a multiple of so many rows; 0 where any may.
            every: read only each so manieth piece, from the first on.
        """
        for slab in islice(self.cut(elements, block), 0, None, every):
            yield slab, self.read(slab)
            self.release(slab)

    def cut(self, elements: int = _PIECE_ELEMENTS, block: int = 0) -> Iterator[Slab]:
        """The rows of `pieces`."""
        return self.layout.slabs(max(1, elements // max(1, self.layout.columns)), block)

    def sample(self, count: int) -> Float32:
        """About `count` rows, evenly spread, as float32."""
        return to_f32(np.concatenate([self.read(slab) for slab in self.layout.spread(count)]))

    def read_all(self) -> Float32:
        """The whole matrix as float32."""
        whole = np.empty((self.layout.rows, self.layout.columns), dtype=np.float32)
        for slab, values in self.pieces():
            whole[slab.start : slab.stop] = to_f32(values)
        return whole

    def scan(self) -> ValueRange:
        """Largest finite magnitude and count of NaN and infinite values."""
        found = [_scan_half(piece) if piece.dtype == np.float16 else _scan_wide(piece) for _, piece in self.pieces()]
        return ValueRange(max((peak for peak, _ in found), default=0.0), sum(bad for _, bad in found))


class ConstantSource(WeightSource):
    """The values of one float Constant, in whatever shape it has; `element_type` where the graph has them in another.

    Keeps the node, and with it the mapped file, alive for as long as the weight may still be asked for. Where the
    memory is a file's (see `FileMappings`) pieces are read from the file itself, and its pages are given back.
    """

    def __init__(
        self, constant: Any, layout: Layout, mappings: FileMappings | None = None, element_type: str | None = None
    ) -> None:
        self.layout = layout
        self._stored = str(constant.get_output_element_type(0).get_type_name())
        self.element_type = element_type or self._stored
        self._as_stored = self._stored == self.element_type and self._stored in ("f16", "f32")
        self._constant = constant
        self._data: Array = constant.data  # asked for once: it costs as much as reading a small weight
        self._file = OWN_MEMORY if mappings is None else mappings.around(self._data)
        self._matrix = layout.matrix_view(self._data.reshape(layout.shape))

    def read(self, slab: Slab) -> Array:
        """float16 as it is (a view where possible), else float32."""
        values = np.ascontiguousarray(self._file.read(self._matrix[slab.index])).reshape(-1, self.layout.columns)
        return values if self._as_stored else self._widen(values)

    def unread(self, slab: Slab) -> Array | FileRows:
        """From the file where they lie together there, in a type that is computed with."""
        if self._file.file is None or not self.layout.contiguous or not self._as_stored or not self._data.nbytes:
            return self.read(slab)
        return FileRows(self._matrix[slab.index], self._file.read_into)

    def release(self, slab: Slab) -> None:
        """Give back the file's pages under the slab."""
        if self.layout.contiguous:
            self._file.advise(self._matrix[slab.index])

    @property
    def identity(self) -> Hashable | None:
        """The memory, and how it is read."""
        return self._data.__array_interface__["data"][0], self.element_type, self.layout

    @property
    def fingerprint(self) -> int:
        """Of a few stretches of the bits."""
        flat, found = self._bytes(), 0
        for start in sorted({0, flat.size // 2, max(0, flat.size - _STRETCH_BYTES)}):
            found = zlib.crc32(self._file.read(flat[start : start + _STRETCH_BYTES]).tobytes(), found)
        return found

    def equals(self, other: WeightSource) -> bool:
        """Whether another Constant holds the same bits; at the speed of memory where it does."""
        if not isinstance(other, ConstantSource) or other._stored != self._stored:
            return False
        mine, theirs = self._bytes(), other._bytes()
        if mine.size != theirs.size or mine.__array_interface__["data"] == theirs.__array_interface__["data"]:
            return mine.size == theirs.size
        places = (slice(start, start + _SCAN_BYTES) for start in range(0, mine.size, _SCAN_BYTES))
        return all(np.array_equal(self._file.read(mine[at]), other._file.read(theirs[at])) for at in places)

    def read_all(self) -> Float32:
        """The whole matrix as float32."""
        return to_f32(self._widen(self.layout.to_matrix(self._file.read(self._data))))

    def scan(self) -> ValueRange:
        """In the constant's own order, at the speed of memory."""
        flat = self._data.reshape(-1)
        step = _SCAN_BYTES // flat.itemsize
        absmax, bad = 0.0, 0
        buffer: Array = np.empty(min(step, flat.size), flat.dtype)
        for first in range(0, flat.size, step * _SCAN_BLOCKS):
            window = flat[first : first + step * _SCAN_BLOCKS]
            for start in range(0, window.size, step):
                block = self._file.read(window[start : start + step], buffer)
                peak, count = _scan_half(block) if self._stored == "f16" else _scan_wide(self._widen(block))
                absmax, bad = max(absmax, peak), bad + count
            self._file.advise(window)
        return ValueRange(absmax, bad)

    def _bytes(self) -> Array:
        return self._data.reshape(-1).view(np.uint8)

    def _widen(self, values: Array) -> Array:
        if self._as_stored:
            return values
        if self._stored == "bf16":
            return bf16_to_f32(values)
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is counted as such
            return values.astype(np.float32, copy=False)


class ChainSource(WeightSource):
    """What a chain of constants comes to, in f32: codes behind zero points and scales, or floats behind what converts
    and rearranges them.

    What of it can only be computed whole (permuted axes, scales that are spread) is kept until every row has been
    released.
    """

    element_type = "f32"

    def __init__(self, last: Any, layout: Layout, mappings: FileMappings | None = None) -> None:
        self.layout = layout
        self._end = last.output(0)
        nodes: dict[Any, None] = {}
        waiting = [last]
        while waiting:
            node = waiting.pop()
            if node not in nodes:
                nodes[node] = None
                waiting += [value.get_node() for value in node.input_values()]
        # A copy of the chain, which nobody can edit, with the same memory; but of postponed constants, a copy would
        # compute some.
        if not any(isinstance(node, PostponedConstant) for node in nodes):
            copy = ov.Model([ops.result(self._end)], []).clone()
            self._end, nodes = copy.get_results()[0].input_value(0), dict.fromkeys(copy.get_ops())
        constants = [node for node in nodes if node.get_type_name() == "Constant"]
        stored = [node.get_tensor_view().data.reshape(-1).view(np.uint8) for node in constants]
        self._stored = [(data, OWN_MEMORY if mappings is None else mappings.around(data)) for data in stored]
        self._values: ConstantValues | None = None
        self._matrix: Float32 | None = None
        self._released = 0
        self._lock = threading.Lock()

    def read(self, slab: Slab) -> Array:
        """float32 `[n, columns]`."""
        for data, file in self._stored:
            file.check(data)
        with self._lock:
            if self._values is None:
                self._values = ConstantValues(self._end, max(1, len(self.layout.lead)))
            if self._matrix is None and not (self.layout.contiguous and self.layout.lead):
                self._matrix = self.read_all()
            values, matrix = self._values, self._matrix
        if matrix is not None:
            return matrix[slab.start : slab.stop]
        return values.rows(slab.start, slab.stop).reshape(-1, self.layout.columns)

    def release(self, slab: Slab) -> None:
        """Drop what is kept with the last rows, and give back the file's pages under the slab."""
        with self._lock:
            self._released += slab.stop - slab.start
            done = self._released >= self.layout.rows
            if done:
                self._released, self._matrix, self._values = 0, None, None
        for data, file in self._stored:  # rows one after another, most often: what is dropped too early is read again
            row = data.size // self.layout.rows
            file.advise(data if done else data[slab.start * row : slab.stop * row])

    def cut(self, elements: int = _PIECE_ELEMENTS, block: int = 0) -> Iterator[Slab]:
        """Eight rows or a multiple of eight at a time: no packed code is cut in the middle."""
        return self.layout.slabs(max(8, elements // max(1, self.layout.columns) // 8 * 8), block)

    def read_all(self) -> Float32:
        """The whole matrix as float32."""
        return np.asarray(self.layout.to_matrix(ConstantValues(self._end).whole()), dtype=np.float32)

    def scan(self) -> ValueRange:
        """In the constant's own order, so that nothing is kept."""
        found = [_scan_wide(piece) for piece in ConstantValues(self._end).pieces()]
        return ValueRange(max(peak for peak, _ in found), sum(bad for _, bad in found))


class FoldedSource(WeightSource):
    """Another source with factors folded into it, None for none:

        values[r, j] · rows[r] · columns[j]         or, of experts side by side, columns[expert of r, j]

    in f32, so a weight that is stored in f16 is not rounded to f16 once more before it is quantised.
    """

    element_type = "f32"

    def __init__(self, source: WeightSource, columns: Float32 | None = None, rows: Float32 | None = None) -> None:
        self.layout = source.layout
        self.source, self.columns, self.rows = source, columns, rows

    def read(self, slab: Slab) -> Array:
        """float32 `[n, columns]`."""
        return self._times(self.source.read(slab).astype(np.float32), slab.start)

    def release(self, slab: Slab) -> None:
        """As the source does."""
        self.source.release(slab)

    def read_all(self) -> Float32:
        """The whole matrix as float32."""
        return self._times(self.source.read_all().copy(), 0)

    def unfolded(self, matrix: Array) -> Float32:
        """What a matrix `[rows, columns]` of folded values stands for in terms of the source's own."""
        values = np.array(matrix, dtype=np.float32)
        if self.columns is not None:
            values /= self._columns_of(0, len(values))
        if self.rows is not None:
            values /= self.rows[:, None]
        return values

    def _times(self, values: Float32, start: int) -> Float32:
        if self.columns is not None:
            values *= self._columns_of(start, start + len(values))
        if self.rows is not None:
            values *= self.rows[start : start + len(values), None]
        return values

    def _columns_of(self, start: int, stop: int) -> Float32:
        """The factors of some rows' columns, `[in]` or `[rows, in]`."""
        assert self.columns is not None
        if self.columns.ndim == 1:
            return self.columns
        return np.asarray(self.columns[np.arange(start, stop) // (self.layout.rows // len(self.columns))])


def source_at(node: Any, mappings: FileMappings | None = None) -> WeightSource:
    """What a node comes to that depends on constants alone, as `[all other axes, last axis]`: in the order in which its
    values lie in memory."""
    shape = tuple(node.get_output_shape(0))
    return ChainSource(node, Layout.of(shape, [len(shape) - 1] if shape else []), mappings)


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


_MARK = "widened_constant"


def widened(constant: Any) -> Any:
    """The operation that stands for a 16-bit Constant as one of f32, called like it."""
    node = ops.convert(constant, "f32")
    node.set_friendly_name(f"{constant.get_friendly_name()}/as_f32")
    node.get_rt_info()[_MARK] = ""
    return node


def is_widened(node: Any) -> bool:
    """Whether an operation stands for a Constant of f32."""
    return bool(node.get_type_name() == "Convert") and _MARK in node.get_rt_info()


def float_constants(nodes: Iterable[Any], threads: int) -> None:
    """Put f32 constants in place of operations that stand for some; values are read while the model is saved."""
    pipeline, mappings = Pipeline(threads=threads), FileMappings()
    for node in nodes:
        if is_widened(node):
            names = node.output(0).get_names()
            stored = node.input_value(0).get_node()
            name, shape = stored.get_friendly_name(), sizes_of(stored.shape)
            source = ConstantSource(stored, Layout.of(shape, (len(shape) - 1,)), mappings, "f32")
            value = LazyWeight(pipeline, FloatValues(name, source, "f32")).constant("values")
            value.set_friendly_name(name)
            node.output(0).replace(value.output(0))
            value.output(0).set_names(names)


class FloatValues:
    """A source's values as floats, in the order of its layout's shape. Implements `worker_pool.Encoding`."""

    together = None

    def __init__(self, name: str, source: WeightSource, dtype: str) -> None:
        self.name, self.identity = name, source.identity
        self.parts = {"values": Part(dtype, source.layout.shape)}
        self.nbytes = self.parts["values"].nbytes
        self._source = source

    def begin(self, jobs: Sequence[Job]) -> tuple[Sequence[Task], Task]:
        """One task: what is kept of a chain while it is evaluated should be kept once."""
        sink, dtype = jobs[0].sink("values"), np.float16 if self.parts["values"].type == "f16" else np.float32

        def write() -> None:
            place = 0
            try:
                for _, piece in self._source.pieces(_WRITTEN_ELEMENTS):
                    values: Array = np.ascontiguousarray(piece.astype(dtype, copy=False))
                    sink.write(place, values)
                    place += values.nbytes
            except WorkError:
                raise
            except RuntimeError as error:
                raise WorkError(f"{self.name}: cannot be decompressed: {error}") from error

        return [write], lambda: None
