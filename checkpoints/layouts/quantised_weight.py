"""A quantised weight of a checkpoint, whatever wrote it: what it is stored as here, and its rows on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = ["QuantisedWeight", "Rows", "exact_scale_type", "requantised", "row_blocks"]

Rows = Callable[[int, int], Encoded]

_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """One layer's weight. Seen as numbers it is the matrix `[rows, columns]`, rows those of all experts."""

    name: str
    """The float weight's, `model.layers.0.mlp.up_proj.weight`."""
    kind: str
    """What the checkpoint has, for people: `GPTQ 4 bit`."""
    shape: tuple[int, ...]
    """`[out, in]`, experts before them."""
    spec: Spec
    """What it is stored as here."""
    rows: Rows = field(repr=False)
    """`rows(first, last)`: these rows, codes unpacked and in OpenVINO's bit patterns."""
    tensors: tuple[str, ...]
    """What it is made of in the checkpoint."""
    order: Array | None = field(default=None, repr=False)
    """[in]: the input channel that each column of the codes is for; None where they are in order."""
    tensor_scale: np.float32 | None = None
    """What multiplies all scales."""
    notes: tuple[str, ...] = ()
    """Where the values, or the width of the codes, are not the checkpoint's own."""
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
        group = "per channel" if self.spec.group_size == PER_CHANNEL else f"g{self.spec.group_size}"
        return f"{self.kind} {group}, " + ("; ".join(self.notes) or "codes kept")

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
    return replace(weight, spec=spec, rows=rows, order=None, tensor_scale=None, notes=notes)
