"""Products of activations in bf16, several times as fast as in f32 where the CPU computes them (AVX512_BF16, AMX).

    x [n, in] ─▸ Σ x xᵀ      in tiles of the upper half     each row rounded to 8 bits of mantissa, sums in f32
    x̂, x      ─▸ Σ (x − x̂) x̂ᵀ       the difference is taken in f32

Rounding moves an element by at most one part in 256 of itself, and at random: to a Gram matrix that is a ridge of less
than a hundred-thousandth of its diagonal, where GPTQ adds a tenth. Of the products of two streams' activations only the
distance to the Gram matrix counts, which would drown in the rounding of the two; so that is what is computed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ov_weight_compression.ir_utils.types import Float32

BATCH_ROWS = 1024
"""Rows that are multiplied at a time."""
_TILE = 512
_NARROWEST, _WIDEST = 256, 4096
"""Channels: with fewer BLAS is as fast, with more the tiles would take as much memory again as the matrix."""


@cache
def computes_bf16() -> bool:
    """Whether this CPU multiplies in bf16 by itself."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Kernels:
    """The products of some numbers of channels, compiled when they are first asked for."""

    def __init__(self) -> None:
        self._found: dict[int, Products] = {}

    def of(self, width: int) -> Products | None:
        """What multiplies activations of so many channels; None where BLAS does it better."""
        if not (_NARROWEST <= width <= _WIDEST and computes_bf16()):
            return None
        if width not in self._found:
            self._found[width] = Products(width)
        return self._found[width]


class Products:
    """Compiled products for one number of channels. Not for several threads at once."""

    def __init__(self, width: int) -> None:
        size = -(-width // -(-width // _TILE))
        self._tiles = [(begin, min(begin + size, width)) for begin in range(0, width, size)]
        self._gram = _compiled(_gram_model(width, self._tiles))
        self._drift: ov.InferRequest | None = None
        self._width = width

    def add_gram(self, total: Float32, x: Float32) -> Float32:
        """Add Σ x xᵀ of the first rows of `x [n, in]`, the upper tiles only; returns the rows that are left."""
        whole = len(x) // BATCH_ROWS * BATCH_ROWS
        for start in range(0, whole, BATCH_ROWS):
            rows = np.ascontiguousarray(x[start : start + BATCH_ROWS])
            self._gram.infer({0: rows}, share_inputs=True, share_outputs=True)
            for number, (begin, end) in enumerate(self._tiles):
                total[begin:end, begin:] += self._gram.get_output_tensor(number).data
        return x[whole:]

    def add_drift(self, total: Float32, x: Float32, hat: Float32) -> tuple[Float32, Float32]:
        """Add Σ (x − x̂) x̂ᵀ of the first rows of `x` and `hat` [n, in]; returns the rows that are left."""
        if self._drift is None:
            self._drift = _compiled(_drift_model(self._width))
        whole = len(x) // BATCH_ROWS * BATCH_ROWS
        for start in range(0, whole, BATCH_ROWS):
            span = slice(start, start + BATCH_ROWS)
            rows = {0: np.ascontiguousarray(x[span]), 1: np.ascontiguousarray(hat[span])}
            self._drift.infer(rows, share_inputs=True, share_outputs=True)
            total += self._drift.get_output_tensor(0).data
        return x[whole:], hat[whole:]


def _gram_model(width: int, tiles: list[tuple[int, int]]) -> ov.Model:
    x = ops.parameter([BATCH_ROWS, width], np.float32)
    results = []
    for begin, end in tiles:
        right = ops.slice(x, [begin], [width], [1], [1])
        results.append(ops.result(ops.matmul(ops.slice(x, [begin], [end], [1], [1]), right, True, False)))
    return ov.Model(results, [x])


def _drift_model(width: int) -> ov.Model:
    x, hat = (ops.parameter([BATCH_ROWS, width], np.float32) for _ in range(2))
    return ov.Model([ops.result(ops.matmul(ops.subtract(x, hat), hat, True, False))], [x, hat])


def _compiled(model: ov.Model) -> ov.InferRequest:
    config = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(model, "CPU", config).create_infer_request()
