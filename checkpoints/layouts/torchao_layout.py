"""torchao's tensors as its safetensors files hold them: an entry for each part, a JSON text in the file's metadata.

    layer._weight_qdata, layer._weight_scale, layer._weight_zero_point
    metadata["layer.weight"] = {"_type": "Int8Tensor", "_data": {"block_size": [1, 64], …}, …}

    Int8Tensor                    qdata i8 [out, in], scale and perhaps zero_point i8 one for each block
    IntxUnpackedToInt8Tensor      the same; the codes use fewer bits than they have
    Int4Tensor                    qdata [out, in/2], the even input channel in the low nibble, −8 … 7; scale and
                                  zero_point floats [in/g, out]:   w = q · scale + zero_point
    Float8Tensor                  qdata f8_e4m3, scale

Other types are arranged for a kernel, or their meaning is not recorded in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ov_weight_compression.checkpoints.layouts.float_layouts import fp8_weight, scale_grid
from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    LayoutRows,
    QuantisedWeight,
    Tensors,
    checked,
    codes_of,
    counted_from_zero,
    float_array,
    integer_weight,
    plain_grouping,
    required,
)
from ov_weight_compression.ir_utils.errors import ModelError

_KNOWN = ("Int8Tensor", "IntxUnpackedToInt8Tensor", "Int4Tensor", "Float8Tensor")


def torchao_weights(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What the files' metadata say of each weight that is not a plain tensor, by its name.

    Raises:
        ModelError: a text is no JSON, or a weight is of a type that is not read.
    """
    found = {}
    for name, text in metadata.items():
        if "." not in name or not text.lstrip().startswith("{"):
            continue
        try:
            said = json.loads(text)
            kind = said["_type"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ModelError(f"{name}: what the file's metadata say of it cannot be read") from None
        if kind == "Tensor":
            continue
        if kind not in _KNOWN:
            raise ModelError(f"{name}: is torchao's {kind}, which is not read; those that are: {', '.join(_KNOWN)}")
        found[name] = said.get("_data") if isinstance(said.get("_data"), dict) else {}
        found[name]["type"] = kind
    return found


def torchao_weight(tensors: Tensors, name: str, said: Mapping[str, Any]) -> QuantisedWeight:
    """The weight `name`, of which the metadata say this.

    Raises:
        ModelError: a tensor is missing or contradicts the others, or inputs would have to be scaled first.
    """
    layer, _, last = name.rpartition(".")
    data, scale, zero, before = (
        f"{layer}._{last}_{part}" for part in ("qdata", "scale", "zero_point", "act_pre_scale")
    )
    if before in tensors:
        raise ModelError(f"{before}: the layer's input is to be multiplied by it, which is not done")
    block = _block(name, said)
    if said["type"] == "Float8Tensor":
        return replace(fp8_weight(tensors, data, scale, block, "torchao FP8"), name=name)
    if said["type"] == "Int4Tensor":
        return _int4(tensors, name, data, scale, zero)
    weight = checked(tensors, data, ("I8",), (None,) * max(2, len(required(tensors, data).shape)))
    shape, columns = weight.shape, weight.shape[-1]
    grid = scale_grid(tensors, scale, shape, block)
    names = [data, scale]
    zeros = None
    if zero in tensors:
        names.append(zero)
        stored = checked(tensors, zero, ("I8",), grid.tensor.shape)
        zeros = replace(grid, tensor=stored, name=zero).bits
    source = LayoutRows(
        codes=lambda first, last: counted_from_zero(weight.values().reshape(-1, columns)[first:last]),
        scales=grid.of,
        zeros=None if zeros is None else lambda first, last: counted_from_zero(zeros(first, last)),
    )
    grouping = plain_grouping(columns, grid.wide, -(-columns // grid.wide), scale)
    return integer_weight(name, "torchao int8", shape, 8, grouping, source, tuple(names))


def _block(name: str, said: Mapping[str, Any]) -> tuple[int, int] | None:
    sizes = said.get("block_size")
    if sizes is None:
        return None
    if not isinstance(sizes, list) or len(sizes) < 2 or not all(type(size) is int and size > 0 for size in sizes):
        raise ModelError(f"{name}: block_size is {sizes}, must be sizes of two axes")
    return sizes[-2], sizes[-1]


def _int4(tensors: Tensors, name: str, data: str, scale: str, zero: str) -> QuantisedWeight:
    """Zero points are floats in the weight's own measure; where they are all 0 the codes are kept."""
    weight = checked(tensors, data, ("I8", "U8"), (None, None))
    rows, columns = weight.shape[0], weight.shape[1] * 2
    scales = checked(tensors, scale, ("F32", "F16", "BF16"), (None, rows))
    groups = scales.shape[0]
    zeros = checked(tensors, zero, ("F32", "F16", "BF16"), scales.shape)
    if float_array(zeros, zero).any():
        raise ModelError(f"{zero}: fractional zero points are not read; quantise symmetrically, or with zero points i8")
    source = LayoutRows(
        codes=lambda first, last: codes_of(weight.values()[first:last].view(np.uint8), 4, columns) ^ np.uint8(8),
        scales=lambda first, last: float_array(scales, scale)[:, first:last].T,
        zeros=None,
    )
    grouping = plain_grouping(columns, columns // groups if groups else 0, groups, scale)
    return integer_weight(name, "torchao 4 bit", (rows, columns), 4, grouping, source, (data, scale, zero))
