"""Weighted sums of squares of a weight's rows: how large a layer's outputs are, as far as its weight tells.

    rows of W [n, in], weights c [in]      s_i = Σ_j c_j W_ij²

A small compiled OpenVINO model reads half-precision rows several times faster than numpy converts them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.ir_utils.file_mappings import FileRows
from ov_weight_compression.ir_utils.types import Array, Float32

_BLOCK_ELEMENTS = 1 << 18
_COMPILE_FROM = 1 << 20
"""Elements below which numpy is done before a model is compiled."""


def row_sums(values: Array | FileRows, weights: Float32) -> Float32:
    """[n] f32 for `values` [n, in] of f16 or f32, which may lie in a file still, and `weights` [in]. Not for several
    threads at once."""
    rows, columns = values.shape
    if values.size < _COMPILE_FROM or values.dtype != np.float16:
        squares = np.square(np.asarray(values).astype(np.float32))
        return np.asarray(squares @ weights, dtype=np.float32)
    block = max(1, _BLOCK_ELEMENTS // columns)
    request = _request(block, columns)
    request.get_tensor("weights").data[:] = weights
    target = request.get_tensor("values").data
    sums = np.empty(rows, dtype=np.float32)
    for start in range(0, rows, block):
        size = min(block, rows - start)
        part = values[start : start + size]
        if isinstance(part, FileRows):
            part.read_into(target[:size])
        else:
            target[:size] = part
        request.infer()
        sums[start : start + size] = request.output_tensors[0].data[:size]
    return sums


@lru_cache(maxsize=32)
def _request(block: int, columns: int) -> ov.InferRequest:
    values = ops.parameter([block, columns], ov.Type.f16, name="values")
    weights = ops.parameter([columns], ov.Type.f32, name="weights")
    for node in (values, weights):
        node.output(0).set_names({node.get_friendly_name()})
    wide = ops.convert(values, ov.Type.f32)
    sums = ops.reduce_sum(ops.multiply(ops.multiply(wide, wide), weights), np.array([1]), keep_dims=False)
    model = ov.Model([ops.result(sums)], [values, weights])
    config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    return ov.Core().compile_model(model, "CPU", config).create_infer_request()
