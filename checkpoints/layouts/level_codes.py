"""Codes that stand for levels: 8-bit floats, e2m1, NF4, entries of a table. Their bits are kept as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from ov_weight_compression.checkpoints.layouts.groups import Grouping
from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    QuantisedWeight,
    exact_scale_type,
    group_word,
    row_blocks,
)
from ov_weight_compression.ir_utils.errors import ModelError, WorkError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.formats import PER_CHANNEL, Encoded, Format, Spec, stored_codebook
from ov_weight_compression.quantization.reference import scale_values, unusable

__all__ = ["LevelRows", "level_weight"]

_DTYPES = {"f16": np.float16, "f32": np.float32, "f8e8m0": np.uint8, "f8e4m3": np.uint8}
_NAN = 0x7F
"""e4m3's only codes that are no number: all ones but for the sign."""


@dataclass(frozen=True)
class LevelRows:
    """Where the rows `first` to `last` of a layer come from."""

    codes: Callable[[int, int], Array]
    """[n, in] uint8 bit patterns."""
    scales: Callable[[int, int], Array]
    """[n, groups]: f16 or f32; uint8 bit patterns where the format's scales are f8e8m0 or f8e4m3."""


def level_weight(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    row: Format,
    grouping: Grouping,
    source: LevelRows,
    tensors: tuple[str, ...],
    tensor_scale: np.float32 | None = None,
    notes: tuple[str, ...] = (),
    said_group: int = 0,
) -> QuantisedWeight:
    """The weight of a layer in the format `row`. Scales are looked at now, codes when they are asked for.

    `said_group` is the group size that people know, where groups had to be cut.

    Raises:
        ModelError: a scale is not finite, or the format does not have groups of this size.
    """
    whole = grouping.size == grouping.columns and not row.fixed_group
    if row.fixed_group and grouping.size != row.default_group:
        raise ModelError(f"{name}: groups of {grouping.size}, where {row.name} has groups of {row.default_group}")
    scale_type, largest = row.scale, 0.0
    wide = Spec(row, row.default_group, "f32" if row.scale == "f16" else row.scale)
    for first, last in row_blocks(prod(shape[:-1]), grouping.columns):
        scales = source.scales(first, last)
        if unusable(scales, row.scale if row.scale != "f16" else "f32"):
            raise ModelError(f"{name}: a scale is not finite: the checkpoint is broken")
        values = scale_values(scales, wide, tensor_scale)
        largest = max(largest, float(np.abs(values).max(initial=0)))
        if row.scale == "f16" and exact_scale_type(scales) == "f32":
            scale_type = "f32"
    spec = Spec(row, PER_CHANNEL if whole else grouping.size, scale_type)
    table = stored_codebook(row)

    def read(first: int, last: int) -> Encoded:
        codes = grouping.ordered(source.codes(first, last))
        if row.storage == "f8e4m3" and bool(((codes & _NAN) == _NAN).any()):
            raise WorkError(f"{name}: a value is not a number: the checkpoint is broken")
        scales = grouping.spread(source.scales(first, last)).astype(_DTYPES[scale_type], copy=False)
        return Encoded(codes, np.ascontiguousarray(scales), None, tensor_scale, table)

    group = said_group or grouping.size
    kind = f"{kind} " + (f"g{group}" if row.fixed_group else group_word(group, grouping.columns))
    absmax = largest * row.top
    return QuantisedWeight(
        name=name,
        kind=kind,
        shape=shape,
        spec=spec,
        rows=read,
        tensors=tensors,
        absmax=absmax,
        order=grouping.order,
        tensor_scale=tensor_scale,
        notes=notes,
    )
