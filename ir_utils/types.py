"""OpenVINO's element types beside numpy's: the numbers in small constants and tensors, and codes of less than a byte.

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

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

Array: TypeAlias = npt.NDArray[Any]
Float32: TypeAlias = npt.NDArray[np.float32]

F16_MAX = 65504.0
"""The largest number that f16 holds."""

FLOAT_TYPES = ("f16", "bf16", "f32", "f64")
_NUMPY_TYPES = ("f16", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "boolean")


def sizes_of(shape: ov.Shape) -> tuple[int, ...]:
    """The sizes that an `ov.Shape` holds. Iterating over one takes ten times as long: the binding ends that with an
    exception."""
    return tuple(map(shape.__getitem__, range(len(shape))))


def element_type(name: str) -> ov.Type:
    """OpenVINO's element type of that name ("u4"). `ov.Type(name)` would read it as numpy's, where u4 has 4 bytes."""
    kind: ov.Type = getattr(ov.Type, name)
    return kind


def bf16_to_f32(bits: Array) -> Float32:
    """The values of bfloat16 bit patterns: the upper half of a float32."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


_HALF_STEP = np.array([1 << 13], dtype=np.int32).view(np.float32)
_HALF_UNIT = np.float32(2.0**112)
_HALF_INFINITY = 0x7C00
_IN_CACHE = 1 << 16  # elements


def to_f32(values: Array, kind: str = "") -> Float32:
    """Values of any float type as float32: themselves where they are, else a new array. Of a `kind` "bf16", which numpy
    does not have, they are the bits.

    numpy (2.4) widens halves one by one. Shifted to where float32 has its exponent and mantissa their bits are 2^-112
    of what they stand for, subnormal ones too; that is exact, for whole vectors, and takes a quarter of the time. It
    does not hold for NaN and infinity, nor where somebody lets this thread take subnormal numbers for zero.
    """
    if kind == "bf16":
        return bf16_to_f32(values)
    if values.dtype != np.float16 or not (_HALF_STEP * _HALF_UNIT)[0]:
        return values.astype(np.float32, copy=False)
    wide = np.empty(values.shape, dtype=np.float32)
    halves, flat = np.ascontiguousarray(values).reshape(-1).view(np.int16), wide.reshape(-1)
    for start in range(0, halves.size, _IN_CACHE):
        part, target = halves[start : start + _IN_CACHE], flat[start : start + _IN_CACHE]
        lowest = int(part.view(np.uint16).max())  # the negative number of the largest magnitude, if there is one
        if max(int(part.max()), lowest & 0x7FFF if lowest >> 15 else 0) >= _HALF_INFINITY:
            target[:] = part.view(np.float16)
            continue
        bits = target.view(np.int32)
        np.left_shift(part, 16, out=bits, dtype=np.int32)
        bits >>= 3
        bits &= np.int32(~0x70000000)
        target *= _HALF_UNIT
    return wide


def float_values(constant: Any) -> Float32:
    """All values of a small float Constant as float32, in its own shape."""
    values: Array = constant.data
    if constant.get_output_element_type(0).get_type_name() == "bf16":
        return bf16_to_f32(values)
    return values.astype(np.float32)


def float_constant(values: Array, kind: ov.Type) -> Any:
    """A Constant of a floating-point type, of the values' shape and with a copy of them, each rounded to the type."""
    if kind == ov.Type.bf16:  # numpy has no such type: the constructor rounds
        return ov.op.Constant(kind, ov.Shape(list(values.shape)), values.astype(np.float32).reshape(-1))
    return ops.constant(np.asarray(values, dtype=kind.to_dtype(), order="C"))


def tensor_values(tensor: ov.Tensor) -> Array:
    """The numbers in a tensor: its own array, or float32 for a type that numpy does not know, whose `data` are bits."""
    kind = tensor.element_type
    known = kind.get_type_name() in _NUMPY_TYPES
    return np.asarray(tensor.data if known else ov.op.Constant(tensor).get_data(dtype=np.float32))


# The bindings fill their table of numpy's types when an array is first asked for, under a lock at which two threads
# that come at once wait for each other forever. While this module is imported there is one.
_ = ov.op.Constant(ov.Type.f16, ov.Shape([1]), [0.0]).data


Codes = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

PACKED_BITS = (1, 2, 3, 4, 6, 8, 16)


class _Blocks(dict[int, tuple[int, int]]):
    def __missing__(self, bits: int) -> tuple[int, int]:
        raise ValueError(f"bits is {bits}, must be one of {', '.join(map(str, PACKED_BITS))}")


