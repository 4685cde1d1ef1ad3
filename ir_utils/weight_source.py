"""Where a weight's values come from, and how they are read: a piece of rows at a time, never a copy of the whole.

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

**Chains.** A float weight is `Constant ─ [Convert] ─ [Reshape] ─ layer`, a compressed one the longer chain of codes,
zero points and scales. Either is evaluated at any of its outputs (`ConstantValues`), in f32 as a layer sees it that is
executed in f32, whatever type the chain is written in. Pieces are rows: of the first axis, or of the first two and more
flattened where one index of the first is too much already (a weight of experts). So a table of a gigabyte is never
there as a whole; only an operation that mixes rows (a Transpose) is evaluated whole, for that weight.
"""

from __future__ import annotations

import functools
import math
import threading
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.postponed_constant import PostponedConstant

from ov_weight_compression.ir_utils.file_io import OWN_MEMORY, FileMappings, FileRows
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, Part, Target
from ov_weight_compression.ir_utils.types import Array, Float32, bf16_to_f32, sizes_of, to_f32
from ov_weight_compression.ir_utils.worker_pool import Pipeline, Task

_CHAIN_ELEMENTS = 1 << 21
_ALIGN = 1 << 10
"""Pieces begin at multiples of this many rows, so that groups and packed codes are never cut in the middle."""


def depends_on_constants(node: ov.Node, depth: int = 24) -> bool:
    """Whether a node's output depends on no input and no state of the model."""
    if node.get_type_name() in ("Parameter", "ReadValue", "RandomUniform") or depth == 0:
        return False
    return all(depends_on_constants(value.get_node(), depth - 1) for value in node.input_values())


