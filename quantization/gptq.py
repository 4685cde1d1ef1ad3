"""GPTQ, coordinate descent after it, and whatever else fits a weight to calibration data, layer by layer.

    for some rows at a time:
        scales to start from                                               (starting_draft)
        each step in turn                                                  (target, draft, hessian, grid) → draft

The objective of all is the layer's own, `tr((W − Q) H (W − Q)ᵀ)`, a sum over rows. Whatever has the signature of `Step`
is a step, and a tuple of them is an algorithm.

**The Hessian** of a layer: what an error in its weights costs at its output, in which order GPTQ decides the channels,
and what to aim at when the layers before are compressed already. With `H = Σ x xᵀ` over the calibration data, rounding
`W [rows, in]` to `Q` costs `tr((W − Q) H (W − Q)ᵀ)`: each row of the weight is a problem of its own, and all share H.
Channels are decided in falling order of `H_jj` (the act-order of GPTQ): what matters most is rounded first, while all
others can still make up for it.

H is known from a sample. `H + λ median(diag H) I` predicts the cost on other data better, and takes its place
throughout: measured on held-out text, 1 to 5 % less than without. (Not the mean of the diagonal: in a layer where a few
tokens drive a few channels to a thousand times the others, a ridge of that size would wipe out what is known of the
rest.) With M upper triangular in the order of decision and `M Mᵀ = H`, the cost of errors `δ = w − q` is

    Σ_j M_jj² (δ_j + Σ_{k<j} B_kj δ_k)²,        B_kj = M_kj / M_jj,

so once channels `k < j` are decided, the best value of channel j is `w_j + Σ_{k<j} B_kj δ_k`. That is GPTQ: Frantar et
al. (2210.17323) write it with the Cholesky factor of the inverse, which is the same factor inverted; without the
inverse it takes a third of the work and half of the memory. (Chen et al., 2507.18553, show the equivalence with Babai's
nearest plane.) `M_jj²` is also what an error in channel j costs once all later channels have made up for it, hence the
right weight for a scale search that GPTQ follows.

**Targets.** A compressed layer sees `x̂`, the compressed prefix's activation, but what it must reproduce is the float
model's output `W x`. The weight that does so best is a least-squares problem, regularised towards W:

    W* = argmin Σ |W x − W* x̂|² + λ̄ |W* − W|²
       = W + W (C − Ĥ) (Ĥ + λ̄ I)⁻¹          C = Σ x x̂ᵀ,  Ĥ = Σ x̂ x̂ᵀ,  λ̄ = λ mean(diag Ĥ)

and whatever rounds `W*` under Ĥ afterwards minimises the distance to the float output (GPTAQ, 2504.02692; Qronos,
2505.11695). `input_correction` is the part that layers with the same input share.

**Cholesky factors** and positive definite systems, block by block: numpy has the one unblocked, the other only by LU.

    L [n, n] lower,  L Lᵀ = A          A⁻¹ B = L⁻ᵀ (L⁻¹ B)

The blocks on the diagonal are left to numpy, and inverted; all else is matrix products. Of 1,536 channels in f32 on one
core the factor takes 23 ms in place of 83, a system with 576 right-hand sides 59 in place of 175.

**A draft** is a weight half-way between floats and stored codes: levels and scales that the steps move about.
Everything here is *channel-major*, `[in, rows]`, the transpose of the canonical weight: the algorithms decide one input
channel after another for all rows at once, and so a channel is contiguous.

    value[j, r] = level[j, r] * scale[j // g, r]          level = q - z, or levels[q]

`Grid` knows which levels and which scales a `Spec` allows. Scales are always f32 values of *stored* scales, so what an
algorithm measures is what the device will compute. A draft starts from scales that are plain or searched. The searched
ones come with the refit that belongs to a search weighted with data: worth 3 % of the error of a layer at 2 bits and
next to nothing at 4. Which scales GPTQ should start from is not known beforehand: plain ones keep outliers that
searched ones clip, and GPTQ pushes weights towards the clipped range. As rows do not depend on each other `BestOf`
chooses for each of them.

**GPTQ** rounds one channel at a time and lets the channels still to come make up for its error: Frantar et al., "GPTQ:
Accurate post-training quantization for generative pre-trained transformers" (2210.17323), with two changes. Groups are
*static*: all scales are given beforehand, so channels may be decided in any order (act-order) and the stored weight
looks like any other, without an index of groups. And the feedback is applied as the sum of what past errors ask of a
channel, one matrix product per block of channels and one vector product per channel:

    c_j = w_j + Σ_{k<j} B_kj δ_k        q_j = nearest(c_j)        δ_j = w_j − q_j

with B as above. Works for every format, as all it needs is the nearest level. What the result costs is known on
the way, `Σ_j M_jj² (c_j − q_j)²`, where the cost of any other draft takes a product with H.

**Coordinate descent** goes over codes and scales afterwards. The cost of one row is `(w − q)ᵀ H (w − q)`, and
`r = H (w − q)` its slope. Given all other channels the best value of channel j is `q_j + r_j / H_jj`; it is rounded to
the grid, and the slope follows (coordinate descent as in CDQuant, 2406.17542). Given all codes, the cost is a parabola
in the scale of each group:

    δs = uᵀ r_G / uᵀ H_GG u        u the group's levels,

rounded to a scale that can be stored, and taken where the parabola says that it helps. Zero points stay as they are. No
step raises the cost, but for rounding errors of f32, so the result is compared with the start once more at the end, row
by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.encode import encode_rows
from ov_weight_compression.quantization.formats import Encoded, Spec, join_rows
from ov_weight_compression.quantization.reference import (
    LevelGrid,
    decode_codes,
    level_grid,
    nearest_codes,
    scale_values,
    store_scales,
    tensor_scale_of,
)

_FACTORED = 64


def cholesky(matrix: Float32) -> tuple[Float32, list[tuple[slice, Float32]]]:
    """L of a symmetric `matrix` [n, n], zeros above the diagonal; and the places of its blocks on the diagonal with
    their inverses. Raises LinAlgError where it is not positive."""
    factor, blocks = np.zeros(matrix.shape, np.float32), []
    for begin in range(0, len(matrix), _FACTORED):
        span = slice(begin, min(begin + _FACTORED, len(matrix)))
        panel = matrix[begin:, span] - factor[begin:, :begin] @ factor[span, :begin].T
        size = span.stop - begin
        factor[span, span] = np.linalg.cholesky(panel[:size])
        inverse = np.linalg.inv(factor[span, span])
        factor[span.stop :, span] = panel[size:] @ inverse.T
        blocks.append((span, inverse))
    return factor, blocks


def solve_positive(matrix: Float32, right: Float32) -> Float32:
    """`matrix⁻¹ right`, [n, m], of a symmetric positive matrix. Raises LinAlgError where it is not positive."""
    factor, blocks = cholesky(matrix)
    x = np.array(right, np.float32, order="C")  # a transposed one would make every difference below a slow one
    for span, inverse in blocks:
        x[span] = inverse @ x[span]
        x[span.stop :] -= factor[span.stop :, span] @ x[span]
    for span, inverse in reversed(blocks):
        x[span] = inverse.T @ x[span]
        x[: span.start] -= factor[span, : span.start].T @ x[span]
    return x


DAMPING = 0.15
TARGET_DAMPING = 0.5
"""λ. C is known from a sample only: a model with outlier channels and sixteen thousand tokens loses 4 % less with 0.3
than with 0.1, and 3 % less again with 0.6; small models without outliers stay within a few per cent."""


@dataclass(frozen=True, eq=False)
class Hessian:
    """One layer input's H, prepared. Layers that read the same tensor share it.

    Attributes:
        matrix: [in, in] f32, H with its ridge, symmetric. Dead channels (`H_jj = 0`) have nothing else: they are
            rounded to nearest and disturb nothing.
        order: [in] channels in the order in which they are decided.
        feedback: [in, in] f32 in that order, B: unit upper triangular.
        residual: [in] f32 in the channels' own order, `M_jj²`.
        diagonal: [in] f32, `H_jj`, that is n E[x_j²].
    """

    matrix: Float32
    order: npt.NDArray[np.intp]
    feedback: Float32
    residual: Float32
    diagonal: Float32


def hessian_of(gram: Array, *, damping: float | None = None) -> Hessian:
    """Prepare `gram` [in, in] (any float type, positive semidefinite, not changed).

    Args:
        gram: H, in any scale: only its shape matters.
        damping: λ; by default 0.15.
    """
    mean = np.diagonal(gram).astype(np.float64).mean()
    if not np.isfinite(mean):
        raise ValueError("the Gram matrix of the layer's input holds NaN or infinity")
    ridged: Float32 = (gram / (mean or 1.0)).astype(np.float32)  # with a mean diagonal of 1
    energy = np.diagonal(ridged).copy()
    alive = energy > 0
    ridged[~alive, :] = 0
    ridged[:, ~alive] = 0
    ridge = (DAMPING if damping is None else damping) * float(np.median(energy[alive])) if alive.any() else 1.0
    energy = np.where(alive, energy, 0) + np.float32(max(ridge, 1e-6))
    ridged[np.diag_indices_from(ridged)] = energy
    order = np.argsort(-energy, kind="stable")
    backwards = ridged.take(order[::-1], 0).take(order[::-1], 1)
    extra = np.float32(1e-6)
    for _ in range(8):
        try:
            factor = np.ascontiguousarray(cholesky(backwards)[0][::-1, ::-1])  # M: upper triangular in forward order
            break
        except np.linalg.LinAlgError:
            backwards[np.diag_indices_from(backwards)] += extra
            extra *= 10
    else:
        raise ValueError("the Gram matrix of the layer's input is not positive semidefinite")
    diagonal = np.diagonal(factor).copy()
    residual = np.empty_like(diagonal)
    residual[order] = diagonal * diagonal
    factor /= diagonal
    return Hessian(ridged, order, factor, residual, energy)


def input_correction(gram: Array, drift: Array, *, damping: float = TARGET_DAMPING) -> Float32:
    """`K = D (Ĥ + λ̄ I)⁻¹` with D = C − Ĥ, f32 of the shape of D: the target of weight W [rows, in] is `W + W @ K`.

    Args:
        gram: Ĥ [in, in], Gram matrix of the compressed prefix's activation.
        drift: D [in, in], rows follow the float activation, columns the compressed one. Or `W @ D` [rows, in], which
            gives `W @ K`, and is less work where the weight has fewer rows.
        damping: λ, in units of the mean diagonal of Ĥ.
    """
    damped, sides = np.array(gram, np.float32), np.asarray(drift, np.float32)
    mean = float(np.diagonal(damped).mean(dtype=np.float64))
    if not mean > 0:
        return np.zeros_like(sides)
    damped[np.diag_indices_from(damped)] += np.float32(max(damping, 1e-4) * mean)
    try:
        return np.ascontiguousarray(solve_positive(damped, sides.T).T)
    except np.linalg.LinAlgError:  # f32 cannot tell: channels far larger than the others, and hardly any damping
        return np.ascontiguousarray(np.linalg.solve(damped, sides.T).T)


@dataclass(frozen=True, eq=False)
class Objective:
    """What layers are fitted to that read one input (of one expert): H, and what they aim at where they are not to
    stay what they are."""

    gram: Array
    """H [in, in] of what the compressed layer reads; zeros where nothing was seen."""
    damping: float | None
    """What is added to the diagonal of H, as a share of its median; None for what is usual."""
    correction: Float32 | None = None
    """K, [in, in]: the layer aims at `W + W K`; None where the streams are one, or K was not worth computing."""
    drift: Array | None = None
    """D, [in, in], in place of K where the layers have fewer rows than it."""
    outputs: Array | None = None
    """Σ y x̂ᵀ [rows, in] in place of both, with the outputs `y` of the one layer in the float model."""

    @cached_property
    def hessian(self) -> Hessian:
        """H, prepared for GPTQ."""
        return hessian_of(self.gram, damping=self.damping)

    def target(self, weight: Float32) -> Float32:
        """What the layer aims at, for rows of its weight."""
        if self.outputs is not None:
            return weight + input_correction(self.gram, self.outputs - weight @ self.gram)
        if self.drift is not None:
            return weight + input_correction(self.gram, weight @ self.drift)
        return weight if self.correction is None else weight + weight @ self.correction


_ONE = np.ones(1, np.float32)
_CANDIDATES = 19


@dataclass(eq=False)
class Draft:
    """Levels [in, rows], scales [groups, rows] and, for asymmetric formats, zero points [groups, rows]; all f32."""

    levels: Float32
    scale: Float32
    zero: Float32 | None
    cost: npt.NDArray[np.float64] | None = None
    """`(w − q)ᵀ H (w − q)` of each row, [rows], where the step that made the draft knows it."""

    @property
    def group(self) -> int:
        """Channels that share a scale."""
        return len(self.levels) // len(self.scale)

    def values(self) -> Float32:
        """[in, rows]: the weights that the draft stands for."""
        groups, rows = self.scale.shape
        return (self.levels.reshape(groups, -1, rows) * self.scale[:, None]).reshape(-1, rows)

    def copy(self) -> Draft:
        """One with arrays of its own, to be changed: what it costs is left out."""
        return Draft(self.levels.copy(), self.scale.copy(), None if self.zero is None else self.zero.copy())

    def take(self, rows: Array, other: Draft) -> None:
        """Replace the rows where `rows` [rows] is true by those of `other`."""
        np.copyto(self.levels, other.levels, where=rows)
        np.copyto(self.scale, other.scale, where=rows)
        if self.zero is not None and other.zero is not None:
            np.copyto(self.zero, other.zero, where=rows)
        mine, its = self.cost, other.cost
        self.cost = None if mine is None or its is None else np.where(rows, its, mine)


def side_by_side(drafts: list[Draft]) -> Draft:
    """One draft with the rows of all of them, which are of one shape."""
    zeros = [draft.zero for draft in drafts if draft.zero is not None]
    levels, scale = np.hstack([draft.levels for draft in drafts]), np.hstack([draft.scale for draft in drafts])
    return Draft(levels, scale, np.hstack(zeros) if zeros else None)


@dataclass(eq=False)
class Grid:
    """The levels and the scales that a spec allows; `tensor_scale` as in `encode_rows`."""

    spec: Spec
    tensor_scale: np.float32 | None = None

    def __post_init__(self) -> None:
        format = self.spec.format  # looked up once: a row of a weight is soon rounded
        self._levels: LevelGrid | None = None if format.levels is None else level_grid(format)
        self._low, self._high = np.float32(format.low), np.float32(format.high)

    def nearest(self, ratio: Float32, zero: Float32 | None) -> Float32:
        """The level nearest to `ratio` = weight / scale, any shape; `zero` broadcasts against it. May work in place."""
        if self._levels is not None:
            return np.asarray(self._levels.values[np.searchsorted(self._levels.thresholds, ratio, side="left")])
        low, high = self._low, self._high
        np.rint(ratio, out=ratio)
        np.maximum(ratio, low if zero is None else -zero, out=ratio)
        return np.asarray(np.minimum(ratio, high if zero is None else high - zero, out=ratio))

    def stored(self, scale: Float32) -> Float32:
        """The values that scales have once stored; the sign of a symmetric integer format's scale is kept."""
        if self.spec.format.levels is not None or self.spec.format.asymmetric:
            scale = np.maximum(scale, 0)
        return scale_values(store_scales(scale, self.spec, self.tensor_scale), self.spec, self.tensor_scale)

    def encode(self, draft: Draft) -> Encoded:
        """The draft as stored arrays, canonical (rows first) again."""
        format, rows = self.spec.format, draft.scale.shape[1]
        levels = draft.levels.reshape(len(draft.scale), -1, rows)
        zero = None if draft.zero is None else draft.zero.astype(np.uint8)
        codes = nearest_codes(levels, _ONE, None if zero is None else zero[:, None], format)
        stored = store_scales(draft.scale, self.spec, self.tensor_scale)
        return Encoded(
            codes=np.ascontiguousarray(codes.reshape(-1, rows).T),
            scale=np.ascontiguousarray(stored.T),
            zero_point=None if zero is None else np.ascontiguousarray(zero.T),
            tensor_scale=self.tensor_scale,
            codebook=format.table,
        )


