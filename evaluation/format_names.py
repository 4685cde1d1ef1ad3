"""What a stored weight is called: the option of compression that makes such a weight, whoever made this one."""

from __future__ import annotations

from math import prod

import numpy as np
import openvino as ov

from ov_weight_compression.patterns import CompressedWeight
from ov_weight_compression.patterns.graphs import is_postponed
from ov_weight_compression.quantization.formats.levels import CB4

__all__ = ["mode_of", "zero_point_of"]


def mode_of(weight: CompressedWeight) -> str:
    """The name that the options of compression have for a weight's format; one of its own kind where they have none
    (`fp8_e5m2`, `int6_asym`). Unsigned codes with a single zero point for all scales are symmetric."""
    storage, scale = weight.storage, weight.scale_type
    if weight.table is not None:
        return "cb4" if _is_cb4(weight) else "codebook"
    if storage in ("f4e2m1", "f8e4m3", "f8e5m2"):
        short = {"f4e2m1": "fp4", "f8e4m3": "fp8_e4m3", "f8e5m2": "fp8_e5m2"}[storage]
        return {"f8e8m0": "mx" + short, "f8e4m3": "nv" + short}.get(scale or "", short)
    if storage == "nf4":
        return "nf4"
    zero = weight.zero_point
    symmetric = storage.startswith("i") if zero is None else storage[0] == "u" and _is_one_for_all(weight, zero)
    return f"int{storage[1:]}_{'sym' if symmetric else 'asym'}"


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
    table = weight.table
    if table is None or weight.storage != "u4" or is_postponed(table) or prod(table.shape) != len(CB4):
        return False
    return bool(np.array_equal(table.get_data(dtype=np.float32), np.array(CB4, dtype=np.float32)))
