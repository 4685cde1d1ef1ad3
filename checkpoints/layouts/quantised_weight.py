"""A quantised weight of a checkpoint, whatever wrote it: what it is stored as here, and its rows on demand.

Which input channels of a layer share a scale is not always every g in a row: a checkpoint says for each of them the
group it belongs to (`g_idx`), or implies it. A chain in the graph knows only groups of one size, side by side. What
brings one to the other, without a change of value, is a `Grouping`:

    order   channels sorted by group: codes[:, order] has each group in one piece, and the layer's input has to be
            brought into the same order
    size    the greatest size that divides every group; a group of several such pieces repeats its scale
    pick    the checkpoint's group that each piece belongs to

Codes come as integers with scales and zero points, or as levels, and are stored in types that OpenVINO has:

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

**Tensors.** Their types and sizes are looked at before any is believed (see `Tensors`). Codes of a few bits lie in a
row of words as the little-endian bit stream that most quantisers write: code i occupies bits i·b … i·b+b−1 of the row,
counted from the lowest bit of its first byte (words lie little-endian), whatever the words' size is: a code may cross
from one word into the next, as codes 10 and 21 of 3 bits do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.errors import ModelError, WorkError
from ov_weight_compression.ir_utils.types import Array, Float32, bf16_to_f32
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, SCALE_DTYPES, Encoded, Format, Spec
from ov_weight_compression.quantization.reference import scale_values, unusable

Rows = Callable[[int, int], Encoded]

_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """One layer's weight. Seen as numbers it is the matrix `[rows, columns]`, rows those of all experts."""

    name: str
    """The float weight's, `model.layers.0.mlp.up_proj.weight`."""
    kind: str
    """What the checkpoint has, for people: `GPTQ 4 bit g128`."""
    shape: tuple[int, ...]
    """`[out, in]`, experts before them."""
    spec: Spec
    """What it is stored as here."""
    rows: Rows = field(repr=False)
    """`rows(first, last)`: these rows, codes unpacked and in OpenVINO's bit patterns."""
    tensors: tuple[str, ...]
    """What it is made of in the checkpoint."""
    absmax: float
    """No value is larger in magnitude."""
    any_rows: Callable[[Array], Encoded] | None = field(default=None, repr=False)
    """The same for rows by their numbers, where the layout can pick them."""
    order: Array | None = field(default=None, repr=False)
    """[in]: the input channel that each column of the codes is for; None where they are in order."""
    tensor_scale: np.float32 | None = None
    """What multiplies all scales."""
    notes: tuple[str, ...] = ()
    """Where the values, the groups or the width of the codes are not the checkpoint's own."""
    codes_kept: bool = True
    """Whether the codes are the checkpoint's."""
    float_shape: tuple[int, ...] = ()
    """Of the float weight that it stands for, where that is not `shape`: `[experts, in, out]`."""

    @property
    def columns(self) -> int:
        """Input channels."""
        return self.shape[-1]

    @property
    def row_count(self) -> int:
        """Output channels, those of all experts."""
        return prod(self.shape[:-1])

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.spec.group_of(self.columns)

    @property
    def described(self) -> str:
        """What the checkpoint has and what became of it, in one phrase."""
        said = (*(["codes kept"] if self.codes_kept else []), *self.notes)
        return f"{self.kind}, {'; '.join(said)}"

    def values(self, first: int, last: int) -> Float32:
        """[last − first, in] what these rows stand for, input channels in the checkpoint's order."""
        decoded = decode_rows(self.rows(first, last), self.spec)
        if self.order is None:
            return decoded
        values = np.empty_like(decoded)
        values[:, self.order] = decoded
        return values


