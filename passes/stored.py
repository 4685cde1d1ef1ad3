"""Weights that were encoded while calibrating, waiting on disk for the model to be saved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ov_weight_compression.ir_utils.layout import Slab
from ov_weight_compression.ir_utils.spool import Spool, Spooled
from ov_weight_compression.quantization.spec import Encoded

__all__ = ["StoredRows", "StoredWeight", "keep"]


class StoredRows(Protocol):
    """A weight that is encoded already, whoever did it and wherever it lies."""

    @property
    def tensor_scale(self) -> np.float32 | None:
        """The weight's f32 scalar, where its format has one."""
        ...

    def rows(self, slab: Slab) -> Encoded:
        """Some rows of the weight, codes unpacked."""
        ...


@dataclass(frozen=True)
class StoredWeight:
    """The codes, scales and zero points of one weight in a spool; scalars and tables as they are."""

    codes: Spooled
    scale: Spooled
    zero_point: Spooled | None
    rest: Encoded
    """`Encoded` without its arrays: tensor scale and table."""

    @property
    def tensor_scale(self) -> np.float32 | None:
        """The weight's f32 scalar, where its format has one."""
        return self.rest.tensor_scale

    def rows(self, slab: Slab) -> Encoded:
        """Some rows of the weight."""
        zero = None if self.zero_point is None else self.zero_point.rows(slab.start, slab.stop)
        return replace(
            self.rest,
            codes=self.codes.rows(slab.start, slab.stop),
            scale=self.scale.rows(slab.start, slab.stop),
            zero_point=zero,
        )

    def everything(self) -> Encoded:
        """All rows of the weight."""
        rows = self.codes.shape[0]
        return self.rows(Slab(0, rows, (slice(0, rows),)))


def keep(encoded: Encoded, spool: Spool) -> StoredWeight:
    """Move a weight's arrays to disk."""
    nothing = np.empty(0, dtype=np.uint8)
    return StoredWeight(
        codes=spool.put(encoded.codes),
        scale=spool.put(encoded.scale),
        zero_point=None if encoded.zero_point is None else spool.put(encoded.zero_point),
        rest=replace(encoded, codes=nothing, scale=nothing, zero_point=None),
    )
