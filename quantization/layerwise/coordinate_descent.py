"""Coordinate descent on a draft's codes and scales: after GPTQ, until nothing helps any more.

The cost of one row is `(w − q)ᵀ H (w − q)`, and `r = H (w − q)` its slope. Given all other channels the best value of
channel j is `q_j + r_j / H_jj`; it is rounded to the grid, and the slope follows (coordinate descent as in CDQuant,
2406.17542). Given all codes, the cost is a parabola in the scale of each group:

    δs = uᵀ r_G / uᵀ H_GG u        u the group's levels,

rounded to a scale that can be stored, and taken where the parabola says that it helps. Zero points stay as they are. No
step raises the cost, but for rounding errors of f32, so the result is compared with the start once more at the end, row
by row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.quantization.layerwise.draft import Draft, Grid
from ov_weight_compression.quantization.layerwise.hessian import Hessian

_PANEL = 64
_LARGEST_PANEL = 256


def cost(target: Float32, draft: Draft, hessian: Hessian) -> npt.NDArray[np.float64]:
    """[rows]: `(w − q)ᵀ H (w − q)`."""
    error = target - draft.values()
    return np.asarray(np.einsum("ij,ij->j", hessian.matrix @ error, error, dtype=np.float64))


@dataclass(frozen=True)
class CoordinateDescent:
    """The step: so many sweeps over all codes and scales; no row's cost rises."""

    sweeps: int

    def __call__(self, target: Float32, draft: Draft, hessian: Hessian, grid: Grid) -> Draft:
        """A better draft; see `layer.Step`."""
        better = draft.copy()
        error = target - draft.values()
        slope = hessian.matrix @ error
        start = np.einsum("ij,ij->j", slope, error, dtype=np.float64)
        buffer = error  # of the same size, and not needed any more
        for _ in range(self.sweeps):
            _sweep(better, slope, hessian, grid, buffer)
        better.cost = np.einsum("ij,ij->j", slope, target - better.values(), dtype=np.float64)
        better.take(better.cost > start, replace(draft, cost=start))
        return better


def _sweep(draft: Draft, slope: Float32, hessian: Hessian, grid: Grid, buffer: Float32) -> None:
    """One round over all panels of channels, those of the largest energy first; `slope` follows the draft. `buffer` is
    of its shape, for what lies between.

    A panel is some whole groups, or a part of a group too large for one; then the scales wait for the end of the round.
    """
    matrix, group, width = hessian.matrix, draft.group, len(slope)
    whole = group <= _LARGEST_PANEL
    size = max(_PANEL // group, 1) * group if whole else _PANEL
    starts = np.arange(0, width, size)
    for begin in starts[np.argsort(-np.add.reduceat(hessian.diagonal, starts), kind="stable")]:
        span = slice(begin, min(begin + size, width))
        steps = _sweep_codes(draft, span, slope, hessian, grid)
        if whole:
            steps += _refit_scales(draft, span, slope[span] - matrix[span, span] @ steps, hessian, grid)
        slope -= np.matmul(matrix[:, span], steps, out=buffer)
    if not whole:
        slope -= np.matmul(matrix, _refit_scales(draft, slice(0, width), slope, hessian, grid), out=buffer)


def _sweep_codes(draft: Draft, span: slice, slope: Float32, hessian: Hessian, grid: Grid) -> Float32:
    """Give every channel of `span` its best code in turn, the largest `H_jj` first: by how much the values move."""
    energy = hessian.diagonal[span]
    order = np.argsort(-energy, kind="stable")
    coupling = hessian.matrix[span, span][np.ix_(order, order)]
    moves = np.empty((len(order), slope.shape[1]), np.float32)
    for place, offset in enumerate(order):
        channel = span.start + offset
        pull = slope[channel]
        if place:
            pull = pull - coupling[place, :place] @ moves[:place]
        scale = draft.scale[channel // draft.group]
        value = draft.levels[channel] * scale
        ratio = (value + pull / energy[offset]) / scale
        level = grid.nearest(ratio, None if draft.zero is None else draft.zero[channel // draft.group])
        np.subtract(level * scale, value, out=moves[place])
        draft.levels[channel] = level
    steps = np.empty_like(moves)
    steps[order] = moves
    return steps


def _refit_scales(draft: Draft, span: slice, slope: Float32, hessian: Hessian, grid: Grid) -> Float32:
    """Move the scale of each group in `span` to the best one that can be stored: by how much the values move.

    `slope` is that of the span, [channels, rows], and not changed.
    """
    group = draft.group
    steps = np.zeros_like(slope)
    for begin in range(span.start, span.stop, group):
        inside, part = slice(begin, begin + group), slice(begin - span.start, begin - span.start + group)
        levels, old = draft.levels[inside], draft.scale[begin // group]
        before = hessian.matrix[inside, span.start : begin] @ steps[: part.start]
        bend = np.einsum("ij,ij->j", levels, hessian.matrix[inside, inside] @ levels)
        pull = np.einsum("ij,ij->j", levels, slope[part] - before)
        ideal = old + np.divide(pull, bend, out=np.zeros_like(old), where=bend > 0)
        gain, best = np.zeros_like(old), old.copy()
        for scale in grid.around(ideal):
            step = scale - old
            gains = step * (2 * pull - step * bend)
            np.copyto(best, scale, where=gains > gain)
            np.maximum(gain, gains, out=gain)
        steps[part] = levels * (best - old)
        draft.scale[begin // group] = best
    return steps