def row_blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """The rows of a weight in pieces of a few megabytes."""
    step = max(8, _BLOCK_ELEMENTS // max(1, columns) // 8 * 8)
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def requantised(weight: QuantisedWeight, reason: str) -> QuantisedWeight:
    """The values of a weight rounded anew, to 8 bits per channel, input channels in order: for what no chain holds."""
    spec = Spec(FORMATS["int8_asym"], PER_CHANNEL, "f32")

    def rows(first: int, last: int) -> Encoded:
        return encode_rows(weight.values(first, last), spec)

    notes = (*weight.notes, f"requantised to int8_asym: {reason}")
    return replace(
        weight, spec=spec, rows=rows, any_rows=None, order=None, tensor_scale=None, notes=notes, codes_kept=False
    )


def finer(weight: QuantisedWeight, size: int) -> QuantisedWeight:
    """The same values in groups of a size that divides theirs: each scale, and zero point, is there several times."""
    times = weight.group // size

    def widened(wide: Encoded) -> Encoded:
        zeros = None if wide.zero_point is None else np.repeat(wide.zero_point, times, axis=1)
        return replace(wide, scale=np.repeat(wide.scale, times, axis=1), zero_point=zeros)

    notes = (*weight.notes, f"in groups of {size}, because CPUs misread groups of {weight.group}")
    return replace(
        weight,
        spec=replace(weight.spec, group_size=size),
        rows=lambda first, last: widened(weight.rows(first, last)),
        any_rows=None,
        notes=notes,
    )


def with_rows_in_order(weight: QuantisedWeight, order: Array) -> QuantisedWeight | None:
    """The weight whose row i is the row `order[i]` of this one; None where its layout cannot pick rows."""
    pick = weight.any_rows
    if pick is None:
        return None
    return replace(
        weight,
        rows=lambda first, last: pick(order[first:last]),
        any_rows=lambda numbers: pick(order[numbers]),
        notes=(*weight.notes, "its rows in the order of the layer behind it"),
    )


Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Grouping:
    """How the input channels of a layer are grouped."""

    columns: int
    size: int
    """Channels of a group, in the order below."""
    pick: Integers
    """[columns / size], the checkpoint's group of each."""
    order: Integers | None = None
    """[columns], the channel at each place; None where they keep their places."""

    def spread(self, parameters: Array) -> Array:
        """[rows, the checkpoint's groups] → [rows, columns / size]."""
        same = self.pick.size == parameters.shape[1] and np.array_equal(self.pick, np.arange(self.pick.size))
        return parameters if same else parameters[:, self.pick]

    def ordered(self, codes: Array) -> Array:
        """[rows, columns] in the order of the groups."""
        return codes if self.order is None else np.take(codes, self.order, axis=1)


def plain_grouping(columns: int, size: int, count: int, name: str) -> Grouping:
    """Every `size` channels in a row are a group, the last perhaps a smaller one; -1 is all of them. Where that does
    not make `count` groups, the layer has a size of its own, which divides its channels.

    Raises:
        ModelError: so many groups there cannot be; `name` is that of the tensor that has them.
    """
    size = columns if size <= 0 else size
    if -(-columns // size) != count:
        if not count or columns % count:
            raise ModelError(f"{name}: {count} groups do not fit {columns} input channels")
        size = columns // count
    return grouping_of(np.arange(columns) // size, name, count)


def grouping_of(index: Array, name: str, count: int) -> Grouping:
    """The grouping that an index of groups says, `[columns]`; groups counted from the end where negative.

    Raises:
        ModelError: it names a group that is not among the `count` there are; `name` is the tensor's.
    """
    groups: Integers = np.asarray(index, dtype=np.int64)
    groups = np.where(groups < 0, groups + count, groups)
    if groups.size and not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise ModelError(f"{name}: names group {int(index.max())}, of {count}")
    order: Integers | None = None
    if (np.diff(groups) < 0).any():
        order = np.argsort(groups, kind="stable")
        groups = groups[order]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(starts, append=groups.size)
    size = int(np.gcd.reduce(sizes)) if sizes.size else 1
    return Grouping(groups.size, size, groups[::size], order)


CodeRows = npt.NDArray[np.uint8]
_FORMATS = {2: ("int2_sym", "int2_asym"), 4: ("int4_sym", "int4_asym"), 8: ("int8_sym", "int8_asym")}
_SMALLEST_GROUP = 4
"""Smaller groups would take more bytes than the codes they are for."""
_NAN = 0x7F
"""e4m3's only codes that are no number: all ones but for the sign."""


@dataclass(frozen=True)
class LayoutRows:
    """Where the rows `first` to `last` of a layer come from, groups and columns as the checkpoint has them."""

    codes: Callable[[int, int], CodeRows]
    """[n, in]: integers of b bits as 0 … 2^b − 1; of levels the bit patterns."""
    scales: Callable[[int, int], Array]
    """[n, groups]: f16 or f32; bit patterns where the format's scales are f8e8m0 or f8e4m3."""
    zeros: Callable[[int, int], CodeRows] | None = None
    """[n, groups], 0 … 2^b − 1; None where all are 2^(b−1)."""
    any_rows: Callable[[Array], tuple[CodeRows, Array, CodeRows | None]] | None = None
    """The three for rows by their numbers, where a layout can pick them without reading everything between."""


def integer_weight(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    bits: int,
    grouping: Grouping,
    source: LayoutRows,
    tensors: tuple[str, ...],
    said_group: int = 0,
) -> QuantisedWeight:
    """The weight of a layer with `bits` of 2 to 8. Scales and zero points are looked at now, codes when asked for.

    `said_group` is the group size that people know, where groups had to be cut.

    Raises:
        ModelError: a scale is not finite.
    """
    middle, pick, blocks = 1 << (bits - 1), source.any_rows, row_blocks(prod(shape[:-1]), grouping.columns)
    symmetric = source.zeros is None or all((source.zeros(*block) == middle).all() for block in blocks)
    width = 2 if bits == 2 else 4 if bits <= 4 else 8
    row = FORMATS[_FORMATS[width][0 if symmetric else 1]]
    scale_type, largest = _look_at_scales(name, source, blocks, row)

    def encoded(codes: CodeRows, scales: Array, zeros: CodeRows | None) -> Encoded:
        if symmetric and width > 2:
            codes = (codes - np.uint8(middle)) & np.uint8((1 << width) - 1)
        own = None if symmetric or zeros is None else np.ascontiguousarray(grouping.spread(zeros))
        wide = grouping.spread(scales).astype(SCALE_DTYPES[scale_type], copy=False)
        return Encoded(grouping.ordered(codes), np.ascontiguousarray(wide), own)

    def read(first: int, last: int) -> Encoded:
        zeros = None if symmetric or source.zeros is None else source.zeros(first, last)
        return encoded(source.codes(first, last), source.scales(first, last), zeros)

    weight = QuantisedWeight(
        name=name,
        kind=f"{kind} {_group_word(said_group or grouping.size, grouping.columns)}",
        shape=shape,
        spec=Spec(row, PER_CHANNEL if grouping.size == grouping.columns else grouping.size, scale_type),
        rows=read,
        tensors=tensors,
        absmax=largest * row.top,
        any_rows=None if pick is None else lambda numbers: encoded(*pick(numbers)),
        order=grouping.order,
        notes=() if width == bits else (f"{bits}-bit codes kept in {width} bits",),
    )
    if grouping.size < _SMALLEST_GROUP and grouping.size < grouping.columns:
        return requantised(weight, "its groups have no common size")
    return weight


def level_weight(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    row: Format,
    grouping: Grouping,
    source: LayoutRows,
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
    if row.fixed_group and grouping.size != row.default_group:
        raise ModelError(f"{name}: groups of {grouping.size}, where {row.name} has groups of {row.default_group}")
    blocks = row_blocks(prod(shape[:-1]), grouping.columns)
    scale_type, largest = _look_at_scales(name, source, blocks, row, tensor_scale)
    table = row.table

    def read(first: int, last: int) -> Encoded:
        codes = grouping.ordered(source.codes(first, last))
        if row.storage == "f8e4m3" and bool(((codes & _NAN) == _NAN).any()):
            raise WorkError(f"{name}: a value is not a number: the checkpoint is broken")
        scales = grouping.spread(source.scales(first, last)).astype(SCALE_DTYPES[scale_type], copy=False)
        return Encoded(codes, np.ascontiguousarray(scales), None, tensor_scale, table)

    group, whole = said_group or grouping.size, grouping.size == grouping.columns and not row.fixed_group
    return QuantisedWeight(
        name=name,
        kind=f"{kind} " + (f"g{group}" if row.fixed_group else _group_word(group, grouping.columns)),
        shape=shape,
        spec=Spec(row, PER_CHANNEL if whole else grouping.size, scale_type),
        rows=read,
        tensors=tensors,
        absmax=largest * row.top,
        order=grouping.order,
        tensor_scale=tensor_scale,
        notes=notes,
    )


def _look_at_scales(
    name: str,
    source: LayoutRows,
    blocks: Sequence[tuple[int, int]],
    row: Format,
    tensor_scale: np.float32 | None = None,
) -> tuple[str, float]:
    """The type that holds all scales of a weight without a loss, and the largest magnitude among them.

    Raises:
        ModelError: one of them is not finite.
    """
    scale_type, largest = row.scale, 0.0
    wide = Spec(row, row.default_group, "f32" if row.scale == "f16" else row.scale)
    for first, last in blocks:
        scales = source.scales(first, last)
        if unusable(scales, wide.scale_type):
            raise ModelError(f"{name}: a scale is not finite: the checkpoint is broken")
        largest = max(largest, float(np.abs(scale_values(scales, wide, tensor_scale)).max(initial=0)))
        if row.scale == "f16" and not _are_halves(scales):
            scale_type = "f32"
    return scale_type, largest


def _are_halves(scales: Array) -> bool:
    """Whether f16 holds these scales without a loss."""
    with np.errstate(over="ignore"):
        return scales.dtype == np.float16 or bool((scales.astype(np.float16).astype(np.float32) == scales).all())


def _group_word(size: int, columns: int) -> str:
    """Groups of a size, for people."""
    return "per channel" if size == columns else f"g{size}"


def counted_from_zero(signed: Array) -> CodeRows:
    """Signed bytes, counted from the smallest: q + 128."""
    return np.asarray(np.ascontiguousarray(signed).view(np.uint8) ^ np.uint8(0x80))


class RawTensor(Protocol):
    """One tensor of a checkpoint."""

    @property
    def dtype(self) -> str:
        """Its type, in safetensors' word: `F16`, `BF16`, `I32`, `F8_E4M3` …"""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def values(self) -> Array:
        """Its elements, read-only; types that numpy lacks as their bits (bf16 uint16, 8-bit floats uint8). Called when
        they are wanted, and not kept: each call may map a file."""
        ...


Tensors: TypeAlias = Mapping[str, RawTensor]


def required(tensors: Tensors, name: str) -> RawTensor:
    """A tensor by its name.

    Raises:
        ModelError: the checkpoint has none of that name.
    """
    try:
        return tensors[name]
    except KeyError:
        raise ModelError(f"{name}: the checkpoint has no such tensor, and its layer cannot be read without") from None


def checked(tensors: Tensors, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> RawTensor:
    """A tensor of one of these types and of this shape (None: any size).

    Raises:
        ModelError: there is none, or it is another; names it, what it is and what it must be.
    """
    tensor = required(tensors, name)
    if tensor.dtype not in dtypes:
        raise ModelError(f"{name}: is {tensor.dtype}, must be {' or '.join(dtypes)}")
    same = len(tensor.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(f"{name}: has shape {list(tensor.shape)}, must be [{wanted}]")
    return tensor


def float_array(tensor: RawTensor, name: str) -> Array:
    """The values of a tensor of floats: f16 as it is, bf16 and f32 as f32.

    Raises:
        ModelError: it is of another type.
    """
    values = tensor.values()
    if tensor.dtype == "BF16":
        return bf16_to_f32(values)
    if tensor.dtype not in ("F16", "F32"):
        raise ModelError(f"{name}: is {tensor.dtype}, must be F16, BF16 or F32")
    return values


def codes_of(words: Array, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` codes of each row.

    Args:
        words: [rows, n] integers of any width.
        bits: of a code, 1 to 8.
        count: codes in a row, at most what n words hold.

    Returns:
        [rows, count] uint8.

    Raises:
        ValueError: the words do not hold so many codes.
    """
    data = np.ascontiguousarray(words)
    data = data.astype(data.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if data.shape[-1] * 8 < count * bits:
        raise ValueError(f"{data.shape[-1]} bytes do not hold {count} codes of {bits} bits")
    if bits == 8:
        return data[:, :count]
    if 8 % bits == 0:
        return np.asarray(_codes_in_bytes(bits)[data].view(np.uint8).reshape(len(data), -1)[:, :count])
    stream = np.unpackbits(data, axis=1, count=count * bits, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return np.asarray(stream.reshape(len(data), count, bits) @ weights, dtype=np.uint8)


@cache
def _codes_in_bytes(bits: int) -> Array:
    """The codes that each byte holds, as one number with a byte for each of them: a look-up is the fastest way."""
    every = np.arange(256, dtype=np.uint8)[:, None]
    fields = (every >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(fields).view(f"<u{8 // bits}").reshape(-1)
