"""OpenVINO's element types beside numpy's, and the numbers in small constants and in tensors."""

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


def to_f32(values: Array) -> Float32:
    """Values of any float type as float32: themselves where they are, else a new array.

    numpy (2.4) widens halves one by one. Shifted to where float32 has its exponent and mantissa their bits are 2^-112
    of what they stand for, subnormal ones too; that is exact, for whole vectors, and takes a quarter of the time. It
    does not hold for NaN and infinity, nor where somebody lets this thread take subnormal numbers for zero.
    """
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
