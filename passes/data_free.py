"""The data-free sensitivity of a weight, streamed over its rows.

NNCF's `weight_quantization_error`: the inverse of the largest mean squared error of any channel under 8 bits
(asymmetric, per channel). What 8 bits store exactly is kept in 8 bits; what they cannot store well anyway may as well
get 4 bits in groups.
"""

from __future__ import annotations

import numpy as np

from ov_weight_compression.ir_utils.constants import ConstantReader
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS
from ov_weight_compression.quantization.spec import Spec

__all__ = ["weight_quantization_error"]

_PIECE_ELEMENTS = 1 << 19
_INT8 = Spec(FORMATS["int8_asym"])
_EPSILON = float(np.finfo(np.float32).eps)


def weight_quantization_error(reader: ConstantReader) -> float:
    """The score of one weight: higher keeps its 8 bits for longer."""
    layout = reader.layout
    worst = 0.0
    for slab in layout.slabs(max(1, _PIECE_ELEMENTS // max(1, layout.columns))):
        values = reader.read(slab).astype(np.float32, copy=False)
        difference = decode_rows(encode_rows(values, _INT8), _INT8) - values
        worst = max(worst, float(np.square(difference).mean(axis=1).max()))
        reader.release(slab)
    return 1.0 / (worst + _EPSILON)
