"""Matrix products beside a model that runs: how many threads they take, and which are done in bf16.

Products of activations in bf16 are several times as fast as in f32 where the CPU computes them (AVX512_BF16, AMX).

    x [n, in] ─▸ Σ x xᵀ      in tiles of the upper half     each row rounded to 8 bits of mantissa, sums in f32
    x̂, x      ─▸ Σ (x − x̂) x̂ᵀ       the difference is taken in f32
    x̂, y      ─▸ Σ y x̂ᵀ             y [n, out] what the layer makes of x

Rounding moves an element by at most one part in 256 of itself, and at random: to a Gram matrix that is a ridge of less
than a hundred-thousandth of its diagonal, where GPTQ adds a tenth. Of the products of two streams' activations only the
distance to the Gram matrix counts, which would drown in the rounding of the two; so that is what is computed.

**Threads.** Where numpy has an OpenBLAS of its own (its wheels do) it can be told in how many it multiplies. Threads of
OpenBLAS wait for work by spinning. Beside a thread that runs a model they take the processors from it, and what they
gain is less. There is no call of numpy's for this, so the library's own is called; any other BLAS stays as it is: the
same numbers, only later.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ov_weight_compression.calibration.runner import Requests, computes_bf16
from ov_weight_compression.ir_utils.types import Float32

BATCH_ROWS = 1024
"""Rows that are multiplied at a time."""
_TILE = 512
_NARROWEST, _WIDEST = 256, 4096
"""Channels: with fewer BLAS is as fast, with more the tiles would take as much memory again as the matrix."""


class Kernels:
    """Products of activations, compiled when they are first asked for. Not for several threads at once."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int | None, bool], Products] = {}

    def of(self, width: int, beside: int | None = None, *, drift: bool = False) -> Products | None:
        """Those of so many channels, and of so many `beside` them; None where BLAS does it better. `drift` as in
        `Products`."""
        if not (_NARROWEST <= width <= _WIDEST and computes_bf16()):
            return None
        key = (width, beside, drift)
        if key not in self._found:
            self._found[key] = Products(*key)
        return self._found[key]


class Products:
    """Compiled products for some numbers of channels."""

    def __init__(self, width: int, beside: int | None = None, drift: bool = False) -> None:
        """Of x̂ with so many channels, and where there is something beside it, with so many, that one times x̂: with
        `drift` its distance to x̂."""
        size = -(-width // -(-width // _TILE))
        self._tiles = [(begin, min(begin + size, width)) for begin in range(0, width, size)]
        model = _model(width, self._tiles, beside, drift)
        self._requests = Requests(model, {"INFERENCE_PRECISION_HINT": "bf16"}, side_by_side=2)
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


def _model(width: int, tiles: list[tuple[int, int]], beside: int | None, drift: bool) -> ov.Model:
    hat, other = (ops.parameter([BATCH_ROWS, size], np.float32) for size in (width, beside or width))
    found = []
    for begin, end in tiles:
        right = ops.slice(hat, [begin], [width], [1], [1])
        found.append(ops.matmul(ops.slice(hat, [begin], [end], [1], [1]), right, True, False))
    if beside is not None:
        found.append(ops.matmul(ops.subtract(other, hat) if drift else other, hat, True, False))
    return ov.Model([ops.result(one) for one in found], [hat] if beside is None else [hat, other])


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
