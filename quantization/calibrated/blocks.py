"""Codes and scales fitted group by group: what the Gram matrices of the groups alone allow.

Each group of each row is a problem of its own, `Δ H_g Δᵀ` with the [g, g] block `H_g = Σ x_g x_gᵀ` of its channels, and
is descended like a whole row in `descent`: the best value of every code given the group's others, then the best scale
for these codes. This is what NNCF calls scale estimation (the scale of least output error for given codes, then the
codes for that scale, and so on), with codes that know of each other and a guarantee: no group ever gets worse. It needs
`in · g` floats of statistics, no order of the layers and no second stream.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.calibrated.draft import Floats, Grid, draft_of
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = ["refine_blocks"]

_ELEMENTS = 1 << 20


def refine_blocks(
    target: npt.NDArray[np.float32], encoded: Encoded, spec: Spec, grams: Floats, *, sweeps: int = 3
) -> Encoded:
    """Improve codes and scales of `encoded`.

    Args:
        target: [rows, in] f32, the weight.
        encoded: codes and scales to start from, as `encode_rows` finds them with `weighting="data"`.
        spec: what they are.
        grams: [in / g, g, g] Gram matrices of the layer's input in any scale, g the group size of `spec`.
        sweeps: rounds over all codes and scales.

    Returns:
        New arrays; the zero points stay.
    """
    grid, draft = Grid(spec, encoded.tensor_scale), draft_of(encoded, spec)
    rows, width = target.shape
    groups = len(draft.scale)
    if grams.shape[0] != groups:
        raise ValueError(f"there are {grams.shape[0]} Gram matrices for {groups} groups")
    step = max(1, _ELEMENTS // width)
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        _refine(
            np.ascontiguousarray(target[part].T).reshape(groups, width // groups, -1),
            draft.levels[:, part].reshape(groups, width // groups, -1),
            draft.scale[:, part],
            None if draft.zero is None else draft.zero[:, part],
            grams,
            grid,
            sweeps,
        )
    return grid.encode(draft)


def _refine(
    target: Floats, levels: Floats, scale: Floats, zero: Floats | None, grams: Floats, grid: Grid, sweeps: int
) -> None:
    """Descend on `levels` [groups, g, rows] and `scale` [groups, rows] in place."""
    before = levels.copy(), scale.copy()
    energy = np.diagonal(grams, axis1=1, axis2=2)
    alive = grams + (1e-6 * energy.mean(1, keepdims=True) + (energy <= 0))[:, :, None] * np.eye(levels.shape[1])
    alive = alive.astype(np.float32)
    order = np.argsort(-energy, axis=1, kind="stable")
    error = target - levels * scale[:, None]
    slope = alive @ error
    start = _inner(slope, error)
    for _ in range(sweeps):
        slope -= alive @ _sweep(levels, scale, zero, slope, alive, order, grid)
        bent = alive @ levels
        step = _refit(levels, scale, slope, bent, grid)
        slope -= bent * step[:, None]
    error = target - levels * scale[:, None]
    worse = _inner(alive @ error, error) > start
    np.copyto(levels, before[0], where=worse[:, None])
    np.copyto(scale, before[1], where=worse)


def _sweep(
    levels: Floats,
    scale: Floats,
    zero: Floats | None,
    slope: Floats,
    grams: Floats,
    order: npt.NDArray[np.intp],
    grid: Grid,
) -> Floats:
    """Give every code its best value in turn, in all groups at once: by how much the values move, [groups, g, rows]."""
    every = np.arange(len(levels))
    moves = np.empty_like(slope)
    for place in range(levels.shape[1]):
        channel = order[:, place]
        pull: Floats = slope[every, channel]
        if place:
            near = grams[every[:, None], channel[:, None], order[:, :place]]
            pull -= (near[:, None] @ moves[:, :place])[:, 0]
        value: Floats = levels[every, channel] * scale
        pull /= grams[every, channel, channel][:, None]
        level = grid.nearest((value + pull) / scale, zero)
        moves[:, place] = level * scale - value
        levels[every, channel] = level
    steps = np.empty_like(moves)
    np.put_along_axis(steps, order[:, :, None], moves, axis=1)
    return steps


def _refit(levels: Floats, scale: Floats, slope: Floats, bent: Floats, grid: Grid) -> Floats:
    """Move every scale to the best one that can be stored: by how much, [groups, rows]."""
    bend, pull = _inner(levels, bent).astype(np.float32), _inner(levels, slope).astype(np.float32)
    ideal = scale + np.divide(pull, bend, out=np.zeros_like(pull), where=bend > 0)
    gain, best = np.zeros_like(pull), scale.copy()
    for candidate in grid.around(ideal):
        step = candidate - scale
        gains = step * (2 * pull - step * bend)
        np.copyto(best, candidate, where=gains > gain)
        np.maximum(gain, gains, out=gain)
    step = best - scale
    scale[:] = best
    return step


def _inner(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """Σ a b over the channels of each group, [groups, rows]."""
    return np.asarray(np.einsum("gir,gir->gr", a, b, dtype=np.float64))
