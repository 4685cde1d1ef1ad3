"""Four-bit floats (e2m1), two to a byte, the even input channel in the low nibble, with a scale for each few of them.

    MXFP4     scales E8M0, a power of two for each 32
    NVFP4     scales f8_e4m3 for each 16, and one f32 for the whole weight, by which they are divided
              (compressed-tensors) or multiplied (ModelOpt)

gpt-oss keeps its experts as `blocks` u8 [experts, out, in/32, 16] and `scales` u8 [experts, out, in/32]. The float
weights that they stand for have input and output channels the other way round: [experts, in, out].
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ov_weight_compression.checkpoints.layouts.bit_stream import codes_of
from ov_weight_compression.checkpoints.layouts.groups import plain_grouping
from ov_weight_compression.checkpoints.layouts.level_codes import LevelRows, level_weight
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight
from ov_weight_compression.checkpoints.layouts.tensors import Tensors, checked, required
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.quantization.formats import FORMATS

__all__ = ["gpt_oss_weight", "mxfp4_weight", "nvfp4_weight"]

_E8M0 = ("F8_E8M0", "U8")


def mxfp4_weight(tensors: Tensors, name: str, packed: str, scales: str, kind: str = "MXFP4") -> QuantisedWeight:
    """A weight of `packed` u8 [out, in/2] and `scales` [out, in/32].

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the other's.
    """
    return _e2m1(tensors, name, packed, scales, kind, "mxfp4", _E8M0, None)


def nvfp4_weight(
    tensors: Tensors, name: str, packed: str, scales: str, whole: str, divides: bool, kind: str = "NVFP4"
) -> QuantisedWeight:
    """A weight of `packed` u8 [out, in/2], `scales` f8_e4m3 [out, in/16] and one f32, `whole`.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the others'; the f32 is zero or not finite.
    """
    scalar = required(tensors, whole)
    if scalar.dtype != "F32" or prod(scalar.shape) != 1:
        raise ModelError(f"{whole}: is {scalar.dtype} {list(scalar.shape)}, must be one F32")
    value = np.float32(scalar.values().reshape(-1)[0])
    if not np.isfinite(value) or value == 0:
        raise ModelError(f"{whole}: is {value}, which scales nothing")
    factor = np.float32(1) / value if divides else value
    return _e2m1(tensors, name, packed, scales, kind, "nvfp4", ("F8_E4M3",), factor, (whole,))


def _e2m1(
    tensors: Tensors,
    name: str,
    packed: str,
    scales: str,
    kind: str,
    mode: str,
    scale_types: tuple[str, ...],
    factor: np.float32 | None,
    more: tuple[str, ...] = (),
) -> QuantisedWeight:
    row = FORMATS[mode]
    codes = checked(tensors, packed, ("U8", "I8"), (None,) * max(2, len(required(tensors, packed).shape)))
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    columns, group = shape[-1], row.default_group
    if columns % group:
        raise ModelError(f"{packed}: has {columns} input channels, which groups of {group} do not divide")
    stored = checked(tensors, scales, scale_types, (*shape[:-1], columns // group))
    source = LevelRows(
        codes=lambda first, last: codes_of(codes.values().reshape(-1, columns // 2)[first:last], 4, columns),
        scales=lambda first, last: stored.values().view(np.uint8).reshape(-1, columns // group)[first:last],
    )
    grouping = plain_grouping(columns, group, columns // group, scales)
    return level_weight(name, kind, shape, row, grouping, source, (packed, scales, *more), factor)


def gpt_oss_weight(tensors: Tensors, name: str) -> QuantisedWeight:
    """The experts' weight `name`, of `name_blocks` and `name_scales`.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the other's.
    """
    blocks = checked(tensors, f"{name}_blocks", ("U8",), (None, None, None, 16))
    experts, rows, groups, _ = blocks.shape
    columns = groups * 32
    scales = checked(tensors, f"{name}_scales", _E8M0, (experts, rows, groups))
    source = LevelRows(
        codes=lambda first, last: codes_of(blocks.values().reshape(-1, columns // 2)[first:last], 4, columns),
        scales=lambda first, last: scales.values().reshape(-1, groups)[first:last],
    )
    grouping = plain_grouping(columns, 32, groups, f"{name}_scales")
    names = (f"{name}_blocks", f"{name}_scales")
    shape = (experts, rows, columns)
    weight = level_weight(name, "MXFP4", shape, FORMATS["mxfp4"], grouping, source, names)
    return replace(weight, float_shape=(experts, columns, rows))
