"""Codes of the layers that share an input, from what the data showed of that input.

What depends on the input alone (the factor of its Gram matrix, the correction towards the float model's output) is
computed once for all of them. Experts with inputs of their own are layers of their own; one that the data never reached
keeps codes from its weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.encode import encode_rows
from ov_weight_compression.quantization.layerwise.hessian import DAMPING, Hessian, hessian_of, input_correction
from ov_weight_compression.quantization.layerwise.layer import Step, fit_rows
from ov_weight_compression.quantization.spec import Encoded, Spec, join_rows

if TYPE_CHECKING:
    from ov_weight_compression.calibration import Seen

__all__ = ["HessianInfo", "encode_layer", "hessian_info_of"]


@dataclass(frozen=True, eq=False)
class HessianInfo:
    """What one input (of one expert) says to the layers that read it."""

    gram: Array
    """H [in, in] of what the compressed layer reads; zeros where nothing was seen."""
    correction: Float32 | None = None
    """K, [in, in]: the layer aims at `W + W K`."""
    damping: float | None = None
    """What is added to the diagonal of H, as a share of its median; None for what is usual."""

    @cached_property
    def energy(self) -> Float32 | None:
        """`H_jj` [in], in units of its mean; None where nothing was seen."""
        diagonal = np.diagonal(self.gram).astype(np.float32)
        return diagonal / np.float32(diagonal.mean(dtype=np.float64)) if np.any(diagonal) else None

    @cached_property
    def hessian(self) -> Hessian:
        """H, prepared for GPTQ."""
        return hessian_of(self.gram, damping=DAMPING if self.damping is None else self.damping)

    def target(self, weight: Float32) -> Float32:
        """What the layer aims at, for rows of its weight."""
        return weight if self.correction is None else weight + weight @ self.correction


def hessian_info_of(seen: Seen, factors: Float32 | None = None, damping: float | None = None) -> list[HessianInfo]:
    """One entry, or one per expert. With `factors` [in], or [experts, in], the layers will see the input divided by
    them."""
    grams: Array = seen.gram if seen.gram.ndim == 3 else seen.gram[None]
    crosses = seen.cross if seen.cross is None or seen.cross.ndim == 3 else seen.cross[None]
    if factors is not None:
        each = np.atleast_2d(1 / factors)
        inverse = (each[:, :, None] * each[:, None, :]).astype(np.float32)
        grams, crosses = grams * inverse, None if crosses is None else crosses * inverse
    return [_of_one(one, None if crosses is None else crosses[number], damping) for number, one in enumerate(grams)]


def _of_one(gram: Array, cross: Array | None, damping: float | None) -> HessianInfo:
    if cross is None or not np.any(np.diagonal(gram)):
        return HessianInfo(gram, damping=damping)
    return HessianInfo(gram, input_correction(gram, cross), damping)


def encode_layer(
    weight: Float32,
    spec: Spec,
    known: list[HessianInfo],
    steps: tuple[Step, ...] | None,
    tensor_scale: np.float32 | None,
) -> Encoded:
    """Stored arrays of a weight `[rows, in]`, whose rows fall into as many experts as there are entries in `known`.

    By these `steps`; with None by the scale search, weighted with the energy of the input's channels.
    """
    blocks = np.split(weight, len(known))
    parts = [_encode_block(block, spec, one, steps, tensor_scale) for block, one in zip(blocks, known, strict=True)]
    return join_rows(parts)


def _encode_block(
    weight: Float32, spec: Spec, known: HessianInfo, steps: tuple[Step, ...] | None, tensor_scale: np.float32 | None
) -> Encoded:
    if known.energy is None:
        return encode_rows(weight, spec, tensor_scale=tensor_scale)
    if steps is None:
        return encode_rows(weight, spec, importance=known.energy, weighting="data", tensor_scale=tensor_scale)
    return fit_rows(known.target(weight), spec, known.hessian, steps, tensor_scale=tensor_scale)
