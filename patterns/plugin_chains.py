"""Whether a plugin that is not here would run a weight from its codes: its patterns, walked link by link.

    GPU   Convert ─ [Subtract] ─ Multiply ─ [Reshape 3→2, 4→3] ─ [Convert | Multiply | Transpose] ─ MatMul
          codes u8 i8 u4 i4 f8e4m3 f8e5m2; with a Subtract the scale is a bare Constant, without one a Convert may stand
          before it; a scale that is itself a product does not match
          experts: in a tiled block or a GroupedMatMul, from integers; fused where all are u4 with zero points of u4,
          f16 scales and a last Convert to f32
    NPU   Convert ─ Multiply ─ Reshape ─ [Convert] ─ MatMul       groups: i4 i8
          Convert ─ [Subtract] ─ Multiply ─ [Convert] ─ MatMul    per channel, [out, in]: i4 i8 nf4 f8, or u4 u8 with
                                                                  zero points and f16 scales
          (it takes u4 in groups with zero points into a pattern too, and its compiler then fails)

Read from OpenVINO's sources (intel_gpu: transformations/compressed_weights_pattern.hpp, convert_moe_to_compressed.cpp;
intel_npu: npuw/partitioning/patterns/compute.cpp, opt.cpp), not run: what a plugin does before and after these patterns
is not seen. A last Convert behind a chain without Reshape is none for the GPU, which computes in f16 and drops it.
"""

from __future__ import annotations

from collections.abc import Callable

import openvino as ov

from ov_weight_compression.patterns.compressed import CompressedWeight
from ov_weight_compression.patterns.experts import tiled_block_of
from ov_weight_compression.patterns.graphs import is_constant
from ov_weight_compression.patterns.roles import Kind
from ov_weight_compression.patterns.weight import Consumer

__all__ = ["PATTERNS", "unmatched"]

_INTEGERS = frozenset({"u8", "i8", "u4", "i4"})
_GPU_MATMUL = _INTEGERS | {"f8e4m3", "f8e5m2"}
_NPU_GROUPS = frozenset({"i4", "i8"})
_NPU_CHANNELS = _NPU_GROUPS | {"nf4", "f8e4m3", "f8e5m2"}


def unmatched(weight: CompressedWeight, consumer: Consumer, device: str) -> str | None:
    """Why none of a device's patterns takes a weight in one of its layers; None where one does.

    Args:
        weight: as `find_compressed` finds it.
        consumer: one of its layers.
        device: `GPU` or `NPU`.
    """
    return PATTERNS[device](weight, consumer)


def _gpu(weight: CompressedWeight, consumer: Consumer) -> str | None:
    if consumer.kind is Kind.CONVOLUTION:
        return None if _is_pointwise(consumer) else "convolutions of more than one tap read floats"
    if weight.table is not None:
        return "no pattern for a codebook"
    if (
        consumer.kind is Kind.EXPERTS
        and consumer.node.get_type_name() == "MatMul"
        and tiled_block_of(consumer.node) is None
    ):
        return "these experts are in no tiled block that is gathered"
    known = _INTEGERS if consumer.kind in (Kind.GATHER, Kind.EXPERTS) else _GPU_MATMUL
    if weight.storage not in known:
        return f"no kernel reads {weight.storage} ({', '.join(sorted(known))} are read)"
    if consumer.kind is not Kind.GATHER and consumer.port == 0:
        return "the weight is the first input"
    return _gpu_chain(_links(weight, consumer), weight)


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
    if consumer.kind is Kind.CONVOLUTION:
        return None if weight.storage in ("i4", "i8") else "of convolutions only i4 and i8 are read"
    if weight.table is not None and consumer.kind is not Kind.GATHER:
        return "a codebook is read in embeddings only"
    if consumer.kind is Kind.GATHER:
        return None if weight.storage in (*_INTEGERS, "nf4", "f8e4m3") else f"no pattern lifts {weight.storage}"
    if consumer.kind is Kind.EXPERTS:
        return None if weight.storage in _INTEGERS else f"no pattern for experts in {weight.storage}"
    if consumer.port == 0:
        return "the weight is the first input"
    if weight.group_size == -1 and not consumer.node.get_attributes().get("transpose_b"):
        return "per channel it reads weights [out, in] alone"
    return _npu_chain(_links(weight, consumer), weight)


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


def _is_pointwise(consumer: Consumer) -> bool:
    shape = consumer.node.get_input_partial_shape(1)
    return shape.is_static and all(size == 1 for size in list(shape.to_shape())[-2:])


def _links(weight: CompressedWeight, consumer: Consumer) -> list[ov.Node]:
    """The operations from the codes' Convert to the layer."""
    found: list[ov.Node] = []
    node = consumer.node.input_value(consumer.port).get_node()
    while node != weight.last:
        found.append(node)
        node = node.input_value(0).get_node()
    return [*weight.chain, *reversed(found)]


def _other(node: ov.Node) -> ov.Output:
    """The operand that does not come from the codes."""
    return node.input_value(1)


def _is_constant_or_converted(value: ov.Output) -> bool:
    node = value.get_node()
    return is_constant(node) or (node.get_type_name() == "Convert" and is_constant(node.input_value(0).get_node()))


PATTERNS: dict[str, Callable[[CompressedWeight, Consumer], str | None]] = {"GPU": _gpu, "NPU": _npu}
