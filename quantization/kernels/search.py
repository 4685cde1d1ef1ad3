"""``quantization.search`` as a graph: candidates are one more axis, so that one pass of few operations tries them
all."""

import numpy as np
import openvino.opset13 as op

from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.kernels import codes, scales
from ov_weight_compression.quantization.kernels.ops import Node, column, constant, divide, rint, unsqueeze
from ov_weight_compression.quantization.search import MARGIN, candidate_factors, reach, summand_limit
from ov_weight_compression.quantization.spec import Spec

__all__ = ["best", "weights"]


def weights(groups: Node, absmax: Node, group: int, importance: Node | None, graph: bool, format: Format) -> Node:
    """[n, g] weights of the elements' errors (``search.group_weights``); ``absmax`` is [n]."""
    result = importance
    if graph:
        fraction = column(divide(constant(1024), op.maximum(absmax, constant(2.0**-100))))
        magnitude = rint(op.multiply(op.abs(groups), fraction))
        unit = 2.0 ** -max(0, int(np.ceil(np.log2(group))) - 4)
        squares = rint(op.multiply(op.multiply(magnitude, magnitude), constant(unit)))
        mean = divide(op.reduce_sum(squares, [1], keep_dims=False), constant(np.float32(group) * unit))
        shaped = op.add(magnitude, column(op.sqrt(mean)))
        result = shaped if result is None else op.multiply(result, shaped)
    limit = np.float32(summand_limit(group) / reach(format) ** 2)
    if result is None:
        return constant([[limit]])
    largest = op.maximum(op.reduce_max(result, [1], keep_dims=False), constant(2.0**-60))
    return op.multiply(result, column(divide(constant(limit), largest)))


def best(
    groups: Node, group: int, scale: Node, zero_point: Node | None, weight: Node, spec: Spec, tensor_scale: Node | None
) -> Node:
    """[n] unrounded scale of each group's best candidate (``search.best_scales``)."""
    factors = candidate_factors(spec)
    count = len(factors)
    # Rounded as [count, n], so that vectors run along the long axis, then turned round: they are few.
    candidates = op.multiply(unsqueeze(scale, 0), constant(factors[:, None]))
    values = _turned(scales.stored_value(candidates, spec, tensor_scale))  # [n, count]
    bounds = None
    if zero_point is not None:
        lowest = unsqueeze(column(op.negative(zero_point)), 2)
        bounds = (lowest, op.add(lowest, constant(spec.format.high)))
    ratio = op.multiply(unsqueeze(groups, 1), unsqueeze(divide(constant(1), values), 2))  # [n, count, g]
    apart = codes.distance(ratio, bounds, spec.format)
    summands = op.multiply(op.multiply(apart, apart), unsqueeze(weight, 1))
    summands = rint(op.minimum(summands, constant(summand_limit(group))))
    relative = divide(values, column(scales.stored_value(scale, spec, tensor_scale)))
    errors = op.multiply(op.multiply(op.reduce_sum(summands, [2], keep_dims=False), relative), relative)
    errors = op.multiply(errors, constant(np.where(np.arange(count) == 0, 1, MARGIN)[None]))
    order = constant(np.arange(count)[None])
    least = op.reduce_min(errors, [1], keep_dims=True)
    place = op.reduce_min(op.select(op.less_equal(errors, least), order, constant(count)), [1], keep_dims=True)
    return op.reduce_sum(op.select(op.equal(order, place), _turned(candidates), constant(0)), [1], keep_dims=False)


def _turned(x: Node) -> Node:
    return op.transpose(x, op.constant(np.array([1, 0], dtype=np.int64)))
