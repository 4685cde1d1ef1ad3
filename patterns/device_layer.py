"""One layer cut out of a model, to see what a device makes of its weight without compiling everything else.

The layer keeps its own weight, in the chain that it is stored in; its other inputs become parameters. A weight that is
too large to be compiled just to look at is cut to fewer rows first: its constants are exchanged for smaller ones of
some numbers or other, which is all the same to a plugin that looks at types and shapes.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.ir_utils.constant_values import depends_on_constants
from ov_weight_compression.patterns import CompressedWeight, Consumer
from ov_weight_compression.patterns.experts import block_operations, tiled_block_of

_SMALLEST_ROWS = 16


def layer_kind(weight: CompressedWeight, consumer: Consumer) -> tuple[object, ...]:
    """What a plugin's decision about a weight may depend on, as far as the graph shows it; no names, no sizes."""
    zero = weight.zero_point
    return (
        consumer.node.get_type_name(),
        consumer.port,
        str(sorted(consumer.node.get_attributes().items())),
        weight.storage,
        weight.group_size,
        weight.group_axis,
        weight.scale_type,
        weight.tensor_scale is not None,
        None if zero is None else (zero.get_output_element_type(0).to_string(), prod(zero.shape) == 1),
        None if weight.table is None else weight.table.get_output_element_type(0).to_string(),
        len(weight.shape),
        tuple((node.get_type_name(), node.get_output_element_type(0).to_string()) for node in weight.chain),
        tuple(node.get_type_name() for node in weight.links_to(consumer)),
    )


def single_layer(consumer: Consumer) -> ov.Model:
    """A model of one layer and its weight; of experts in a tiled block of all the block, which is run as one. It takes
    the operations out of their model, so give it one of a clone."""
    block = tiled_block_of(consumer.node)
    end, inside = (consumer.node, {consumer.node}) if block is None else (block.end, block_operations(block))
    parameters: dict[ov.Output, ov.Node] = {}
    for node in inside:
        for port, value in enumerate(node.input_values()):
            if (
                value.get_node() in inside
                or (node == consumer.node and port == consumer.port)
                or depends_on_constants(value.get_node())
            ):
                continue
            if value not in parameters:
                parameters[value] = ops.parameter(value.get_partial_shape(), value.get_element_type())
            node.input(port).replace_source_output(parameters[value].output(0))
    model = ov.Model([ops.result(output) for output in end.outputs()], list(parameters.values()))
    model.validate_nodes_and_infer_types()
    return model


def cut_rows(weight: CompressedWeight, limit: int) -> None:
    """Cut a weight to about `limit` elements along its longest axis that no scale runs along; one that cannot be cut
    stays as it is. Changes the model."""
    plan = _plan(weight, limit)
    if plan is None:
        return
    axis, rows, parts = plan
    for part, own in parts.items():
        shape = list(part.shape)
        shape[own] = rows
        part.output(0).replace(_filled(part.get_output_element_type(0), shape).output(0))
    for node in weight.chain:
        if node.get_type_name() == "Reshape":
            target = [*weight.shape[:axis], rows, *weight.shape[axis + 1 :]]
            node.input(1).replace_source_output(ops.constant(np.array(target, dtype=np.int64)).output(0))


def _plan(weight: CompressedWeight, limit: int) -> tuple[int, int, dict[Any, int]] | None:
    """The axis to cut, how many of it to keep, and the axis of each constant that has to be cut with it."""
    rearranged = any(
        node.get_type_name() != "Convert" for use in weight.consumers for node in weight.links_to(use)
    ) or any(node.get_type_name() == "Reshape" for node in weight.chain[:-1])
    if weight.elements <= limit or rearranged or tuple(weight.codes.shape) != weight.code_shape:
        return None
    free = [
        axis
        for axis in range(len(weight.shape))
        if axis not in weight.reduction_axes and axis != weight.group_axis and (axis > 0 or len(weight.shape) == 2)
    ]
    if not free:
        return None
    axis = max(free, key=lambda one: weight.shape[one])
    size = weight.shape[axis]
    rows = max(_SMALLEST_ROWS, limit * size // weight.elements // _SMALLEST_ROWS * _SMALLEST_ROWS)
    if rows >= size:
        return None
    place = axis + (weight.group_axis is not None and axis > weight.group_axis) - len(weight.code_shape)
    parts = {}
    for part in weight.constants:
        own = place + len(part.shape)
        if part is not weight.table and own >= 0 and part.shape[own] != 1:
            parts[part] = own
    return axis, rows, parts


def _filled(kind: ov.Type, shape: list[int]) -> ov.Node:
    """A constant of small positive numbers that are neither 0 nor 1, nor all equal: plugins drop such operations."""
    tensor = ov.Tensor(kind, ov.Shape(shape))
    data = tensor.data.reshape(-1).view(np.uint8)
    data[:] = np.resize(np.arange(0x31, 0x3C, dtype=np.uint8), data.size)
    return ov.op.Constant(tensor)
