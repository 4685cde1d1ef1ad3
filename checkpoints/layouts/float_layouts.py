"""Codes that are floats, of 8 and of 4 bits, with scales beside them.

8 bits, with scales for the whole weight, for each channel, for groups, or for blocks of both:

    weight             f8_e4m3 [out, in]
    weight_scale       [] or [1]                     one for all
                       [out] or [out, 1]             per channel
                       [out, in/g]                   in groups
    weight_scale_inv   [⌈out/128⌉, ⌈in/128⌉]         in blocks; it multiplies, whatever it is called

    w[o, i] = weight[o, i] · scale

Experts may lie side by side, `[experts, out, in]`, and their scales alike. Scales are floats or powers of two (E8M0).

4 bits (e2m1), two to a byte, the even input channel in the low nibble, with a scale for each few of them:

    MXFP4     scales E8M0, a power of two for each 32
    NVFP4     scales f8_e4m3 for each 16, and one f32 for the whole weight, by which they are divided
              (compressed-tensors) or multiplied (ModelOpt)

gpt-oss keeps its experts as `blocks` u8 [experts, out, in/32, 16] and `scales` u8 [experts, out, in/32]. The float
weights that they stand for have input and output channels the other way round: [experts, in, out].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    LayoutRows,
    QuantisedWeight,
    RawTensor,
    Tensors,
    checked,
    codes_of,
    float_array,
    level_weight,
    plain_grouping,
    required,
)
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.formats import FORMATS

_SCALES = ("F32", "F16", "BF16", "F8_E8M0", "U8")


@dataclass(frozen=True, eq=False)
class ScaleGrid:
    """Scales of a matrix of `rows` to each expert, one for `tall` rows and `wide` columns."""

    tensor: RawTensor
    name: str
    rows: int
    tall: int
    wide: int
    lead: int
    """Experts."""
    spread: bool
    """One grid serves all experts."""

    def of(self, first: int, last: int) -> Array:
        """[last − first, groups], f16 or f32."""
        if self.tensor.dtype in ("F8_E8M0", "U8"):
            return self._rows(power_of_two_scales(self.tensor.values()), first, last)
        return self._rows(float_array(self.tensor, self.name), first, last)

    def bits(self, first: int, last: int) -> Array:
        """[last − first, groups], as they are stored."""
        return self._rows(self.tensor.values(), first, last)

    def _rows(self, values: Array, first: int, last: int) -> Array:
        if self.spread:
            return np.repeat(values.reshape(1, 1), last - first, axis=0)
        down = -(-self.rows // self.tall)
        number = np.arange(first, last)
        place = number // self.rows * down + number % self.rows // self.tall
        return np.asarray(values.reshape(self.lead * down, -1)[place])


def power_of_two_scales(exponents: Array) -> Array:
    """The numbers 2^(e − 127) of E8M0 bits, as f32; 255 is not a number."""
    values = np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)
    return np.where(exponents == 0xFF, np.float32(np.nan), values).astype(np.float32)


def scale_grid(tensors: Tensors, name: str, shape: tuple[int, ...], block: tuple[int, int] | None) -> ScaleGrid:
    """The scales of a weight of this shape, `block` rows and columns where they come in blocks.

    Raises:
        ModelError: there are none, or not as many as the weight needs.
    """
    tensor = required(tensors, name)
    if tensor.dtype not in _SCALES:
        raise ModelError(f"{name}: is {tensor.dtype}, must be {', '.join(_SCALES)}")
    rows, columns = shape[-2:]
    lead, count = prod(shape[:-2]), prod(tensor.shape)
    if count == 1:
        return ScaleGrid(tensor, name, rows, rows, columns, lead, True)
    if block is not None:
        down, across = -(-rows // block[0]), -(-columns // block[1])
        if tensor.shape == (*shape[:-2], down, across):
            return ScaleGrid(tensor, name, rows, block[0], block[1], lead, False)
    if count % (lead * rows) == 0 and tensor.shape[: len(shape) - 1] == shape[:-1]:
        across = count // (lead * rows)
        if columns % across == 0:
            return ScaleGrid(tensor, name, rows, 1, columns // across, lead, False)
    if count == lead:
        return ScaleGrid(tensor, name, rows, rows, columns, lead, False)
    blocks = "" if block is None else f" in blocks of {block[0]}×{block[1]}"
    raise ModelError(f"{name}: has shape {list(tensor.shape)}, which does not fit a weight of {list(shape)}{blocks}")


def fp8_weight(
    tensors: Tensors, name: str, scale: str, block: tuple[int, int] | None = None, kind: str = "FP8"
) -> QuantisedWeight:
    """The weight `name`, with the scales called `scale`.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the other's.
    """
    rank = len(required(tensors, name).shape)
    tensor = checked(tensors, name, ("F8_E4M3",), (None,) * max(2, rank))
    shape = tensor.shape
    grid = scale_grid(tensors, scale, shape, block)
    columns = shape[-1]
    powers = grid.tensor.dtype in ("F8_E8M0", "U8") and grid.wide == 32
    row = FORMATS["mxfp8_e4m3" if powers else "fp8_e4m3"]
    source = LayoutRows(
        codes=lambda first, last: tensor.values().reshape(-1, columns)[first:last],
        scales=(lambda first, last: grid.tensor.values().reshape(-1, columns // 32)[first:last]) if powers else grid.of,
    )
    grouping = plain_grouping(columns, grid.wide, -(-columns // grid.wide), scale)
    return level_weight(name, kind, shape, row, grouping, source, (name, scale))


_E8M0 = ("F8_E8M0", "U8")


def mxfp4_weight(tensors: Tensors, name: str, packed: str, scales: str, kind: str = "MXFP4") -> QuantisedWeight:
    """A weight of `packed` u8 [out, in/2] and `scales` [out, in/32].

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the other's.
    """
    return _e2m1(tensors, name, packed, scales, kind, "mxfp4", _E8M0, None)


def nvfp4_weight(
    tensors: Tensors, name: str, packed: str, scales: str, whole: str, divides: bool, kind: str = "NVFP4"
) -> QuantisedWeight:
    """A weight of `packed` u8 [out, in/2], `scales` f8_e4m3 [out, in/16] and one f32, `whole`.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the others'; the f32 is zero or not finite.
    """
    scalar = required(tensors, whole)
    if scalar.dtype != "F32" or prod(scalar.shape) != 1:
        raise ModelError(f"{whole}: is {scalar.dtype} {list(scalar.shape)}, must be one F32")
    value = np.float32(scalar.values().reshape(-1)[0])
    if not np.isfinite(value) or value == 0:
        raise ModelError(f"{whole}: is {value}, which scales nothing")
    factor = np.float32(1) / value if divides else value
    return _e2m1(tensors, name, packed, scales, kind, "nvfp4", ("F8_E4M3",), factor, (whole,))


def _e2m1(
    tensors: Tensors,
    name: str,
    packed: str,
    scales: str,
    kind: str,
    mode: str,
    scale_types: tuple[str, ...],
    factor: np.float32 | None,
    more: tuple[str, ...] = (),
) -> QuantisedWeight:
    row = FORMATS[mode]
    codes = checked(tensors, packed, ("U8", "I8"), (None,) * max(2, len(required(tensors, packed).shape)))
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    columns, group = shape[-1], row.default_group
    if columns % group:
        raise ModelError(f"{packed}: has {columns} input channels, which groups of {group} do not divide")
    stored = checked(tensors, scales, scale_types, (*shape[:-1], columns // group))
    source = LayoutRows(
        codes=lambda first, last: codes_of(codes.values().reshape(-1, columns // 2)[first:last], 4, columns),
        scales=lambda first, last: stored.values().view(np.uint8).reshape(-1, columns // group)[first:last],
    )
    grouping = plain_grouping(columns, group, columns // group, scales)
    return level_weight(name, kind, shape, row, grouping, source, (packed, scales, *more), factor)


def gpt_oss_weight(tensors: Tensors, name: str) -> QuantisedWeight:
    """The experts' weight `name`, of `name_blocks` and `name_scales`.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the other's.
    """
    blocks = checked(tensors, f"{name}_blocks", ("U8",), (None, None, None, 16))
    experts, rows, groups, _ = blocks.shape
    columns = groups * 32
    scales = checked(tensors, f"{name}_scales", _E8M0, (experts, rows, groups))
    source = LayoutRows(
        codes=lambda first, last: codes_of(blocks.values().reshape(-1, columns // 2)[first:last], 4, columns),
        scales=lambda first, last: scales.values().reshape(-1, groups)[first:last],
    )
    grouping = plain_grouping(columns, 32, groups, f"{name}_scales")
    names = (f"{name}_blocks", f"{name}_scales")
    shape = (experts, rows, columns)
    weight = level_weight(name, "MXFP4", shape, FORMATS["mxfp4"], grouping, source, names)
    return replace(weight, float_shape=(experts, columns, rows))
