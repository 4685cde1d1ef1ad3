"""Integer formats: evenly spaced levels.

Symmetric: levels ``-n .. n - 1`` with ``n = 2 ** (bits - 1)``. There is one more level below zero than above, so the
scale carries a sign: it is negative when the largest magnitude of the group is positive, and that weight gets the level
``-n``. Asymmetric: levels ``0 .. 2 ** bits - 1`` less an integer zero point; the range is first extended to hold 0, so
that zeros stay zeros.
"""

from ov_weight_compression.quantization.formats.format import PER_CHANNEL, Format

__all__ = ["INTEGERS"]

# Found on groups of real models: five chosen factors gain what nine evenly spaced ones do.
_FACTORS = (0.92, 0.95, 0.975, 1.03, 1.075)

INTEGERS = (
    Format("int8_asym", "u8", 8, default_group=PER_CHANNEL, zero_point="group", everywhere=True),
    Format("int8_sym", "i8", 8, default_group=PER_CHANNEL, everywhere=True),
    Format("int4_asym", "u4", 4, zero_point="group", default_search=6, search_factors=_FACTORS),
    Format("int4_sym", "i4", 4, default_search=6, search_factors=_FACTORS),
    Format("int3_sym", "u3", 3, zero_point="scalar", zero_value=4, default_search=10),
    Format("int2_sym", "u2", 2, zero_point="scalar", zero_value=2, default_search=10),
    # Zero points in i8: with unsigned ones the CPU plugin quantises the activations, has no kernel for that in bf16 and
    # ends the first inference (seen with OpenVINO 2026.4, AVX-512 without AMX).
    Format("int2_asym", "u2", 2, default_group=64, zero_point="group", zero_type="i8", default_search=10),
)
