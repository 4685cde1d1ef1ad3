"""Codes of less than a byte, laid out as OpenVINO's tensors hold them.

A tensor of a sub-byte type is one run of bits over the flattened elements, whatever its shape; only the end of the
whole tensor is padded (with zeros). Where the bits of element k go:

=====  ======================================================================================================
bits   layout
=====  ======================================================================================================
1      bit ``7 - k % 8`` of byte ``k // 8`` (first element in the highest bit)
2      bits ``2 (k % 4)`` and up of byte ``k // 4`` (first element in the lowest bits)
3      eight elements in three bytes: the low two bits of elements 0-3 in byte 0 and of 4-7 in byte 1, first
       element highest; the high bits of 0-7 in byte 2, first element highest. The tail is a whole block.
4      low nibble first (u4, i4, nf4, f4e2m1 alike)
6      four elements in three bytes: the low nibbles of elements 0, 1 in byte 0 and of 2, 3 in byte 1, first element
       highest; the high pairs of 0-3 in byte 2, first element highest. The tail is a whole block.
8, 16  as numpy has them, little-endian
=====  ======================================================================================================

Only bit patterns are handled here; what a pattern means is the business of ``quantization``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PACKED_BITS", "pack", "packed_size", "unpack"]

Codes = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

PACKED_BITS = (1, 2, 3, 4, 6, 8, 16)

# Elements and bytes of the smallest whole block of each width; a tensor's end is padded up to one.
_BLOCKS = {1: (8, 1), 2: (4, 1), 3: (8, 3), 4: (2, 1), 6: (4, 3), 8: (1, 1), 16: (1, 2)}


def packed_size(count: int, bits: int) -> int:
    """Bytes that an OpenVINO tensor of ``count`` elements of ``bits`` bits takes."""
    elements, size = _block(bits)
    return -(-count // elements) * size


def pack(codes: Codes, bits: int) -> Bytes:
    """Pack bit patterns into the bytes of an OpenVINO tensor.

    Args:
        codes: integers of any shape, every value below ``2 ** bits`` (uint8, or uint16 for 16 bits). Not checked:
            a value with higher bits set spoils its neighbour.
        bits: one of ``PACKED_BITS``.

    Returns:
        uint8 of shape ``[packed_size(codes.size, bits)]``. For 8 bits a view of ``codes`` where it can be one.

    Raises:
        ValueError: ``bits`` is a width that no OpenVINO type has.
    """
    elements, _ = _block(bits)
    if bits == 16:
        return np.ascontiguousarray(codes, dtype="<u2").reshape(-1).view(np.uint8)
    flat = np.ascontiguousarray(codes, dtype=np.uint8).reshape(-1)
    if bits == 8:
        return flat
    if bits == 1:
        return np.packbits(flat)
    if flat.size % elements:
        flat = np.concatenate([flat, np.zeros(-flat.size % elements, dtype=np.uint8)])
    if bits == 4:
        return _pack_nibbles(flat)
    if bits == 2:
        return _pack_nibbles(_pack_pairs(flat))
    return _pack_split(flat, bits)


def unpack(data: Bytes, bits: int, count: int) -> Codes:
    """The inverse of ``pack``: ``count`` bit patterns, uint8 (uint16 for 16 bits), shape ``[count]``.

    Raises:
        ValueError: ``bits`` is a width that no OpenVINO type has, or ``data`` is too short for ``count`` elements.
    """
    data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    if data.size < packed_size(count, bits):
        raise ValueError(f"{count} elements of {bits} bits take {packed_size(count, bits)} bytes, not {data.size}")
    if bits == 16:
        return data.view("<u2")[:count]
    if bits == 8:
        return data[:count]
    if bits == 1:
        return np.unpackbits(data, count=count)
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        return ((data[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)[:count]
    return _unpack_split(data, bits)[:count]


def _block(bits: int) -> tuple[int, int]:
    try:
        return _BLOCKS[bits]
    except KeyError:
        raise ValueError(f"bits is {bits}, must be one of {', '.join(map(str, PACKED_BITS))}") from None


def _pack_nibbles(flat: Bytes) -> Bytes:
    """[2n] of 4 bits -> [n]. A pair read as one little-endian uint16 is two vector operations for numpy."""
    pairs = flat.view("<u2")
    return np.asarray(pairs | (pairs >> 4), dtype=np.uint8)


def _pack_pairs(flat: Bytes) -> Bytes:
    """[2n] of 2 bits -> [n] of 4 bits."""
    pairs = flat.view("<u2")
    return np.asarray((pairs | (pairs >> 6)) & 15, dtype=np.uint8)


def _pack_split(flat: Bytes, bits: int) -> Bytes:
    """u3 and u6: the low bits of a block in two bytes, the high bits in a third, first element highest."""
    low, high = (2, 1) if bits == 3 else (4, 2)
    blocks = flat.reshape(-1, 8 // high)
    out = np.zeros((len(blocks), 3), dtype=np.uint8)
    half = blocks.shape[1] // 2
    for k in range(blocks.shape[1]):
        column = blocks[:, k]
        out[:, k // half] |= (column & np.uint8((1 << low) - 1)) << np.uint8(8 - low - low * (k % half))
        out[:, 2] |= (column >> np.uint8(low)) << np.uint8(8 - high - high * k)
    return out.reshape(-1)


def _unpack_split(data: Bytes, bits: int) -> Bytes:
    low, high = (2, 1) if bits == 3 else (4, 2)
    blocks = data[: data.size // 3 * 3].reshape(-1, 3)
    out = np.empty((len(blocks), 8 // high), dtype=np.uint8)
    half = out.shape[1] // 2
    for k in range(out.shape[1]):
        bottom = (blocks[:, k // half] >> np.uint8(8 - low - low * (k % half))) & np.uint8((1 << low) - 1)
        top = (blocks[:, 2] >> np.uint8(8 - high - high * k)) & np.uint8((1 << high) - 1)
        out[:, k] = bottom | (top << np.uint8(low))
    return out.reshape(-1)
