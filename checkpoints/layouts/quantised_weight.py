"""A quantised weight of a checkpoint, whatever wrote it: what it is stored as here, and its rows on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Encoded, Spec

__all__ = [
    "QuantisedWeight",
    "Rows",
    "exact_scale_type",
    "finer",
    "group_word",
    "requantised",
    "row_blocks",
    "with_rows_in_order",
]

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
