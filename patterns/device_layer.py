"""What a device makes of one layer: cut out to be compiled alone, or walked by the patterns of a plugin that is not
here.

**Cut out.** The layer keeps its own weight, in the chain that it is stored in; its other inputs become parameters. A
weight that is too large to be compiled just to look at is cut to fewer rows first: its constants are exchanged for
smaller ones of some numbers or other, which is all the same to a plugin that looks at types and shapes.

**Patterns**, walked link by link, say whether a plugin that is not here would run a weight from its codes.

    GPU   Convert ─ [Subtract] ─ Multiply ─ [Reshape 3→2, 4→3] ─ [Convert | Multiply | Transpose] ─ MatMul
          codes u8 i8 u4 i4 f8e4m3 f8e5m2; with a Subtract the scale is a bare Constant, without one a Convert may stand
          before it; a scale that is itself a product does not match
          experts: in a tiled block or a GroupedMatMul, from integers; fused where all are u4 with zero points of u4,
          f16 scales and a last Convert to f32
          Transpose | Reshape ─ Convolution of one tap ─ [Add] ─ [Convert] ─ Transpose | Reshape     as a MatMul
    NPU   Convert ─ Multiply ─ Reshape ─ [Convert] ─ MatMul       groups: i4 i8
          Convert ─ [Subtract] ─ Multiply ─ [Convert] ─ MatMul    per channel, [out, in]: i4 i8 nf4 f8, or u4 u8 with
                                                                  zero points and f16 scales
          (it takes u4 in groups with zero points into a pattern too, and its compiler then fails)
          Convert ─ Multiply ─ Convert ─ MatMul                   experts, in a tiled block: one scale a channel alone
          Convert ─ [Multiply ─ [Reshape]] ─ Convert ─ Gather     of the model's own ids; with a Subtract per channel
          Transpose ─ Convolution ─ Transpose                     i4 i8

Read from OpenVINO's sources (intel_gpu: transformations/compressed_weights_pattern.hpp, convert_moe_to_compressed.cpp,
convert_weight_compressed_conv1x1_to_matmul.cpp; intel_npu: npuw/partitioning/patterns/compute.cpp, opt.cpp, moe.cpp),
not run: what a plugin does before and after these patterns is not seen. A last Convert behind a chain without Reshape
is none for the GPU, which computes in f16 and drops it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.ir_utils.constant_values import depends_on_constants
from ov_weight_compression.patterns.compressed import CompressedWeight
from ov_weight_compression.patterns.experts import block_operations, tiled_block_of
from ov_weight_compression.patterns.graphs import is_constant
from ov_weight_compression.patterns.roles import Consumer, Kind

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


_INTEGERS = frozenset({"u8", "i8", "u4", "i4"})
_GPU_MATMUL = _INTEGERS | {"f8e4m3", "f8e5m2"}
_NPU_GROUPS = frozenset({"i4", "i8"})
_NPU_CHANNELS = _NPU_GROUPS | {"nf4", "f8e4m3", "f8e5m2"}
_NPU_EMBEDDINGS = (
    ["Convert"],
    ["Convert", "Multiply"],
    ["Convert", "Multiply", "Convert"],
    ["Convert", "Subtract", "Multiply", "Convert"],
    ["Convert", "Multiply", "Reshape", "Convert"],
)
_NPU_WIDE = 2048
"""Channels from which on the host multiplies an embedding out."""


def _gpu(weight: CompressedWeight, consumer: Consumer) -> str | None:
    if consumer.role.kind is Kind.CONVOLUTION:
        return _gpu_convolution(weight, consumer)
    if weight.table is not None:
        return "no pattern for a codebook"
    if (
        consumer.role.kind is Kind.EXPERTS
        and consumer.node.get_type_name() == "MatMul"
        and tiled_block_of(consumer.node) is None
    ):
        return "these experts are in no tiled block that is gathered"
    known = _INTEGERS if consumer.role.kind in (Kind.GATHER, Kind.EXPERTS) else _GPU_MATMUL
    if weight.storage not in known:
        return f"no kernel reads {weight.storage} ({', '.join(sorted(known))} are read)"
    if consumer.role.kind is not Kind.GATHER and consumer.port == 0:
        return "the weight is the first input"
    return _gpu_chain([*weight.chain, *weight.links_to(consumer)], weight)


def _gpu_convolution(weight: CompressedWeight, consumer: Consumer) -> str | None:
    shape = consumer.node.get_input_partial_shape(1)
    if not (shape.is_static and len(shape) == 4 and all(size == 1 for size in list(shape.to_shape())[2:])):
        return "convolutions of more than one tap read floats"
    if not _is_moved(consumer.node, frozenset({"Transpose", "Reshape"}), ["Add", "Convert"]):
        return "a convolution is run as a MatMul only between two Transposes or Reshapes"
    kinds = [node.get_type_name() for node in weight.chain]
    if kinds not in (["Convert", "Multiply"], ["Convert", "Subtract", "Multiply"]):
        return f"the chain of a convolution is {' → '.join(kinds)}"
    return None


def _gpu_chain(links: list[ov.Node], weight: CompressedWeight) -> str | None:
    kinds = [node.get_type_name() for node in links]
    subtracts = "Subtract" in kinds
    expected = ["Convert", "Subtract", "Multiply"] if subtracts else ["Convert", "Multiply"]
    if kinds[: len(expected)] != expected:
        return f"the chain begins with {' → '.join(kinds[: len(expected)])}"
    if subtracts and not _is_constant_or_converted(_other(links[1])):
        return "the zero point is more than a constant behind one Convert"
    scale = _other(links[len(expected) - 1])
    if subtracts and not is_constant(scale.get_node()):
        return "beside a zero point the scale must be a constant itself, with nothing between"
    if not _is_constant_or_converted(scale):
        return "the scale is a product"
    rest = kinds[len(expected) :]
    if rest[:1] == ["Reshape"]:
        reshape = links[len(expected)]
        ranks = len(reshape.get_input_partial_shape(0)), len(reshape.get_output_partial_shape(0))
        if ranks not in ((3, 2), (4, 3)):
            return f"the Reshape turns {ranks[0]} dimensions into {ranks[1]}"
        rest = rest[1:]
    if rest not in ([], ["Convert"], ["Multiply"], ["Transpose"]):
        return f"behind the scale follows {' → '.join(rest)}"
    return None


def _npu(weight: CompressedWeight, consumer: Consumer) -> str | None:
    if consumer.role.kind is Kind.CONVOLUTION:
        if weight.storage not in _NPU_GROUPS:
            return "of convolutions only i4 and i8 are read"
        between = _is_moved(consumer.node, frozenset({"Transpose"}), [])
        return None if between else "a convolution is read only between two Transposes"
    if consumer.role.kind is Kind.GATHER:
        return _npu_embedding(weight, consumer)
    if weight.table is not None:
        return "a codebook is read in embeddings only"
    if consumer.role.kind is Kind.EXPERTS:
        return _npu_experts(weight, consumer)
    if consumer.port == 0:
        return "the weight is the first input"
    if weight.group_size == -1 and not consumer.node.get_attributes().get("transpose_b"):
        return "per channel it reads weights [out, in] alone"
    return _npu_chain([*weight.chain, *weight.links_to(consumer)], weight)


def _npu_experts(weight: CompressedWeight, consumer: Consumer) -> str | None:
    if weight.storage not in _NPU_GROUPS:
        return f"no pattern for experts in {weight.storage}"
    if consumer.node.get_type_name() != "MatMul" or tiled_block_of(consumer.node) is None:
        return "these experts are in no tiled block that it knows"
    kinds = [node.get_type_name() for node in [*weight.chain, *weight.links_to(consumer)]]
    if kinds != ["Convert", "Multiply", "Convert"]:
        return "experts are chosen from among those with one scale a channel alone: all of these would be computed"
    return None


def _npu_embedding(weight: CompressedWeight, consumer: Consumer) -> str | None:
    """What is read on the host; the codes' own type does not matter where they are multiplied out there."""
    ids = consumer.node.input_value(1).get_node()
    ids = ids.input_value(0).get_node() if ids.get_type_name() == "Convert" else ids
    if ids.get_type_name() != "Parameter":
        return "an embedding is read only by the model's own input of ids"
    if weight.table is not None:
        wide = weight.storage == "u4" and weight.shape[-1] >= _NPU_WIDE
        return None if wide else f"a codebook is read in embeddings of u4 with {_NPU_WIDE} channels and more"
    links = [*weight.chain, *weight.links_to(consumer)]
    kinds = [node.get_type_name() for node in links]
    if weight.storage not in (*_INTEGERS, *_NPU_CHANNELS):
        return f"no pattern lifts {weight.storage}"
    if kinds not in _NPU_EMBEDDINGS:
        groups = "Subtract" in kinds and "Reshape" in kinds
        return "no pattern lifts groups with zero points" if groups else f"the chain is {' → '.join(kinds)}"
    for node in links:
        if node.get_type_name() == "Multiply" and not is_constant(_other(node).get_node()):
            return "something stands between the scale and its Multiply"
    return None