class Start(Enum):
    """Where the scales come from."""

    PLAIN = "plain"  # absmax, min-max
    ENERGY = "energy"  # searched; an error in channel j weighs E[x_j²]
    RESIDUAL = "residual"  # searched; it weighs what remains of that once later channels have made up for it


def starting_draft(rows: Float32, start: Start, hessian: Hessian, grid: Grid) -> Draft:
    """Scales, zero points and nearest levels for `rows` [rows, in]; the draft is channel-major."""
    spec, weights = replace(grid.spec, search=0), None
    if start is not Start.PLAIN:
        spec = replace(spec, search=grid.spec.search or spec.format.default_search or _CANDIDATES)
        weights = hessian.diagonal if start is Start.ENERGY else hessian.residual
    encoded = encode_rows(rows, spec, importance=weights, weighting="trial", tensor_scale=grid.tensor_scale)
    scale = np.ascontiguousarray(scale_values(encoded.scale, spec, encoded.tensor_scale).T)
    zero = None
    if encoded.zero_point is not None:
        zero = np.ascontiguousarray(encoded.zero_point.T, dtype=np.float32)
    codes = encoded.codes.T.reshape(len(scale), -1, len(rows))
    levels = decode_codes(codes, _ONE, None if zero is None else zero[:, None], spec.format)
    return Draft(levels.reshape(rows.shape[::-1]), scale, zero)


