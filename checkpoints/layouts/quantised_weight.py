"""A quantised weight of a checkpoint, whatever wrote it: what it is stored as here, and its rows on demand.

Which input channels of a layer share a scale is not always every g in a row: a checkpoint says for each of them the
group it belongs to (`g_idx`), or implies it. A chain in the graph knows only groups of one size, side by side. What
brings one to the other, without a change of value, is a `Grouping`:

    order   channels sorted by group: codes[:, order] has each group in one piece, and the layer's input has to be
            brought into the same order
    size    the greatest size that divides every group; a group of several such pieces repeats its scale
    pick    the checkpoint's group that each piece belongs to
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Encoded, Spec

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


def group_word(size: int, columns: int) -> str:
    """Groups of a size, for people."""
    return "per channel" if size < 0 or size == columns else f"g{size}"


def row_blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """The rows of a weight in pieces of a few megabytes."""
    step = max(8, _BLOCK_ELEMENTS // max(1, columns) // 8 * 8)
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def exact_scale_type(scales: Array) -> str:
    """The narrower of `f16` and `f32` that holds these scales without a loss."""
    if scales.dtype == np.float16:
        return "f16"
    with np.errstate(over="ignore"):
        same = scales.astype(np.float16).astype(np.float32) == scales
    return "f16" if bool(np.all(same | np.isnan(scales))) else "f32"


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
