"""The same work for both tools: what each mode is given beside its name.

NNCF's default backup differs from mode to mode (mxfp8 for mxfp4, fp8 for fp4, else int8), so it is named for both:
int8_asym for the first embedding and the last MatMul. Every other weight gets the mode (``ratio=1``), in groups of 128,
or of the one size that the format has.
"""

from __future__ import annotations

from typing import Any

INT8 = ("int8_asym", "int8_sym")
FIXED_GROUP = {"mxfp4": 32, "mxfp8_e4m3": 32, "nvfp4": 16}
PER_CHANNEL = ("cb4", "adaptive_codebook")
NEEDS_DATA = ("adaptive_codebook",)  # of NNCF; this package fits tables without
GROUPED = ("int4_asym", "int4_sym", "int3_sym", "int2_sym", "nf4", "fp4", "fp8_e4m3")
ALL = (*INT8, *GROUPED, *FIXED_GROUP, *PER_CHANNEL)  # what both tools have


def options(mode: str, group_size: int = 128, ratio: float = 1.0) -> dict[str, Any]:
    """Options of a mode, by NNCF's names and string values, which the package shares."""
    if mode in INT8:
        return {"mode": mode}
    if mode in PER_CHANNEL:
        group_size = -1
    size = FIXED_GROUP.get(mode, group_size)
    return {"mode": mode, "group_size": size, "ratio": ratio, "backup_mode": "int8_asym"}