# Elements and bytes of the smallest whole block of each width; a tensor's end is padded up to one.
_BLOCKS = _Blocks({1: (8, 1), 2: (4, 1), 3: (8, 3), 4: (2, 1), 6: (4, 3), 8: (1, 1), 16: (1, 2)})

# Pairs of nibbles packed at a time: the fewer the calls, the less two threads wait for each other's.
_CHUNK = 1 << 17


def tensor_bytes(count: int, bits: int) -> int:
    """Bytes that an OpenVINO tensor of ``count`` elements takes, of any type: that of codes, or one of whole bytes."""
    if bits % 8 == 0:
        return count * bits // 8
    elements, size = _BLOCKS[bits]
    return -(-count // elements) * size


def pack(codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
    """Pack bit patterns into the bytes of an OpenVINO tensor.

    Args:
        codes: integers of any shape, every value below ``2 ** bits`` (uint8, or uint16 for 16 bits). Not checked:
            a value with higher bits set spoils its neighbour.
        bits: one of ``PACKED_BITS``.
        out: contiguous uint8 of the result's shape, to pack into.

    Returns:
        uint8 of shape ``[tensor_bytes(codes.size, bits)]``: ``out``, or for 8 bits a view of ``codes`` where it can be
        one.

    Raises:
        ValueError: ``bits`` is a width that no OpenVINO type has.
    """
    elements, _ = _BLOCKS[bits]
    flat = np.ascontiguousarray(codes, dtype="<u2" if bits == 16 else np.uint8).reshape(-1)
    if bits > 1 and flat.size % elements:
        flat = np.concatenate([flat, np.zeros(-flat.size % elements, dtype=np.uint8)])
    if bits == 4:  # a pair read as one little-endian uint16 is two vector operations for numpy, in cache
        pairs = flat.view("<u2")
        packed = np.empty(pairs.size, dtype=np.uint8) if out is None else out
        scratch = np.empty(min(_CHUNK, pairs.size), dtype=np.uint16)
        for start in range(0, pairs.size, _CHUNK):
            part = pairs[start : start + _CHUNK]
            merged = scratch[: part.size]
            np.right_shift(part, 4, out=merged)
            np.bitwise_or(merged, part, out=merged)
            packed[start : start + _CHUNK] = merged
        return packed
    if bits >= 8:
        packed = flat.view(np.uint8)
    elif bits == 1:
        packed = np.packbits(flat)
    elif bits == 2:
        packed = _gather(flat, _TWO_LOWEST_FIRST)
    else:
        packed = _pack_three(flat) if bits == 3 else _pack_six(flat)
    if out is None:
        return packed
    out[:] = packed
    return out


# One multiplication moves four two-bit numbers, a byte each, to their places in the highest byte: a factor has a bit
# for each of them, 8 less per byte, and no two of the products' other bits meet.
_TWO_LOWEST_FIRST = np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6)
_TWO_HIGHEST_FIRST = np.uint32(1 << 30 | 1 << 20 | 1 << 10 | 1)
_ONE_HIGHEST_FIRST = np.uint64(0x8040201008040201)


def _gather(flat: Bytes, factor: np.uint32) -> Bytes:
    """[4n] of 2 bits -> [n]."""
    return np.asarray((flat.view("<u4") * factor) >> np.uint32(24), dtype=np.uint8)


def _pack_three(flat: Bytes) -> Bytes:
    """[8n] of 3 bits -> [3n]: two bytes of low pairs and one of high bits."""
    high = (flat.view("<u8") >> np.uint64(2)) & np.uint64(0x0101010101010101)
    out = np.empty((len(high), 3), dtype=np.uint8)
    out[:, :2] = _gather(flat & np.uint8(3), _TWO_HIGHEST_FIRST).reshape(-1, 2)
    out[:, 2] = (high * _ONE_HIGHEST_FIRST) >> np.uint64(56)
    return out.reshape(-1)


def _pack_six(flat: Bytes) -> Bytes:
    """[4n] of 6 bits -> [3n]: two bytes of low nibbles and one of high pairs."""
    low = (flat & np.uint8(15)).reshape(-1, 2)
    out = np.empty((flat.size // 4, 3), dtype=np.uint8)
    out[:, :2] = ((low[:, 0] << np.uint8(4)) | low[:, 1]).reshape(-1, 2)
    out[:, 2] = _gather(flat >> np.uint8(4), _TWO_HIGHEST_FIRST)
    return out.reshape(-1)
