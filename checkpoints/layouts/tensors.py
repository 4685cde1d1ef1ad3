"""What a layout asks of the tensors of a checkpoint, and the look at their types and sizes before any is believed.

Codes of a few bits lie in a row of words as the little-endian bit stream that most quantisers write: code i occupies
bits i·b … i·b+b−1 of the row, counted from the lowest bit of its first byte (words lie little-endian), whatever the
words' size is: a code may cross from one word into the next, as codes 10 and 21 of 3 bits do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array, bf16_to_f32


class RawTensor(Protocol):
    """One tensor of a checkpoint."""

    @property
    def dtype(self) -> str:
        """Its type, in safetensors' word: `F16`, `BF16`, `I32`, `F8_E4M3` …"""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def values(self) -> Array:
        """Its elements, read-only; types that numpy lacks as their bits (bf16 uint16, 8-bit floats uint8). Called when
        they are wanted, and not kept: each call may map a file."""
        ...


Tensors: TypeAlias = Mapping[str, RawTensor]


def required(tensors: Tensors, name: str) -> RawTensor:
    """A tensor by its name.

    Raises:
        ModelError: the checkpoint has none of that name.
    """
    try:
        return tensors[name]
    except KeyError:
        raise ModelError(f"{name}: the checkpoint has no such tensor, and its layer cannot be read without") from None


def checked(tensors: Tensors, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> RawTensor:
    """A tensor of one of these types and of this shape (None: any size).

    Raises:
        ModelError: there is none, or it is another; names it, what it is and what it must be.
    """
    tensor = required(tensors, name)
    if tensor.dtype not in dtypes:
        raise ModelError(f"{name}: is {tensor.dtype}, must be {' or '.join(dtypes)}")
    same = len(tensor.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(f"{name}: has shape {list(tensor.shape)}, must be [{wanted}]")
    return tensor


def float_array(tensor: RawTensor, name: str) -> Array:
    """The values of a tensor of floats: f16 as it is, bf16 and f32 as f32.

    Raises:
        ModelError: it is of another type.
    """
    values = tensor.values()
    if tensor.dtype == "BF16":
        return bf16_to_f32(values)
    if tensor.dtype not in ("F16", "F32"):
        raise ModelError(f"{name}: is {tensor.dtype}, must be F16, BF16 or F32")
    return values


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
