"""The 8-bit noise of a weight, streamed over its rows: what the sensitivity metrics start from."""

from __future__ import annotations

from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.quantization.sensitivity import WeightNoise, weight_noise

__all__ = ["noise_of"]

_PIECE_ELEMENTS = 1 << 19
_EPSILON = {"f16": 2.0**-10, "bf16": 2.0**-10, "f32": 2.0**-23, "f64": 2.0**-52}


def noise_of(source: WeightSource) -> WeightNoise:
    """The noise of one weight, whatever its size, in a bounded amount of memory."""
    return weight_noise((piece for _, piece in source.pieces(_PIECE_ELEMENTS)), _EPSILON[source.element_type])
