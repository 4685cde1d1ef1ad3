"""Rows of a weight to stored arrays and back: the front door of this room.

A weight comes as its canonical matrix ``[rows, in]``, the reduction axis last; rows do not depend on each other, so a
caller may cut them as it likes and use as many threads as it likes: the bytes are the same.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.formats.levels import E4M3
from ov_weight_compression.quantization.reference import decode_groups, encode_groups
from ov_weight_compression.quantization.scales import tensor_scale_of
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = ["Weighting", "decode_rows", "encode_rows", "stored_table"]

Weighting = Literal["graph", "data"]


def encode_rows(
    values: npt.NDArray[Any],
    spec: Spec,
    *,
    importance: npt.NDArray[np.float32] | None = None,
    weighting: Weighting = "graph",
    tensor_scale: np.float32 | None = None,
) -> Encoded:
    """Quantise rows of a weight.

    Args:
        values: [rows, in] of any float type, all of them finite.
        spec: how to store them.
        importance: [in] f32 >= 0, what an error in each input channel weighs in the scale search; None for all alike.
        weighting: ``"data"``: importance is E[x_j^2] of the layer's input and used as it is; ``"graph"``: it is what
            the graph alone tells (squared gains of the norm in front) and is multiplied by ``|W| + rms(W)``.
        tensor_scale: ``tensor_scale_of`` the whole weight's largest magnitude, for formats that have one; by default
            that of these rows, which is right only where they are the whole weight.

    Returns:
        The stored arrays for these rows.

    Raises:
        ValueError: the rows cannot be cut into groups as ``spec`` says.
    """
    rows, width = values.shape
    group = spec.group_of(width)
    groups = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, group)
    if spec.format.tensor_scale and tensor_scale is None:
        tensor_scale = tensor_scale_of(float(np.abs(groups).max(initial=0.0)), spec.format)
    codes, scale, zero_point = encode_groups(groups, spec, tensor_scale)
    return Encoded(
        codes=codes.reshape(rows, width),
        scale=scale.reshape(rows, -1),
        zero_point=None if zero_point is None else zero_point.reshape(rows, -1),
        tensor_scale=tensor_scale if spec.format.tensor_scale else None,
        table=stored_table(spec.format),
    )


def decode_rows(encoded: Encoded, spec: Spec) -> npt.NDArray[np.float32]:
    """[rows, in] f32: exactly what OpenVINO computes from the stored chain with f32 inference."""
    rows, width = encoded.codes.shape
    zero_point = encoded.zero_point
    groups = decode_groups(
        encoded.codes.reshape(encoded.scale.size, -1),
        encoded.scale.reshape(-1),
        None if zero_point is None else zero_point.reshape(-1),
        spec,
        encoded.tensor_scale,
    )
    return groups.reshape(rows, width)


def stored_table(format: Format) -> npt.NDArray[Any] | None:
    """A codebook's levels as they are stored, in code order: uint8 bit patterns for f8e4m3; None for other formats."""
    if format.table_type is None:
        return None
    levels = np.array(format.levels, dtype=np.float32)
    if format.table_type == "f8e4m3":
        bits = {value: code for code, value in reversed(list(enumerate(E4M3)))}
        return np.array([bits[level] for level in levels.tolist()], dtype=np.uint8)
    return levels.astype({"f16": np.float16, "f32": np.float32, "i8": np.int8}[format.table_type])
