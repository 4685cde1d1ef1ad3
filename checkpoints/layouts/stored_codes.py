"""Codes of a layer as they come and as OpenVINO has types for them: integers with scales and zero points, and levels.

    w = s · (q − z)        q, z in 0 … 2^b − 1

Where every zero point is the middle, 2^(b−1), the weight is symmetric and needs none:

    bits           symmetric                      else
    2              u2, 2 subtracted (a scalar)    u2, zero points i8 (unsigned ones do not run on every CPU)
    3              i4 (q − 4)                     u4, zero points u4
    4              i4 (q − 8)                     u4, zero points u4
    5, 6, 7        i8 (q − 2^(b−1))               u8, zero points u8
    8              i8 (q − 128)                   u8, zero points u8

OpenVINO's u3 and u6 hold 3 and 6 bits, but no plugin runs from them. The numbers are the same in all cases.

Codes that stand for levels (8-bit floats, e2m1, NF4, entries of a table) keep their bits as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    Grouping,
    QuantisedWeight,
    exact_scale_type,
    group_word,
    requantised,
    row_blocks,
)
from ov_weight_compression.ir_utils.errors import ModelError, WorkError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Encoded, Format, Spec, stored_codebook
from ov_weight_compression.quantization.reference import scale_values, unusable

CodeRows = npt.NDArray[np.uint8]
_FORMATS = {2: ("int2_sym", "int2_asym"), 4: ("int4_sym", "int4_asym"), 8: ("int8_sym", "int8_asym")}
_SMALLEST_GROUP = 4
"""Smaller groups would take more bytes than the codes they are for."""


@dataclass(frozen=True)
class IntegerRows:
    """Where the rows `first` to `last` of a layer come from, groups and columns as the checkpoint has them."""

    codes: Callable[[int, int], CodeRows]
    """[n, in], 0 … 2^b − 1."""
    scales: Callable[[int, int], Array]
    """[n, groups], f16 or f32."""
    zeros: Callable[[int, int], CodeRows] | None
    """[n, groups], 0 … 2^b − 1; None where all are 2^(b−1)."""
    any_rows: Callable[[Array], tuple[CodeRows, Array, CodeRows | None]] | None = None
    """The three for rows by their numbers, where a layout can pick them without reading everything between."""


def integer_weight(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    bits: int,
    grouping: Grouping,
    source: IntegerRows,
    tensors: tuple[str, ...],
    notes: tuple[str, ...] = (),
    said_group: int = 0,
) -> QuantisedWeight:
    """The weight of a layer with `bits` of 2 to 8. Scales and zero points are looked at now, codes when asked for.

    `said_group` is the group size that people know, where groups had to be cut.

    Raises:
        ModelError: a scale is not finite.
    """
    middle = 1 << (bits - 1)
    symmetric, scale_type, largest = True, "f16", 0.0
    for first, last in row_blocks(prod(shape[:-1]), grouping.columns):
        scales = source.scales(first, last)
        if not np.isfinite(scales).all():
            raise ModelError(f"{name}: a scale is not finite: the checkpoint is broken")
        largest = max(largest, float(np.abs(scales).max(initial=0)))
        if exact_scale_type(scales) == "f32":
            scale_type = "f32"
        if source.zeros is not None and symmetric:
            symmetric = bool((source.zeros(first, last) == middle).all())
    width = 2 if bits == 2 else 4 if bits <= 4 else 8
    group = PER_CHANNEL if grouping.size == grouping.columns else grouping.size
    spec = Spec(FORMATS[_FORMATS[width][0 if symmetric else 1]], group, scale_type)
    scale_dtype = np.float16 if scale_type == "f16" else np.float32

    def encoded(codes: CodeRows, scales: Array, zeros: CodeRows | None) -> Encoded:
        if symmetric and width > 2:
            codes = (codes - np.uint8(middle)) & np.uint8((1 << width) - 1)
        own = None if symmetric or zeros is None else np.ascontiguousarray(grouping.spread(zeros))
        wide = grouping.spread(scales).astype(scale_dtype, copy=False)
        return Encoded(grouping.ordered(codes), np.ascontiguousarray(wide), own)

    def read(first: int, last: int) -> Encoded:
        zeros = None if symmetric or source.zeros is None else source.zeros(first, last)
        return encoded(source.codes(first, last), source.scales(first, last), zeros)

    pick = source.any_rows
    if width != bits:
        notes = (*notes, f"{bits}-bit codes kept in {width} bits")
    kind = f"{kind} {group_word(said_group or grouping.size, grouping.columns)}"
    absmax = largest * spec.format.top
    weight = QuantisedWeight(
        name=name,
        kind=kind,
        shape=shape,
        spec=spec,
        rows=read,
        tensors=tensors,
        absmax=absmax,
        any_rows=None if pick is None else lambda numbers: encoded(*pick(numbers)),
        order=grouping.order,
        notes=notes,
    )
    if grouping.size < _SMALLEST_GROUP and grouping.size < grouping.columns:
        return requantised(weight, "its groups have no common size")
    return weight


def counted_from_zero(signed: Array) -> CodeRows:
    """Signed bytes, counted from the smallest: q + 128."""
    return np.asarray(np.ascontiguousarray(signed).view(np.uint8) ^ np.uint8(0x80))


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
