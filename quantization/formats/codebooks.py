"""Codebooks: a code is an index into a table that is stored beside the weight.

``cb4`` has a fixed table, ``codebook`` the caller's, ``adaptive_codebook`` one fitted to each weight (see ``lloyd``).
The rows for the last two stand for the mode; ``with_table`` makes the format of one weight from such a row.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.formats.format import PER_CHANNEL, Format
from ov_weight_compression.quantization.formats.levels import CB4, E4M3

__all__ = ["CODEBOOKS", "TABLE_TYPES", "round_to_type", "with_table"]

TABLE_TYPES = ("f8e4m3", "f16", "f32", "i8", "u8")

CODEBOOKS = (
    Format("cb4", "u4", 4, default_group=PER_CHANNEL, levels=CB4, table_type="f8e4m3", default_search=10),
    Format("codebook", "u4", 4, default_group=PER_CHANNEL, levels=CB4, table_type="f8e4m3", default_search=10),
    Format("adaptive_codebook", "u4", 4, default_group=PER_CHANNEL, levels=CB4, table_type="f8e4m3", default_search=10),
)


def with_table(row: Format, table: Sequence[float], table_type: str) -> Format:
    """The format that stores indices into ``table``: u4 up to 16 entries, u8 up to 256, u16 up to 65536.

    Args:
        row: the mode's row, ``codebook`` or ``adaptive_codebook``.
        table: 2 to 65536 finite values, at least two of them different in ``table_type``, to which they are
            rounded; in any order.
        table_type: one of ``TABLE_TYPES``.

    Raises:
        ValueError: a table or type that cannot be used; the message says why.
    """
    if table_type not in TABLE_TYPES:
        raise ValueError(f"codebook type is {table_type!r}, must be one of {', '.join(TABLE_TYPES)}")
    values = np.asarray(table, dtype=np.float32)
    if values.ndim != 1 or not 2 <= values.size <= 65536:
        raise ValueError(f"codebook has shape {list(values.shape)}, must be one list of 2 to 65536 values")
    if not np.isfinite(values).all():
        raise ValueError("codebook holds NaN or infinity")
    rounded = round_to_type(values, table_type)
    if not rounded.any():
        raise ValueError(f"codebook holds nothing but zeros in {table_type}")
    if np.all(rounded == rounded[0]):
        raise ValueError(f"codebook holds nothing but {rounded[0]:g} in {table_type}; it needs two different values")
    bits = 4 if values.size <= 16 else 8 if values.size <= 256 else 16
    search = row.default_search if bits == 4 else 0
    levels = tuple(rounded.tolist())
    return replace(row, storage=f"u{bits}", bits=bits, levels=levels, table_type=table_type, default_search=search)


def round_to_type(values: npt.NDArray[np.float32], table_type: str) -> npt.NDArray[np.float32]:
    """``values`` rounded to what ``table_type`` can hold (saturating), as f32; any shape."""
    rounded = values
    if table_type == "f16":
        rounded = np.clip(values, -65504, 65504).astype(np.float16)
    if table_type == "i8":
        rounded = np.clip(np.rint(values), -128, 127)
    if table_type == "u8":
        rounded = np.clip(np.rint(values), 0, 255)
    if table_type == "f8e4m3":
        positive = np.array(E4M3[:0x7F], dtype=np.float32)
        middles = (positive[1:] + positive[:-1]) / 2
        magnitude = np.abs(values).astype(np.float32)
        lower = np.searchsorted(middles, magnitude, side="left")
        tie_up = (lower % 2 == 1) & (magnitude == middles[np.minimum(lower, middles.size - 1)])
        rounded = np.copysign(positive[lower + tie_up], values)
    return np.asarray(rounded, dtype=np.float32)