class ConstantValues:
    """The values of an output that depends on constants alone.

    Args:
        output: where they are asked for.
        lead: axes that are flattened into rows; by default as many as it takes to make rows small.
        elements: of a piece, and the most of a row where it can be made smaller.
        align: pieces begin at multiples of so many rows.
    """

    def __init__(self, output: Any, lead: int = 0, *, elements: int = _CHAIN_ELEMENTS, align: int = _ALIGN) -> None:
        self._output, self._elements, self._align = output, elements, align
        self.shape = sizes_of(output.get_shape())
        self._lead = lead or 1
        while not lead and self._lead < len(self.shape) - 1 and math.prod(self.shape[self._lead :]) > elements:
            self._lead += 1
        self._whole: dict[Any, Float32] = {}
        self._made: dict[Any, Any] = {}

    def pieces(self) -> Iterator[Float32]:
        """All values in row-major order, as flat arrays."""
        rows, width = self._split(self.shape)
        align = self._align if self._lead == len(self.shape) - 1 else 1  # otherwise no row is a part of a group
        step = max(align, self._elements // max(1, width) // align * align)
        for start in range(0, rows, step):
            yield self.rows(start, min(start + step, rows)).reshape(-1)

    def whole(self) -> Float32:
        """Every value at once, in the output's own shape; not kept."""
        return self.rows(0, self._split(self.shape)[0]).reshape(self.shape)

    def _split(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many rows a tensor of this shape has, and how many elements a row."""
        return math.prod(shape[: self._lead]), math.prod(shape[self._lead :])

    def rows(self, start: int, stop: int, output: Any = None) -> Float32:
        """Some rows, `[stop - start, …]` with the axes that are not flattened into rows; a scalar has one row. Of the
        output itself, or of another one that it is made of."""
        output = self._output if output is None else output
        node = output.get_node()
        if isinstance(node, PostponedConstant):  # as a Constant, computed once
            if node not in self._made:
                self._made[node] = ov.op.Constant(node.m_maker(), shared_memory=True)
            node = self._made[node]
        evaluate = _EVALUATORS.get(node.get_type_name())
        found = evaluate(self, node, start, stop) if evaluate else None
        if found is None:
            shape = sizes_of(output.get_shape())
            found = self._keep(output, _compiled).reshape(self._split(shape)[0], *shape[self._lead :])[start:stop]
        return found

    def _all(self, output: Any) -> Float32:
        """Every value in the output's own shape, kept: for an operation that cannot be taken in pieces."""
        shape = sizes_of(output.get_shape())
        return self._keep(output, lambda value: self.rows(0, self._split(shape)[0], value).reshape(shape))

    def _keep(self, output: Any, evaluate: Callable[[Any], Float32]) -> Float32:
        if output not in self._whole:
            self._whole[output] = evaluate(output)
        return self._whole[output]

    def _operand(self, output: Any, like: Sequence[int], start: int, stop: int) -> Array:
        """The rows of an operand that meet rows `start` to `stop` of a result of shape `like`, as broadcasting pairs
        them."""
        own, lead = sizes_of(output.get_shape()), self._lead
        if len(own) == len(like) and own[:lead] == tuple(like[:lead]):
            return self.rows(start, stop, output)
        shape = (1,) * (len(like) - len(own)) + own
        whole = self._all(output).reshape(shape)
        if math.prod(shape[:lead]) == 1:
            return whole.reshape(1, *shape[lead:])
        return np.broadcast_to(whole, (*like[:lead], *shape[lead:])).reshape(-1, *shape[lead:])[start:stop]


def _constant(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    shape = sizes_of(node.get_output_shape(0))
    width = values._split(shape)[1]
    kind = node.get_output_element_type(0)
    if kind.bitwidth < 8 and start * width % 8:
        return None  # begins inside a byte: evaluate the whole
    # A Constant of some consecutive elements of another: OpenVINO unpacks and converts every type that it has.
    raw, begin = node.get_tensor_view().data.reshape(-1).view(np.uint8), start * width * kind.bitwidth // 8
    tensor = ov.Tensor(kind, ov.Shape([(stop - start) * width]))
    target = tensor.data.reshape(-1).view(np.uint8)
    target[:] = raw[begin : begin + len(target)]
    found = ov.op.Constant(tensor).get_data(dtype=np.float32)
    return np.asarray(found, dtype=np.float32).reshape(stop - start, *shape[values._lead :])


def _convert(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    """Only f32 to f16 or bf16 loses anything: plugins fold the scales as the graph has them, rounded."""
    rows = values.rows(start, stop, node.input_value(0))
    if node.get_input_element_type(0) != ov.Type.f32:
        return rows
    kind = node.get_output_element_type(0)
    if kind == ov.Type.f16:
        return rows.astype(np.float16).astype(np.float32)
    return _to_bf16(rows) if kind == ov.Type.bf16 else rows


def _to_bf16(values: Float32) -> Float32:
    """The upper 16 bits, rounded as OpenVINO's ConstantFolding does: half is added only where the last bit kept is 1,
    so that even numbers are cut off (seen with 2026.4)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + ((bits & np.uint32(0x10000)) >> 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _elementwise(
    function: Callable[[Array, Array], Array],
) -> Callable[[ConstantValues, Any, int, int], Float32 | None]:
    def evaluate(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
        shape = sizes_of(node.get_output_shape(0))
        left, right = (values._operand(node.input_value(port), shape, start, stop) for port in (0, 1))
        return np.asarray(function(left, right), dtype=np.float32)

    return evaluate


def _reshape(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    """Rows of the result are consecutive elements, and lie in consecutive rows of what is reshaped."""
    source, target = sizes_of(node.input_value(0).get_shape()), sizes_of(node.get_output_shape(0))
    width, whole = values._split(target)[1], values._split(source)[1]
    first, last = start * width // whole, -(-stop * width // whole)
    flat = values.rows(first, last, node.input_value(0)).reshape(-1)
    return flat[start * width - first * whole : stop * width - first * whole].reshape(-1, *target[values._lead :])


def _transpose(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    order = node.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return None
    axes = [int(axis) for axis in order.data.reshape(-1)] or None
    source, shape = node.input_value(0), sizes_of(node.get_output_shape(0))
    whole = values._keep(node.output(0), lambda _: np.ascontiguousarray(values._all(source).transpose(axes)))
    return whole.reshape(values._split(shape)[0], *shape[values._lead :])[start:stop]


def _gather(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    """A look-up in a table of one axis."""
    table = node.input_value(0)
    if len(table.get_shape()) != 1:
        return None
    indices = values.rows(start, stop, node.input_value(1))
    looked_up: Float32 = values._all(table)[indices.astype(np.int64)]
    return looked_up


_EVALUATORS: dict[str, Callable[[ConstantValues, Any, int, int], Float32 | None]] = {
    "Constant": _constant,
    "Convert": _convert,
    "Multiply": _elementwise(np.multiply),
    "Subtract": _elementwise(np.subtract),
    "Add": _elementwise(np.add),
    "Divide": _elementwise(np.divide),
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Gather": _gather,
}


def _compiled(output: Any) -> Float32:
    """Any other operation, evaluated by OpenVINO as a model of its own."""
    model = ov.Model([ops.convert(output, ov.Type.f32).output(0)], [], "values")
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0], dtype=np.float32)


@functools.cache
def _core() -> ov.Core:
    return ov.Core()


_PIECE_ELEMENTS = 1 << 18
_SCAN_BYTES = 1 << 20
_SCAN_BLOCKS = 8  # mapped and given back at a time
_STRETCH_BYTES = 1 << 12


@dataclass(frozen=True)
class ValueRange:
    """What one look at a weight's values tells: the largest finite magnitude, and how many are NaN or infinite."""

    absmax: float
    bad: int


class WeightSource(Protocol):
    """A weight's values as a matrix `[rows, columns]` (see `layout`).

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
            value = LazyWeight(pipeline, _Widened(stored, mappings)).constant("values")
            value.set_friendly_name(stored.get_friendly_name())
            node.output(0).replace(value.output(0))
            value.output(0).set_names(names)


class _Widened:
    """The values of a 16-bit Constant as f32. Implements `ir_utils.lazy_weight.Encoding`."""

    bulk, together = "values", None

    def __init__(self, constant: Any, mappings: FileMappings) -> None:
        self.name = str(constant.get_friendly_name())
        shape = sizes_of(constant.shape)
        self._source = ConstantSource(constant, Layout.of(shape, (len(shape) - 1,)), mappings, "f32")
        self.parts: Mapping[str, Part] = {"values": Part("f32", shape)}
        self.nbytes = self.parts["values"].nbytes

    @property
    def identity(self) -> Hashable | None:
        return self._source.identity

    def begin(self, targets: Sequence[Target]) -> tuple[Sequence[Task], Task]:
        sink = targets[0].sink("values")

        def write() -> None:
            for slab, values in self._source.pieces():
                sink.write(4 * slab.start * self._source.layout.columns, values)

        return [write], lambda: None
