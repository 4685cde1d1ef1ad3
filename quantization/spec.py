"""What passes between this room and the others: how a weight is to be stored, and the stored arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.formats import PER_CHANNEL, Format

__all__ = ["Encoded", "Spec", "join_rows"]


@dataclass(frozen=True)
class Spec:
    """How one weight is stored and computed.

    Attributes:
        format: one of ``FORMATS`` (for a codebook the one ``with_codebook`` made).
        group_size: weights that share a scale, or ``PER_CHANNEL`` (-1) for one scale a row.
        scale_type: ``format.scale``, or ``"f32"`` in place of ``"f16"`` where f16 cannot hold a scale of the weight.
        search: number of scale candidates to try in each group, 0 for the plain absmax or min-max scale.
    """

    format: Format
    group_size: int = PER_CHANNEL
    scale_type: str = "f16"
    search: int = 0

    def __post_init__(self) -> None:
        if self.group_size != PER_CHANNEL and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}, must be at least 1, or -1 for one group a row")
        if self.format.fixed_group and self.group_size != self.format.default_group:
            raise ValueError(
                f"group_size is {self.group_size}, must be {self.format.default_group} for {self.format.name}"
            )
        allowed = ("f16", "f32") if self.format.scale == "f16" else (self.format.scale,)
        if self.scale_type not in allowed:
            raise ValueError(
                f"scale_type is {self.scale_type!r}, must be {' or '.join(allowed)} for {self.format.name}"
            )
        if self.search < 0:
            raise ValueError(f"search is {self.search}, must be 0 (no search) or a number of candidates")

    def group_of(self, width: int) -> int:
        """Weights in one group of a row of ``width`` weights.

        Raises:
            ValueError: the row cannot be cut into such groups.
        """
        if self.group_size == PER_CHANNEL:
            return width
        if width % self.group_size:
            raise ValueError(f"a row of {width} weights cannot be cut into groups of {self.group_size}")
        return self.group_size


@dataclass(frozen=True)
class Encoded:
    """One weight, or some rows of it, as stored. Codes are unpacked: ``ir_utils.packing`` packs them.

    Attributes:
        codes: [rows, in] uint8 bit patterns, one per element (i4 -8 is 0x8, i8 -1 is 0xff); uint16 for u16 indices.
        scale: [rows, groups] float16 or float32, or uint8 bit patterns of f8e8m0 and f8e4m3.
        zero_point: [rows, groups] uint8, where each group has one, else None.
        tensor_scale: the weight's f32 scalar, where the format has one, else None.
        codebook: codebooks: the levels as stored, in code order (uint8 bit patterns for f8e4m3), else None.
    """

    codes: Array
    scale: Array
    zero_point: npt.NDArray[np.uint8] | None = None
    tensor_scale: np.float32 | None = None
    codebook: Array | None = None

    def rows(self, start: int, stop: int) -> Encoded:
        """Some of the rows; views."""
        return replace(
            self,
            codes=self.codes[start:stop],
            scale=self.scale[start:stop],
            zero_point=None if self.zero_point is None else self.zero_point[start:stop],
        )


def join_rows(parts: Sequence[Encoded]) -> Encoded:
    """Rows of several results of one weight, one after the other."""
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return replace(
        parts[0],
        codes=np.concatenate([part.codes for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        zero_point=np.concatenate(zeros) if zeros else None,
    )
