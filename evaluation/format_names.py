"""What a stored weight is called: the option of compression that makes such a weight, whoever made this one."""

from __future__ import annotations

from math import prod

import numpy as np
import openvino as ov

from ov_weight_compression.patterns import CompressedWeight
from ov_weight_compression.patterns.graphs import is_postponed
from ov_weight_compression.quantization.formats import FORMATS

_SCALES = {"f8e8m0": "mx", "f8e4m3": "nv"}
"""Types of scales that make another format of the same codes."""


def mode_of(weight: CompressedWeight) -> str:
    """The name of a weight's format: that of the row in `FORMATS` that stores such a weight; one of its own kind where
    there is none (`fp8_e5m2`, `int6_asym`). Unsigned codes with a single zero point for all scales are symmetric."""
    storage = weight.storage
    if weight.table is not None:
        return "cb4" if _is_cb4(weight) else "codebook"
    if weight.zero_point is None:
        symmetric = storage.startswith("i")
    else:
        symmetric = storage[0] == "u" and _is_one_for_all(weight, weight.zero_point)
    scale = weight.scale_type if weight.scale_type in _SCALES else "f16"
    for row in FORMATS.values():
        if row.levels is None and storage[0] in "iu" and int(storage[1:]) == row.bits and symmetric != row.asymmetric:
            return row.name
        if row.levels is not None and row.codebook_type is None and (storage, scale) == (row.storage, row.scale):
            return row.name
    if storage[0] in "iu":
        return f"int{storage[1:]}_{'sym' if symmetric else 'asym'}"
    return _SCALES.get(scale, "") + storage.replace("f8", "fp8_").replace("f4e2m1", "fp4")


def zero_point_of(weight: CompressedWeight) -> str:
    """Type and number of the zero points, in words; empty where there are none."""
    zero = weight.zero_point
    if zero is None:
        return ""
    kind = zero.get_output_element_type(0).to_string()
    if _is_one_for_all(weight, zero):
        return f"{kind}, one"
    return str(kind)


def _is_one_for_all(weight: CompressedWeight, zero: ov.Node) -> bool:
    """Whether it is the one zero point of several scales, or a scalar; a weight of one channel has one of its own."""
    scales = 1 if weight.scale is None else prod(weight.scale.shape)
    return prod(zero.shape) == 1 < weight.elements and (len(zero.shape) == 0 or scales > 1)


def _is_cb4(weight: CompressedWeight) -> bool:
    table, levels = weight.table, np.array(FORMATS["cb4"].levels, dtype=np.float32)
    if table is None or weight.storage != "u4" or is_postponed(table) or prod(table.shape) != len(levels):
        return False
    return bool(np.array_equal(table.get_data(dtype=np.float32), levels))
