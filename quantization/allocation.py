"""Which weights get more bits: by losses within a number of bytes, or by a ratio and scores of sensitivity.

**Bytes.** One format for each weight, so that the loss is least: a multiple-choice knapsack.

    minimise  Σ_l loss[l, f(l)]    subject to  Σ_l size[l, f(l)] ≤ budget

Method: the lower convex hull of each weight's (size, loss) points, all of the hulls' steps in the order of what a byte
gains (the linear relaxation's optimum up to its last step; Dyer 1984, Zemel 1984), then repair with the room that is
left: single changes and exchanges of two weights, while they gain. Weights that make up a large share of the bytes,
which a greedy walk meets half-way and strands on, are enumerated. Tied weights are one: sum their rows beforehand.
The relaxation's value bounds what any allocation can reach, and is returned beside it.

**A ratio.** How sensitive a layer is to fewer bits, from a weight's 8-bit noise and its input. For a weight `W` with
its 8-bit (asymmetric, per channel) copy `Ŵ` and the layer's input `x` over calibration:

    weight_quantization_error     1 / (e + ε)                        e = max over rows of mean (W − Ŵ)²
    mean_activation_variance      1 / (e + ε) · mean var x           variances along the tokens of a sequence,
    max_activation_variance       1 / (e + ε) · max var x            then over channels; mean over sequences
    mean_activation_magnitude     1 / (e + ε) · mean max|x|
    hessian_input_activation      ‖W − Ŵ‖_F · 2 mean x²              the trace of the layer's Hessian, per element

The weights of the lowest scores get the fewer bits first. Names and definitions are NNCF's; so is ε, the machine
epsilon of the weight's own type, which for half-precision weights makes the first factor nearly constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, Spec

_LARGE = 0.1
"""A weight with a larger share of the budget is enumerated."""
_COMBINATIONS = 200
"""At most so many of them; the smallest of the large weights are none then."""
_ROUNDS = 64

Losses = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """The format of each weight."""

    formats: tuple[int, ...]
    """Its place among the weight's candidates."""
    size: int
    """Bytes of all weights."""
    loss: float
    bound: float
    """No allocation within the budget has a smaller loss than this."""


@dataclass(frozen=True, eq=False)
class _Hulls:
    """The steps of all hulls, best gain per byte first."""

    start: Counts
    """[weights]: each weight's smallest candidate."""
    weight: Counts
    """[steps]: whose step it is."""
    to: Counts
    """[steps]: the candidate that it leads to."""
    size: Counts
    """[steps]: bytes more than before it."""
    gain: Losses
    """[steps]: loss less than before it."""


def allocate(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> Allocation | None:
    """The best formats within `budget` bytes; None where not even the smallest fit.

    Args:
        sizes: for each weight the bytes of each of its candidates.
        losses: what each of them costs, in the same order; any finite unit, the same for all.
        budget: bytes for all weights together.
    """
    if not sizes:
        return Allocation((), 0, 0.0, 0.0)
    size, loss = _bytes(sizes), _table(losses, np.inf)
    if int(size.min(axis=1).sum()) > budget:
        return None
    large = [place for place, row in enumerate(sizes) if max(row) > _LARGE * budget]
    while np.prod([float(len(sizes[place])) for place in large]) > _COMBINATIONS:
        large.remove(min(large, key=lambda place: (max(sizes[place]), -place)))
    rest = np.array([place for place in range(len(sizes)) if place not in large], dtype=np.int64)
    hulls = _hulls(size[rest], loss[rest])
    best: tuple[float, Counts] | None = None
    bound = np.inf
    for fixed in product(*(range(len(sizes[place])) for place in large)):
        taken = int(sum(size[place, one] for place, one in zip(large, fixed, strict=True)))
        lost = float(sum(loss[place, one] for place, one in zip(large, fixed, strict=True)))
        found = _walk(hulls, size[rest], loss[rest], budget - taken)
        if found is None:
            continue
        chosen = np.zeros(len(sizes), dtype=np.int64)
        chosen[rest], chosen[large] = found[0], fixed
        bound = min(bound, lost + found[1])
        total = float(loss[np.arange(len(chosen)), chosen].sum())
        if best is None or total < best[0]:
            best = total, chosen
    assert best is not None
    chosen = _repaired(size, loss, best[1], budget)
    places = np.arange(len(chosen))
    reached = float(loss[places, chosen].sum())
    return Allocation(tuple(map(int, chosen)), int(size[places, chosen].sum()), reached, min(bound, reached))


def curve(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]) -> tuple[Counts, Losses]:
    """Bytes and loss of the allocations from the smallest to the best, step by step along the hulls."""
    size, loss = _bytes(sizes), _table(losses, np.inf)
    hulls = _hulls(size, loss)
    places = np.arange(len(size))
    first = np.array([size[places, hulls.start].sum()]), np.array([loss[places, hulls.start].sum()])
    return (
        np.concatenate([first[0], first[0] + np.cumsum(hulls.size)]),
        np.concatenate([first[1], first[1] - np.cumsum(hulls.gain)]),
    )


