"""Codes of the layers that share an input, from what the data showed of that input.

What depends on the input alone (the factor of its Gram matrix, the correction towards the float model's output) is
computed once for all of them. Experts with inputs of their own are layers of their own; one that the data never reached
keeps codes from its weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.calibrated.curvature import Curvature, curvature_of
from ov_weight_compression.quantization.calibrated.layer import Effort, fit_rows
from ov_weight_compression.quantization.calibrated.targets import input_correction
from ov_weight_compression.quantization.encode import encode_rows
from ov_weight_compression.quantization.spec import Encoded, Spec

if TYPE_CHECKING:
    from ov_weight_compression.calibration import Seen

__all__ = ["InputKnowledge", "encode_layer", "knowledge_of"]


@dataclass(frozen=True, eq=False)
class InputKnowledge:
    """What one input (of one expert) says to the layers that read it; None where nothing was seen."""

    curvature: Curvature | None
    correction: Float32 | None = None
    """K, [in, in]: the layer aims at `W + W K`."""


def knowledge_of(seen: Seen, aim_at_float: bool, factors: Float32 | None = None) -> list[InputKnowledge]:
    """One entry, or one per expert. With `factors` [in] the layers will see the input divided by them."""
    gram = seen.x_hat.gram
    assert gram is not None
    grams = gram if gram.ndim == 3 else gram[None]
    crosses: Array | None = None
    if aim_at_float and seen.cross is not None and seen.x is not seen.x_hat:
        crosses = seen.cross if seen.cross.ndim == 3 else seen.cross[None]
    if factors is not None:
        inverse = np.outer(1 / factors, 1 / factors).astype(np.float32)
        grams, crosses = grams * inverse, None if crosses is None else crosses * inverse
    return [_of_one(one, None if crosses is None else crosses[number]) for number, one in enumerate(grams)]


def _of_one(gram: Array, cross: Array | None) -> InputKnowledge:
    if not np.any(np.diagonal(gram)):
        return InputKnowledge(None)
    correction = None if cross is None else input_correction(gram, cross)
    return InputKnowledge(curvature_of(gram), correction)


def encode_layer(
    weight: Float32, spec: Spec, known: list[InputKnowledge], effort: Effort, tensor_scale: np.float32 | None
) -> Encoded:
    """Stored arrays of a weight `[rows, in]`, whose rows fall into as many experts as there are entries in `known`."""
    blocks = np.split(weight, len(known))
    parts = [_encode_block(block, spec, one, effort, tensor_scale) for block, one in zip(blocks, known, strict=True)]
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return replace(
        parts[0],
        codes=np.concatenate([part.codes for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        zero_point=np.concatenate(zeros) if zeros else None,
    )


def _encode_block(
    weight: Float32, spec: Spec, known: InputKnowledge, effort: Effort, tensor_scale: np.float32 | None
) -> Encoded:
    if known.curvature is None:
        return encode_rows(weight, spec, tensor_scale=tensor_scale)
    target = weight if known.correction is None else weight + weight @ known.correction
    return fit_rows(target, spec, known.curvature, effort, tensor_scale=tensor_scale)
