"""Codes of a few bits in a row of words: the little-endian bit stream that most quantisers write.

Code i occupies bits i·b … i·b+b−1 of the row, counted from the lowest bit of its first byte (words lie little-endian),
whatever the words' size is: a code may cross from one word into the next, as codes 10 and 21 of 3 bits do.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Array

__all__ = ["codes_of"]


def codes_of(words: Array, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """The first `count` codes of each row.

    Args:
        words: [rows, n] integers of any width.
        bits: of a code, 1 to 8.
        count: codes in a row, at most what n words hold.

    Returns:
        [rows, count] uint8.

    Raises:
        ValueError: the words do not hold so many codes.
    """
    data = np.ascontiguousarray(words)
    data = data.astype(data.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if data.shape[-1] * 8 < count * bits:
        raise ValueError(f"{data.shape[-1]} bytes do not hold {count} codes of {bits} bits")
    if bits == 8:
        return data[:, :count]
    if 8 % bits == 0:
        return np.asarray(_codes_in_bytes(bits)[data].view(np.uint8).reshape(len(data), -1)[:, :count])
    stream = np.unpackbits(data, axis=1, count=count * bits, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return np.asarray(stream.reshape(len(data), count, bits) @ weights, dtype=np.uint8)


@cache
def _codes_in_bytes(bits: int) -> Array:
    """The codes that each byte holds, as one number with a byte for each of them: a look-up is the fastest way."""
    every = np.arange(256, dtype=np.uint8)[:, None]
    fields = (every >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(fields).view(f"<u{8 // bits}").reshape(-1)