def _table(rows: Sequence[Sequence[float]], filler: float) -> Losses:
    """Rows of different lengths as one array; what is filled in is never chosen."""
    table = np.full((len(rows), max(map(len, rows))), filler, dtype=np.float64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _bytes(rows: Sequence[Sequence[int]]) -> Counts:
    return np.asarray(_table(rows, float(1 << 60)), dtype=np.int64)


def _hulls(size: Counts, loss: Losses) -> _Hulls:
    start, weight, to, more, gain = [], [], [], [], []
    for place in range(len(size)):
        hull = _hull(size[place], loss[place])
        start.append(hull[0])
        for one, other in pairwise(hull):
            weight.append(place)
            to.append(other)
            more.append(size[place, other] - size[place, one])
            gain.append(loss[place, one] - loss[place, other])
    steps = np.asarray(more, dtype=np.int64), np.asarray(gain, dtype=np.float64)
    order = np.argsort(-steps[1] / np.maximum(steps[0], 1), kind="stable")
    return _Hulls(
        np.asarray(start, dtype=np.int64),
        np.asarray(weight, dtype=np.int64)[order],
        np.asarray(to, dtype=np.int64)[order],
        steps[0][order],
        steps[1][order],
    )


def _hull(size: Counts, loss: Losses) -> list[int]:
    """Candidates on the lower convex hull, from the smallest to the one of the least loss."""
    hull: list[int] = []
    for one in sorted(np.flatnonzero(np.isfinite(loss)).tolist(), key=lambda place: (size[place], loss[place], place)):
        if hull and loss[one] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _bends_up(size, loss, hull[-2], hull[-1], one):
            hull.pop()
        hull.append(one)
    return hull


def _bends_up(size: Counts, loss: Losses, first: int, middle: int, last: int) -> bool:
    """Whether the middle point lies above the line between the others."""
    left = (loss[first] - loss[middle]) * float(size[last] - size[middle])
    return bool(left <= (loss[middle] - loss[last]) * float(size[middle] - size[first]))


def _walk(hulls: _Hulls, size: Counts, loss: Losses, budget: int) -> tuple[Counts, float] | None:
    """The greedy walk up the hulls, and the relaxation's bound; None where the start does not fit."""
    places = np.arange(len(size))
    chosen = hulls.start.copy()
    room = budget - int(size[places, chosen].sum())
    if room < 0:
        return None
    reached = np.cumsum(hulls.size)
    whole = int(np.searchsorted(reached, room, side="right"))
    bound = float(loss[places, chosen].sum() - hulls.gain[:whole].sum())
    chosen[hulls.weight[:whole]] = hulls.to[:whole]  # a weight's later step stands after its earlier ones
    room -= int(reached[whole - 1]) if whole else 0
    if whole < len(reached):
        bound -= float(hulls.gain[whole]) * room / float(hulls.size[whole])
    stopped = set()
    for step in range(whole, len(reached)):
        weight = int(hulls.weight[step])
        if weight in stopped or hulls.size[step] > room:
            stopped.add(weight)
            continue
        chosen[weight] = hulls.to[step]
        room -= int(hulls.size[step])
    return chosen, bound


def _repaired(size: Counts, loss: Losses, chosen: Counts, budget: int) -> Counts:
    """Change one weight, or two of which one gives bytes and one takes them, as long as that gains."""
    places = np.arange(len(chosen))
    for _ in range(_ROUNDS):
        room = budget - int(size[places, chosen].sum())
        more = size - size[places, chosen][:, None]
        gain = loss[places, chosen][:, None] - loss
        alone = np.where(more <= room, gain, -np.inf)
        best = int(np.argmax(alone))
        move = [best] if alone.flat[best] > 0 else []
        pair = _exchange(more, gain, room)
        if pair is not None and (not move or pair[0] > alone.flat[best]):
            move = [pair[1], pair[2]]
        if not move:
            return chosen
        chosen = chosen.copy()
        for one in move:
            weight, candidate = divmod(one, size.shape[1])
            chosen[weight] = candidate
    return chosen


def _exchange(more: Counts, gain: Losses, room: int) -> tuple[float, int, int] | None:
    """The best pair of changes of two weights that fits; None where none gains."""
    columns = more.shape[1]
    ups = np.flatnonzero((gain > 0).ravel() & (more > 0).ravel())
    downs = np.flatnonzero((more < 0).ravel() & np.isfinite(gain).ravel())
    if not ups.size or not downs.size:
        return None
    freed, cost = -more.ravel()[downs], -gain.ravel()[downs]
    order = np.argsort(freed, kind="stable")[
        ::-1
    ]  # the largest first: what frees at least so much is a beginning of it
    freed, cost, downs = freed[order], cost[order], downs[order]
    cheapest = np.minimum.accumulate(cost)
    where = np.zeros(len(cost), dtype=np.int64)
    np.maximum.accumulate(np.where(cost <= cheapest, np.arange(len(cost)), 0), out=where)
    needed = more.ravel()[ups] - room
    count = np.searchsorted(-freed, -needed, side="right")
    best: tuple[float, int, int] | None = None
    total = np.where(count > 0, gain.ravel()[ups] - cheapest[np.maximum(count - 1, 0)], -np.inf)
    for place in np.argsort(-total, kind="stable")[:16]:
        if total[place] <= 0:
            break
        partner = int(downs[where[count[place] - 1]])
        if partner // columns != ups[place] // columns and (best is None or total[place] > best[0]):
            best = float(total[place]), int(ups[place]), partner
    return best


METRICS = (
    "weight_quantization_error",
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
)
_INT8 = Spec(FORMATS["int8_asym"])


@dataclass(frozen=True)
class WeightNoise:
    """What 8 bits do to a weight."""

    worst_row: float
    """The largest over the rows of the mean squared error."""
    frobenius: float
    """The root of the sum of squared errors."""
    epsilon: float
    """Machine epsilon of the weight's type as stored."""


@dataclass(frozen=True)
class InputMeans:
    """Means over the sequences of a layer's input, as `calibration.LayerStatistics` has them."""

    mean_square: float
    mean_variance: float
    max_variance: float
    mean_max_abs: float


def weight_noise(pieces: Iterable[Array], epsilon: float) -> WeightNoise:
    """The noise of 8 bits on a weight given as pieces `[n, in]` of its rows, in any cut."""
    worst, total = 0.0, 0.0
    for piece in pieces:
        values = np.asarray(piece, np.float32)
        squares = np.square(decode_rows(encode_rows(values, _INT8), _INT8) - values)
        worst = max(worst, float(squares.mean(axis=1).max(initial=0.0)))
        total += float(squares.sum(dtype=np.float64))
    return WeightNoise(worst, sqrt(total), epsilon)


def sensitivity(metric: str, noise: WeightNoise, means: InputMeans | None = None) -> float:
    """The score of one weight: higher keeps its bits for longer.

    `means` is None for a weight whose input was not seen (an embedding): every metric on data then scores it 0, so
    that it gets fewer bits first. Raises ValueError for a metric that is not in `METRICS`.
    """
    inverse = 1.0 / (noise.worst_row + noise.epsilon)
    if metric == "weight_quantization_error":
        return inverse
    if metric not in METRICS:
        raise ValueError(f"metric '{metric}': allowed are {', '.join(METRICS)}")
    if means is None:
        return 0.0
    if metric == "hessian_input_activation":
        return noise.frobenius * 2 * means.mean_square
    return (
        inverse
        * {
            "mean_activation_variance": means.mean_variance,
            "max_activation_variance": means.max_variance,
            "mean_activation_magnitude": means.mean_max_abs,
        }[metric]
    )
