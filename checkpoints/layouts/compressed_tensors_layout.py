"""The layouts of compressed-tensors, one for each `format`.

    pack-quantized           weight_packed i32 [out, ⌈in·b/32⌉], a bit stream along the input channels;
                             weight_scale [out, G] or [out, 1]; weight_shape i64 [2];
                             weight_zero_point i32 [⌈out·b/32⌉, G], a bit stream along the output channels;
                             weight_g_idx i32 [in], all −1 where there is none
    int-quantized            weight i8 [out, in]; weight_scale [1], [out, 1] or [out, G]; weight_zero_point i8
    float-quantized          weight f8_e4m3 [out, in]; weight_scale as in `float_layouts`
    naive-quantized          either of the two
    nvfp4-pack-quantized     weight_packed u8 [out, in/2]; weight_scale f8_e4m3; weight_global_scale, which divides
    mxfp4-pack-quantized     weight_packed u8 [out, in/2]; weight_scale u8 (E8M0)
    mxfp8-quantized          weight f8_e4m3; weight_scale u8 (E8M0)

Packed codes and zero points have 2^(b−1) added: what is stored counts from 0. With 3, 5, 6 and 7 bits older versions
put ⌊32/b⌋ codes into a word and left the rest of it empty; how many words there are tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from ov_weight_compression.checkpoints.layouts.float_layouts import fp8_weight, mxfp4_weight, nvfp4_weight, scale_grid
from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    Grouping,
    LayoutRows,
    QuantisedWeight,
    RawTensor,
    Tensors,
    checked,
    codes_of,
    counted_from_zero,
    grouping_of,
    integer_weight,
    plain_grouping,
    required,
)
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array


@dataclass(frozen=True)
class CompressedTensorsScheme:
    """What the configuration says of a layer's weight."""

    format: str
    bits: int
    block: tuple[int, int] | None = None


