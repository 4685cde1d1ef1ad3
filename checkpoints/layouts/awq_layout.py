"""AWQ's layout ("gemm"): the matrix transposed, eight output channels in a word, in an order made for a GPU kernel.

    qweight   i32 [in, out/8]
    qzeros    i32 [G, out/8]    z as it is
    scales    f16 [G, out]

    w[o, i] = scales[i // g, o] · (q[i, o] − z[i // g, o])

Nibble n of a word, from the low end, is output channel 0, 2, 4, 6, 1, 3, 5, 7 of its eight. AWQ's own scaling of
channels is folded into the float weights that are beside.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ov_weight_compression.checkpoints.layouts.bit_stream import codes_of
from ov_weight_compression.checkpoints.layouts.groups import plain_grouping
from ov_weight_compression.checkpoints.layouts.integer_codes import IntegerRows, integer_weight
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight
from ov_weight_compression.checkpoints.layouts.tensors import Tensors, checked, float_array
from ov_weight_compression.ir_utils.types import Array

__all__ = ["awq_weight"]

_BITS, _WORD = 4, 8
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""The nibble that holds each of eight output channels."""


def awq_weight(tensors: Tensors, layer: str, group_size: int, kind: str = "AWQ") -> QuantisedWeight:
    """The weight of the layer whose tensors are called `layer.qweight` and so on; 4 bits.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the others'.
    """
    qweight = checked(tensors, f"{layer}.qweight", ("I32",), (None, None))
    columns, rows = qweight.shape[0], qweight.shape[1] * _WORD
    scales = checked(tensors, f"{layer}.scales", ("F16", "BF16", "F32"), (None, rows))
    groups = scales.shape[0]
    grouping = plain_grouping(columns, group_size, groups, f"{layer}.scales")
    names = [f"{layer}.qweight", f"{layer}.scales"]
    zeros = None
    if f"{layer}.qzeros" in tensors:
        zeros = checked(tensors, f"{layer}.qzeros", ("I32",), (groups, rows // _WORD))
        names.append(f"{layer}.qzeros")
    source = IntegerRows(
        codes=lambda first, last: _channels(qweight.values(), first, last),
        scales=lambda first, last: float_array(scales, names[1])[:, first:last].T,
        zeros=None if zeros is None else lambda first, last: _channels(zeros.values(), first, last),
    )
    shape = (rows, columns)
    return integer_weight(f"{layer}.weight", f"{kind} {_BITS} bit", shape, _BITS, grouping, source, tuple(names))


def _channels(words: Array, first: int, last: int) -> npt.NDArray[np.uint8]:
    """[rows, out/8] words → [last − first, rows], these output channels of them."""
    start = first // _WORD
    part = words[:, start : -(-last // _WORD)]
    nibbles = codes_of(part, _BITS, part.shape[1] * _WORD).T.reshape(-1, _WORD, len(part))
    channels = nibbles[:, _PLACES].reshape(-1, len(part))
    return channels[first - start * _WORD : last - start * _WORD]
