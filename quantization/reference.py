"""The arithmetic of every format in readable numpy: what the kernels are held to, bit for bit."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.grid import decode_codes, nearest_codes
from ov_weight_compression.quantization.scales import plain_scales, scale_values, store_scales
from ov_weight_compression.quantization.search import best_scales, group_weights
from ov_weight_compression.quantization.spec import Spec

__all__ = ["decode_groups", "encode_groups"]

Floats = npt.NDArray[np.float32]
Groups = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.uint8] | None]


def encode_groups(
    groups: Floats,
    spec: Spec,
    tensor_scale: np.float32 | None = None,
    importance: Floats | None = None,
    graph: bool = False,
) -> Groups:
    """Scales, plain or searched, and the codes nearest for them.

    Args:
        groups: [n, g] f32, a group a row.
        spec: format, the scales' type, number of candidates.
        tensor_scale: of the whole weight, for formats that have one.
        importance: [n, g] f32 within [2^-40, 1] for a search, or None for all alike.
        graph: the search multiplies importance by ``|W| + rms(W)``.

    Returns:
        codes [n, g], stored scales [n], zero points [n] uint8 or None.
    """
    scale, zero_point = plain_scales(groups, spec.format)
    if spec.search > 1:
        weights = group_weights(groups, importance, graph, spec.format)
        scale = best_scales(groups, scale, zero_point, weights, spec, tensor_scale)
    stored = store_scales(scale, spec, tensor_scale)
    values = scale_values(stored, spec, tensor_scale)[:, None]
    codes = nearest_codes(groups, values, None if zero_point is None else zero_point[:, None], spec.format)
    return codes, stored, None if zero_point is None else zero_point.astype(np.uint8)


def decode_groups(
    codes: npt.NDArray[Any],
    stored: npt.NDArray[Any],
    zero_point: npt.NDArray[np.uint8] | None,
    spec: Spec,
    tensor_scale: np.float32 | None = None,
) -> Floats:
    """[n, g] f32 from what ``encode_groups`` returned."""
    values = scale_values(stored, spec, tensor_scale)[:, None]
    return decode_codes(codes, values, None if zero_point is None else zero_point[:, None], spec.format)
