"""What a graph of constants comes to, by numpy alone: the other opinion on what a compressed model says.

Nothing of the package and nothing of OpenVINO's arithmetic is used: bytes are decoded from the types' definitions (the
OCP's for the small floats, QLoRA's table for nf4, OpenVINO's layout of packed elements).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openvino as ov

Array = np.ndarray[Any, np.dtype[Any]]


class UnknownError(Exception):
    """An operation or a type that this module has no arithmetic for."""


def raw_bytes(constant: ov.Node) -> bytes:
    """A Constant's bytes as they lie in the file."""
    view = constant.get_tensor_view()
    if 0 in list(view.shape):
        return b""
    return bytes(view.data.reshape(-1).view(np.uint8).tobytes())


def _minifloat(exponent: int, mantissa: int, bias: int) -> Array:
    codes = np.arange(1 << (1 + exponent + mantissa))
    sign = np.where(codes >> (exponent + mantissa), -1.0, 1.0)
    power, fraction = (codes >> mantissa) & ((1 << exponent) - 1), codes & ((1 << mantissa) - 1)
    normal = np.ldexp(1 + fraction / (1 << mantissa), power - bias)
    subnormal = np.ldexp(fraction / (1 << mantissa), 1 - bias)
    return (sign * np.where(power == 0, subnormal, normal)).astype(np.float32)


_NF4 = np.array(
    [
        *(-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1),
    ],
    np.float32,
)
_E2M1, _E4M3, _E5M2 = _minifloat(2, 1, 1), _minifloat(4, 3, 7), _minifloat(5, 2, 15)
_E4M3[[0x7F, 0xFF]] = np.nan
_E5M2[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]], _E5M2[0x7C], _E5M2[0xFC] = np.nan, np.inf, -np.inf
_E8M0 = np.append(np.ldexp(1.0, np.arange(255) - 127), np.nan).astype(np.float32)
_PLAIN = {
    **{"f64": np.float64, "f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "i16": np.int16},
    **{"i8": np.int8, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "boolean": np.uint8},
}
_TABLES = {"f4e2m1": _E2M1, "nf4": _NF4, "f8e4m3": _E4M3, "f8e5m2": _E5M2, "f8e8m0": _E8M0}


def _codes(raw: Array, bits: int, count: int) -> Array:
    """Unsigned codes of a packed tensor."""
    if bits == 8:
        return raw[:count]
    if bits in (2, 4):
        each = np.arange(0, 8, bits)
        return ((raw[:, None] >> each) & ((1 << bits) - 1)).reshape(-1)[:count]
    if bits == 3:  # eight elements in three bytes, the high bits apart
        block = raw.reshape(-1, 3).astype(np.int64)
        low = np.concatenate([(block[:, [part]] >> np.array([6, 4, 2, 0])) & 3 for part in (0, 1)], axis=1)
        high = (block[:, [2]] >> np.arange(7, -1, -1)) & 1
        return (low | high << 2).reshape(-1)[:count]
    raise UnknownError(f"{bits} bits")


def constant_values(node: ov.Node) -> Array:
    """The values of a Constant: small types and bf16 as f32, all others in numpy's own type."""
    kind, shape = str(node.get_output_element_type(0).to_string()), tuple(node.get_output_shape(0))
    raw, count = np.frombuffer(raw_bytes(node), np.uint8), int(np.prod(shape))
    if kind in _PLAIN:
        return raw.view(_PLAIN[kind])[:count].reshape(shape)
    if kind == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    bits = int(node.get_output_element_type(0).bitwidth)
    codes = _codes(raw, bits, count)
    if kind in _TABLES:
        return _TABLES[kind][codes].reshape(shape)
    if kind in ("u2", "u3", "u4"):
        return codes.astype(np.uint8).reshape(shape)
    if kind == "i4":
        return np.where(codes > 7, codes.astype(np.int16) - 16, codes).astype(np.int8).reshape(shape)
    raise UnknownError(kind)


def _convert(node: ov.Node, value: Array) -> Array:
    kind = str(node.get_output_element_type(0).to_string())
    if kind == "bf16":
        bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    if kind in ("f16", "f32", "f64"):
        return value.astype(np.float32)  # as in f32 arithmetic: nothing is rounded on the way
    if kind in _PLAIN and value.dtype.kind in "iu":
        return value.astype(_PLAIN[kind])
    raise UnknownError(f"Convert to {kind}")


def _squeeze(node: ov.Node, value: Array, *_: Array) -> Array:
    return value.reshape(tuple(node.get_output_shape(0)))


def _gather(node: ov.Node, data: Array, indices: Array, axis: Array) -> Array:
    if node.get_attributes().get("batch_dims", 0) != 0:
        raise UnknownError("Gather with batch_dims")
    where = int(axis.reshape(-1)[0])
    inside = np.where(indices < 0, indices + data.shape[where], indices)
    if ((inside < 0) | (inside >= data.shape[where])).any():
        raise UnknownError("Gather outside its table")
    return np.take(data, inside.astype(np.int64), axis=where)


FOLDED: dict[str, Callable[..., Array]] = {
    "Convert": _convert,
    "Subtract": lambda node, a, b: np.subtract(a, b),
    "Multiply": lambda node, a, b: np.multiply(a, b),
    "Reshape": _squeeze,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Transpose": lambda node, a, order: np.ascontiguousarray(a.transpose([int(one) for one in order] or None)),
    "Gather": _gather,
}


def values_of(node: ov.Node, known: dict[ov.Node, Array | None]) -> Array | None:
    """The values of a node's output where it depends on constants through the operations of `FOLDED` alone, else None;
    `known` keeps what has been computed."""
    if node not in known:
        kind = node.get_type_name()
        if kind == "Constant":
            try:
                known[node] = constant_values(node)
            except UnknownError:
                known[node] = None
        elif kind in FOLDED:
            operands = [values_of(value.get_node(), known) for value in node.input_values()]
            if any(one is None for one in operands):
                known[node] = None
            else:
                try:
                    with np.errstate(all="ignore"):
                        known[node] = FOLDED[kind](node, *operands)
                except UnknownError:
                    known[node] = None
        else:
            known[node] = None
    return known[node]


def operations_of(model: ov.Model) -> Iterator[ov.Node]:
    """Of a model and of the bodies in it."""
    for node in model.get_ordered_ops():
        yield node
        if node.get_type_name() == "If":
            yield from operations_of(node.get_then_body())
            yield from operations_of(node.get_else_body())
        elif node.get_type_name() in ("Loop", "TensorIterator"):
            yield from operations_of(node.get_function() if node.get_type_name() == "Loop" else node.get_body())


def constants_of(model: ov.Model) -> list[ov.Node]:
    return [node for node in operations_of(model) if node.get_type_name() == "Constant"]
