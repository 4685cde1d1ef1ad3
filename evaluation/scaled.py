"""Weights whose channels were scaled before they were rounded, as AWQ does: compared in the base model's units.

Where factors are folded into norms and other weights, a layer's weight is no longer near the base model's, though the
model computes the same. Up to a factor for each row and each column it is near, and these factors are found by least
squares, rows and columns in turn:

    c_j = Σ_i w_ij (r_i ŵ_ij) / Σ_i (r_i ŵ_ij)²        r_i = Σ_j w_ij (ŵ_ij c_j) / Σ_j (ŵ_ij c_j)²

Rounding alone makes hardly any of it better that way, so a weight counts as scaled only where it gains decibels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ov_weight_compression.evaluation.outputs import Energy
from ov_weight_compression.ir_utils.chain_values import ConstantValues
from ov_weight_compression.ir_utils.types import Float32

__all__ = ["Factors", "factors_between"]

_GAIN_DB = 2.0
"""What factors must gain at least: rounding to any format, two bits included, leaves them less to find."""
_ROUNDS = 4
_SAMPLE = 512
"""Rows that show whether a weight is scaled."""


@dataclass(frozen=True, eq=False)
class Factors:
    """What the compressed weight `[rows, columns]` is multiplied with to be in the base model's units.

    Only their product is known: what a common factor of all columns gives, one of all rows takes.
    """

    rows: Float32
    """[rows, 1]"""
    columns: Float32
    """[1, columns]"""

    def apply(self, values: Float32, start: int) -> Float32:
        """Whole rows of the compressed weight, flat, which begin at element `start`, in the base model's units."""
        width = self.columns.size
        begin = start // width
        found = values.reshape(-1, width) * self.columns
        found *= self.rows[begin : begin + len(found)]
        return found.reshape(-1)


def factors_between(base: Any, compressed: Any) -> Factors | None:
    """The factors between two outputs that depend on constants alone; None where they are not scaled or not 2-D."""
    shape = tuple(base.get_shape())
    if len(shape) != 2 or min(shape) < 2:
        return None
    ours, theirs = ConstantValues(base), ConstantValues(compressed)
    first = [next(values.pieces()).reshape(-1, shape[1])[:_SAMPLE] for values in (ours, theirs)]
    if not _gains(*first):
        return None
    columns = np.ones((1, shape[1]))
    rows = np.ones((shape[0], 1))
    for _ in range(_ROUNDS):
        above, below, start = np.zeros(shape[1]), np.zeros(shape[1]), 0
        for left, right in zip(ours.pieces(), theirs.pieces(), strict=True):
            w, q = (values.reshape(-1, shape[1]).astype(np.float64) for values in (left, right))
            span = slice(start, start + len(w))
            rows[span] = _fit((w * (q * columns)).sum(1), np.square(q * columns).sum(1))[:, None]
            q *= rows[span]
            above, below, start = above + (w * q).sum(0), below + (q * q).sum(0), span.stop
        columns = _fit(above, below)[None]
    return Factors(rows.astype(np.float32), columns.astype(np.float32))


def _gains(w: Float32, q: Float32) -> bool:
    """Whether factors bring these rows together."""
    plain, scaled = Energy(), Energy()
    plain.add(w, q)
    columns = np.ones((1, w.shape[1]), np.float32)
    for _ in range(2):
        rows = _fit((w * (q * columns)).sum(1), np.square(q * columns).sum(1))[:, None]
        columns = _fit((w * (q * rows)).sum(0), np.square(q * rows).sum(0))[None]
    scaled.add(w, q * rows * columns)
    return scaled.snr_db > plain.snr_db + _GAIN_DB


def _fit(above: Any, below: Any) -> Any:
    """`above / below`, 1 where there is nothing."""
    usable = (below > 0) & (above > 0)
    return np.where(usable, above / np.where(usable, below, 1), 1)