def compressed_tensors_weight(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    """The weight of the layer whose tensors are called `layer.weight_packed` and so on.

    Raises:
        ModelError: the format is not read, a tensor is missing, or its type or shape contradicts the others'.
    """
    try:
        read = COMPRESSED_TENSORS_FORMATS[scheme.format]
    except KeyError:
        known = ", ".join(COMPRESSED_TENSORS_FORMATS)
        raise ModelError(f"{layer}: its format is {scheme.format!r}; those that are read: {known}") from None
    return read(tensors, layer, scheme)


def _packed(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    bits, name = scheme.bits, f"{layer}.weight_packed"
    packed = required(tensors, name)
    if packed.dtype != "I32" or len(packed.shape) < 2:
        raise ModelError(f"{name}: is {packed.dtype} {list(packed.shape)}, must be a matrix of I32")
    sizes = required(tensors, f"{layer}.weight_shape")
    if sizes.dtype not in ("I64", "I32") or prod(sizes.shape) < 2:
        raise ModelError(f"{layer}.weight_shape: is {sizes.dtype} {list(sizes.shape)}, must be I64 [2]")
    rows, columns = (int(size) for size in sizes.values().reshape(-1)[-2:])
    lead, words = packed.shape[:-2], packed.shape[-1]
    if packed.shape[-2] != rows or columns < 1:
        raise ModelError(f"{name}: has {packed.shape[-2]} rows, where {layer}.weight_shape says [{rows}, {columns}]")
    dense = _is_dense(name, words, columns, bits)
    scale = scale_grid(tensors, f"{layer}.weight_scale", (*lead, rows, columns), None)
    groups = -(-columns // scale.wide)
    names = [name, f"{layer}.weight_shape", f"{layer}.weight_scale"]
    grouping = plain_grouping(columns, scale.wide, groups, f"{layer}.weight_scale")
    index = f"{layer}.weight_g_idx"
    if index in tensors:
        stated = checked(tensors, index, ("I32", "I64"), (columns,)).values()
        names.append(index)
        if not (stated == -1).all():
            grouping = grouping_of(stated, index, groups)
    zeros: Callable[[int, int], npt.NDArray[np.uint8]] | None = None
    if f"{layer}.weight_zero_point" in tensors:
        names.append(f"{layer}.weight_zero_point")
        zeros = _packed_zero_points(tensors, names[-1], (*lead, rows), groups, bits, dense)

    def any_rows(numbers: Array) -> tuple[npt.NDArray[np.uint8], Array, npt.NDArray[np.uint8] | None]:
        count = prod(lead) * rows
        own = None if zeros is None else zeros(0, count)[numbers]
        return (
            _stream(packed.values().reshape(-1, words)[numbers], bits, columns, dense),
            scale.of(0, count)[numbers],
            own,
        )

    source = LayoutRows(
        any_rows=any_rows,
        codes=lambda first, last: _stream(packed.values().reshape(-1, words)[first:last], bits, columns, dense),
        scales=scale.of,
        zeros=zeros,
    )
    kind, shape = f"compressed-tensors {bits} bit", (*lead, rows, columns)
    return integer_weight(f"{layer}.weight", kind, shape, bits, grouping, source, tuple(names))


def _packed_zero_points(
    tensors: Tensors, name: str, rows: tuple[int, ...], groups: int, bits: int, dense: bool
) -> Callable[[int, int], npt.NDArray[np.uint8]]:
    """[last − first, G], counted from 0: packed like the codes, or, by older versions, plain signed bytes."""
    if required(tensors, name).dtype == "I8":
        plain = checked(tensors, name, ("I8",), (*rows, groups))
        middle = np.uint8(1 << (bits - 1))
        return lambda first, last: plain.values().reshape(-1, groups)[first:last].astype(np.uint8) + middle
    packed = checked(tensors, name, ("I32",), (*rows[:-1], None, groups))
    flat = _is_dense(name, packed.shape[-2], rows[-1], bits, expected=dense)
    return lambda first, last: _zero_points(packed, rows[-1], bits, flat, first, last)


def _is_dense(name: str, words: int, count: int, bits: int, expected: bool = True) -> bool:
    """Whether so many codes lie in so many words as one stream; else each word has codes of its own. Few codes can
    take as many words in both: then what is expected.

    Raises:
        ModelError: neither fits.
    """
    fits = {True: words == -(-count * bits // 32), False: words == -(-count // (32 // bits))}
    if fits[expected]:
        return expected
    if fits[not expected]:
        return not expected
    raise ModelError(f"{name}: {words} words do not hold {count} codes of {bits} bits")


def _stream(words: Array, bits: int, count: int, dense: bool) -> npt.NDArray[np.uint8]:
    if dense:
        return codes_of(words, bits, count)
    each = 32 // bits
    return codes_of(np.ascontiguousarray(words).reshape(-1, 1), bits, each).reshape(len(words), -1)[:, :count]


def _zero_points(tensor: RawTensor, rows: int, bits: int, dense: bool, first: int, last: int) -> npt.NDArray[np.uint8]:
    """[last − first, G], from words [experts…, ⌈rows·b/32⌉, G]."""
    words, groups = tensor.shape[-2:]
    stored = tensor.values().reshape(-1, words, groups)[first // rows : -(-last // rows)]
    each = [_stream(expert.T, bits, rows, dense).T for expert in stored]
    return np.concatenate(each)[first % rows :][: last - first]


def _integers(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    name = f"{layer}.weight"
    weight = checked(tensors, name, ("I8",), (None,) * max(2, len(required(tensors, name).shape)))
    shape = weight.shape
    columns = shape[-1]
    scale = scale_grid(tensors, f"{layer}.weight_scale", shape, scheme.block)
    names = [name, f"{layer}.weight_scale"]
    zeros: Callable[[int, int], npt.NDArray[np.uint8]] | None = None
    if f"{layer}.weight_zero_point" in tensors:
        names.append(f"{layer}.weight_zero_point")
        tensor = checked(tensors, names[-1], ("I8",), scale.tensor.shape)
        grid = replace(scale, tensor=tensor, name=names[-1])

        def zeros(first: int, last: int) -> npt.NDArray[np.uint8]:
            return counted_from_zero(grid.bits(first, last))

    source = LayoutRows(
        codes=lambda first, last: counted_from_zero(weight.values().reshape(-1, columns)[first:last]),
        scales=scale.of,
        zeros=zeros,
    )
    grouping: Grouping = plain_grouping(columns, scale.wide, -(-columns // scale.wide), names[1])
    return integer_weight(name, "compressed-tensors int8", shape, 8, grouping, source, tuple(names))


def _floats(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    weight = fp8_weight(tensors, f"{layer}.weight", f"{layer}.weight_scale", scheme.block, "compressed-tensors FP8")
    zero = f"{layer}.weight_zero_point"
    if zero not in tensors:
        return weight
    if tensors[zero].values().any():
        raise ModelError(f"{zero}: floats have no zero points, and these are not 0")
    return replace(weight, tensors=(*weight.tensors, zero))


def _naive(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    is_integer = required(tensors, f"{layer}.weight").dtype == "I8"
    return (_integers if is_integer else _floats)(tensors, layer, scheme)


def _nvfp4(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    whole = f"{layer}.weight_global_scale"
    packed, scales = f"{layer}.weight_packed", f"{layer}.weight_scale"
    return nvfp4_weight(tensors, f"{layer}.weight", packed, scales, whole, True, "compressed-tensors NVFP4")


def _mxfp4(tensors: Tensors, layer: str, scheme: CompressedTensorsScheme) -> QuantisedWeight:
    packed, scales = f"{layer}.weight_packed", f"{layer}.weight_scale"
    return mxfp4_weight(tensors, f"{layer}.weight", packed, scales, "compressed-tensors MXFP4")


COMPRESSED_TENSORS_FORMATS: dict[str, Callable[[Tensors, str, CompressedTensorsScheme], QuantisedWeight]] = {
    "pack-quantized": _packed,
    "int-quantized": _integers,
    "float-quantized": _floats,
    "naive-quantized": _naive,
    "nvfp4-pack-quantized": _nvfp4,
    "mxfp4-pack-quantized": _mxfp4,
    "mxfp8-quantized": _floats,
}
"""What reads each format."""
