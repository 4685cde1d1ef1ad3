"""bitsandbytes' layouts, of 4 and of 8 bits.

4 bits    weight u8 [out·in/2, 1]     codes of the flattened matrix, the even one in the high nibble
          weight.absmax               a scale for each `blocksize` (64) codes, which may run on into the next row
          weight.quant_map f32 [16]   the level of each code: NF4, or a table
          weight.quant_state.bitsandbytes__nf4   u8, a JSON text: shape, blocksize, quant_type …

          w = quant_map[code] · absmax[place // blocksize]

          scales quantised in turn: absmax u8 = weight.nested_quant_map[·] · weight.nested_absmax[· // 256] + offset

8 bits    weight i8 [out, in], SCB f32 [out]       w = code · SCB / 127
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import gcd, prod

import numpy as np
import numpy.typing as npt

from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    LayoutRows,
    QuantisedWeight,
    Tensors,
    checked,
    counted_from_zero,
    float_array,
    integer_weight,
    level_weight,
    plain_grouping,
    requantised,
    required,
)
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.formats import FORMATS, Format, with_codebook

_STATE = ".quant_state.bitsandbytes__"
_LONGEST_STATE = 1 << 16
_SMALLEST_GROUP = 4


@dataclass(frozen=True)
class _Description:
    """What the JSON text says."""

    shape: tuple[int, int]
    block: int
    type: str
    nested_block: int
    nested_offset: float


def bitsandbytes_state(tensors: Tensors, name: str) -> str | None:
    """The name of the tensor that describes the 4-bit weight `name`; None where there is none."""
    return next((name + _STATE + kind for kind in ("nf4", "fp4") if name + _STATE + kind in tensors), None)


def bitsandbytes_weight(tensors: Tensors, name: str) -> QuantisedWeight:
    """The 4-bit weight `name`.

    Raises:
        ModelError: a tensor is missing or contradicts the others, or the description cannot be read.
    """
    state = bitsandbytes_state(tensors, name)
    if state is None:
        raise ModelError(f"{name}: the checkpoint has no {_STATE.strip('.')}nf4 or fp4 that describes it")
    said = _description(tensors, state)
    rows, columns = said.shape
    block, size = said.block, gcd(columns, said.block)
    packed = required(tensors, name)
    if packed.values().nbytes * 2 != rows * columns + rows * columns % 2:
        raise ModelError(f"{name}: {packed.values().nbytes} bytes do not hold [{rows}, {columns}] codes of 4 bits")
    table = float_array(checked(tensors, f"{name}.quant_map", ("F32",), (16,)), f"{name}.quant_map")
    blocks = -(-rows * columns // block)
    names = [name, state, f"{name}.absmax", f"{name}.quant_map"]
    nested = f"{name}.nested_absmax" in tensors
    if nested:
        names += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    checked(tensors, f"{name}.absmax", ("U8",) if nested else ("F32", "F16", "BF16"), (blocks,))
    row, notes = _format(table)

    def codes(first: int, last: int) -> npt.NDArray[np.uint8]:
        begin, end = first * columns, last * columns
        data = packed.values().reshape(-1).view(np.uint8)[begin // 2 : -(-end // 2)]
        nibbles = np.stack([data >> 4, data & 15], axis=1).reshape(-1)[begin % 2 :]
        return nibbles[: end - begin].reshape(-1, columns)

    def scales(first: int, last: int) -> Float32:
        places = np.arange(first * columns, last * columns, size) // block
        found = _absmax(tensors, name, said, nested, places)
        return found.reshape(last - first, columns // size)

    grouping = plain_grouping(columns, size, columns // size, name)
    source = LayoutRows(codes, scales)
    kind = f"bitsandbytes {said.type}"
    weight = level_weight(name, kind, (rows, columns), row, grouping, source, tuple(names), None, notes, block)
    return requantised(weight, f"blocks of {block} run across rows") if size < _SMALLEST_GROUP else weight


def _format(table: Float32) -> tuple[Format, tuple[str, ...]]:
    if np.array_equal(table, np.array(FORMATS["nf4"].levels, dtype=np.float32)):
        return FORMATS["nf4"], ()
    return with_codebook(FORMATS["codebook"], table.tolist(), "f32"), ("in a table that plugins expand",)


def _absmax(tensors: Tensors, name: str, said: _Description, nested: bool, places: Array) -> Float32:
    stored = tensors[f"{name}.absmax"]
    if not nested:
        return np.asarray(float_array(stored, f"{name}.absmax")[places], dtype=np.float32)
    levels = checked(tensors, f"{name}.nested_quant_map", ("F32",), (256,)).values()
    count = -(-prod(stored.shape) // said.nested_block)
    outer = checked(tensors, f"{name}.nested_absmax", ("F32",), (count,)).values()
    inner = levels[stored.values()[places]] * outer[places // said.nested_block]
    return np.asarray(inner + np.float32(said.nested_offset), dtype=np.float32)


def _description(tensors: Tensors, name: str) -> _Description:
    tensor = checked(tensors, name, ("U8",), (None,))
    if tensor.shape[0] > _LONGEST_STATE:
        raise ModelError(f"{name}: {tensor.shape[0]} bytes are too many for a description")
    try:
        said = json.loads(tensor.values().tobytes().decode("utf-8"))
        rows, columns = (int(size) for size in said["shape"])
        found = _Description(
            shape=(rows, columns),
            block=int(said["blocksize"]),
            type=str(said["quant_type"]),
            nested_block=int(said.get("nested_blocksize", 256)),
            nested_offset=float(said.get("nested_offset", 0.0)),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{name}: is no description of a weight: {type(error).__name__} {error}") from None
    if min(rows, columns, found.block, found.nested_block) < 1 or found.type not in ("nf4", "fp4"):
        raise ModelError(f"{name}: describes no weight: {found}")
    return found


def bitsandbytes_int8(tensors: Tensors, layer: str) -> QuantisedWeight:
    """The 8-bit weight of a layer.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the other's.
    """
    weight = checked(tensors, f"{layer}.weight", ("I8",), (None, None))
    rows, columns = weight.shape
    maxima = checked(tensors, f"{layer}.SCB", ("F32",), (rows,))
    names = [f"{layer}.weight", f"{layer}.SCB"]
    if f"{layer}.weight_format" in tensors:
        names.append(f"{layer}.weight_format")
        if tensors[names[-1]].values().any():
            raise ModelError(f"{names[-1]}: its weight is arranged for a GPU's kernel; save it with row-major weights")
    source = LayoutRows(
        codes=lambda first, last: counted_from_zero(weight.values()[first:last]),
        scales=lambda first, last: maxima.values()[first:last, None] / np.float32(127),
        zeros=None,
    )
    grouping = plain_grouping(columns, -1, 1, names[1])
    shape = (rows, columns)
    return integer_weight(names[0], "bitsandbytes int8", shape, 8, grouping, source, tuple(names))
