"""Float-like formats: levels denser around zero, where most weights are.

``nf4`` and ``fp4`` keep an f16 scale per group. The OCP microscaling formats ``mxfp4`` and ``mxfp8_e4m3`` keep one
power of two (E8M0) per 32 weights, ``nvfp4`` one E4M3 number per 16 and one f32 for the whole weight, which brings the
scales into E4M3's range.
"""

from ov_weight_compression.quantization.formats.format import Format
from ov_weight_compression.quantization.formats.levels import E2M1, E4M3, NF4

__all__ = ["FLOATS"]

FLOATS = (
    Format("nf4", "nf4", 4, levels=NF4, default_search=10),
    Format("fp4", "f4e2m1", 4, levels=E2M1, ties_to_even=True, default_search=10),
    Format(
        *("mxfp4", "f4e2m1", 4),
        default_group=32,
        fixed_group=True,
        scale="f8e8m0",
        levels=E2M1,
        ties_to_even=True,
        default_search=3,
    ),
    Format(
        *("nvfp4", "f4e2m1", 4),
        default_group=16,
        fixed_group=True,
        scale="f8e4m3",
        tensor_scale=True,
        levels=E2M1,
        ties_to_even=True,
        default_search=9,
    ),
    Format("fp8_e4m3", "f8e4m3", 8, levels=E4M3, ties_to_even=True),
    Format(
        *("mxfp8_e4m3", "f8e4m3", 8),
        default_group=32,
        fixed_group=True,
        scale="f8e8m0",
        levels=E4M3,
        ties_to_even=True,
    ),
)
