"""One layer's weight from statistics to stored codes: a tuple of steps, each of which makes a draft a better one.

    for some rows at a time:
        scales to start from                                               (draft.starting_draft)
        each step in turn                                                  (target, draft, hessian, grid) → draft

GPTQ is a step, coordinate descent is one, and so is whatever has the signature of `Step`: an algorithm is one file, and
a tuple that it stands in. The objective of all is the layer's own, `tr((W − Q) H (W − Q)ᵀ)`, a sum over rows.

Which scales GPTQ should start from is not known beforehand: plain ones keep outliers that searched ones clip, and GPTQ
pushes weights towards the clipped range. As rows do not depend on each other `BestOf` chooses for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.formats import Encoded, Spec, join_rows
from ov_weight_compression.quantization.layerwise.coordinate_descent import CoordinateDescent, cost
from ov_weight_compression.quantization.layerwise.draft import Draft, Grid, Start, side_by_side, starting_draft
from ov_weight_compression.quantization.layerwise.gptq import gptq
from ov_weight_compression.quantization.layerwise.hessian import Hessian
from ov_weight_compression.quantization.reference import tensor_scale_of

_ELEMENTS = 1 << 22
"""Of a weight that are fitted at a time: the more rows, the less every step costs for each of them."""
_ABREAST = 1 << 21
"""Elements of drafts that a step takes side by side: larger ones gain little, and would take memory."""

Step: TypeAlias = Callable[[Float32, Draft, Hessian, Grid], Draft]
"""`(target, draft, hessian, grid) → draft`: the target [in, rows] f32 is what to approximate, the draft what the step
before has made of it (the first gets levels rounded to nearest for searched scales). Neither may be changed. What is
returned has levels and scales that `grid` allows. Rows do not depend on each other; any number of them may come."""


@dataclass(frozen=True)
class BestOf:
    """A step from several scales: from those of the draft, and from others; for each row what costs least."""

    step: Step
    starts: tuple[Start, ...]

    def __call__(self, target: Float32, draft: Draft, hessian: Hessian, grid: Grid) -> Draft:
        """The best drafts; see `Step`."""
        rows = np.ascontiguousarray(target.T)
        drafts = chain([draft], (starting_draft(rows, start, hessian, grid) for start in self.starts))
        others = self._stepped(target, drafts, hessian, grid)
        best = next(others)
        least = cost(target, best, hessian) if best.cost is None else best.cost
        for other in others:
            costs = cost(target, other, hessian) if other.cost is None else other.cost
            best.take(costs < least, other)
            least = np.minimum(least, costs)
        return best

    def _stepped(self, target: Float32, drafts: Iterable[Draft], hessian: Hessian, grid: Grid) -> Iterator[Draft]:
        """The step's result for each draft of the target: small ones side by side, as rows of one, for what a channel
        costs by itself is paid once then."""
        count = 1 + len(self.starts)
        if target.size * count > _ABREAST:
            return (self.step(target, draft, hessian, grid) for draft in drafts)
        return self.step(np.tile(target, count), side_by_side(list(drafts)), hessian, grid).split(count)


BALANCED: tuple[Step, ...] = (gptq, CoordinateDescent(2))
BEST: tuple[Step, ...] = (BestOf(gptq, (Start.ENERGY, Start.PLAIN)), CoordinateDescent(4))


def fit_rows(
    target: Array,
    spec: Spec,
    hessian: Hessian,
    steps: tuple[Step, ...] = BALANCED,
    *,
    start: Start = Start.RESIDUAL,
    tensor_scale: np.float32 | None = None,
) -> Encoded:
    """Quantise a weight so that the layer's output on the calibration data suffers least.

    Args:
        target: [rows, in] what to approximate: the weight, or what `hessian.input_correction` made of it.
        spec: how to store it; `spec.search` counts the candidates of searched scales, 0 for 19 of them.
        hessian: `hessian_of` the Gram matrix of the layer's input.
        steps: what to do, in turn.
        start: the scales of the draft that the first step gets.
        tensor_scale: as in `encode_rows`; by default that of `target`.

    Returns:
        The stored arrays.

    Raises:
        ValueError: the rows cannot be cut into groups as ``spec`` says.
    """
    if spec.format.tensor_scale and tensor_scale is None:
        tensor_scale = tensor_scale_of(float(np.abs(target).max(initial=0.0)), spec.format)
    grid = Grid(spec, tensor_scale)
    size = max(_ELEMENTS // max(target.shape[1], 1), 1024)
    parts = []
    for begin in range(0, max(len(target), 1), size):
        rows = np.asarray(target[begin : begin + size], np.float32)
        draft, channels = starting_draft(rows, start, hessian, grid), np.ascontiguousarray(rows.T)
        for step in steps:
            draft = step(channels, draft, hessian, grid)
        parts.append(grid.encode(draft))
    return join_rows(parts)
