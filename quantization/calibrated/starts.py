"""Scales for GPTQ and the descent to start from.

The scale search (`encode_rows`) tries multiples of the plain scale; with the codes of the best one, least squares give
a better scale still, and better codes for it:

    s = Σ w W u / Σ w u²,     u = nearest(W / s),     again.

A few rounds are worth 3 % of the layer's error at 2 bits and next to nothing at 4.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import numpy as np

from ov_weight_compression.quantization.calibrated.curvature import Curvature
from ov_weight_compression.quantization.calibrated.draft import Draft, Floats, Grid, draft_of
from ov_weight_compression.quantization.encode import encode_rows

__all__ = ["Start", "starting_draft"]

_CANDIDATES = 19
_ROUNDS = 3


class Start(Enum):
    """Where the scales come from."""

    PLAIN = "plain"  # absmax, min-max
    ENERGY = "energy"  # searched; an error in channel j weighs E[x_j²]
    RESIDUAL = "residual"  # searched; it weighs what remains of that once later channels have made up for it


def starting_draft(target: Floats, start: Start, curvature: Curvature, grid: Grid) -> Draft:
    """Scales, zero points and nearest levels for `target` [rows, in]; the draft is channel-major."""
    if start is Start.PLAIN:
        return draft_of(encode_rows(target, replace(grid.spec, search=0), tensor_scale=grid.tensor_scale), grid.spec)
    weights = curvature.energy if start is Start.ENERGY else curvature.residual
    spec = replace(grid.spec, search=grid.spec.search or grid.spec.format.default_search or _CANDIDATES)
    encoded = encode_rows(target, spec, importance=weights, weighting="data", tensor_scale=grid.tensor_scale)
    draft = draft_of(encoded, grid.spec)
    _polish(np.ascontiguousarray(target.T), draft, weights, grid)
    return draft


def _polish(target: Floats, draft: Draft, weights: Floats, grid: Grid) -> None:
    """Alternate between scales and codes; every group keeps the best of all rounds."""
    groups, rows = draft.scale.shape
    wanted, w = target.reshape(groups, -1, rows), weights.reshape(groups, -1, 1)
    zero = None if draft.zero is None else draft.zero[:, None]
    levels, scale = draft.levels.reshape(wanted.shape), draft.scale.copy()
    least = _error(wanted, levels, scale, w)
    current = levels
    for _ in range(_ROUNDS):
        weighted = w * current
        bend = (weighted * current).sum(1)
        scale = grid.stored(np.divide((weighted * wanted).sum(1), bend, out=scale.copy(), where=bend > 0))
        current = grid.nearest(wanted / scale[:, None], zero)
        error = _error(wanted, current, scale, w)
        better = error < least
        np.copyto(levels, current, where=better[:, None])
        np.copyto(draft.scale, scale, where=better)
        least = np.minimum(least, error)


def _error(wanted: Floats, levels: Floats, scale: Floats, weights: Floats) -> Floats:
    """[groups, rows]: the weighted squared error of each group."""
    difference = wanted - levels * scale[:, None]
    difference *= difference
    difference *= weights
    return np.asarray(difference.sum(1))
