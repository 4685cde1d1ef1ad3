"""GPTQ: round one channel at a time and let the channels still to come make up for its error.

Frantar et al., "GPTQ: Accurate post-training quantization for generative pre-trained transformers" (2210.17323), with
two changes. Groups are *static*: all scales are given beforehand, so channels may be decided in any order (act-order)
and the stored weight looks like any other, without an index of groups. And the feedback is applied as the sum of what
past errors ask of a channel, one matrix product per block of channels and one vector product per channel:

    c_j = w_j + Σ_{k<j} B_kj δ_k        q_j = nearest(c_j)        δ_j = w_j − q_j

with B from `hessian`. Works for every format, as all it needs is the nearest level. What the result costs is known on
the way, `Σ_j M_jj² (c_j − q_j)²`, where the cost of any other draft takes a product with H.
"""

from __future__ import annotations

import numpy as np

from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.quantization.layerwise.draft import Draft, Grid
from ov_weight_compression.quantization.layerwise.hessian import Hessian

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
