"""Gram matrices of a layer's input, summed up window by window beside a model that runs.

    x [n, in] ─▸ Σ x xᵀ
    x̂, x      ─▸ Σ (x − x̂) x̂ᵀ
    x̂, y      ─▸ Σ y x̂ᵀ             y [n, out] what the layer makes of x

An activation is seen as `x [experts, sequences, tokens, in]`, `experts` being 1 for a plain layer. The sums are matrix
products, computed by BLAS in f32 (`x.T @ x` is a SYRK there: half the work of a GEMM) and summed in f32. Rows wait
until there are enough of them: products of many rows are faster than those of few. The same inside the model's graph,
as nodes beside the activation, was measured to take 1.5 times as long (an ordinary GEMM there).

**In bf16** products of activations are several times as fast as in f32 where the CPU computes them (AVX512_BF16, AMX):
the first in tiles of the upper half, each row rounded to 8 bits of mantissa, sums in f32; of the second the difference
is taken in f32. Rounding moves an element by at most one part in 256 of itself, and at random: to a Gram matrix that is
a ridge of less than a hundred-thousandth of its diagonal, where GPTQ adds a tenth. Of the products of two streams'
activations only the distance to the Gram matrix counts, which would drown in the rounding of the two; so that is what
is computed.

**Threads.** Where numpy has an OpenBLAS of its own (its wheels do) it can be told in how many it multiplies. Threads of
OpenBLAS wait for work by spinning. Beside a thread that runs a model they take the processors from it, and what they
gain is less. There is no call of numpy's for this, so the library's own is called; any other BLAS stays as it is: the
same numbers, only later.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ov_weight_compression.calibration.runner import Requests, computes_bf16
from ov_weight_compression.ir_utils.types import Float32

LARGEST = 2.0**50
"""1.1e15: the squares of a hundred million such values still have a sum in f32."""


def unfit(x: NDArray[Any], limit: float = LARGEST) -> NDArray[np.bool_] | None:
    """Which rows of `x [..., in]` hold a value that does not count, `[...]`; None where none does."""
    with np.errstate(invalid="ignore"):
        if x.size == 0 or (x.max() <= limit and x.min() >= -limit):
            return None
        found: NDArray[np.bool_] = ~np.all(np.abs(x) <= limit, axis=-1)  # NaN is not
        return found


def rows_by_expert(x: NDArray[Any], reduction: Sequence[int] = (-1,), batch: Sequence[tuple[int, int]] = ()) -> Float32:
    """An activation as `[experts, sequences, tokens, in]`, f32.

    Args:
        x: of any rank. Its last dimension that is neither below counts tokens, those before it sequences.
        reduction: its dimensions that hold the input channels, counted from the end.
        batch: its dimensions that number experts, and how many of them there are in each. Where it has them, each
            expert has rows of its own; where it is broadcast to them, all experts share its rows and `experts` is 1.
    """
    x = np.asarray(x, np.float32)
    inner = [x.ndim + dim for dim in reduction]
    own = [x.ndim + dim for dim, _ in batch]
    if any(place < 0 or x.shape[place] != size for place, (_, size) in zip(own, batch, strict=True)):
        own = []
    rows = [place for place in range(x.ndim) if place not in own and place not in inner]
    sizes = [x.shape[place] for place in rows] or [1]
    experts, width = (prod(x.shape[place] for place in places) for places in (own, inner))
    return x.transpose(*own, *rows, *inner).reshape(experts, prod(sizes[:-1]), sizes[-1], width)


_MIRRORED = 128
_PANEL = 1024
"""Rows of a Gram matrix that are computed at a time: bounds the temporary product to `_PANEL · in` floats."""


def add_gram(total: Float32, x: Float32) -> None:
    """`total += xᵀ x` for `x [n, in]`; only the upper panels are written (see `mirror`)."""
    width = x.shape[1]
    for begin in range(0, width, _PANEL):
        end = min(begin + _PANEL, width)
        part = x[:, begin:end]
        total[begin:end, begin:end] += part.T @ part
        if end < width:
            total[begin:end, end:] += part.T @ x[:, end:]


def mirror(total: Float32) -> None:
    """Fill in the lower half of a Gram matrix, of which `add_gram` leaves out parts."""
    width = total.shape[0]
    for begin in range(0, width, _MIRRORED):
        end = min(begin + _MIRRORED, width)
        total[end:, begin:end] = total[begin:end, end:].T
        block = total[begin:end, begin:end]
        np.copyto(block, block.T.copy(), where=np.tri(end - begin, k=-1, dtype=bool))


BATCH_ROWS = 1024
"""Rows that are multiplied at a time."""
_TILE = 512
_NARROWEST, _WIDEST = 256, 4096
"""Channels: with fewer BLAS is as fast, with more the tiles would take as much memory again as the matrix."""


class Products:
    """Compiled products for some numbers of channels. Not for several threads at once."""

    def __init__(self, width: int, beside: int | None = None, drift: bool = False) -> None:
        """Of x̂ with so many channels, and where there is something beside it, with so many, that one times x̂: with
        `drift` its distance to x̂."""
        size = -(-width // -(-width // _TILE))
        self._tiles = [(begin, min(begin + size, width)) for begin in range(0, width, size)]
        hat, other = (ops.parameter([BATCH_ROWS, size], np.float32) for size in (width, beside or width))
        found = []
        for begin, end in self._tiles:
            right = ops.slice(hat, [begin], [width], [1], [1])
            found.append(ops.matmul(ops.slice(hat, [begin], [end], [1], [1]), right, True, False))
        if beside is not None:
            found.append(ops.matmul(ops.subtract(other, hat) if drift else other, hat, True, False))
        model = ov.Model([ops.result(one) for one in found], [hat] if beside is None else [hat, other])
        self._requests = Requests(model, bf16=True, side_by_side=2)
        self._widths = (width,) if beside is None else (width, beside)
        self._spare: list[list[Float32]] = []

    def buffers(self) -> list[Float32]:
        """Memory for what is to be added, `[BATCH_ROWS, …]` each."""
        if self._spare:
            return self._spare.pop()
        return [np.empty((BATCH_ROWS, width), np.float32) for width in self._widths]

    def add(self, rows: list[Float32], gram: Float32, cross: Float32 | None = None, *, spare: bool = False) -> None:
        """Add Σ x̂ x̂ᵀ to `gram`, its upper tiles only, and the other product to `cross`: at once, later, or with
        `finish`.

        `rows`: x̂, and what stands beside it, `[BATCH_ROWS, …]`, not to be changed before. With `spare` they are
        `buffers`, and given back by this.
        """

        self.finish(room=1)
        job = gram, cross, rows if spare else None
        self._requests.start(job, [np.ascontiguousarray(one) for one in rows])

    def finish(self, room: int | None = None) -> None:
        """Add what is still to be added, or as much of it as makes room."""
        for (gram, cross, spare), found in self._requests.received(room):
            for (begin, end), tile in zip(self._tiles, found, strict=False):
                gram[begin:end, begin:] += tile
            if cross is not None:
                np.add(cross, found[-1], out=cross)
            if spare is not None:
                self._spare.append(spare)


_FOLDERS = ("../numpy.libs", ".dylibs")  # beside the package numpy: Linux and Windows, macOS
_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")

_lock = threading.Lock()
_before: list[int] = []
"""The number that was there, once for each block that runs."""


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """While the block runs, numpy's matrix products take at most so many threads, in the whole process. Blocks may run
    at the same time: the last one to end puts back what the first one found."""
    calls = _calls()
    if calls is None:
        yield
        return
    get, put = calls
    with _lock:
        found = int(get())
        _before.append(_before[0] if _before else found)
        put(min(count, found))
    try:
        yield
    finally:
        with _lock:
            found = _before.pop()
            if not _before:
                put(found)


@cache
def _calls() -> tuple[Any, Any] | None:
    """OpenBLAS's functions that tell and set the number of its threads."""
    for path in (file for folder in _FOLDERS for file in (Path(np.__file__).parent / folder).glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))  # loaded already: it is the same
        except OSError:
            continue
        for name in _NAMES:
            if hasattr(library, name.format("get")) and hasattr(library, name.format("set")):
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None


