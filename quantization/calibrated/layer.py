"""One layer's weight from statistics to stored codes: the best of several starts, by the layer's own objective.

    for some rows at a time:
        for each start:   scales of the start → GPTQ                      (gptq)
        row by row the start of the least cost                             tr((W − Q) H (W − Q)ᵀ) is a sum over rows
        sweeps over codes and scales                                       (descent)

Which scales GPTQ should start from is not known beforehand: plain ones keep outliers that searched ones clip, and GPTQ
pushes weights towards the clipped range. As rows do not depend on each other the choice is made for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.calibrated.curvature import Curvature
from ov_weight_compression.quantization.calibrated.descent import cost, descend
from ov_weight_compression.quantization.calibrated.draft import Draft, Grid
from ov_weight_compression.quantization.calibrated.gptq import gptq
from ov_weight_compression.quantization.calibrated.starts import Start, starting_draft
from ov_weight_compression.quantization.scales import tensor_scale_of
from ov_weight_compression.quantization.spec import Encoded, Spec, join_rows

__all__ = ["BALANCED", "BEST", "GPTQ_ONLY", "Effort", "fit_rows"]

_ELEMENTS = 1 << 22
"""Of a weight that are fitted at a time: the more rows, the less every step costs for each of them."""


@dataclass(frozen=True)
class Effort:
    """How much work a layer is worth: the starts to try, and the sweeps of descent on the best of them."""

    starts: tuple[Start, ...]
    sweeps: int


GPTQ_ONLY = Effort((Start.RESIDUAL,), 0)
BALANCED = Effort((Start.RESIDUAL,), 2)
BEST = Effort((Start.RESIDUAL, Start.ENERGY, Start.PLAIN), 4)


def fit_rows(
    target: npt.NDArray[Any],
    spec: Spec,
    curvature: Curvature,
    effort: Effort = BALANCED,
    *,
    tensor_scale: np.float32 | None = None,
) -> Encoded:
    """Quantise a weight so that the layer's output on the calibration data suffers least.

    Args:
        target: [rows, in] what to approximate: the weight, or what `targets` made of it.
        spec: how to store it; `spec.search` counts the candidates of the searched starts, 0 for 19 of them.
        curvature: `curvature_of` the Gram matrix of the layer's input.
        effort: how hard to try.
        tensor_scale: as in `encode_rows`; by default that of `target`.

    Returns:
        The stored arrays.

    Raises:
        ValueError: the rows cannot be cut into groups as ``spec`` says.
    """
    if spec.format.tensor_scale and tensor_scale is None:
        tensor_scale = tensor_scale_of(float(np.abs(target).max(initial=0.0)), spec.format)
    grid = Grid(spec, tensor_scale)
    step = max(_ELEMENTS // max(target.shape[1], 1), 1024)
    parts = [
        grid.encode(_fit(np.asarray(target[begin : begin + step], np.float32), curvature, grid, effort))
        for begin in range(0, max(len(target), 1), step)
    ]
    return join_rows(parts)


def _fit(rows: npt.NDArray[np.float32], curvature: Curvature, grid: Grid, effort: Effort) -> Draft:
    """The draft of some rows [rows, in]; the draft is channel-major."""
    channels = np.ascontiguousarray(rows.T)
    starts = [starting_draft(rows, start, curvature, grid) for start in effort.starts]
    drafts = [gptq(channels, start, curvature, grid) for start in starts]
    best = drafts[0]
    if len(drafts) > 1:
        least = cost(channels, best, curvature)
        for other in drafts[1:]:
            costs = cost(channels, other, curvature)
            best.take(costs < least, other)
            least = np.minimum(least, costs)
    return descend(channels, best, curvature, grid, effort.sweeps) if effort.sweeps else best
