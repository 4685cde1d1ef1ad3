"""Scales for GPTQ and the descent to start from.

The searched ones come with the refit that belongs to a search weighted with data (`quantization.refit`): worth 3 % of
the error of a layer at 2 bits and next to nothing at 4.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from ov_weight_compression.quantization.calibrated.curvature import Curvature
from ov_weight_compression.quantization.calibrated.draft import Draft, Floats, Grid, draft_of
from ov_weight_compression.quantization.encode import encode_rows

__all__ = ["Start", "starting_draft"]

_CANDIDATES = 19


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
    encoded = encode_rows(target, spec, importance=weights, weighting="trial", tensor_scale=grid.tensor_scale)
    return draft_of(encoded, grid.spec)
