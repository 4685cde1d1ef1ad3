"""The whole kernel for one kind of weight: a block of groups in, codes and scales out."""

from dataclasses import dataclass

import openvino as ov
import openvino.opset13 as op

from ov_weight_compression.quantization.kernels import codes, scales, search
from ov_weight_compression.quantization.kernels.ops import Node, column, divide, parameter
from ov_weight_compression.quantization.spec import Spec

__all__ = ["Key", "build"]


@dataclass(frozen=True)
class Key:
    """What a compiled kernel depends on.

    Attributes:
        spec: format, scales' type, number of candidates; its group size does not matter.
        group: weights in a group.
        source: OpenVINO's name of the groups' element type, ``f16`` or ``f32``.
        graph: the search multiplies importance by ``|W| + rms(W)``.
        importance: the kernel has an input for it.
    """

    spec: Spec
    group: int
    source: str
    graph: bool = False
    importance: bool = False


def build(key: Key, block: int) -> ov.Model:
    """A model over ``block`` groups.

    Inputs: ``groups`` [block, g]; ``importance`` [block, g] f32; ``tensor_scale`` [1] f32; the last two only where
    used. Outputs: codes u8 (u16) [block, g], ``codes.flip_mask`` still to be applied; scales as stored [block]; for an
    asymmetric format zero points u8 [block].
    """
    spec = key.spec
    format = spec.format
    inputs = [parameter([block, key.group], key.source, "groups")]
    groups: Node = op.convert(inputs[0], "f32")
    importance = tensor_scale = None
    if key.importance:
        importance = parameter([block, key.group], "f32", "importance")
        inputs.append(importance)
    if format.tensor_scale:
        tensor_scale = parameter([1], "f32", "tensor_scale")
        inputs.append(tensor_scale)
    scale, zero_point, absmax = scales.plain(groups, format, block)
    if spec.search > 1:
        weight = search.weights(groups, absmax, key.group, importance, key.graph, format)
        scale = search.best(groups, key.group, scale, zero_point, weight, spec, tensor_scale)
    value = scales.stored_value(scale, spec, tensor_scale)
    ratio = divide(groups, column(value))
    pattern = codes.patterns(ratio, None if zero_point is None else column(zero_point), format)
    outputs = [
        op.convert(pattern, "u8" if format.bits <= 8 else "u16"),
        scales.stored_pattern(scale, value, spec, tensor_scale),
    ]
    if zero_point is not None:
        outputs.append(op.convert(zero_point, "u8"))
    return ov.Model([op.result(output) for output in outputs], inputs, f"{format.name}_{key.group}")
