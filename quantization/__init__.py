"""Numbers only: storage formats, scales, codes, and the compiled kernels that compute them.

Knows no graph but its own kernels'.
"""

from ov_weight_compression.quantization.encode import Weighting, decode_rows, encode_rows
from ov_weight_compression.quantization.formats import (
    CODEBOOK_TYPES,
    FORMATS,
    PER_CHANNEL,
    Encoded,
    Format,
    Spec,
    with_codebook,
)
from ov_weight_compression.quantization.reference import (
    decode_codes,
    nearest_codes,
    plain_scales,
    scale_values,
    store_scales,
    tensor_scale_of,
)

__all__ = [
    "CODEBOOK_TYPES",
    "FORMATS",
    "PER_CHANNEL",
    "Encoded",
    "Format",
    "Spec",
    "Weighting",
    "decode_codes",
    "decode_rows",
    "encode_rows",
    "nearest_codes",
    "plain_scales",
    "scale_values",
    "store_scales",
    "tensor_scale_of",
    "with_codebook",
]