Kernels: TypeAlias = dict[tuple[int, int | None, bool], Products]
"""What sums of one thread share: compiled products by the arguments of `Products`, made when they are first needed."""


@dataclass(frozen=True, eq=False)
class Seen:
    """Gram matrices of one layer input: f32 [in, in], or [experts, in, in] where each expert has rows of its own."""

    n: int
    """Rows (tokens) seen, per expert where there are experts."""
    gram: Float32
    """Ĥ = Σ x̂ x̂ᵀ, of the input as it is behind the compressed weights."""
    drift: Float32 | None = None
    """D = Σ (x − x̂) x̂ᵀ with `x` of the float model (C − Ĥ of `quantization.gptq`); None where they are the same."""
    outputs: Float32 | None = None
    """Σ y x̂ᵀ, f32 [out, in], in its place where the layer has fewer outputs than inputs: `y = W x` in the float model,
    so it is W (D + Ĥ)."""
    left_out: bool = False
    """Whether rows were left out because they hold values that do not count (see `unfit`)."""


@dataclass(eq=False)
class GramSums:
    """Sums so far, of so many channels."""

    width: int
    kernels: Kernels
    outputs: bool = False
    """Whether outputs come beside the inputs, and not `x`."""
    _kernel: Products | None = None
    _count: int = 0
    _gram: Float32 | None = None
    _cross: Float32 | None = None
    _buffers: list[Float32] = field(default_factory=list)
    """[experts, BATCH_ROWS, …]: where rows wait."""
    _waiting: int = 0
    _left_out: bool = False

    def add(self, hat: Float32, beside: Float32 | None = None) -> None:
        """Add a window, [experts, …, in]; in every window `x` or the outputs come `beside` it, or in none. Nothing
        keeps the arrays once this returns."""
        experts, begin = len(hat), 0
        given = [one.reshape(experts, -1, one.shape[-1]) for one in (hat, beside) if one is not None]
        widths = [one.shape[-1] for one in given]
        if self._gram is None and given[0].size:
            self._gram = np.zeros((experts, self.width, self.width), np.float32)
            self._cross = None if beside is None else np.zeros((experts, widths[1], self.width), np.float32)
            if _NARROWEST <= self.width <= _WIDEST and computes_bf16():
                key = self.width, None if beside is None else widths[1], beside is not None and not self.outputs
                if key not in self.kernels:
                    self.kernels[key] = Products(*key)
                self._kernel = self.kernels[key]
        while begin < given[0].shape[1]:
            if not self._buffers and experts == 1 and self._kernel is not None:
                self._buffers = [one[None] for one in self._kernel.buffers()]
            elif not self._buffers:
                self._buffers = [np.empty((experts, BATCH_ROWS, width), np.float32) for width in widths]
            count = min(BATCH_ROWS - self._waiting, given[0].shape[1] - begin)
            for buffer, one in zip(self._buffers, given, strict=True):
                buffer[:, self._waiting : self._waiting + count] = one[:, begin : begin + count]
            self._waiting += count
            begin += count
            if self._waiting == BATCH_ROWS:
                self._multiply()

    def result(self) -> Seen:
        """What there is, once there are no more windows."""
        if self._waiting:
            self._multiply()
        if self._kernel is not None:
            self._kernel.finish()
        self._buffers = []
        gram = np.zeros((1, self.width, self.width), np.float32) if self._gram is None else self._gram
        for one in gram:
            mirror(one)
        cross = self._cross
        if len(gram) == 1:
            gram, cross = gram[0], None if cross is None else cross[0]
        drift, outputs = (None, cross) if self.outputs else (cross, None)
        return Seen(self._count, gram, drift, outputs, self._left_out)

    def _multiply(self) -> None:
        """Add the products of the rows that wait, without those that hold a value that does not count (see `unfit`)."""
        assert self._gram is not None
        pairs = [one[:, : self._waiting] for one in self._buffers]
        self._waiting = 0
        found = [bad for bad in map(unfit, pairs) if bad is not None]
        if found:
            self._left_out = True
            kept = ~np.any([bad.any(axis=0) for bad in found], axis=0)
            pairs = [one[:, kept] for one in pairs]
        count, experts = pairs[0].shape[1], len(self._gram)
        self._count += count
        whole = self._kernel is not None and count == BATCH_ROWS
        for expert, gram in enumerate(self._gram):
            rows, cross = [one[expert] for one in pairs], None if self._cross is None else self._cross[expert]
            if self._kernel is not None and whole:
                self._kernel.add(rows, gram, cross, spare=experts == 1)
            elif count:
                if self._kernel is not None:
                    self._kernel.finish()
                add_gram(gram, rows[0])
                if cross is not None:
                    other = rows[1] if self.outputs else rows[1] - rows[0]
                    for begin in range(0, len(cross), _PANEL):
                        cross[begin : begin + _PANEL] += other[:, begin : begin + _PANEL].T @ rows[0]
        if whole and experts == 1:
            self._buffers = []  # the kernel has them
        elif self._kernel is not None:
            self._kernel.finish()  # the rows of many experts are large: the same memory takes the next ones
