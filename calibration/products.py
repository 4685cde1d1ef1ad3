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

from ov_weight_compression.calibration.inference import Requests
from ov_weight_compression.ir_utils.types import Float32

BATCH_ROWS = 1024
"""Rows that are multiplied at a time."""
_TILE = 512
_BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
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
        self._width = width
        self._requests: dict[bool, Requests] = {}

    def add(self, gram: Float32, hat: Float32, drift: Float32 | None = None, x: Float32 | None = None) -> None:
        """Add Σ x̂ x̂ᵀ to `gram`, its upper tiles only, and Σ (x − x̂) x̂ᵀ to `drift`: at once, later, or with `finish`.

        `hat` and `x` are `[BATCH_ROWS, in]`, not to be changed before `STREAMS` more have been added.
        """

        def receive(request: ov.InferRequest) -> None:
            for number, (begin, end) in enumerate(self._tiles):
                gram[begin:end, begin:] += request.get_output_tensor(number).data
            if drift is not None:
                np.add(drift, request.get_output_tensor(len(self._tiles)).data, out=drift)

        pair = x is not None
        if pair not in self._requests:
            self._requests[pair] = Requests(_model(self._width, self._tiles, pair), _BF16, waiting=0)
        rows = [np.ascontiguousarray(one) for one in (hat, x) if one is not None]
        self._requests[pair].start(rows, receive)

    def finish(self) -> None:
        """Add what is still to be added."""
        for requests in self._requests.values():
            requests.finish()


def _model(width: int, tiles: list[tuple[int, int]], pair: bool) -> ov.Model:
    hat, x = (ops.parameter([BATCH_ROWS, width], np.float32) for _ in range(2))
    found = []
    for begin, end in tiles:
        right = ops.slice(hat, [begin], [width], [1], [1])
        found.append(ops.matmul(ops.slice(hat, [begin], [end], [1], [1]), right, True, False))
    if pair:
        found.append(ops.matmul(ops.subtract(x, hat), hat, True, False))
    return ov.Model([ops.result(one) for one in found], [hat, x] if pair else [hat])
