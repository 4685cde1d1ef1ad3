"""The subgraph that stands for a float weight: low-bit codes and what turns them back into numbers.

    codes ─ Convert ─ [Subtract ◂─ Convert ◂─ zero point] ─ Multiply ◂─ scale ─ [Reshape] ─ [Convert] ─▸ consumers

    scale of mx formats:  f8e8m0 ─ Convert
    scale of nvfp4:       f8e4m3 ─ Convert(f32) ─ Multiply ◂─ f32 scalar ─ Convert
    codebooks:            codes ─ Convert(i32) ─▸ Gather(table, ·, 0) ─ [Convert] ─ Multiply ◂─ scale …

The operations carry the mark with which OpenVINO protects its own decompression chains from constant folding, so that a
`ConstantFolding` pass run later does not undo the compression. `compile_model` still recognises the chain, and the mark
is not written to the IR. Three exceptions, each for a plugin's sake (seen with OpenVINO 2026.4):

- the constants themselves stay unmarked: plugins change their types (f16 to f32), and can do so only with constants
  that they were allowed to fold from postponed ones;
- what leads to the scale stays unmarked: the CPU plugin wants to fold f8e8m0 and f8e4m3 scales;
- what the CPU plugin does not execute (u3, f8, codebooks; any convolution; embeddings in nf4, fp4 and u2) gets the mark
  on the first Convert and the scale's alone, together with the mark of a decompression: the plugin takes both off and
  folds the chain, which it could not run at all, or only anew at every inference. (A scale that is folded to f32
  beforehand would make `ov.save_model` write an IR that cannot be read.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from ov_weight_compression.ir_utils.types import sizes_of

EXPANDED_STORAGE = frozenset({"u1", "u3", "u6", "f8e4m3", "f8e5m2"})
"""Storage types that the CPU folds to floats in every layer."""

_FOLDING_MARK = "DisableConstantFolding_0"
_DECOMPRESSION_MARK = "decompression_0"
_FACTORY = NodeFactory("opset13")
"""Makes nodes in a third of the time that the functions of the opset take, which look at their arguments first."""


@dataclass(frozen=True)
class ChainParts:
    """The constants of one weight's chain, as nodes (plain or postponed), with their shapes already in place.

    `zero_point` is of the codes' type, or one i8 scalar; `scale` is f16, f32, f8e8m0 or f8e4m3; `tensor_scale` is the
    f32 scalar of a two-level scale; `table` is the codebook that `codes` index.
    """

    codes: Any
    scale: Any
    zero_point: Any = None
    tensor_scale: Any = None
    table: Any = None


def build_dequantization(
    parts: ChainParts,
    name: str,
    shape: tuple[int, ...],
    *,
    expanded: bool = False,
    wide: bool = False,
    kept_from_codes: bool = False,
) -> Any:
    """Build the chain and return its last node, of the weight's `shape`; f32 where the scale is or the plugin folds
    the chain (so that the folded values are not rounded to f16 on the way), else f16.

    Args:
        parts: the constants.
        name: the weight's name.
        shape: the weight's shape.
        expanded: the layer is one for which the CPU plugin folds the chain whatever the codes are.
        wide: compute in f32 in any case: the scales are beyond f16 though they are not stored as f32.
        kept_from_codes: the CPU plugin would misread the codes: the chain is multiplied by a one,
            or by the tensor's scale where there is one, which it does not recognise and so folds to floats, when it
            reads the chain from a file too.

    The codes keep the weight's `name`, so whoever looks for the weight finds it; the other nodes' names derive from it.
    """
    kind = parts.codes.get_output_element_type(0).get_type_name()
    folded = expanded or kept_from_codes or parts.table is not None or kind in EXPANDED_STORAGE
    wide = wide or folded or parts.scale.get_output_element_type(0) == ov.Type.f32
    arithmetic = ov.Type.f32 if wide else ov.Type.f16
    operations: dict[str, Any] = {}  # by what follows the weight's name in theirs
    scales: dict[str, Any] = {}  # what leads to the scale, likewise
    if parts.table is None:
        operations["convert"] = value = _convert(parts.codes, arithmetic)
    else:
        table = parts.table
        operations["indices"] = indices = _convert(parts.codes, ov.Type.i32)
        operations["table/axis"] = axis = ops.constant(np.array(0, dtype=np.int32))
        if table.get_output_element_type(0) != arithmetic:
            operations["table/convert"] = table = _convert(table, arithmetic)
        operations["gather"] = value = ops.gather(table, indices, axis)
    if parts.zero_point is not None:
        operations["zero_point/convert"] = zero = _convert(parts.zero_point, arithmetic)
        operations["subtract"] = value = ops.subtract(value, zero)
    scale, apart = parts.scale, kept_from_codes and parts.tensor_scale is not None
    if parts.tensor_scale is not None and not apart:
        scales["scale/convert"] = in_f32 = _convert(scale, ov.Type.f32)
        scales["scale/multiply"] = scale = ops.multiply(in_f32, parts.tensor_scale)
    if scale.get_output_element_type(0) != arithmetic:
        scales["scale/as_arithmetic"] = scale = _convert(scale, arithmetic)
    operations["multiply"] = value = _FACTORY.create("Multiply", [value, scale])
    if apart:
        operations["tensor_scale/multiply"] = value = ops.multiply(value, parts.tensor_scale)
    elif kept_from_codes:
        operations["one"] = value = ops.multiply(value, ops.constant(np.float32(1)))
    if sizes_of(value.get_output_shape(0)) != shape:
        operations["shape"] = target = ov.op.Constant(np.array(shape, dtype=np.int64))
        operations["reshape"] = value = _FACTORY.create("Reshape", [value, target], {"special_zero": False})
    for suffix, node in (operations | scales).items():
        node.set_friendly_name(f"{name}/{suffix}")
    marked = list(operations.values())
    if folded:
        marked = [marked[0], *(node for node in scales.values() if node.get_type_name() == "Convert")]
    for node in marked:
        protect_from_folding(node)
        if folded:
            node.get_rt_info()[_DECOMPRESSION_MARK] = ""
    return value


def _convert(node: Any, kind: ov.Type) -> Any:
    return _FACTORY.create("Convert", [node], {"destination_type": kind})


def protect_from_folding(node: Any) -> None:
    """Keep OpenVINO's ConstantFolding pass away from a node."""
    node.get_rt_info()[_FOLDING_MARK] = ""


def replace_constant(constant: Any, chain: Any, name: str = "") -> None:
    """Let every consumer of `constant` read `chain` instead, in the type that it had.

    A Convert behind the constant (the f16 to f32 of a compressed checkpoint) serves on as the chain's last one, or
    goes if the chain has its type already. Any other consumer gets a Convert to the constant's type where it is needed,
    which is called after `name`, the constant's own by default.
    """
    original = constant.get_output_element_type(0)
    produced = chain.get_output_element_type(0)
    direct = []
    for target in list(constant.output(0).get_target_inputs()):
        node = target.get_node()
        if node.get_type_name() == "Convert" and node.get_output_element_type(0) != produced:
            target.replace_source_output(chain.output(0))
        elif node.get_type_name() == "Convert":
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(chain.output(0))
        else:
            direct.append(target)
    if not direct:
        return
    last = chain
    if produced != original:
        last = _convert(chain, original)
        last.set_friendly_name(f"{name or constant.get_friendly_name()}/as_{original.get_type_name()}")
        protect_from_folding(last)
    for target in direct:
        target.replace_source_output(last.output(0))
