"""Numbers only: storage formats, scales, codes, and the compiled kernels that compute them.

Knows no graph but its own kernels'.
"""

from ov_weight_compression.quantization.encode import Weighting, decode_rows, encode_rows, stored_table
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, TABLE_TYPES, Format, get_format, with_table
from ov_weight_compression.quantization.grid import decode_codes, nearest_codes
from ov_weight_compression.quantization.scales import (
    fits_f16,
    plain_scales,
    scale_values,
    store_scales,
    tensor_scale_of,
)
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = [
    "FORMATS",
    "PER_CHANNEL",
    "TABLE_TYPES",
    "Encoded",
    "Format",
    "Spec",
    "Weighting",
    "decode_codes",
    "decode_rows",
    "encode_rows",
    "fits_f16",
    "get_format",
    "nearest_codes",
    "plain_scales",
    "scale_values",
    "store_scales",
    "stored_table",
    "tensor_scale_of",
    "with_table",
]