def _npu_chain(links: list[ov.Node], weight: CompressedWeight) -> str | None:
    kinds = [node.get_type_name() for node in links]
    grouped = "Reshape" in kinds
    if "Subtract" in kinds:
        if grouped:
            return "groups with zero points match a pattern and fail in its compiler"
        if weight.storage not in ("u4", "u8") or weight.scale_type != "f16":
            return (
                f"{weight.storage} with a zero point and {weight.scale_type} scales: u4 or u8 with f16 scales is read"
            )
        expected = [["Convert", "Subtract", "Multiply"], ["Convert", "Subtract", "Multiply", "Convert"]]
    elif weight.storage not in (_NPU_GROUPS if grouped else _NPU_CHANNELS):
        return f"no pattern for {weight.storage} {'in groups' if grouped else 'per channel'}"
    elif grouped:
        expected = [["Convert", "Multiply", "Reshape"], ["Convert", "Multiply", "Reshape", "Convert"]]
    else:
        expected = [["Convert", "Multiply"], ["Convert", "Multiply", "Convert"]]
    if kinds not in expected:
        return f"the chain is {' → '.join(kinds)}, and {' → '.join(expected[-1])} is read"
    if not is_constant(_other(links[kinds.index("Multiply")]).get_node()):
        return "something stands between the scale and its Multiply"
    return None


def _is_moved(layer: ov.Node, moves: frozenset[str], between: list[str]) -> bool:
    """Whether the channels of a convolution are moved by constant orders before it and after it, with nothing but
    operations of these types, in their order, behind it."""
    source = layer.input_value(0).get_node()
    if source.get_type_name() not in moves or not is_constant(source.input_value(1).get_node()):
        return False
    allowed = list(between)
    node = layer
    while len(readers := [target.get_node() for target in node.output(0).get_target_inputs()]) == 1:
        node = readers[0]
        kind = node.get_type_name()
        if kind in moves:
            return is_constant(node.input_value(1).get_node())
        if kind not in allowed:
            return False
        del allowed[: allowed.index(kind) + 1]
    return False


def _other(node: ov.Node) -> ov.Output:
    """The operand that does not come from the codes."""
    return node.input_value(1)


def _is_constant_or_converted(value: ov.Output) -> bool:
    node = value.get_node()
    return is_constant(node) or (node.get_type_name() == "Convert" and is_constant(node.input_value(0).get_node()))


PATTERNS: dict[str, Callable[[CompressedWeight, Consumer], str | None]] = {"GPU": _gpu, "NPU": _npu}
"""By device: why none of its patterns takes a weight in one of its layers; None where one does."""