_BLOCK = 128


def gptq(target: Float32, draft: Draft, hessian: Hessian, grid: Grid) -> Draft:
    """Choose all levels for the draft's scales and zero points.

    Args:
        target: [in, rows] the weights to approximate.
        draft: its scales and zero points count, its levels do not.
        hessian: of the layer's input.
        grid: the format.

    Returns:
        A draft with levels of its own and the scales of `draft`; it knows its cost.
    """
    order, feedback = hessian.order, hessian.feedback
    width = len(order)
    group = order // draft.group
    carried = np.zeros_like(target)  # Σ B_kj δ_k over finished blocks, in the order of decision
    levels = np.empty_like(target)
    errors = np.empty((min(_BLOCK, width), target.shape[1]), np.float32)
    missed = np.empty_like(errors)  # c_j − q_j
    cost = np.zeros(target.shape[1])
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        for place in range(begin, end):
            channel, past = order[place], place - begin
            best = target[channel] + carried[place]
            if past:
                best += feedback[begin:place, place] @ errors[:past]
            missed[past] = best
            scale = draft.scale[group[place]]
            best /= scale
            level = grid.nearest(best, None if draft.zero is None else draft.zero[group[place]])
            levels[channel] = level
            level = level * scale
            missed[past] -= level
            np.subtract(target[channel], level, out=errors[past])
        cost += hessian.residual[order[begin:end]] @ np.square(missed[: end - begin])
        if end < width:
            carried[end:] += feedback[begin:end, end:].T @ errors[: end - begin]
    return Draft(levels, draft.scale.copy(), None if draft.zero is None else draft.zero.copy(), cost)


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
        """A better draft; see `Step`.

        Each sweep goes over all panels of channels, those of the largest energy first. A panel is some whole groups, or
        a part of a group too large for one; then the scales wait for the end of the sweep.
        """
        better, matrix, width = draft.copy(), hessian.matrix, len(target)
        error = target - draft.values()
        slope = matrix @ error  # of the cost; it follows the draft
        start = np.einsum("ij,ij->j", slope, error, dtype=np.float64)
        buffer = error  # of the same size, and not needed any more
        group = draft.group
        whole = group <= _LARGEST_PANEL
        size = max(_PANEL // group, 1) * group if whole else _PANEL
        starts = np.arange(0, width, size)
        order = np.argsort(-np.add.reduceat(hessian.diagonal, starts), kind="stable")
        for _ in range(self.sweeps):
            for begin in starts[order]:
                span = slice(begin, min(begin + size, width))
                steps = _sweep_codes(better, span, slope, hessian, grid)
                if whole:
                    steps += _refit_scales(better, span, slope[span] - matrix[span, span] @ steps, hessian, grid)
                slope -= np.matmul(matrix[:, span], steps, out=buffer)
            if not whole:
                slope -= np.matmul(matrix, _refit_scales(better, slice(0, width), slope, hessian, grid), out=buffer)
        better.cost = np.einsum("ij,ij->j", slope, target - better.values(), dtype=np.float64)
        better.take(better.cost > start, replace(draft, cost=start))
        return better


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
        # Of powers of two the next lower one may be better than the nearest.
        for wanted in (ideal, ideal * np.float32(0.5)) if grid.spec.scale_type == "f8e8m0" else (ideal,):
            scale = grid.stored(wanted)
            step = scale - old
            gains = step * (2 * pull - step * bend)
            np.copyto(best, scale, where=gains > gain)
            np.maximum(gain, gains, out=gain)
        steps[part] = levels * (best - old)
        draft.scale[begin // group] = best
    return steps


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
        rows, count = np.ascontiguousarray(target.T), 1 + len(self.starts)
        drafts = chain([draft], (starting_draft(rows, start, hessian, grid) for start in self.starts))
        found: Iterator[Draft]
        if target.size * count > _ABREAST:
            found = (self.step(target, one, hessian, grid) for one in drafts)
        else:  # side by side, as rows of one draft: what a channel costs by itself is paid once
            wide = self.step(np.tile(target, count), side_by_side(list(drafts)), hessian, grid)
            spans = (slice(begin, begin + len(rows)) for begin in range(0, count * len(rows), len(rows)))
            found = (
                Draft(
                    wide.levels[:, span],
                    wide.scale[:, span],
                    None if wide.zero is None else wide.zero[:, span],
                    None if wide.cost is None else wide.cost[span],
                )
                for span in spans
            )
        best = next(found)
        least = cost(target, best, hessian) if best.cost is None else best.cost
        for other in found:
            costs = cost(target, other, hessian) if other.cost is None else other.cost
            best.take(costs < least, other)
            least = np.minimum(least, costs)
        return best


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
